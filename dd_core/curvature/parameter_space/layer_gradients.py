"""Parameter gradients of one layer, for many cotangents of many images, without automatic differentiation.

For cotangent c of image b a convolution, linear layer or eval-mode BatchNorm has the weight gradient D X^T: D the
cotangents of its output (channels x positions), X what its weight multiplies at each position (fan in x positions; one
normalised value per channel for BatchNorm, which is a group of its own). The bias gradient is the sum of D's columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from dd_core.errors import UserError


@dataclass(frozen=True)
class Factors:
    """Factors whose products are the gradients of one layer.

    Attributes:
        inputs: X, (B, groups, fan in, positions); None if the layer has no weight, or a frozen one.
        cotangents: D, (B, m, groups * channels, positions).
        has_bias: whether the layer has a bias that is not frozen.
    """

    inputs: Tensor | None
    cotangents: Tensor
    has_bias: bool

    @property
    def groups(self) -> int:
        """Groups of channels that do not share inputs."""
        return 1 if self.inputs is None else self.inputs.shape[1]

    @property
    def is_diagonal(self) -> bool:
        """Whether every channel has one weight of its own (BatchNorm)."""
        return self.inputs is not None and self.inputs.shape[1:3] == (self.cotangents.shape[2], 1)

    def scale_gradients(self) -> Tensor:
        """Gradients of the weights, (B, m, channels), where ``is_diagonal``."""
        assert self.inputs is not None
        return (self.cotangents * self.inputs.transpose(1, 2)).sum(-1)

    def bias_gradients(self) -> Tensor:
        """(B, m, channels)."""
        return self.cotangents.sum(-1)


def factors(layer: nn.Module, x: Tensor, cotangents: Tensor) -> Factors:
    """The factors from a layer's input (B, ...) and the cotangents of its output (B, m, ...)."""
    has_bias, has_weight = _is_learned(layer, "bias"), _is_learned(layer, "weight")
    x = x.to(cotangents.dtype)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        normalised = _normalised(layer, x) if has_weight else None
        return Factors(normalised, _positions_last(cotangents, 3), has_bias)
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        if not has_weight:
            return Factors(None, cotangents.flatten(3), has_bias)
        patches = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return Factors(patches.unflatten(1, (layer.groups, -1)), cotangents.flatten(3), has_bias)
    # A linear layer works on the last dimension; any between batch and it are positions.
    rows = x.reshape(len(x), -1, x.shape[-1]).mT
    arrived = cotangents.reshape(*cotangents.shape[:2], -1, cotangents.shape[-1]).mT
    return Factors(rows.unsqueeze(1) if has_weight else None, arrived, has_bias)


def _is_learned(layer: nn.Module, name: str) -> bool:
    """Whether a layer has that parameter, and it is not frozen."""
    parameter = getattr(layer, name, None)
    return parameter is not None and parameter.requires_grad


def _normalised(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What BatchNorm scales and shifts, (B, channels, 1, positions)."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, inverse = layer.running_mean, (layer.running_var + layer.eps).rsqrt()
    flat = _positions_last(x, 2)
    return ((flat - mean.to(x.dtype)[:, None]) * inverse.to(x.dtype)[:, None]).unsqueeze(2)


def _positions_last(values: Tensor, start: int) -> Tensor:
    """Height and width, or nothing, as one last dimension of positions."""
    return values.flatten(start) if values.ndim > start else values.unsqueeze(-1)


class LayerVisitor:
    """What a linearised network calls at every layer on the way back; layers that are not wanted are passed over."""

    def __init__(self, wanted: tuple[str, ...]):
        """Names of the layers to work on."""
        self._waited_for = set(wanted)
        self._done: set[str] = set()

    def __call__(self, name: str, layer: nn.Module, x: Tensor, cotangents: Tensor) -> None:
        """Take one layer's input and cotangents.

        Raises:
            UserError: the layer came before; the logits are not linear in its parameters then.
        """
        if name in self._done:
            raise UserError(
                f"layer {name!r} is used more than once, so the logits are not linear in its parameters and the exact "
                "trace does not exist; leave exact_trace out of the quantities"
            )
        if name in self._waited_for:
            own = {own for own, parameter in layer.named_parameters(recurse=False)}
            if not own <= {"weight", "bias"}:  # a pruned layer, weight norm
                raise UserError(
                    f"layer {name!r} computes its weight from {min(own - {'bias'})!r}, in which the exact trace is not "
                    "known; leave exact_trace out of the quantities, or the layer"
                )
            self._waited_for.remove(name)
            self._done.add(name)
            self.take(name, factors(layer, x, cotangents))

    def take(self, name: str, gradients: Factors) -> None:
        """Work on one layer's gradients."""
        raise NotImplementedError

    def require_all(self) -> None:
        """See that no wanted layer was left out.

        Raises:
            UserError: one was: a custom layer, or one that the logits do not depend on.
        """
        if self._waited_for:
            raise UserError(
                f"layer {min(self._waited_for)!r} is no convolution, linear layer or BatchNorm that the logits depend "
                "on, so its part of the exact trace is unknown; leave exact_trace out of the quantities, or the layer"
            )


class SquaredNorms(LayerVisitor):
    """Adds up the squared norms of an image's gradients over its cotangents.

    Attributes:
        by_layer: float64 (B,) of each layer.
    """

    def __init__(self, wanted: tuple[str, ...]):
        """Names of the layers to work on."""
        super().__init__(wanted)
        self.by_layer: dict[str, Tensor] = {}

    def take(self, name: str, gradients: Factors) -> None:
        """Weight and bias together."""
        total = torch.zeros(len(gradients.cotangents), dtype=torch.float64, device=gradients.cotangents.device)
        if gradients.is_diagonal:
            total += gradients.scale_gradients().square().sum((1, 2))
        elif gradients.inputs is not None:
            total += _squared_products(gradients.inputs, gradients.cotangents)
        if gradients.has_bias:
            total += gradients.bias_gradients().square().sum((1, 2))
        self.by_layer[name] = total


def _squared_products(inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Sum of ||D X^T||_F^2 over groups and cotangents, (B,), by the cheaper of two ways.

    With few positions the product is not formed: its squared norm is the sum of the entries of (X^T X) * (D^T D), two
    matrices of positions x positions, and D^T D summed over the cotangents is one product as well.
    """
    num_images, groups, fan_in, positions = inputs.shape
    stacked = cotangents.unflatten(2, (groups, -1)).transpose(1, 2) if groups > 1 else cotangents
    stacked = stacked.reshape(num_images * groups, -1, positions)
    flat = inputs.flatten(0, 1)
    rows = stacked.shape[1]
    if positions * (fan_in + rows) < fan_in * rows:
        by_group = ((flat.mT @ flat) * (stacked.mT @ stacked)).sum((1, 2)).clamp(min=0)
    else:
        by_group = (stacked @ flat.mT).square().sum((1, 2))
    return by_group.view(num_images, groups).sum(1)


class GramMatrix(LayerVisitor):
    """Inner products of all gradients with each other, over all images and cotangents.

    Attributes:
        matrix: float64 (B m, B m), images outermost.
    """

    def __init__(self, wanted: tuple[str, ...]):
        """Names of the layers to work on."""
        super().__init__(wanted)
        self.matrix = torch.zeros(())

    def take(self, name: str, gradients: Factors) -> None:
        """Form the layer's gradients and multiply them."""
        parts = []
        if gradients.is_diagonal:
            parts.append(gradients.scale_gradients())
        elif gradients.inputs is not None:
            by_group = gradients.cotangents.unflatten(2, (gradients.groups, -1))  # (B, m, groups, channels, positions)
            parts.append(by_group @ gradients.inputs.mT.unsqueeze(1))
        if gradients.has_bias:
            parts.append(gradients.bias_gradients())
        for part in parts:
            rows = part.flatten(0, 1).flatten(1)
            self.matrix = self.matrix.to(rows.device) + (rows @ rows.T).double()
