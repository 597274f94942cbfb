"""Cotangents on their way back through a network: whose they are, where they wait, what may be overwritten."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Rows:
    """R cotangents in one batch: consecutive groups of images, those of a group with equally many each.

    Attributes:
        groups: (images, cotangents of each) of every group.
        images: int64, which of the linearised images they belong to, in order; None: to all of them, in their order.
    """

    groups: tuple[tuple[int, int], ...]
    images: Tensor | None = None

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, ...) to (images, cotangents of each, ...) of every group, views."""
        parts = rows.split([count * each for count, each in self.groups])
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups, strict=True)]

    def multiply(self, rows: Tensor, values: Tensor, in_place: bool = False) -> Tensor:
        """Cotangents (R, ...) times the values (B, ...) of the linearised images."""
        if self.images is not None:
            values = values.index_select(0, self.images)
        values = values.unsqueeze(1)
        if len(self.groups) == 1 and not in_place:
            return (rows.unflatten(0, self.groups[0]) * values).flatten(0, 1)
        product = rows if in_place else rows.clone()
        for part, own in zip(self.split(product), values.split([count for count, _ in self.groups]), strict=True):
            part.mul_(own)
        return product

    def repeat(self, values: Tensor) -> Tensor:
        """The values (B, ...) of the linearised images, once for every cotangent: (R, ...)."""
        chosen = values if self.images is None else values.index_select(0, self.images)
        counts = torch.tensor([each for count, each in self.groups for _ in range(count)], device=values.device)
        return chosen.repeat_interleave(counts, dim=0)


def in_one_batch(cotangents: Sequence[Tensor], images: Tensor | None) -> tuple[Tensor, Rows]:
    """Cotangents (images, m, C) of several groups of images as (R, C)."""
    groups = tuple((part.shape[0], part.shape[1]) for part in cotangents)
    return torch.cat([part.flatten(0, 1) for part in cotangents]), Rows(groups, images)


class Waiting:
    """Cotangents by the node whose value they belong to.

    Those of the images are (R, ...). Where all images still share what comes back, (C, ...) unit cotangents stand for
    all of them, to be combined for each image when a mask or a residual sum parts them.
    """

    def __init__(self, combinations: Tensor):
        """``combinations`` (R, C) say how each row combines the shared unit cotangents."""
        self._combinations = combinations
        self._own: dict[fx.Node, tuple[Tensor, bool]] = {}
        self._shared: dict[fx.Node, Tensor] = {}

    def add(self, node: fx.Node, cotangent: Tensor, fresh: bool, grid: Grid | None = None) -> None:
        """Let cotangents of the images wait, added to those that are there.

        Args:
            node: whose value they belong to.
            cotangent: (R, ...).
            fresh: nobody else holds this memory, so it may be changed in place.
            grid: (stride, height, width) if only every stride-th pixel is given.
        """
        if node not in self._own:
            self._own[node] = dense(cotangent, grid), fresh or grid is not None
            return
        present, is_fresh = self._own[node]
        if is_fresh:
            _pixels_of(present, grid).add_(cotangent)
        elif fresh and grid is None:
            present = cotangent.add_(present)
        else:
            present = present + dense(cotangent, grid)
        self._own[node] = present, True

    def share(self, node: fx.Node, units: Tensor) -> None:
        """Let shared unit cotangents wait, (C, ...)."""
        self._shared[node] = self._shared[node] + units if node in self._shared else units

    def take_shared(self, node: fx.Node) -> Tensor | None:
        """The shared ones, if no image has its own there."""
        return None if node in self._own else self._shared.pop(node, None)

    def take(self, node: fx.Node) -> tuple[Tensor | None, bool]:
        """What the images have, shared ones combined for each, and whether it is fresh."""
        units = self._shared.pop(node, None)
        if units is not None:
            self.add(node, self._combine(units), fresh=True)
        return self._own.pop(node, (None, False))

    def _combine(self, units: Tensor) -> Tensor:
        """(C, ...) to (R, ...), images in channels-last memory."""
        if units.ndim != 4:
            return (self._combinations @ units.flatten(1)).unflatten(1, units.shape[1:])
        by_pixel = units.permute(0, 2, 3, 1)
        combined = self._combinations @ by_pixel.flatten(1)
        return combined.unflatten(1, by_pixel.shape[1:]).permute(0, 3, 1, 2)


def dense(cotangent: Tensor, grid: Grid | None) -> Tensor:
    """Cotangents given at every stride-th pixel, with 0 at all others."""
    if grid is None:
        return cotangent
    num_rows, channels = cotangent.shape[:2]
    _, height, width = grid
    full = cotangent.new_zeros(num_rows, channels, height, width).contiguous(memory_format=torch.channels_last)
    _pixels_of(full, grid).copy_(cotangent)
    return full


def _pixels_of(cotangent: Tensor, grid: Grid | None) -> Tensor:
    return cotangent if grid is None else cotangent[..., :: grid[0], :: grid[0]]
