"""Several independent networks of one architecture as one module, so that small widths keep the hardware busy.

A stacked module holds T networks side by side: convolutions have T groups, BatchNorm works per channel anyway, the last
layer is one batched product. No value of one network enters another, in the forward pass, the backward pass or the
elementwise optimisers. Every parameter and buffer is the concatenation of the T networks' tensors along dimension 0, so
plain and stacked weights convert by ``cat`` and ``chunk``, and T = 1 is a plain network with plain tensors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dd_core.errors import StaleError
from dd_core.models.strided_pointwise import without_stride


class Convolution(nn.Conv2d):
    """A 2-D convolution of T networks: (B, T*in, H, W) to (B, T*out, H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, trials: int, stride: int = 1, bias: bool = False):
        """``inputs`` and ``outputs`` count the channels of one network; padding keeps the size at stride 1."""
        super().__init__(
            trials * inputs, trials * outputs, kernel, stride=stride, padding=kernel // 2, groups=trials, bias=bias
        )
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


def stack_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of T plain networks as those of one stacked network."""
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
