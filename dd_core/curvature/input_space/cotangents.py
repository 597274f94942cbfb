"""Cotangents on their way back through a network: which node they wait at, who shares them, what may be overwritten."""

import torch
from torch import Tensor, fx

Grid = tuple[int, int, int]


class Waiting:
    """Cotangents by the node whose value they belong to.

    Those of the images are (B, m, ...). Where all images still share what comes back, (1, C, ...) unit cotangents stand
    for all of them, to be combined for each image when a mask or a residual sum parts them.
    """

    def __init__(self, combinations: Tensor):
        """``combinations`` (B, m, C) say how each image combines the shared unit cotangents."""
        self._combinations = combinations
        self._own: dict[fx.Node, tuple[Tensor, bool]] = {}
        self._shared: dict[fx.Node, Tensor] = {}

    def add(self, node: fx.Node, cotangent: Tensor, fresh: bool, grid: Grid | None = None) -> None:
        """Let cotangents of the images wait, added to those that are there.

        Args:
            node: whose value they belong to.
            cotangent: (B, m, ...).
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
        """Let shared unit cotangents wait, (1, C, ...)."""
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
        """(1, C, ...) to (B, m, ...), images in channels-last memory."""
        if units.ndim != 5:
            return (self._combinations @ units[0].flatten(1)).unflatten(2, units.shape[2:])
        by_pixel = units[0].permute(0, 2, 3, 1)
        combined = self._combinations @ by_pixel.flatten(1)
        return combined.unflatten(2, by_pixel.shape[1:]).permute(0, 1, 4, 2, 3)


def dense(cotangent: Tensor, grid: Grid | None) -> Tensor:
    """Cotangents given at every stride-th pixel, with 0 at all others."""
    if grid is None:
        return cotangent
    batch, num, channels = cotangent.shape[:3]
    _, height, width = grid
    full = cotangent.new_zeros(batch * num, channels, height, width)
    full = full.contiguous(memory_format=torch.channels_last).unflatten(0, (batch, num))
    _pixels_of(full, grid).copy_(cotangent)
    return full


def _pixels_of(cotangent: Tensor, grid: Grid | None) -> Tensor:
    return cotangent if grid is None else cotangent[..., :: grid[0], :: grid[0]]
