"""Our trainer against the plain loops, images per second of one process with the GPU to itself, in turn.

``ours``: ``TrialStack`` as workers run it, all trials. ``eager``: ours without CUDA graphs. ``memory``: the plain loop
with its images on the device. ``loader``: with a DataLoader of 4 processes. Peers are PyTorch as it comes (TF32
convolutions, autotuned kernels), with autocast where ours has it, one trial at a time. ``share``: of the speed of a
large matrix product in the same precision.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from plain_loop import PlainLoop
from setups import Setup, make_setup, use_made_up_cifar, write_made_up_cifar

from dd_core.forecast.work import training_flops
from dd_core.jobs.worker import prepare_process
from dd_core.training.precision import tensor_cores
from dd_core.training.trial_stack import TrialStack, stacking
from gpu.timing import DEVICE, as_scripts_do, forget, medians, peak_memory_gib


def product_speed(precision: str, size: int) -> float:
    """FLOP/s of a large matrix product: what can be had in practice."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.randn(size, size, device=DEVICE, dtype=dtype)

    def multiply() -> None:
        with tensor_cores("tf32" if precision == "tf32" else "float32"):
            for _ in range(10):
                matrix @ matrix

    return 10 * 2 * size**3 / statistics.median([medians({"product": multiply})["product"]])


def ours(setup: Setup, eager: bool = False) -> Callable[[], None]:
    """All trials of the arm, stacked as they are."""
    groups = stacking(setup.study, setup.arm, on_gpu=True)
    stacks = [TrialStack(setup.study, setup.arm, group, DEVICE, torch.float32) for group in groups]
    for stack in stacks if eager else ():
        stack.stepper.graph = None

    def run() -> None:
        for stack in stacks:
            stack.run_steps(setup.num_steps)

    return run


def loosely(run: Callable[[], object]) -> Callable[[], None]:
    """As scripts do it."""

    def loose() -> None:
        with as_scripts_do():
            run()

    return loose


def case(k: int, trials: int, precision: str, num_steps: int, peak: float, with_loader: bool) -> dict[str, Any]:
    """A row."""
    forget()
    setup = make_setup("", "cifar10", k, trials, num_steps, precision=precision)
    candidates: dict[str, Callable[[], object]] = {"ours": ours(setup), "eager": ours(setup, eager=True)}
    candidates["memory"] = loosely(PlainLoop(setup.study, setup.arm, num_steps, DEVICE, in_memory=True))
    if with_loader:
        candidates["loader"] = loosely(PlainLoop(setup.study, setup.arm, num_steps, DEVICE, in_memory=False))
    seconds = medians(candidates, repeats=5, warm_up=1)
    counts = {"ours": trials, "eager": trials, "memory": 1, "loader": 1}
    batch = setup.study.variants[setup.arm.variant].batch_size
    rate = {name: counts[name] * num_steps * batch / value for name, value in seconds.items()}
    return {
        "precision": precision,
        "k": k,
        "trials": trials,
        **rate,
        "ours/memory": rate["ours"] / rate["memory"],
        **({"ours/loader": rate["ours"] / rate["loader"]} if with_loader else {}),
        "share": rate["ours"] * training_flops(setup.study, setup.arm) / peak,
        "gib": peak_memory_gib(),
    }


# Precision, k and trials.
CASES = {
    "first": [
        *(("bfloat16", 64, 1), ("bfloat16", 4, 5), ("bfloat16", 16, 5)),
        *(("float32", 64, 1), ("float32", 4, 5), ("tf32", 64, 1)),
    ],
    "rest": [
        *(("bfloat16", 64, 5), ("tf32", 4, 5), ("bfloat16", 1, 5), ("bfloat16", 4, 1), ("bfloat16", 16, 1)),
        *(("tf32", 16, 5), ("float32", 16, 5), ("bfloat16", 32, 5)),
    ],
}


def run(clock: Any, small: bool, which: str = "first") -> Iterator[dict[str, Any]]:
    """Rows by precision and width; the widest in bfloat16 first."""
    prepare_process(threads=1)
    with tempfile.TemporaryDirectory() as name:
        write_made_up_cifar(Path(name), num_train=10_000 if small else 50_000, num_test=1_000)
        use_made_up_cifar(Path(name))
        peaks: dict[str, float] = {}
        for number, (precision, k, trials) in enumerate([("bfloat16", 2, 2)] if small else CASES[which]):
            if precision not in peaks:
                peaks[precision] = product_speed(precision, 512 if small else 8192)
                yield {"what": "matrix product", "precision": precision, "TFLOP/s": peaks[precision] / 1e12}
            steps = 1 if small else 40
            yield case(k, trials, precision, steps, peaks[precision], with_loader=number < 2 and which == "first")
