"""One pass after another over the images, in batches that shrink when memory runs out."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from dd_core.machine.memory import in_blocks

Result = TypeVar("Result")


class Batches:
    """Images and labels, handed out in batches on the device and in the precision of the work.

    Attributes:
        images, labels: (N, ...) and (N,), wherever they are; only a batch at a time is moved.
        size: images per batch; halved, for all later passes too, whenever a batch does not fit into memory.
        device, dtype: of the work.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int, device: torch.device, dtype: torch.dtype):
        """Keep references."""
        self.images, self.labels, self.device, self.dtype = images, labels, device, dtype
        self.size = max(1, min(size, len(images)))

    @property
    def is_single(self) -> bool:
        """Whether one batch holds all images, so that what was computed for it serves every pass."""
        return len(self.images) <= self.size

    def map(self, work: Callable[[Tensor, Tensor], Result]) -> Iterator[Result]:
        """``work(images, labels)`` of every batch in order.

        Raises:
            UserError: the memory does not even hold the work on a single image.
        """

        def compute(start: int, stop: int, size: int) -> Result:
            self.size = size
            images = self.images[start:stop].to(self.device, self.dtype, non_blocking=True)
            return work(images, self.labels[start:stop].to(self.device, non_blocking=True))

        yield from in_blocks(compute, len(self.images), self.size)
