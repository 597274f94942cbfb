"""Strided 1x1 convolutions of few channels, computed so that PyTorch's gradient of their weights is right on any CPU.

torch 2.14.1 (oneDNN 3.12, ``jit_1x1:avx2``; uxlfoundation/oneDNN#6035) writes past the end of a buffer when it takes
the weight gradient of a 2-D convolution in channels-last memory with one group, a 1x1 kernel, a stride and fewer input
channels than a vector holds: the process dies, hangs, or goes on with gradients off by a factor of 2 to 30. Such a
convolution sees every stride-th pixel only. With these picked out first it has stride 1 and another kernel serves it;
values, gradients and their memory layouts stay the same to the last bit (docs/torch.md).
"""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# A vector of the widest processors has 16 numbers. AVX2's have 8, and from 8 channels on nothing is wrong there.
_FEWEST_SAFE_CHANNELS = 16

Pair = int | tuple[int, ...] | list[int]


def without_stride(x: Tensor, kernel: Tensor, stride: Pair, padding: Pair | str, groups: int) -> Tensor | None:
    """The pixels that such a convolution sees, for it to be computed with stride 1 and without padding.

    Args:
        x: (B, channels, H, W).
        kernel: (outputs, channels / groups, height, width).
        stride: as ``torch.nn.functional.conv2d`` takes it.
        padding: likewise.
        groups: likewise.

    Returns:
        (B, channels, H', W'); None for every other convolution, and on a GPU.
    """
    strides, paddings = _pair(stride), (0, 0) if isinstance(padding, str) else _pair(padding)
    is_touched = x.ndim == 4 and groups == 1 and kernel.shape[2:] == (1, 1) and strides != (1, 1)
    if not is_touched or x.shape[1] >= _FEWEST_SAFE_CHANNELS or x.device.type != "cpu":
        return None
    if paddings != (0, 0):
        x = functional.pad(x, (paddings[1], paddings[1], paddings[0], paddings[0]))
    # The mean over one pixel: unlike a slice it keeps channels-last memory on the way back, too.
    return functional.avg_pool2d(x, 1, strides)


class SoundConvolutions(TorchFunctionMode):
    """Inside, networks of others (stock ``nn.Conv2d``, ``functional.conv2d``) may be differentiated in their weights.

    Forward passes belong inside; what they leave for backward passes is sound wherever these are made.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the convolutions in question."""
        if func is functional.conv2d:
            return _convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """``functional.conv2d``; the arguments have its names."""
    pixels = without_stride(input, weight, stride, padding, groups)
    if pixels is not None:
        return functional.conv2d(pixels, weight, bias)
    return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Pair) -> tuple[int, int]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return (numbers[0], numbers[-1])
