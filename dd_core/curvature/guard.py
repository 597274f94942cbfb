"""What every network is asked before its curvature is computed.

Is it a function of one image, and is its second derivative right? Nothing is known of the network but what it computes,
so numbers have to answer: of a few images, in float64 where the network can, for there rounding lies many digits below
what is looked for, whatever the scale of weights and images. Images, and parameters that are 0 or one-dimensional, are
moved a little first: a last layer of zeros hides what comes before it, and biases of 0 and plain backgrounds lie
exactly on the kinks of ReLU and of max-pooling.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dd_core.curvature.copies import private_copy
from dd_core.curvature.culprits import deviating_layer, failing_layer, layer_in_trouble
from dd_core.curvature.derivative_check import Precisions, derivative_trouble, random_like, root_mean_square
from dd_core.curvature.evaluation import logits_of
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError
from dd_core.machine.memory import is_out_of_memory

_LOG = logging.getLogger(__name__)

_PASSES = 20
# Deviations of logits that are allowed, relative to their spread over the images. Rounding gives 1e-10 in float64 and
# 1e-4 in float32; dropout and statistics of the batch give 1e-2 and more.
_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-2}


@dataclass(frozen=True)
class _Trial:
    """A network in general position and three different images, in the most precise dtype that it takes."""

    network: nn.Module
    images: Tensor


def require_function_of_one_image(network: nn.Module, images: Tensor) -> None:
    """Pass only a network that gives an image the same logits at every pass and in any company.

    Args:
        network: a private copy in eval mode.
        images: (N, ...) in its precision and on its device.

    Raises:
        UserError: images do not go through it, it is random, or images influence each other; the sentence names the
            layer.
    """
    devices = [images.device] if images.is_cuda else []
    with second_derivatives(), torch.no_grad(), torch.random.fork_rng(devices):
        trial = _trial_of(network, images)
        if trial is None:
            return
        model, x = trial.network, trial.images
        once, alone = model(x), model(x[:1])
        if _is_random(model, x, once):
            raise UserError(
                f"{deviating_layer(model, x, x)} gives something else at every pass over the same images, in eval mode "
                "(dropout that is never switched off, as F.dropout without training=self.training?), so there is no "
                "curvature of one network; make it a fixed function"
            )
        if alone.shape != once[:1].shape or _deviates(alone, once[:1], once):
            raise UserError(
                f"{deviating_layer(model, x, x[:1])} gives an image something else alone than among others, in eval "
                "mode (statistics of the batch instead of running ones?), so images influence each other and none has "
                "a curvature of its own; let it treat each image by itself"
            )


def require_second_derivative(network: nn.Module, images: Tensor, parameters: Collection[str] | None = None) -> None:
    """Pass only a network whose Hessian-vector products are symmetric and agree with differences of its gradient.

    Args:
        network: as above.
        images: (N, ...) in its precision and on its device.
        parameters: names of those in which derivatives are taken; None: they are taken in the images.

    Raises:
        UserError: PyTorch has no second derivative of it, or a wrong one; the sentence names the layer.
    """
    with second_derivatives():
        with torch.no_grad():
            trial = _trial_of(network, images)
        if trial is None:
            return
        model, x = trial.network.requires_grad_(False), trial.images
        variables = [x.requires_grad_(True)]
        if parameters is not None:
            variables = [model.get_parameter(name).requires_grad_(True) for name in parameters]
        trouble = derivative_trouble(lambda: [model(x)], variables)
        if trouble is None and parameters is None and not _reaches(model, x):
            trouble = "gives no gradient back to the images (torch.no_grad(), detach() or NumPy in a forward pass?)"
        if trouble is None:
            return
        layer, own_trouble = layer_in_trouble(model, x, variables)
    raise UserError(f"{layer} {own_trouble or trouble}, so its Hessian cannot be computed; use another layer there")


def _is_random(network: nn.Module, images: Tensor, once: Tensor) -> bool:
    """Whether another pass gives other logits; several are tried where random numbers are drawn, perhaps for few."""
    before = _random_state(images)
    if _deviates(network(images), once, once):
        return True
    draws = not torch.equal(before, _random_state(images))
    return draws and any(_deviates(network(images), once, once) for _ in range(_PASSES))


def _random_state(images: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(images.device) if images.is_cuda else torch.get_rng_state()


def _reaches(network: nn.Module, images: Tensor) -> bool:
    """Whether the logits have a gradient in the images."""
    with torch.enable_grad():
        return network(images.detach().requires_grad_(True)).requires_grad


def _trial_of(network: nn.Module, images: Tensor) -> _Trial | None:
    """The network where questions can be answered; None without images or memory for three at once.

    Raises:
        UserError: images do not go through the network, or its output is not finite.
    """
    if not len(images):
        return None
    try:
        _require_logits(network, images)
        for dtype in dict.fromkeys((torch.float64, images.dtype)):
            for is_moved, has_companion in ((True, True), (False, True), (False, False)):
                trial = _try(network, images, dtype, is_moved, has_companion)
                if trial is not None:
                    return trial
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _LOG.warning("the network was not checked: there is no memory for three images at once")
        return None
    raise UserError("the model fails, or gives no finite logits, for three images at a time, though not for one")


def _require_logits(network: nn.Module, images: Tensor) -> None:
    """Pass only a network that takes an image alone, in its own precision.

    Raises:
        UserError: it does not; where it takes several, that is said.
    """
    try:
        with Precisions() as precisions:
            logits_of(network, images[:1])
    except UserError as alone:
        try:
            logits_of(network, torch.cat([images, images]))
        except UserError:
            raise alone from None
        raise UserError(
            f"{failing_layer(network, images[:1])} takes several images but not one alone, so images influence each "
            f"other ({alone})"
        ) from alone
    if half := precisions.seen & ({torch.float16, torch.bfloat16} - {images.dtype}):
        raise UserError(
            f"the model rounds to {half.pop()} in its forward pass (autocast?), which destroys derivatives of "
            "derivatives; let it compute in its own precision"
        )


def _try(network: nn.Module, images: Tensor, dtype: torch.dtype, is_moved: bool, has_companion: bool) -> _Trial | None:
    """A trial in that dtype; None if it fails there or is not finite."""
    try:
        model = private_copy(network, dtype=dtype)
        x = images[[0, -1]].to(dtype)
        generator = torch.Generator().manual_seed(0)
        companion = _companion(x[-1], generator) if has_companion else x[-1]
        x = torch.cat([x, companion[None]])
        if is_moved:
            _move(model, generator)
            x = _moved(x, generator)
        is_sound = bool(torch.isfinite(model(x)).all())
    except Exception as error:  # such as a layer that makes float32 of its own, or a device without float64
        if is_out_of_memory(error) or (isinstance(error, UserError) and dtype == images.dtype):
            raise
        return None
    return _Trial(model, x) if is_sound else None


def _companion(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another image, with values between 0 and those of the image, which may know no others; noise for a black one."""
    if not image.any():
        return random_like(image, generator)
    order = torch.randperm(image.numel(), generator=generator).to(image.device)
    return image.flatten()[order].view(image.shape) * (0.75 + random_like(image, generator) / 4)


def _move(network: nn.Module, generator: torch.Generator) -> None:
    """Bring parameters into general position, by 1 % of their size."""
    for parameter in network.parameters():
        if parameter.ndim <= 1 or not parameter.any():
            parameter.data = _moved(parameter.detach(), generator)


def _moved(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return tensor + 0.01 * root_mean_square(tensor) * random_like(tensor, generator)


def _deviates(logits: Tensor, others: Tensor, all_logits: Tensor) -> bool:
    """Whether logits differ by more than rounding does, measured by how far images differ from each other."""
    allowed = _ALLOWED.get(logits.dtype, 1e-2)
    spread = (all_logits - all_logits.mean(0)).abs().max()
    rounding = 1e3 * torch.finfo(logits.dtype).eps * all_logits.abs().max()
    return bool((logits - others).abs().max() > torch.maximum(allowed * spread, rounding))
