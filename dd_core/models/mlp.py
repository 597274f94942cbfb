"""A multilayer perceptron: the pixels of an image, hidden layers of k units with ReLU, and logits.

The network of the first double descents (Belkin et al. 2019, one hidden layer). All its weights are in ``layers``.
"""

import itertools

from torch import Tensor, nn

from dd_core.models.stacking import linear
from dd_core.study.architectures import Shape


class MLP(nn.Module):
    """Linear layers with ReLUs between."""

    def __init__(self, sizes: list[int], trials: int | None):
        """Sizes from the input to the logits; ``trials=None`` makes a plain network, a number a stacked one."""
        super().__init__()
        self.trials = trials
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [linear(inputs, outputs, trials), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits (B, T, C), or (B, C) of a plain network."""
        if self.trials is None:
            return self.layers(images.flatten(1))
        return self.layers(images.flatten(1).unflatten(1, (self.trials, -1)).transpose(0, 1)).transpose(0, 1)


def mlp(k: int, shape: Shape, num_classes: int, trials: int | None, layers: int) -> nn.Module:
    """The builder of ``mlp``; ``layers`` counts the hidden ones."""
    return MLP([shape[0] * shape[1] * shape[2], *[k] * layers, num_classes], trials)
