"""The five-layer CNN of Nakkiran et al. 2019: four 3x3 convolutions of k, 2k, 4k, 8k channels and a linear layer."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from dd_core.models.stacking import Classifier, Convolution, normalisation
from dd_core.study.architectures import Shape


class CNN5(nn.Module):
    """Convolution, BatchNorm, ReLU four times; 2x2 max-pooling after the second to fourth; global maximum; linear."""

    def __init__(self, k: int, channels: int, num_classes: int, trials: int | None, norm: str):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        copies = trials or 1
        layers: list[nn.Module] = []
        width = channels
        for stage in range(4):
            outputs = k * 2**stage
            layers += [
                Convolution(width, outputs, 3, copies, bias=True),
                normalisation(norm, outputs, copies),
                nn.ReLU(inplace=True),
            ]
            if stage:
                layers.append(nn.MaxPool2d(2))
            width = outputs
        self.layers = nn.Sequential(*layers)
        self.linear = Classifier(width, num_classes, trials)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        features = self.layers(images)
        # AdaptiveMaxPool2d would do the same, but its backward pass on a GPU is not deterministic.
        return self.linear(max_pool2d(features, features.shape[2:]).flatten(1))


def cnn5(k: int, shape: Shape, num_classes: int, trials: int | None, norm: str) -> nn.Module:
    """The builder of ``cnn5``."""
    return CNN5(k, shape[2], num_classes, trials, norm)
