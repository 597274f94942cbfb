"""A training step as a CUDA graph: the same kernels in the same order, started by one call instead of hundreds.

A step of a narrow network is hundreds of kernels of microseconds, which Python cannot start as fast as a GPU ends them:
ResNet18k alone in bfloat16 takes 2 to 4 times as long without a graph (H200, benchmarks/on_gpu.py). What is computed is
the same to the bit, so results say nothing about it and a training may go on with or without. ``DD_CUDA_GRAPHS=0``
leaves graphs out.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

_LOG = logging.getLogger(__name__)
# Steps done as usual before one is captured: libraries make their choices and optimisers their state in the first.
_WARM_UP_STEPS = 3

# Images and labels to what is known of the step; all tensors.
Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def wanted() -> bool:
    """Whether graphs may be made at all."""
    return os.environ.get("DD_CUDA_GRAPHS") != "0"


@dataclass
class _Captured:
    """A graph, and the tensors that it reads and writes: they stay where they are as long as it lives."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    results: tuple[Tensor, ...]
    gradients: list[Tensor | None]


class GraphedStep:
    """Does a step, from the fourth time on as a CUDA graph, for batches of one shape; others are computed as usual."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        """Nothing is captured yet; ``parameters`` are those whose ``.grad`` a step leaves behind."""
        self._parameters = list(parameters)
        self._shape: torch.Size | None = None
        self._num_calls = 0
        self._captured: _Captured | None = None
        self._is_usable = True

    def __call__(self, step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Do the step.

        Args:
            step: forward and backward pass and the optimiser's step, the same function at every call. It takes settings
                that change from tensors on the device, and waits for nothing.
            images: on the GPU, floating point.
            labels: on the GPU, int64.

        Returns:
            What the step returns; ``.grad`` of the parameters is that of this step.
        """
        self._shape = self._shape or images.shape
        if not self._is_usable or images.shape != self._shape:
            return step(images, labels)
        self._num_calls += 1
        if self._num_calls <= _WARM_UP_STEPS:
            return _on_side_stream(step, images, labels)
        if self._captured is None:
            if _has_room(images.device):
                self._captured = self._capture(step, images, labels)
            if self._captured is None:
                self._is_usable = False
                _LOG.info("no CUDA graph of the training step, which is slower: too little memory is free for its own")
                return step(images, labels)
        known = self._captured
        known.images.copy_(images)
        known.labels.copy_(labels)
        known.graph.replay()
        for parameter, gradient in zip(self._parameters, known.gradients, strict=True):
            parameter.grad = gradient
        return tuple(result.clone() for result in known.results)

    def _capture(self, step: Step, images: Tensor, labels: Tensor) -> _Captured | None:
        """None where memory runs out; nothing was computed then."""
        graph = torch.cuda.CUDAGraph()
        images, labels = images.clone(), labels.clone()  # in their own layout
        torch.cuda.synchronize(images.device)
        try:
            with torch.cuda.graph(graph):
                results = step(images, labels)
        except torch.OutOfMemoryError:
            for parameter in self._parameters:
                parameter.grad = None
            return None
        return _Captured(graph, images, labels, results, [parameter.grad for parameter in self._parameters])


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one: memory that was freed on a stream is used again by the same stream


def _on_side_stream(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """As a capture wants the steps before it: what they make must not belong to the default stream."""
    current, side = torch.cuda.current_stream(images.device), _side_stream(images.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        results = step(images, labels)
    current.wait_stream(side)
    for tensor in (images, labels):
        tensor.record_stream(side)
    for tensor in results:
        tensor.record_stream(current)
    return results


def _has_room(device: torch.device) -> bool:
    """Whether a graph's memory, which nothing else can use, leaves as much again: else images would be halved.

    What a step needs beside what stays is at most the difference of the largest memory so far and the present one.
    """
    needed = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    # A process may have been allowed a part of the memory only.
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return 2 * needed < min(free, allowed)
