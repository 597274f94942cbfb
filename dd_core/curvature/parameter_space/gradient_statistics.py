"""Per-image gradients through BackPACK 1.7.1: their norms, their variance, and the diagonal of the Gauss-Newton matrix.

Network and loss are both extended, the network with BackPACK's converter, in eval mode, after it has been rewritten
with stock layers (``stock_network``): BackPACK knows layers by their exact class.

Its DiagHessian is not used: it has no rule for the converter's SumModule, so that it raises on a residual network, and
on a network that was not extended it leaves no diag_h behind without a word, whence a sum of 0. For piecewise linear
networks the Hessian's diagonal is that of the Gauss-Newton matrix, so DiagGGNExact gives the same numbers
(``diagonal_ggn``); for its sum alone ``exact_trace`` is faster.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad, DiagGGNExact, SumGradSquared
from backpack.extensions.backprop_extension import BackpropExtension
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import first_line
from dd_core.curvature.network import as_tensors, prepared
from dd_core.curvature.parameter_space.batches import Batches
from dd_core.curvature.parameter_space.layers import choose_layers
from dd_core.curvature.parameter_space.stock_layers import stock_network
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError
from dd_core.models.strided_pointwise import SoundConvolutions
from dd_core.tasks.losses import CROSS_ENTROPY, Loss


@dataclass(frozen=True)
class GradientSums:
    """Over this process's images; g_n is the gradient of image n's loss in the chosen parameters.

    Attributes:
        squared_norms: ||g_n||^2, float64 (N,).
        total: sum of g_n by parameter.
        total_squared: sum of g_n^2, entry by entry, by parameter.
    """

    squared_norms: Tensor
    total: dict[str, Tensor]
    total_squared: dict[str, Tensor]


@second_derivatives()
def gradient_sums(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    layers: tuple[str, ...] = (),
    batch_size: int = 250,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> GradientSums:
    """What the gradients' norms and variances are made of: (sum g^2)/N - (sum g / N)^2 is the variance of each entry.

    Args:
        model: a plain network in eval mode; images are used in its dtype and on its device.
        images: (N, C, H, W).
        labels: int64 (N,).
        layers: names or regular expressions, see ``choose_layers``; none for all.
        batch_size: images per pass; it changes the memory, not the result.
        output: which of the model's outputs are the logits, where it gives several.
        loss: of an image.

    Raises:
        UserError: the model cannot be rewritten, has layers that BackPACK does not know or weights that are used more
            than once, or a pattern matches none.
    """
    images, labels = as_tensors(images, labels, model)
    model = prepared(model, images, output=output)
    names = list(choose_layers(model, layers).parameters)
    norms: list[Tensor] = []
    total: dict[str, Tensor] = {}
    total_squared: dict[str, Tensor] = {}
    for part in _quantities(model, images, labels, batch_size, names, (BatchL2Grad(), SumGradSquared()), loss):
        norms.append(torch.stack([part[name]["batch_l2"].double() for name in names]).sum(0))
        for name in names:
            total[name] = total.get(name, 0) + part[name]["grad"]
            total_squared[name] = total_squared.get(name, 0) + part[name]["sum_grad_squared"]
    return GradientSums(torch.cat(norms), total, total_squared)


@second_derivatives()
def diagonal_ggn(
    model: nn.Module, images: Tensor, labels: Tensor, *, layers: tuple[str, ...] = (), batch_size: int = 250
) -> dict[str, Tensor]:
    """The diagonal of the Gauss-Newton matrix of the mean cross-entropy, by parameter, in the parameter's shape.

    For a piecewise linear network it is the diagonal of the Hessian. Arguments and errors as for ``gradient_sums``.
    """
    images, labels = as_tensors(images, labels, model)
    model = prepared(model, images)
    names = list(choose_layers(model, layers).parameters)
    total: dict[str, Tensor] = {}
    for part in _quantities(model, images, labels, batch_size, names, (DiagGGNExact(),), CROSS_ENTROPY):
        for name in names:
            total[name] = total.get(name, 0) + part[name]["diag_ggn_exact"] / len(images)
    return total


def _quantities(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    names: list[str],
    extensions: tuple[BackpropExtension, ...],
    loss: Loss,
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """For each batch and parameter the gradient ("grad") and what the extensions give, of the batch's summed loss."""
    first = next(model.parameters())
    stock = stock_network(model, images[:1].to(first.device, first.dtype), own_parameters=True)
    try:
        with _without_warnings():
            network = extend(stock.requires_grad_(False), use_converter=True).eval()
    except Exception as error:  # its converter runs into any kind of error at an operation it does not know
        raise UserError(
            f"BackPACK does not know an operation of the network ({first_line(error)}); leave gradient_variance out of "
            "the quantities"
        ) from error
    # First derivatives need no extension of the loss.
    total = extend(nn.CrossEntropyLoss(reduction="sum")) if loss is CROSS_ENTROPY else loss.total
    own = dict(network.named_parameters())
    parameters = {name: own[name].requires_grad_(True) if name in own else _unknown(name) for name in names}
    fields = ("grad", *(extension.savefield for extension in extensions))

    def work(batch: Tensor, own_labels: Tensor) -> dict[str, dict[str, Tensor]]:
        network.zero_grad()
        # The gradient in the images is not wanted, but without it PyTorch warns about the first layer's hook.
        source = batch.detach().requires_grad_(True)
        with backpack(*extensions), _default_dtype(first.dtype), _without_warnings(), SoundConvolutions():
            value = total(network(source), own_labels)
            try:
                value.backward()
            except (NotImplementedError, AssertionError) as error:  # its two ways to say so
                raise UserError(
                    f"BackPACK does not know an operation of the network ({str(error).splitlines()[0]}); leave "
                    "gradient_variance out of the quantities"
                ) from error
        return {name: {field: _take(parameters[name], field, name) for field in fields} for name in names}

    yield from Batches(images, labels, batch_size, first.device, first.dtype).map(work)


def _take(parameter: Tensor, field: str, name: str) -> Tensor:
    """Take a result off a parameter."""
    found = getattr(parameter, field, None)
    if found is None:
        _unknown(name)
    setattr(parameter, field, None)
    assert isinstance(found, Tensor)
    return found.detach()


def _unknown(name: str) -> NoReturn:
    raise UserError(
        f"BackPACK does not know the layer of {name!r} (or the logits do not depend on it); leave gradient_variance "
        "out of the quantities, or the layer"
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What BackPACK warns of, an operation or layer that it does not know, shows as a missing result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered node that may break second-order extensions")
        warnings.filterwarnings("ignore", "Extension saving to .* does not have an extension for Module")
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """BackPACK's average pooling makes its kernel in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
