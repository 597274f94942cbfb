"""The same work with 1, 2 and 4 workers of one thread on this machine, in turn; and what a shard takes to begin.

Eight equal arms of ResNet10k on the digits are trained, and eight checkpoints get per-image curvature, by the local
backend as it is. Seconds are from the first task's start to the last one's end; the start of the workers is told apart.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import load_average
from setups import RECIPES, make_setup, use_made_up_cifar, write_made_up_cifar

from dd_assets.compute.local import run_job
from dd_core.jobs.job import Job, result_job, training_job
from dd_core.jobs.worker import prepare_process
from dd_core.machine.devices import num_cores
from dd_core.models.build import build
from dd_core.results.per_image_curvature import compute_shard
from dd_core.store.checkpoints import save_checkpoint, save_weights
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study

NUM_WORKERS = (1, 2, 4)
NUM_ARMS = 8


def equal_arms(epochs: int) -> Study:
    """Eight variants that differ in name alone."""
    content = {
        "name": "equal",
        "description": "speed",
        "data": {"dataset": "digits", "num_train": 1000},
        "variants": {f"v{number}": RECIPES["digits"] for number in range(NUM_ARMS)},
        "widths": [4],
        "trials": 1,
        "epochs": epochs,
        "checkpoints": [epochs],
        "evaluation": {"every": epochs},
        "monitors": {"validation": None, "norms": None, "hessian": None, "noise": None},
    }
    return Study.model_validate(content, strict=False)


def seconds_of(job: Job) -> tuple[float, float]:
    """From the start of the first task to the end of the last, and from the beginning to the first task."""
    began = time.perf_counter()
    first = last = 0.0
    for event in run_job(job):
        if event.name == "failed":
            raise RuntimeError(event.error)
        if event.name == "started":
            first = first or time.perf_counter()
        if event.name == "finished":
            last = time.perf_counter()
    return last - first, first - began


def report(quick: bool) -> dict[str, float]:
    """Print; speed-ups by key."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one worker per core is what is measured
    repeats, study = (3, equal_arms(5)) if quick else (5, equal_arms(20))
    checkpoints = list(study.iter_checkpoints())
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def train(workers: int) -> tuple[float, float]:
            shutil.rmtree(folder / "train", ignore_errors=True)
            return seconds_of(training_job(folder / "train", study, checkpoints, workers, 1))

        def curve(workers: int) -> tuple[float, float]:
            shutil.rmtree(Store(folder / "train").table_folder("per_image_curvature"), ignore_errors=True)
            work = [(study.name, checkpoint) for checkpoint in checkpoints]
            return seconds_of(
                result_job("per_image_curvature", folder / "train", {study.name: study}, work, workers, 1)
            )

        print(f"{NUM_ARMS} equal tasks, {num_cores()} cores, medians of {repeats} ({load_average()})")
        print(f"{'':12s}{'workers':>8s}{'seconds':>9s}{'speed-up (smallest, largest)':>30s}", end="")
        print(f"{'efficiency':>12s}{'start':>8s}")
        candidates: dict[str, Callable[[int], tuple[float, float]]] = {"train": train, "curvature": curve}
        for what, run in candidates.items():
            ratios |= _speed_ups(what, run, repeats)
        _shards(folder, repeats)
    return ratios


def _speed_ups(what: str, run: Callable[[int], tuple[float, float]], repeats: int) -> dict[str, float]:
    """Run with every number of workers in turn; print, and return speed-ups over one worker by key."""
    measured: dict[int, list[tuple[float, float]]] = {workers: [] for workers in NUM_WORKERS}
    for repeat in range(repeats + 1):
        for workers in NUM_WORKERS:
            result = run(workers)
            if repeat:
                measured[workers].append(result)
    ratios = {}
    for workers, results in measured.items():
        speed_ups = [one / several for (one, _), (several, _) in zip(measured[1], results, strict=True)]
        median = statistics.median(speed_ups)
        print(f"{what:12s}{workers:8d}{statistics.median(s for s, _ in results):9.2f}", end="")
        print(f"{f'{median:.2f} ({min(speed_ups):.2f}, {max(speed_ups):.2f})':>30s}", end="")
        print(f"{median / min(workers, num_cores()):12.1%}{statistics.median(s for _, s in results):7.1f}s", flush=True)
        if workers > 1:
            ratios[f"{what}_{workers}"] = median
    return ratios


def _shards(folder: Path, repeats: int) -> None:
    """What a shard of CIFAR takes beside its images, in a worker that has done one before."""
    write_made_up_cifar(folder / "datasets", num_train=50_000, num_test=10_000)
    use_made_up_cifar(folder / "datasets")
    prepare_process(1)
    for trials in (1, 5):
        setup = make_setup("", "cifar10", 8, trials, 1)
        store, checkpoint = Store(folder / f"shards-{trials}"), Checkpoint(setup.arm, 4000)
        weights = save_weights(store, setup.study, checkpoint, [(trials, _weights(8, trials))])
        save_checkpoint(store, setup.study, checkpoint, {"weights": weights}, {}, {}, "cpu", {})
        sizes, start = (16, 48), 0
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for repeat in range(repeats + 1):
            for size in sizes:
                began = time.perf_counter()
                compute_shard(setup.study, checkpoint, store, (start, start + size))
                start += size
                if repeat:
                    seconds[size].append(time.perf_counter() - began)
        small, large = (statistics.median(seconds[size]) for size in sizes)
        per_image = (large - small) / (sizes[1] - sizes[0])
        begin = small - sizes[0] * per_image
        print(f"a shard of CIFAR-10, k = 8, trials: {trials}: {begin:.2f} s beside its images, ", end="")
        print(f"{per_image * 1000:.1f} ms each", flush=True)


def _weights(k: int, trials: int) -> dict[str, Any]:
    """Untrained ones, as a stack of trials has them."""
    torch.manual_seed(0)
    state = build("preact_resnet18", k, 3, 10).state_dict()
    return {name: torch.cat([tensor] * trials) for name, tensor in state.items() if tensor.dim()}
