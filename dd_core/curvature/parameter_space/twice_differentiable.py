"""Convolution and frozen BatchNorm whose second derivatives cost what their first ones do.

A convolution is bilinear in image and kernel: every derivative of its derivatives is a convolution of the same
geometry again, or the gradient of one. PyTorch's double backward makes one of them a convolution of the image with
a kernel as large as the image, for which cuDNN has slow kernels only: 320 of the 350 ms of a Hessian-vector product
(ResNet18k, k = 4, 1,000 images of 32x32, on an H100). It also goes through groups, which are what a stacked network is
made of, one by one. Its double backward of a BatchNorm in eval mode is a dozen passes over the input; a frozen
BatchNorm is a product and a sum. On a CPU a Hessian-vector product takes half the time for four stacked ResNet18k
(k = 4, 32x32), two thirds for one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# stride, padding, dilation, groups, as torch.convolution takes them.
Geometry = tuple[list[int], list[int], list[int], int]

_DIMENSIONS = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, convolutions and ``batch_norm`` in eval mode are computed by the functions below.

    The values are the same up to rounding; layers and tensors are left alone. Layers of a checkpointed block stay
    PyTorch's: they are computed again where this mode is off, and must save the same tensors then. So do those under a
    transform of ``torch.func``.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the functions where they are used in their common form."""
        kwargs = kwargs or {}
        own = _convolution if func in _DIMENSIONS else _batch_norm if func is functional.batch_norm else None
        if own is None or _is_transformed():
            return func(*args, **kwargs)
        result = own(func, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def _is_transformed() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None or torch._C._are_functorch_transforms_active()


def _convolution(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """``func`` by the function below, None where it is no plain one; the other arguments have PyTorch's names."""
    num_dimensions = _DIMENSIONS[func]
    strides, dilations = _each(stride, num_dimensions), _each(dilation, num_dimensions)
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
        if any(pixels % 2 for pixels in reach):  # one more behind than before
            return None
        paddings = [pixels // 2 for pixels in reach]
    else:
        paddings = _each(0 if padding == "valid" else padding, num_dimensions)
    if input.ndim != 2 + num_dimensions or weight.ndim != input.ndim or input.is_complex():
        return None
    result: Tensor = _Convolution.apply(input, weight, (strides, paddings, dilations, groups))
    return result if bias is None else result + _by_channel(bias, input)


def _each(value: Any, number: int) -> list[int]:
    """A setting for each dimension; PyTorch takes a single number for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * number if len(values) == 1 else values


def _batch_norm(
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """``functional.batch_norm`` of frozen statistics, None for others; the other arguments have its names."""
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else weight * scale
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * _by_channel(scale, input) + _by_channel(shift, input)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """(channels,) to be broadcast to (B, channels, ...)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


class _Convolution(torch.autograd.Function):
    """y = w * x, with the gradients below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _convolved(x, w, geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        in_x, in_w = _ConvolutionGradients.apply(g, x, w, ctx.geometry, ctx.needs_input_grad[:2])
        return in_x, in_w, None


class _ConvolutionGradients(torch.autograd.Function):
    """The gradients of <g, w * x> in x and in w: linear in g and w, and in g and x."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _gradients(g, x, w, geometry, *wanted)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivatives of <a, in_x> + <b, in_w> = <g, w * a + b * x>."""
        g, x, w = ctx.saved_tensors
        needs_g, needs_x, needs_w, *_ = ctx.needs_input_grad
        in_g: list[Tensor] = []
        in_x = in_w = None
        if a is not None:
            in_g += [_convolved(a, w, ctx.geometry)] if needs_g else []
            in_w = _gradients(g, a, w, ctx.geometry, False, needs_w)[1]
        if b is not None:
            in_g += [_convolved(x, b, ctx.geometry)] if needs_g else []
            in_x = _gradients(g, x, b, ctx.geometry, needs_x, False)[0]
        return sum(in_g[1:], in_g[0]) if in_g else None, in_x, in_w, None, None


def _convolved(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, w, None, stride, padding, dilation, False, [0] * len(stride), groups)


def _gradients(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, in_x: bool, in_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    mask = (in_x, in_w, False)
    backward = torch.ops.aten.convolution_backward
    gradients = backward(g, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, mask)
    return gradients[0], gradients[1]
