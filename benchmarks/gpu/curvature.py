"""Per-image curvature: ratios to the published scorer, and which number of images at a time is the best.

Networks and peers are those of ``per_image_curvature.py``, on the device. ``block``: images per pass of the exact
method, with the memory each takes.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import per_image_curvature as peers
import torch

from dd_core.curvature import per_image_curvature
from dd_core.jobs.worker import prepare_process
from gpu.timing import DEVICE, forget, medians, peak_memory_gib


def comparison(k: int, num_classes: int, num_images: int, epochs: int) -> Iterator[dict[str, Any]]:
    """A row for every candidate of the CPU's benchmark."""
    forget()
    rows, exact, flops = peers.candidates(k, num_classes, num_images, epochs, DEVICE)
    seconds = medians({name: row.run for name, row in rows.items()}, repeats=5, warm_up=1)
    rate = {name: row.num_images / seconds[name] for name, row in rows.items()}
    for name, row in rows.items():
        error = None
        if row.traces is not None:
            relative = row.traces.double().cpu() / exact.cpu()[: len(row.traces)] - 1
            error = statistics.median(relative.abs().tolist())
        yield {
            "k": k,
            "classes": num_classes,
            "method": name,
            "images/s": rate[name],
            "over published": rate[name] / rate["(a) published"],
            "GFLOP/s": rate[name] * row.passes * flops / 1e9,
            "median error": error,
        }


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
        yield from comparison(1, 10, 128, 1)
        yield from blocks(1, 10, (16,), 32)
        return
    for k, classes, num_images, epochs in ((8, 100, 2048, 4), (64, 100, 256, 1), (8, 10, 4096, 6), (64, 10, 1024, 2)):
        yield from comparison(k, classes, num_images, epochs)
        if clock.left < 20:
            return
    yield from blocks(64, 10, (64, 256, 1024), 1024)
    if clock.left > 10:
        yield from blocks(8, 10, (128, 512, 2048), 4096)
