"""Several independent networks of one architecture as one module, so that small widths keep the hardware busy.

A stacked module holds T networks side by side: convolutions have T groups, BatchNorm works per channel anyway, the last
layer is one batched product. No value of one network enters another, in the forward pass, the backward pass or the
elementwise optimisers. Every parameter and buffer is the concatenation of the T networks' tensors along dimension 0, so
plain and stacked weights convert by ``cat`` and ``chunk``, and T = 1 is a plain network with plain tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dd_core.errors import StaleError
from dd_core.models.small_maps import as_product
from dd_core.models.strided_pointwise import without_stride


class Convolution(nn.Conv2d):
    """A 2-D convolution of T networks: (B, T*in, H, W) to (B, T*out, H', W').

    Attributes:
        takes_products: in place of convolutions of small maps, see ``small_maps``. Not in a network alone that is
            looked at rather than trained: libraries and tracers know its convolutions.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, trials: int, stride: int = 1, bias: bool = False):
        """``inputs`` and ``outputs`` count the channels of one network; padding keeps the size at stride 1."""
        super().__init__(
            trials * inputs, trials * outputs, kernel, stride=stride, padding=kernel // 2, groups=trials, bias=bias
        )
        self.takes_products = trials > 1
        # cuDNN takes four groups of four channels at a time, and of a last few reads weights that are not there.
        self._is_misread = trials % 4 != 0 and trials > 1 and inputs == outputs == 4

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What nn.Conv2d calls; ``forward`` stays its own, by which libraries and tracers know a stock layer.

        In 16 bits and channels-last memory, cuDNN's kernel for groups of four channels (9.19, on an H200:
        ``implicit_gemm_..._g16``) reads beyond the weights unless their number is a multiple of 16: its output varies
        from call to call, and where nothing is mapped there the process dies. PyTorch's own layout has other kernels,
        which are right and for this shape faster (docs/gpu.md).
        """
        if self._is_misread and input.is_cuda and (input.element_size() == 2 or torch.is_autocast_enabled("cuda")):
            return super()._conv_forward(input.contiguous(), weight.contiguous(), bias)
        if self.takes_products:
            product = as_product(input, weight, bias, int(self.stride[0]), self.groups)
            if product is not None:
                return product
        pixels = without_stride(input, weight, self.stride, self.padding, self.groups)
        if pixels is None:
            return super()._conv_forward(input, weight, bias)
        return nn.functional.conv2d(pixels, weight, bias, (1, 1), (0, 0), (1, 1), 1)


class BatchNorm(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d for T networks, without its scalar batch counter.

    The counter matters only for ``momentum=None``; without it every tensor of a stacked network splits by trial.
    """

    def __init__(self, channels: int, trials: int):
        """``channels`` counts the channels of one network."""
        super().__init__(trials * channels)
        self.num_batches_tracked = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        """As PyTorch's, which would add a counter to weights that come without a version, and refuse it as unexpected.

        Weights read from a file are such: ``load_state_dict`` takes them as they are.
        """
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": self._version}, *others)


def normalisation(norm: str, channels: int, trials: int) -> nn.Module:
    """What stands behind a convolution: ``batch``, ``group`` (Wu & He 2018) or ``none``.

    GroupNorm has 32 groups, or the largest number that leaves each at least two channels. Its groups do not cross the
    border between two networks. Without normalisation, convolutions have biases.

    Args:
        norm: the setting.
        channels: of one network.
        trials: networks in the stack.
    """
    if norm == "batch":
        return BatchNorm(channels, trials)
    if norm == "none":
        return nn.Identity()
    groups = next(n for n in range(min(32, max(1, channels // 2)), 0, -1) if channels % n == 0)
    return nn.GroupNorm(trials * groups, trials * channels)


class StackedLinear(nn.Module):
    """torch.nn.Linear of T networks, which are the leading dimension: (T, ..., in) to (T, ..., out)."""

    def __init__(self, inputs: int, outputs: int, trials: int):
        """Weights and biases are those of T networks of ``torch.nn.Linear``, one after the other."""
        super().__init__()
        template = nn.Linear(inputs, outputs)
        self.trials = trials
        self.weight = nn.Parameter(template.weight.detach().repeat(trials, 1))
        self.bias = nn.Parameter(template.bias.detach().repeat(trials))

    def forward(self, x: Tensor) -> Tensor:
        """One product for all networks."""
        weight = self.weight.unflatten(0, (self.trials, -1)).transpose(1, 2)
        bias = self.bias.unflatten(0, (self.trials, 1, -1))
        return torch.baddbmm(bias, x.flatten(1, -2), weight).unflatten(1, x.shape[1:-1])


def linear(inputs: int, outputs: int, trials: int | None) -> nn.Module:
    """``torch.nn.Linear`` of a plain network (``trials=None``), or of a stack."""
    return nn.Linear(inputs, outputs) if trials is None else StackedLinear(inputs, outputs, trials)


class Classifier(nn.Module):
    """The last linear layer of T networks: (B, T*in) to (B, T, out), or to (B, out) for a plain network."""

    def __init__(self, inputs: int, outputs: int, trials: int | None):
        """A plain network (``trials=None``) draws its weights as torch.nn.Linear does."""
        super().__init__()
        self.trials = trials
        template = nn.Linear(inputs, outputs)
        copies = trials or 1
        self.weight = nn.Parameter(template.weight.detach().repeat(copies, 1))
        self.bias = nn.Parameter(template.bias.detach().repeat(copies))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every network."""
        if self.trials is None:
            return nn.functional.linear(features, self.weight, self.bias)
        by_trial = features.unflatten(1, (self.trials, -1)).transpose(0, 1)
        weight = self.weight.unflatten(0, (self.trials, -1)).transpose(1, 2)
        logits = torch.baddbmm(self.bias.unflatten(0, (self.trials, 1, -1)), by_trial, weight)
        return logits.transpose(0, 1)


def by_trial(tensor: Tensor, num_trials: int) -> Tensor:
    """(T*n, ...) as (T, n, ...), a view; a number, which only a network alone has, as (1,)."""
    return tensor.unflatten(0, (num_trials, -1)) if tensor.ndim else tensor.unsqueeze(0)


def stack_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of T plain networks as those of one stacked network."""
    if len(states) == 1:
        return dict(states[0])
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights into a model, in place.

    Raises:
        StaleError: names or shapes are not the model's.
    """
    own = model.state_dict()
    differing = sorted(set(own) ^ set(state)) or sorted(n for n in own if own[n].shape != state[n].shape)
    if differing:
        raise StaleError(f"these weights are not of this model: {', '.join(differing[:3])} and so on differ")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
