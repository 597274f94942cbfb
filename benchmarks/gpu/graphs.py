"""Graph networks: right under deterministic kernels, and graphs per second beside the loops of ``graphs.py``."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from setups import nsm_study

from dd_core.jobs.worker import prepare_process
from dd_core.study.graphs import DOMAINS
from dd_core.study.study import Arm
from dd_core.training.trial_stack import TrialStack
from gpu.timing import DEVICE, as_scripts_do, forget, medians, peak_memory_gib, wait

ARM = Arm("plain", 64)
CPU = torch.device("cpu")


def losses(domain: str, device: torch.device, dtype: torch.dtype, **settings: Any) -> np.ndarray:
    """Losses of every step of two epochs."""
    stack = TrialStack(nsm_study(domain, 256, **settings), ARM, [0], device, dtype)
    return np.concatenate([stack.train_epoch(epoch).loss for epoch in (1, 2)])


def agreement(domain: str) -> dict[str, Any]:
    """Losses in float64 without dropout, whose draws differ between devices, against the CPU's; bits of two runs."""
    here, there = (losses(domain, device, torch.float64, dropout=0.0) for device in (CPU, DEVICE))
    first, again = (losses(domain, DEVICE, torch.float32) for _ in range(2))
    return {
        "what": "right?",
        "domain": domain,
        "largest difference to the CPU": float(np.abs(there / here - 1).max()),
        "same bits twice": bool(np.array_equal(first, again)),
    }


def speeds(domain: str, num_train: int) -> dict[str, Any]:
    """Graphs per second in float32; kernels of a step, and the share of the time that they keep the device busy."""
    import graphs as peers  # needs PyTorch Geometric

    forget()
    study = nsm_study(domain, num_train)
    stack = TrialStack(study, ARM, [0], DEVICE, torch.float32)
    loops = {
        "PyG": peers.with_pygs_network(study, ARM),
        "our network in PyG's loop": peers.with_our_network(
            study, ARM, {name: tensor.cpu() for name, tensor in stack.weights_of(0).items()}
        ),
    }
    runs: dict[str, Callable[[], object]] = {"ours": lambda: stack.train_epoch(1)}
    runs |= {name: _on_device(loop) for name, loop in loops.items()}
    seconds = medians(runs, repeats=3, warm_up=1)
    rates = {name: num_train / value for name, value in seconds.items()}
    with torch.profiler.profile() as profile:
        stack.train_epoch(1)
        wait()
    events = profile.key_averages()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "what": "graphs/s",
        "domain": domain,
        **rates,
        "over PyG": rates["ours"] / rates["PyG"],
        "kernels of a step": sum(event.count for event in kernels) / stack.calendar.steps_of(1),
        "busy": sum(event.self_device_time_total for event in kernels) / 1e6 / seconds["ours"],
        "gib": peak_memory_gib(),
    }


def _on_device(loop: Any) -> Callable[[], object]:
    """A loop with its network there, each batch moved when it comes, with kernels as they come to a script."""
    loop.network.to(DEVICE)
    loss = loop.loss
    loop.loss = lambda batch: loss(batch.to(DEVICE))

    def run() -> None:
        with as_scripts_do():
            loop()

    return run


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Whether it is right, by domain, then how fast."""
    prepare_process(threads=1)
    for domain in DOMAINS:
        try:
            yield agreement(domain)
        except RuntimeError as error:  # an operation without a deterministic kernel says so
            yield {"what": "failed", "domain": domain, "error": str(error)[:600]}
    for domain in DOMAINS:
        if clock.left < 10:
            return
        yield speeds(domain, 256 if small else 2000)
