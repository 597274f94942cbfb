"""What every per-image estimator asks of a network and its data: eval mode, frozen parameters, sound numbers.

In eval mode images do not influence each other, so the gradient of the summed loss holds each image's own gradient.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dd_core.errors import UserError
from dd_core.machine.memory import is_out_of_memory

# Passes of fewer images take other matrix kernels on a CPU, whose sums round differently; measured with oneDNN and MKL:
# from 8 images on, an image's gradient has the same bits whatever the number of images.
SMALLEST_PASS = 16


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within it the model's parameters get no gradients, BatchNorm is one multiply-add and float32 is not TF32.

    A frozen BatchNorm is x * scale + shift. PyTorch's own backward pass through it also sums for the parameters that
    need nothing; without that a gradient in the input is 1.1 to 1.6 times as fast (ResNet18k, CPU). Everything is put
    back at the end.

    Raises:
        UserError: the model or a layer of it is in training mode.
    """
    refuse_training_mode(model)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and _is_plain(m)]
    try:
        model.requires_grad_(False)
        for layer in layers:
            setattr(layer, "forward", _MultiplyAdd(layer))  # noqa: B010, to mypy a method cannot be assigned to
        with _without_tf32():
            yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def refuse_training_mode(model: nn.Module) -> None:
    """Pass only a model that is in eval mode as a whole.

    Raises:
        UserError: it names the layer that is not.
    """
    for name, module in model.named_modules():
        if module.training:
            where = f"layer {name!r} ({type(module).__name__})" if name else "the model"
            raise UserError(f"{where} is in training mode, where images influence each other; call model.eval() first")


class _MultiplyAdd:
    """The forward pass of a BatchNorm in eval mode."""

    def __init__(self, layer: _BatchNorm):
        """Fold its statistics and weights, in float64."""
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self.check = layer._check_input_dim
        scale = (layer.running_var.double() + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight.detach().double()
        shift = -layer.running_mean.double() * scale
        if layer.bias is not None:
            shift = shift + layer.bias.detach().double()
        dtype = layer.running_mean.dtype
        self.scale, self.shift = scale.to(dtype), shift.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, channels, ...) to the same shape."""
        self.check(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape))


def _is_plain(layer: _BatchNorm) -> bool:
    """Whether its forward pass in eval mode is PyTorch's own, with running statistics."""
    is_own = type(layer).forward is _BatchNorm.forward and "forward" not in vars(layer)
    return is_own and layer.running_mean is not None


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """TF32 keeps 10 bits: its rounding is larger than a finite difference at h = 1e-3."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = False
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before


def check_data(model: nn.Module, images: Tensor, labels: Tensor, image_ids: Tensor | None = None) -> None:
    """Pass only data that fit each other and a network that computes in their precision.

    Raises:
        UserError: shapes differ, or images and parameters are not all float32 or all float64, or autocast is on.
    """
    num_images = len(images)
    for name, tensor in (("labels", labels), ("image ids", image_ids)):
        if tensor is not None and (tensor.shape != (num_images,) or tensor.dtype != torch.int64):
            raise UserError(
                f"{name} must be int64 of shape ({num_images},), one for each image, not {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
    if images.dtype not in (torch.float32, torch.float64):
        raise UserError(f"curvature needs images in float32 or float64, not {images.dtype}")
    for name, parameter in model.named_parameters():
        if parameter.dtype != images.dtype:
            raise UserError(
                f"parameter {name!r} is {parameter.dtype} and the images are {images.dtype}; curvature needs both in "
                "float32 or both in float64"
            )
    if torch.is_autocast_enabled(images.device.type):
        raise UserError(
            "autocast is on, and its 8 bits destroy derivatives of derivatives (all digits of a finite difference at "
            "step 1e-3); call this outside of torch.autocast"
        )


def first_line(error: BaseException) -> str:
    """What an error of PyTorch or of a user's network says, for use in a sentence."""
    words, kind = str(error).strip(), type(error).__name__
    if not words:
        return kind
    line = words.splitlines()[0]
    return line if isinstance(error, RuntimeError | ValueError | TypeError) else f"{kind}: {line}"


def logits_of(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """The network's output (B, C), checked.

    Raises:
        UserError: the images do not go through the network, or its output is not finite or does not fit the labels.
    """
    try:
        logits = model(images)
    except UserError:
        raise
    except Exception as error:  # a user's forward pass may fail in any way
        if is_out_of_memory(error):
            raise
        shape = tuple(images.shape[1:])
        raise UserError(f"images of shape {shape} do not fit the model: {first_line(error)}") from error
    if logits.ndim != 2 or len(logits) != len(images):
        raise UserError(
            f"the model must give logits of shape ({len(images)}, classes) for {len(images)} images, not "
            f"{tuple(logits.shape)}"
        )
    require_finite(logits)
    if labels is None or not len(labels):
        return logits
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the model's {logits.shape[1]} classes"
        )
    return logits


def require_finite(logits: Tensor) -> None:
    """Pass only numbers.

    Raises:
        UserError: some are not.
    """
    if not torch.isfinite(logits).all():
        raise UserError("the model's output is not finite (NaN or infinite weights?); its curvature does not exist")


def padded(tensor: Tensor, size: int) -> Tensor:
    """The tensor with its last item repeated until there are ``size``, so that kernels see one shape."""
    missing = size - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor


def in_layout_of(model: nn.Module, images: Tensor) -> Tensor:
    """The images in channels-last memory where the model's convolutions are, else contiguous."""
    channels_last = images.ndim == 4 and any(
        p.ndim == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the last dimension and its standard error, which one sample does not tell."""
    num_samples = samples.shape[-1]
    if num_samples == 1:
        return samples[..., 0], torch.full_like(samples[..., 0], torch.nan)
    return samples.mean(-1), samples.std(-1) / num_samples**0.5
