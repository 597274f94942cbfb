"""Per-image curvature: ratios to the published scorer, and which number of images at a time is the best.

Networks and peers are those of ``per_image_curvature.py``, on the device. ``block``: images per pass of the exact
method, with the memory each takes.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import per_image_curvature as peers
import torch

from dd_core.curvature import per_image_curvature
from dd_core.jobs.worker import prepare_process
from gpu.timing import DEVICE, forget, medians, peak_memory_gib, wait

# What is wanted most comes first; the last take as long as all others.
ORDER = ("forward", "(a) published", "exact float32", "exact bfloat16")
LAST = ("(b) double backward", "(d) loop over images")
SECONDS = 2.5  # of repetitions of a row


def comparison(
    clock: Any, k: int, num_classes: int, num_images: int, epochs: int, reserve: float = 0.0
) -> Iterator[dict[str, Any]]:
    """A row for every candidate of the CPU's benchmark, one after the other, while more than ``reserve`` s are left."""
    forget()
    rows, exact, flops = peers.candidates(k, num_classes, num_images, epochs, DEVICE, num_exact=32)
    order = [*ORDER, *(name for name in rows if name not in ORDER + LAST), *LAST]
    published, slowest = 0.0, 0.0
    for name in order:
        # A row like the slowest one so far would end in time.
        if clock.left < reserve + 3 + slowest:
            return
        row, began = rows[name], time.monotonic()
        seconds, result = _seconds(row.run)
        slowest = max(slowest, time.monotonic() - began)
        rate = row.num_images / seconds
        published = rate if name == "(a) published" else published
        errors = row.errors(result, exact)
        yield {
            "k": k,
            "classes": num_classes,
            "method": name,
            "images/s": rate,
            "over published": rate / published if published else None,
            "GFLOP/s": rate * row.passes_of(result) * flops / 1e9,
            "median error": None if errors is None else errors.median().item(),
        }


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """The median of one to five repetitions after a first run, and what that gave."""
    result = run()
    wait()
    taken: list[float] = []
    while not taken or (len(taken) < 5 and sum(taken) < SECONDS):
        began = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), result


def blocks(k: int, num_classes: int, sizes: tuple[int, ...], num_images: int) -> Iterator[dict[str, Any]]:
    """Images per second of the exact method by images at a time."""
    images, labels = peers.made_up_images(num_classes, num_images)
    images, labels = images.to(DEVICE), labels.to(DEVICE)
    torch.manual_seed(0)
    model = peers.build("preact_resnet18", k, 3, num_classes).eval().to(DEVICE).to(memory_format=torch.channels_last)
    for precision in (torch.float32, torch.bfloat16):
        for size in (None, *sizes):
            forget()
            run = lambda size=size, p=precision: per_image_curvature(  # noqa: E731
                model, images, labels, precision=p, batch_size=size
            )
            seconds = medians({"run": run}, repeats=3, warm_up=1)["run"]
            yield {
                "k": k,
                "classes": num_classes,
                "method": f"exact {str(precision).removeprefix('torch.')}",
                "block": size or "default",
                "images/s": num_images / seconds,
                "gib": peak_memory_gib(),
            }


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Ratios at k = 8 and 64 with 100 classes, then with 10; then blocks."""
    prepare_process(threads=1)
    if small:
        yield from comparison(clock, 1, 10, 128, 1)
        yield from blocks(1, 10, (16,), 32)
        return
    yield from comparison(clock, 8, 100, 512, 4, reserve=clock.left / 2)
    yield from comparison(clock, 64, 100, 256, 1)
    for k, num_images, epochs in ((8, 4096, 6), (64, 1024, 2)):
        if clock.left < 20:
            return
        yield from comparison(clock, k, 10, num_images, epochs)
    yield from blocks(64, 10, (64, 256, 1024), 1024)
    if clock.left > 10:
        yield from blocks(8, 10, (128, 512, 2048), 4096)
