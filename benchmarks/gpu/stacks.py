"""Is a stack of T networks faster than T networks one after another, and what would be faster still?

One optimiser step of ResNet18k (32x32x3, batch 128, Adam) on random images, in images of all networks per second:

``alone``: one network, step by step. ``alone_graph``: its step as a CUDA graph. ``streams_graph``: the steps of T
networks in one CUDA graph, each on a stream of its own. ``stack``: T groups in channels-last memory, as we train.
``stack_nchw``: the same in PyTorch's own layout. ``stack_graph`` and ``stack_nchw_graph``: these as CUDA graphs.
``stack_tuned``: not deterministic, kernels chosen by trial (cudnn.benchmark).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dd_core.jobs.worker import prepare_process
from dd_core.models.build import build
from dd_core.tasks.images import Classification
from dd_core.tasks.losses import CROSS_ENTROPY
from dd_core.training.precision import tensor_cores
from gpu.timing import DEVICE, as_scripts_do, captured, forget, medians, peak_memory_gib

BATCH = 128


class Training:
    """T networks as one stacked module, and its step on fixed images."""

    def __init__(self, k: int, trials: int, precision: str, layout: torch.memory_format, batch: int = BATCH):
        """``precision``: float32, tf32 or bfloat16."""
        torch.manual_seed(0)
        self.model = build("preact_resnet18", k, 3, 10, trials).to(DEVICE).to(memory_format=layout)
        self.images = torch.randn(batch, 3 * trials, 32, 32, device=DEVICE).contiguous(memory_format=layout)
        self.labels = torch.randint(0, 10, (batch, trials), device=DEVICE)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-4, fused=True, capturable=DEVICE.type == "cuda"
        )
        self.precision = precision

    def step(self) -> None:
        """Forward, backward, Adam."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model(self.images)
        Classification(CROSS_ENTROPY).losses(logits.float(), self.labels).mean(0).sum().backward()
        self.optimizer.step()


def on_streams(trainings: list[Training]) -> Callable[[], None]:
    """Steps side by side."""
    if DEVICE.type != "cuda":
        return lambda: [t.step() for t in trainings] and None
    streams = [torch.cuda.Stream() for _ in trainings]

    def step() -> None:
        current = torch.cuda.current_stream()
        for stream, training in zip(streams, trainings, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                training.step()
        for stream in streams:
            current.wait_stream(stream)

    return step


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """Several steps as one candidate."""

    def run() -> None:
        for _ in range(times):
            step()

    return run


def rates(k: int, trials: int, precision: str, times: int) -> dict[str, float]:
    """Images of all networks per second, by candidate; 0 for one that failed."""
    last, first = torch.channels_last, torch.contiguous_format
    forget()
    steps: dict[str, tuple[Callable[[], object], int]] = {}
    failed: dict[str, str] = {}

    def add(name: str, num: int, make: Callable[[], Callable[[], object]]) -> None:
        try:
            steps[name] = make(), num
        except RuntimeError as error:
            failed[name] = str(error).splitlines()[0][:120]
            torch.cuda.synchronize() if DEVICE.type == "cuda" else None

    add("alone", 1, lambda: Training(k, 1, precision, last).step)
    add("alone_graph", 1, lambda: captured(Training(k, 1, precision, last).step))
    add("stack", trials, lambda: Training(k, trials, precision, last).step)
    add("stack_graph", trials, lambda: captured(Training(k, trials, precision, last).step))
    add("stack_nchw", trials, lambda: Training(k, trials, precision, first).step)
    add("stack_nchw_graph", trials, lambda: captured(Training(k, trials, precision, first).step))
    add(
        "streams_graph",
        trials,
        lambda: captured(on_streams([Training(k, 1, precision, last) for _ in range(trials)])),
    )
    candidates = {name: repeated(step, times) for name, (step, _) in steps.items()}
    tuned = repeated(Training(k, trials, precision, last).step, times)

    def as_tuned() -> None:
        with as_scripts_do():
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            tuned()

    candidates["stack_tuned"] = as_tuned
    seconds = medians(candidates, repeats=5, warm_up=2)
    counts = {name: num for name, (_, num) in steps.items()} | {"stack_tuned": trials}
    return {name: counts[name] * BATCH * times / s for name, s in seconds.items()} | dict.fromkeys(failed, 0.0)


def layers(k: int, trials: int, size: int) -> dict[str, float]:
    """Milliseconds of one 3x3 convolution forward and backward in bfloat16: grouped in both layouts, and one by one."""

    def conv(groups: int, layout: torch.memory_format) -> Callable[[], None]:
        layer = nn.Conv2d(groups * k, groups * k, 3, padding=1, groups=groups, bias=False, device=DEVICE)
        layer = layer.to(torch.bfloat16).to(memory_format=layout)
        x = torch.randn(BATCH, groups * k, size, size, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
        upstream = torch.randn_like(x)

        def run() -> None:
            torch.autograd.grad(layer(x), (x, layer.weight), upstream)

        return run

    last, first = torch.channels_last, torch.contiguous_format
    seconds = medians(
        {
            "grouped": repeated(conv(trials, last), 10),
            "grouped_nchw": repeated(conv(trials, first), 10),
            "one_by_one": repeated(conv(1, last), 10 * trials),
        }
    )
    return {name: value * 100 for name, value in seconds.items()}


def run(clock: Any, small: bool, precision: str) -> Iterator[dict[str, Any]]:
    """Rows by width and number of trials, the commonest first."""
    prepare_process(threads=1)
    times = 1 if small else 5
    cases = [(4, 5), (16, 5), (64, 5), (1, 5), (8, 5), (32, 5), (4, 8), (16, 8), (4, 16)]
    for k, number in cases[:1] if small else cases:
        trials = 2 if small else number
        with tensor_cores("tf32" if precision == "tf32" else "float32"):
            row = rates(k, trials, precision, times)
        best = max(row, key=lambda name: row[name])
        yield {"precision": precision, "k": k, "trials": trials, **row, "best": best, "gib": peak_memory_gib()}
        if clock.left < 8:
            return
    if precision == "bfloat16":
        for k, size in ((4, 32), (16, 32), (64, 32), (128, 8)) if not small else ((4, 8),):
            yield {"what": f"convolution {k}->{k} at {size}x{size}, 5 groups, ms", **layers(k, 5, size)}
