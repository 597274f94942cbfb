"""One, two and four real processes that share the images unevenly give the same Hessian."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from core.dense_hessians import labels_for, network, pictures
from dd_core.curvature.parameter_space import analyse_hessian, process_group
from dd_core.curvature.parameter_space.distributed import gather_over
from dd_core.errors import UserError
from dd_core.study.hessian import HessianSettings

pytestmark = pytest.mark.slow

NUM_IMAGES = 7
PATIENCE = 120  # seconds
_context = multiprocessing.get_context("forkserver")
# Imported once, not by every process; the tests' own modules are not on the server's path.
_context.set_forkserver_preload(["dd_core.curvature.parameter_space", "hypothesis.extra.numpy", "pytest"])


def _rank(rank: int, num_ranks: int, folder: Path, job: Callable[[int, int, Any], Any]) -> None:
    """What one process does: join, work, leave its result behind."""
    torch.set_num_threads(1)
    try:
        with process_group(rank, num_ranks, f"file://{folder}/meet", timeout_seconds=60) as group:
            result = job(rank, num_ranks, group)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, folder / f"{rank}.pt")


def run(num_ranks: int, folder: Path, job: Callable[[int, int, Any], Any]) -> list[Any]:
    """Results of all ranks, each a process of its own."""
    processes = [_context.Process(target=_rank, args=(rank, num_ranks, folder, job)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def share(rank: int, num_ranks: int) -> slice:
    """Of seven images: 4 and 3, or 2, 2, 2 and 1."""
    return slice(rank, None, num_ranks)


def _analysis(rank: int, num_ranks: int, group: Any) -> dict[str, Any]:
    own = share(rank, num_ranks)
    images, labels = pictures(NUM_IMAGES)[own], labels_for(10, NUM_IMAGES)[own]
    results = {}
    for precision in ("float64", "float32"):
        options = HessianSettings(
            batch_size=2,
            precision=precision,
            density_steps=5,
            density_probes=2,
            num_eigenvalues=2,
            lanczos_tolerance=1e-5,
            hutchinson_probes=4,
            hutch_plus_plus_products=6,
        )
        results[precision] = vars(analyse_hessian(network("cnn5", 10), images, labels, options, group=group))
    return results


def test_one_two_and_four_processes_give_the_same_numbers(tmp_path: Path) -> None:
    alone = _analysis(0, 1, None)
    for num_ranks in (1, 2, 4):
        folder = tmp_path / str(num_ranks)
        folder.mkdir()
        found = run(num_ranks, folder, _analysis)
        for rank in range(num_ranks):
            assert isinstance(found[rank], dict), found[rank]
            for precision, expected in alone.items():
                compare(found[rank][precision], expected, f"{num_ranks} processes, rank {rank}, {precision}")
                assert_equal_bits(found[rank][precision], found[0][precision])


def compare(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """To 1e-5, of the largest where it is an array; a residual of the largest eigenvalue."""
    scale = abs(expected["eigenvalues"]).max()
    assert found["num_images"] == expected["num_images"] == NUM_IMAGES
    for name, value in expected.items():
        if name == "log10_density":
            continue  # minus hundreds where the density is nothing
        if isinstance(value, dict):
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-9), (where, name)
        if isinstance(value, float | np.ndarray):
            size = scale if "residual" in name else np.abs(value).max()
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * size, err_msg=f"{where}: {name}")


def assert_equal_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
        elif name not in ("layers",):
            assert found[name] == value, name


def _bad_labels_on_the_last_rank(rank: int, num_ranks: int, group: Any) -> str:
    labels = labels_for(10, 4) + (10 if rank == num_ranks - 1 else 0)
    try:
        analyse_hessian(network("mlp", 10), pictures(4), labels, HessianSettings(), group=group)
    except UserError as error:
        return str(error)
    return "nothing was refused"


def _gathered(rank: int, num_ranks: int, group: Any) -> list[float]:
    values = torch.arange(rank, dtype=torch.float64) + 10 * rank  # none, one, two values
    return gather_over(group, values).tolist()


def test_bad_data_of_one_process_are_refused_by_all_at_once(tmp_path: Path) -> None:
    first, second = run(2, tmp_path, _bad_labels_on_the_last_rank)
    assert first == "1 of the other ranks could not go on; see what they said"
    assert second.startswith("labels reach from")


def test_values_of_all_ranks_are_collected_in_order(tmp_path: Path) -> None:
    for found in run(3, tmp_path, _gathered):
        assert found == [10.0, 20.0, 21.0]


def _one_rank_is_gone(rank: int, num_ranks: int, group: Any) -> str:
    started = time.monotonic()
    try:
        dist.barrier(group=group)  # who goes before all are connected breaks the meeting itself
        if rank:
            return "gone"
        dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError:
        return f"raised after {time.monotonic() - started:.0f} s"
    return "went on alone"


def test_a_rank_that_is_gone_does_not_make_the_others_wait_for_ever(tmp_path: Path) -> None:
    assert run(2, tmp_path, _one_rank_is_gone)[0].startswith("raised")


def test_gathering_alone_is_nothing() -> None:
    values = torch.arange(3)
    assert gather_over(None, values) is values
