"""Reversible maps of a node's features: RealNVP's affine couplings, three of which make one map of the NSM network."""

import math

import torch
from torch import Tensor, nn

from dd_core.errors import UserError


class AffineCoupling(nn.Module):
    """``y1 = x1, y2 = x2 exp(s(x1)) + t(x1)``, which is undone exactly (Dinh et al. 2017, equations 7 and 8).

    s and t are perceptrons of two hidden layers with ReLU, side by side in one product a layer; their last layers begin
    at zero, so that the map begins as the identity. The Jacobian is triangular with exp(s) on its diagonal.
    """

    def __init__(self, width: int, unchanged: int, hidden: int, largest: float | None = None):
        """For (N, width), of which the first ``unchanged`` columns stay; s is within +-``largest``, if given."""
        super().__init__()
        self.unchanged, self.largest = unchanged, largest
        self.first = nn.Linear(unchanged, 2 * hidden)
        bound = 1 / math.sqrt(hidden)
        self.weight = nn.Parameter(torch.empty(2, hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, hidden).uniform_(-bound, bound))
        self.last_weight = nn.Parameter(torch.zeros(2, hidden, width - unchanged))
        self.last_bias = nn.Parameter(torch.zeros(2, 1, width - unchanged))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, width) to the same shape, and the logarithm of each row's Jacobian determinant, (N,)."""
        kept, changed = x.tensor_split((self.unchanged,), 1)
        scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, torch.addcmul(shift, changed, scale.exp())], 1), scale.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """What ``forward`` made ``y`` of."""
        kept, changed = y.tensor_split((self.unchanged,), 1)
        scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, (changed - shift) * (-scale).exp()], 1)

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of (N, unchanged), in its type also where products are rounded (autocast)."""
        hidden = self.first(kept).relu().unflatten(1, (2, -1)).transpose(0, 1)
        hidden = torch.baddbmm(self.bias, hidden, self.weight).relu()
        scale, shift = torch.baddbmm(self.last_bias, hidden, self.last_weight).to(kept.dtype).unbind()
        if self.largest is not None:
            scale = self.largest * torch.tanh(scale / self.largest)
        return scale, shift


class Coupling(nn.Module):
    """Three affine couplings, of which a half, a third and a half of the columns are the unchanged ones.

    It is always the first columns that stay, as published: the first third passes through all three.
    """

    def __init__(self, width: int, hidden: int, largest: float | None = None):
        """For (N, width); ``largest``: bound of each log-scale, None: there is none.

        Raises:
            UserError: the width is odd.
        """
        super().__init__()
        if width < 2 or width % 2:
            raise UserError(f"a coupling halves the width of a node's features, so {width} must be an even number")
        unchanged = (width // 2, max(1, width // 3), width // 2)
        self.layers = nn.ModuleList(AffineCoupling(width, columns, hidden, largest) for columns in unchanged)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to the same shape."""
        for layer in self.layers:
            x = layer(x)[0]
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """What ``forward`` made ``y`` of."""
        for layer in reversed(list(self.layers)):
            assert isinstance(layer, AffineCoupling)
            y = layer.inverse(y)
        return y

    def log_determinant(self, x: Tensor) -> Tensor:
        """Logarithm of the determinant of the Jacobian of each row, (N,)."""
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, of_layer = layer(x)
            total = total + of_layer
        return total
