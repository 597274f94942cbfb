"""Convolutions of maps of at most 2x2 pixels as the matrix products that they are, for a CPU.

A 3x3 kernel on a 1x1 map meets padding with eight of its nine taps; on a 2x2 map each output pixel sees four. Libraries
multiply by the padding, too, and for such maps their gradients of the weights are slow: on a processor with AVX2 a
convolution of 128 to 128 channels on 1x1 maps takes ten times as long as the products.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LARGEST_SIDE = 2


def as_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor | None:
    """A convolution with a 1x1 or 3x3 kernel whose padding keeps the size at stride 1.

    Args:
        x: (B, groups * inputs, H, W).
        weight: (groups * outputs, inputs, 1 or 3, 1 or 3).
        bias: (groups * outputs,).
        stride: in both directions.
        groups: one product for each.

    Returns:
        (B, groups * outputs, H', W') in channels-last memory, any number of times differentiable; None if the maps are
        larger, on a GPU, or to be rounded to float16.
    """
    kernel = weight.shape[2]
    if kernel not in (1, 3) or x.device.type != "cpu":
        return None
    # A 1x1 kernel sees nothing of what it steps over.
    step, stride = (stride, 1) if kernel == 1 else (1, stride)
    height, width = -(-x.shape[2] // step), -(-x.shape[3] // step)
    if height > _LARGEST_SIDE or width > _LARGEST_SIDE:
        return None
    geometry = _Geometry(groups, kernel, step, (height, width), (-(-height // stride), -(-width // stride)), stride)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # nothing does it for a function of one's own
        dtype = torch.get_autocast_dtype("cpu")
        if dtype == torch.float16:  # rounded otherwise than by a convolution
            return None
        x, weight = x.to(dtype), weight.to(dtype)
    product: Tensor = _Product.apply(x, weight, geometry)
    return product if bias is None else product + bias.to(product.dtype)[:, None, None]


@dataclass(frozen=True)
class _Geometry:
    """The shapes of a convolution; maps, images and pixels are those that the kernel sees."""

    groups: int
    kernel: int
    step: int
    size: tuple[int, int]
    size_of_output: tuple[int, int]
    stride: int

    def rows(self, maps: Tensor) -> Tensor:
        """(B, groups * channels, h, w) as matrices: (groups, B, h * w * channels), of 1x1 kernels a row per pixel."""
        by_group = maps.permute(0, 2, 3, 1).unflatten(3, (self.groups, -1)).permute(3, 0, 1, 2, 4)
        return by_group.flatten(1, 3) if self.kernel == 1 else by_group.flatten(2)

    def maps(self, rows: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
        """The reverse of ``rows``, in channels-last memory."""
        by_group = rows.view(self.groups, batch, *size, -1)
        return by_group.permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2)

    def seen(self, taps: Tensor) -> list[Tensor]:
        """What each output pixel sees of (groups, outputs, 3, 3, inputs): the tap in the middle meets that pixel."""
        height, width = self.size
        return [
            taps[:, :, 1 - top : 1 - top + height, 1 - left : 1 - left + width]
            for top in range(0, height, self.stride)
            for left in range(0, width, self.stride)
        ]

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, h' * w' * outputs, h * w * inputs); of 1x1 kernels (groups, outputs, inputs)."""
        taps = weight.permute(0, 2, 3, 1).unflatten(0, (self.groups, -1))
        if self.kernel == 1:
            return taps.flatten(2)
        seen = self.seen(taps)
        return seen[0].flatten(2) if len(seen) == 1 else torch.stack(seen, 1).flatten(3).flatten(1, 2)

    def product(self, rows: Tensor, matrix: Tensor, batch: int) -> Tensor:
        """The value."""
        return self.maps(torch.bmm(rows, matrix.transpose(1, 2)), batch, self.size_of_output)

    def stepped(self, x: Tensor) -> Tensor:
        """The pixels that are seen."""
        return x if self.step == 1 else x[:, :, :: self.step, :: self.step]


class _Product(torch.autograd.Function):
    """The value and its gradients in few calls: for narrow networks these are what takes time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        rows, matrix = geometry.rows(geometry.stepped(x)), geometry.matrix(weight)
        ctx.save_for_backward(x, weight, rows, matrix)
        ctx.geometry = geometry
        return geometry.product(rows, matrix, len(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rows, matrix = ctx.saved_tensors
        geometry, (needs_x, needs_weight, _) = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled():  # derivatives of these are wanted, too
            value = geometry.product(geometry.rows(geometry.stepped(x)), geometry.matrix(weight), len(x))
            wanted = [tensor for tensor, needs in ((x, needs_x), (weight, needs_weight)) if needs]
            found = list(torch.autograd.grad(value, wanted, gradient, create_graph=True))
            return found.pop(0) if needs_x else None, found.pop(0) if needs_weight else None, None
        in_rows = geometry.rows(gradient)
        in_x = _in_x(geometry, torch.bmm(in_rows, matrix), x) if needs_x else None
        in_weight = _in_weight(geometry, torch.bmm(in_rows.transpose(1, 2), rows), weight) if needs_weight else None
        return in_x, in_weight, None


def _in_x(geometry: _Geometry, rows: Tensor, x: Tensor) -> Tensor:
    maps = geometry.maps(rows, len(x), geometry.size)
    if geometry.step == 1:
        return maps
    whole = torch.zeros_like(x, memory_format=torch.channels_last)
    geometry.stepped(whole).copy_(maps)
    return whole


def _in_weight(geometry: _Geometry, matrix: Tensor, weight: Tensor) -> Tensor:
    outputs, inputs, kernel, _ = weight.shape
    if kernel == 1:
        return matrix.view(outputs, 1, 1, inputs).permute(0, 3, 1, 2)
    taps = matrix.new_zeros(geometry.groups, outputs // geometry.groups, kernel, kernel, inputs)
    seen = geometry.seen(taps)
    parts = matrix.view(geometry.groups, len(seen), -1, *geometry.size, inputs).unbind(1)
    for place, part in zip(seen, parts, strict=True):
        place.add_(part)
    return taps.flatten(0, 1).permute(0, 3, 1, 2)
