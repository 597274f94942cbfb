"""Convolutions of maps of at most 2x2 pixels as the matrix products that they are, for a CPU.

A 3x3 kernel on a 1x1 map meets padding with eight of its nine taps; on a 2x2 map each output pixel sees four. Libraries
multiply by the padding, too, and for such maps their gradients of the weights are slow: on a processor with AVX2 a
convolution of 128 to 128 channels on 1x1 maps takes ten times as long as the products.
"""

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
        (B, groups * outputs, H', W') in channels-last memory; None if the maps are larger, or on a GPU.
    """
    kernel = weight.shape[2]
    pixels = x.permute(0, 2, 3, 1)
    if kernel == 1 and stride > 1:
        pixels, stride = pixels[:, ::stride, ::stride], 1
    batch, height, width, _ = pixels.shape
    if height > _LARGEST_SIDE or width > _LARGEST_SIDE or kernel not in (1, 3) or x.device.type != "cpu":
        return None
    by_group = pixels.unflatten(3, (groups, -1)).permute(3, 0, 1, 2, 4)
    taps = weight.permute(0, 2, 3, 1).unflatten(0, (groups, -1))  # (groups, outputs, kernel, kernel, inputs)
    if kernel == 1:
        rows, matrix, size = by_group.flatten(1, 3), taps.flatten(2), (batch, height, width)
    else:
        rows = by_group.flatten(2)
        # The tap in the middle meets the pixel that the output pixel lies on.
        seen = [
            taps[:, :, 1 - top : 1 - top + height, 1 - left : 1 - left + width]
            for top in range(0, height, stride)
            for left in range(0, width, stride)
        ]
        matrix = torch.stack(seen, 1).flatten(1, 2).flatten(2)
        size = (batch, len(range(0, height, stride)), len(range(0, width, stride)))
    products = torch.bmm(
        rows, matrix.transpose(1, 2)
    )  # (groups, B, H' * W' * outputs), or (groups, B * H * W, outputs)
    outputs = products.view(groups, *size, -1).permute(1, 2, 3, 0, 4).flatten(3)
    return (outputs if bias is None else outputs + bias).permute(0, 3, 1, 2)
