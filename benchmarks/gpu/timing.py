"""Medians of what the device takes, candidates in turn."""

import contextlib
import statistics
from collections.abc import Callable, Iterator

import torch
from common import interleaved

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the device has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def medians(candidates: dict[str, Callable[[], object]], repeats: int = 5, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each candidate, run in turn; a repetition ends when the device is done."""

    def timed(run: Callable[[], object]) -> Callable[[], None]:
        def run_and_wait() -> None:
            run()
            wait()

        return run_and_wait

    measured = interleaved({name: timed(run) for name, run in candidates.items()}, repeats, warm_up)
    return {name: statistics.median(values) for name, values in measured.items()}


def captured(step: Callable[[], object], warm_up: int = 3) -> Callable[[], object]:
    """The step as a CUDA graph, or itself where there is no CUDA."""
    if DEVICE.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(kept: Callable[[], object] = step) -> None:  # the graph reads the memory of what the step holds
        graph.replay()

    return replay


@contextlib.contextmanager
def as_scripts_do() -> Iterator[None]:
    """PyTorch as it comes to a user's script: kernels that need not be deterministic, TF32 convolutions, autotuning."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
    )
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[1:]


def peak_memory_gib() -> float:
    """Since the last reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def forget() -> None:
    """Free what the candidates before held."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
