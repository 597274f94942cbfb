"""The entrance for networks of users: taken out of its wrappers, copied, asked for logits, and looked at by the guard.

Every estimator of this package, per image or in the parameters, lets its network in through ``prepared``. What it works
on is a private copy, so that no hook, flag or buffer of the user's network changes.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output, private_copy, refuse_unfit
from dd_core.curvature.evaluation import frozen, refuse_training_mode
from dd_core.curvature.guard import require_function_of_one_image
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError

# Copies made here, which come by again when one estimator calls another.
_PREPARED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def prepared(
    model: nn.Module,
    images: Tensor,
    *,
    output: Output = None,
    dtype: torch.dtype | None = None,
    in_parameters: bool = False,
) -> nn.Module:
    """A private copy of a network that is a function of one image.

    Args:
        model: in eval mode, images (B, ...) to logits (B, C); it may be compiled, or wrapped in DataParallel.
        images: (N, ...); the first and the last of them are tried.
        output: which of the outputs are the logits, where it gives several: a key, a position or an attribute.
        dtype: of the copy's weights, default the model's.
        in_parameters: derivatives will be taken in the copy's parameters, so they get memory of their own; otherwise
            they share the model's where the dtype is the same.

    Raises:
        UserError: it is no such network; the sentence names the layer.
    """
    if model in _PREPARED:
        return model
    with second_derivatives():
        network = private_copy(model, output=output, dtype=dtype, share_weights=not in_parameters)
        _check(network, images)
        if in_parameters and len(images):
            _refuse_foreign_parameters(network, model, images[:1])
    return network


@contextlib.contextmanager
def admitted(model: nn.Module, images: Tensor, *, output: Output = None) -> Iterator[nn.Module]:
    """A prepared copy whose parameters are frozen, where it may be differentiated twice in the images."""
    with second_derivatives():
        is_new = model not in _PREPARED
        network = private_copy(model, output=output) if is_new else model
        with frozen(network):
            if is_new:
                _check(network, images)
            yield network


def _check(network: nn.Module, images: Tensor) -> None:
    """Ask the guard, and let the network pass from then on."""
    refuse_training_mode(network)
    first = next(network.parameters(), images)
    require_function_of_one_image(network, images[[0, -1] if len(images) else []].to(first.device, first.dtype))
    _PREPARED.add(network)


def _refuse_foreign_parameters(network: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Refuse a copy that computes with parameters of the original, whose derivatives would be 0 without a word.

    Raises:
        UserError: it names one.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not own:
        return
    with torch.enable_grad():
        first = next(network.parameters())
        total = network(images.to(first.device, first.dtype)).sum()
        if not total.requires_grad:
            return
        found = torch.autograd.grad(total, list(own.values()), allow_unused=True)
    used = next((name for name, gradient in zip(own, found, strict=True) if gradient is not None), None)
    if used is not None:
        raise UserError(
            f"a copy of the model still computes with the original's {used!r}: a forward method was replaced by a "
            "function that is bound to the original; pass a model whose forward passes are methods of its classes"
        )


def as_tensors(images: Any, labels: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels as tensors outside of inference mode; NumPy arrays come to the model's device.

    Labels of any integer type of NumPy become int64, and images of any floating type of it get the model's.

    Raises:
        UserError: they are neither, or the model is no network that can be differentiated.
    """
    refuse_unfit(model)
    first = next(iter(model.parameters()), torch.empty(0))
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images.copy()).to(first.device)
        images = images.to(first.dtype) if images.is_floating_point() else images
    if isinstance(labels, np.ndarray | list | tuple):
        array = np.array(labels)
        labels = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(first.device)
    for name, tensor in (("images", images), ("labels", labels)):
        if not isinstance(tensor, Tensor):
            raise UserError(f"{name} must be a tensor or a NumPy array, not {type(tensor).__name__}")
    return _outside_of_inference(images), _outside_of_inference(labels)


def _outside_of_inference(tensor: Tensor) -> Tensor:
    """Tensors that were made in inference mode can take no part in a derivative."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()
