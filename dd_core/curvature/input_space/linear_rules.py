"""How cotangents go back through one operation of a piecewise linear network: masks, linear layers, reshapes.

A rule evaluates its operation forwards and returns the value with its ``Pull``: the transposed Jacobian, for many
cotangents per image in one batch, (R, *output shape) to (R, *input shape). Nothing here needs a graph of autograd, and
no rule changes its input in place, whatever the module says.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dd_core.curvature.input_space.cotangents import Rows
from dd_core.models.stacking import Classifier

# A convolution of small images that is so small as a matrix is faster as one.
_FEW_MULTIPLICATIONS = 192**2


@dataclass(frozen=True)
class Pull:
    """The transposed Jacobian of one operation.

    Attributes:
        apply: cotangents (R, *output shape), and whose they are, to (R, *input shape).
        scale: where the Jacobian is diagonal, its diagonal (B, *shape), so that cotangents may be scaled in place.
        is_shared: the same for every image, so that cotangents shared by all images stay shared.
        is_view: ``apply`` may return its argument's own memory.
        grid: (stride, height, width) where ``apply`` gives every stride-th pixel alone and all others are 0.
    """

    apply: Callable[[Tensor, Rows], Tensor]
    scale: Tensor | None = None
    is_shared: bool = False
    is_view: bool = False
    grid: tuple[int, int, int] | None = None


Ruled = tuple[Tensor, Pull]
UNCHANGED = Pull(lambda rows, _: rows, is_shared=True, is_view=True)

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, Classifier)
_UNCHANGED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LINEAR_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def layer_pull(layer: nn.Module, shape: torch.Size, weight: Tensor | None, scale: Tensor | None) -> Pull:
    """Convolution, linear layer or BatchNorm in eval mode.

    Args:
        layer: of ``LAYERS``.
        shape: of its input, (B, ...); B does not matter.
        weight: of a convolution or linear layer, in the dtype of the pull-back.
        scale: of a BatchNorm, weight / sqrt(variance + eps) per channel, in that dtype; None leaves the cotangents as
            they are, because a ReLU's mask carries the scale.
    """
    if weight is not None:
        if isinstance(layer, nn.Conv2d):
            return _transposed_convolution(layer, weight, shape)
        return Pull(lambda rows, _: rows @ weight, is_shared=True)
    if scale is None:
        return UNCHANGED
    per_channel = scale.view(-1, *[1] * (len(shape) - 2))
    return Pull(lambda rows, _: rows * per_channel, is_shared=True)


def _transposed_convolution(layer: nn.Conv2d, weight: Tensor, shape: torch.Size) -> Pull:
    matrix = _as_matrix(layer, weight, shape)
    if matrix is not None:
        return Pull(lambda rows, _: _multiply_pixels(rows, matrix, shape[1:]), is_shared=True)
    packed = _packed_weight(layer, weight, shape)
    if packed is not None:
        return _packed_convolution(packed, layer, shape)
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.stride[0] == layer.stride[1] > 1:
        mixing = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        if layer.groups == 1:
            grid = (layer.stride[0], shape[2], shape[3])
            return Pull(lambda rows, _: functional.conv2d(_by_channel(rows), mixing), is_shared=True, grid=grid)
    padding = (int(layer.padding[0]), int(layer.padding[1]))
    sizes = zip(shape[2:], layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
    # What a stride leaves over at the border gets no output, so no cotangent reaches it; the size must say so.
    left_over = [(n + 2 * p - d * (k - 1) - 1) % s for n, k, s, p, d in sizes]

    def pull(rows: Tensor, _: Rows) -> Tensor:
        return functional.conv_transpose2d(
            _by_channel(rows), weight, None, layer.stride, padding, left_over, layer.groups, layer.dilation
        )

    return Pull(pull, is_shared=True)


def convolution(layer: nn.Conv2d, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The forward pass of a convolution for inputs of that shape, (B, ...); B does not matter."""
    weight = layer.weight.detach()
    matrix = _as_matrix(layer, weight, shape)
    if matrix is None:
        return layer
    outputs = _output_shape(layer, weight, shape)
    transposed = matrix.T.contiguous()
    bias = None if layer.bias is None else layer.bias.detach().repeat(outputs[1:].numel())
    return lambda x: _multiply_pixels(x, transposed, outputs, bias)


def _as_matrix(layer: nn.Conv2d, weight: Tensor, shape: torch.Size) -> Tensor | None:
    """A convolution of small images as one matrix, pixels and channels of the output by those of the input.

    On a map of one or two pixels to the side most of a 3x3 kernel meets padding, and with few channels a product of
    matrices runs at several times the rate of a convolution: 1.5 to 9 times as fast for 2x2 and 1x1 maps, 5 times for
    one channel on 8x8, in spite of the zeros multiplied.

    Args:
        layer: the convolution.
        weight: of it.
        shape: of its input, (B, channels, height, width).

    Returns:
        (outputs, inputs), each counted by pixel and then channel; None where a convolution is faster, and on a GPU.
    """
    if weight.device.type != "cpu" or layer.kernel_size == (1, 1):
        return None
    num_inputs, num_outputs = shape[1:].numel(), _output_shape(layer, weight, shape).numel()
    by_convolution = num_outputs * weight[0].numel()
    if num_inputs * num_outputs > max(by_convolution, _FEW_MULTIPLICATIONS):
        return None
    units = torch.eye(num_inputs, dtype=weight.dtype).view(num_inputs, *shape[2:], shape[1]).permute(0, 3, 1, 2)
    columns = functional.conv2d(units, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return columns.permute(0, 2, 3, 1).reshape(num_inputs, num_outputs).T.contiguous()


def _output_shape(layer: nn.Conv2d, weight: Tensor, shape: torch.Size) -> torch.Size:
    """The shape of one image: (channels, height, width)."""
    kernel, image = weight.new_empty(weight.shape, device="meta"), weight.new_empty(1, *shape[1:], device="meta")
    result = functional.conv2d(image, kernel, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return result.shape[1:]


def _multiply_pixels(images: Tensor, matrix: Tensor, shape: torch.Size, bias: Tensor | None = None) -> Tensor:
    """Images (R, ...) times a matrix of ``_as_matrix``, or its transpose, as (R, *shape) in channels-last memory."""
    flat = images.permute(0, 2, 3, 1).reshape(len(images), -1)
    product = flat @ matrix if bias is None else torch.addmm(bias, flat, matrix)
    return product.view(len(images), *shape[1:], shape[0]).permute(0, 3, 1, 2)


def _by_channel(rows: Tensor) -> Tensor:
    return rows.contiguous(memory_format=torch.channels_last)


def _packed_weight(layer: nn.Conv2d, weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Weight of a convolution that computes several neighbouring pixels of the result as channels of one.

    With fewer than 16 channels the vector units of a processor run half empty. A stride-s convolution whose kernel is
    s-1 pixels wider gives s neighbouring pixels at once, and in channels-last memory its result already lies as it
    should: 1.4 times as fast for 8 channels, 1.9 times for the 3 of an image, in spite of the zeros multiplied.
    """
    height, width = layer.kernel_size
    same_size = layer.padding == (height // 2, width // 2) and height % 2 == 1 and width % 2 == 1
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    pack = 4 if layer.in_channels <= 4 else 2 if layer.in_channels <= 8 else 1
    if weight.device.type != "cpu" or not (same_size and plain) or pack == 1 or shape[3] % pack:
        return None
    flipped = weight.transpose(0, 1).flip(2, 3)  # (in, out, height, width), the kernel of the transposed convolution
    wide = weight.new_zeros(pack, *flipped.shape[:3], width + pack - 1)
    for pixel in range(pack):
        wide[pixel, ..., pixel : pixel + width] = flipped
    return wide.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _packed_convolution(packed: Tensor, layer: nn.Conv2d, shape: torch.Size) -> Pull:
    stride = (1, len(packed) // layer.in_channels)

    def pull(rows: Tensor, _: Rows) -> Tensor:
        back = functional.conv2d(_by_channel(rows), packed, None, stride, layer.padding)
        return back.permute(0, 2, 3, 1).reshape(len(rows), *shape[2:], layer.in_channels).permute(0, 3, 1, 2)

    return Pull(pull, is_shared=True)


def relu_rule(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Ruled:
    """max(x, 0), whose mask takes the channel scale of a BatchNorm before it along."""
    y = functional.relu(x)
    mask = y > 0
    slope = mask.to(dtype) if scale is None else mask * scale.view(-1, *[1] * (x.ndim - 2))
    return y, _multiply(slope)


def _pointwise(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Ruled:
    """Any piecewise linear function of single values; its slopes come from autograd."""
    with torch.enable_grad():
        source = x.detach().requires_grad_(True)
        y = function(source)
        (slope,) = torch.autograd.grad(y.sum(), source)
    return y.detach(), _multiply(slope.to(dtype))


def _multiply(slope: Tensor) -> Pull:
    return Pull(lambda rows, whose: whose.multiply(rows, slope), slope)


def max_pool_rule(x: Tensor, dtype: torch.dtype, *arguments: Any, **keywords: Any) -> Ruled:
    """2-D max-pooling; of equal values in a window the first counts, as in PyTorch."""
    keywords.pop("return_indices", None)
    y, indices = functional.max_pool2d(x, *arguments, **keywords, return_indices=True)
    height, width = x.shape[2:]
    factors = (height // y.shape[2], width // y.shape[3])
    if _tiles(factors, *arguments, **keywords) and (y.shape[2] * factors[0], y.shape[3] * factors[1]) == x.shape[2:]:
        chosen = torch.zeros(x.flatten(2).shape, dtype=dtype, device=x.device)
        chosen.scatter_(2, indices.flatten(2), 1)
        mask = chosen.view(x.shape).contiguous(memory_format=torch.channels_last)

        def spread(rows: Tensor, whose: Rows) -> Tensor:
            return whose.multiply(functional.interpolate(_by_channel(rows), scale_factor=factors), mask, in_place=True)

        return y, Pull(spread)

    def scatter(rows: Tensor, whose: Rows) -> Tensor:
        # Windows that overlap may share their largest value, so the cotangents add up.
        back = rows.new_zeros(*rows.shape[:2], height * width)
        back.scatter_add_(2, whose.repeat(indices.flatten(2)), rows.flatten(2))
        return back.unflatten(2, (height, width))

    return y, Pull(scatter)


def _tiles(
    factors: tuple[int, int],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
    **__: Any,
) -> bool:
    """Whether windows of that size lie side by side, without gaps, overlaps or borders."""
    given = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in given]
    return pairs == [factors, factors, (0, 0), (1, 1)]


def _linear(function: Callable[[Tensor], Tensor], x: Tensor) -> Ruled:
    """An operation that is linear and knows nothing of the batch; its transpose comes from autograd at zero."""

    def pull(rows: Tensor, _: Rows) -> Tensor:
        with torch.enable_grad():
            zero = torch.zeros(len(rows), *x.shape[1:], dtype=rows.dtype, device=rows.device, requires_grad=True)
            (back,) = torch.autograd.grad(function(zero), zero, rows)
        return back

    return function(x), Pull(pull, is_shared=True)


def module_rule(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Ruled | None:
    """A module without parameters; None if it is not known."""
    if isinstance(module, nn.ReLU):
        return relu_rule(x, None, dtype)
    if isinstance(module, nn.MaxPool2d):
        settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        return max_pool_rule(x, dtype, *settings)
    if isinstance(module, nn.LeakyReLU):
        return _pointwise(lambda v: functional.leaky_relu(v, module.negative_slope), x, dtype)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return _pointwise(lambda v: functional.hardtanh(v, module.min_val, module.max_val), x, dtype)
    if isinstance(module, _LINEAR_POOLS):
        return _linear(module, x)
    if isinstance(module, nn.Flatten):
        return _reshaped(module(x), x)
    return (x, UNCHANGED) if isinstance(module, _UNCHANGED) else None


def function_rule(
    target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], dtype: torch.dtype
) -> Ruled | None:
    """A function of torch or a method of a tensor whose first argument is the only one that depends on the images.

    Args:
        target: the function, or the name of the method.
        arguments: with that tensor first.
        keywords: the rest.
        dtype: of the pull-back.

    Returns:
        None if the operation is not known.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    x, rest = arguments[0], arguments[1:]

    def call(v: Tensor) -> Tensor:
        result = getattr(v, name)(*rest, **keywords) if isinstance(target, str) else target(v, *rest, **keywords)
        return result if isinstance(result, Tensor) else result[0]

    if name in ("relu", "relu_"):
        return relu_rule(x, None, dtype)
    if target in (functional.max_pool2d, torch.max_pool2d):
        return max_pool_rule(x, dtype, *rest, **keywords)
    if name in ("flatten", "view", "reshape", "squeeze", "contiguous"):
        # What is a view where the network was written need not be one of images in another memory format.
        value = x.reshape(*rest) if name == "view" and not keywords else call(x)
        return _reshaped(value, x)
    if name in ("mean", "adaptive_avg_pool2d", "avg_pool2d"):
        given = rest[0] if rest else keywords.get("dim", 0)
        dimensions = given if isinstance(given, tuple | list) else (given,)
        over_batch = name == "mean" and any(dimension in (0, -x.ndim) for dimension in dimensions)
        return None if over_batch else _linear(call, x)
    return None


def _reshaped(value: Tensor, x: Tensor) -> Ruled | None:
    """Another shape of the same numbers, image by image."""
    if value.shape[0] != x.shape[0] or value.numel() != x.numel():
        return None
    shape = x.shape[1:]
    return value, Pull(lambda rows, _: rows.reshape(len(rows), *shape), is_shared=True, is_view=True)


ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
