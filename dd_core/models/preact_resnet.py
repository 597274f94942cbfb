"""Pre-activation ResNets of width k as in the code of Nakkiran et al. 2019, "Deep Double Descent" (ResNet18k).

Widths k, 2k, 4k, 8k with strides 1, 2, 2, 2; the identity shortcut leaves from the block's raw input, the 1x1
convolution shortcut from its activated input, without BatchNorm; no BatchNorm or ReLU after the last block; global
average; linear.
"""

from torch import Tensor, nn

from dd_core.models.stacking import Classifier, Convolution, normalisation
from dd_core.study.architectures import Shape


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, and a shortcut (He et al. 2016, "Identity Mappings")."""

    def __init__(self, inputs: int, outputs: int, stride: int, trials: int, norm: str):
        """``inputs`` and ``outputs`` count the channels of one network."""
        super().__init__()
        has_bias = norm == "none"
        self.bn1 = normalisation(norm, inputs, trials)
        self.conv1 = Convolution(inputs, outputs, 3, trials, stride=stride, bias=has_bias)
        self.bn2 = normalisation(norm, outputs, trials)
        self.conv2 = Convolution(outputs, outputs, 3, trials, bias=has_bias)
        # In place of a normalisation's output, which nothing else needs; without one the shortcut needs it.
        self.relu = nn.ReLU(inplace=norm != "none")
        self.shortcut = (
            Convolution(inputs, outputs, 1, trials, stride=stride, bias=has_bias)
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T*inputs, H, W) to (B, T*outputs, H/stride, W/stride)."""
        activated = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.relu(self.bn2(self.conv1(activated)))) + shortcut


class PreActResNet(nn.Module):
    """ResNet18k with two blocks per stage, ResNet10k with one."""

    def __init__(self, k: int, blocks_per_stage: int, channels: int, num_classes: int, trials: int | None, norm: str):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        copies = trials or 1
        self.conv1 = Convolution(channels, k, 3, copies, bias=norm == "none")
        blocks = []
        width = k
        for stage, stride in enumerate((1, 2, 2, 2)):
            for index in range(blocks_per_stage):
                outputs = k * 2**stage
                blocks.append(PreActBlock(width, outputs, stride if index == 0 else 1, copies, norm))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = Classifier(width, num_classes, trials)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        return self.linear(self.blocks(self.conv1(images)).mean((2, 3)))


def resnet18(k: int, shape: Shape, num_classes: int, trials: int | None, norm: str) -> nn.Module:
    """The builder of ``preact_resnet18``."""
    return PreActResNet(k, 2, shape[2], num_classes, trials, norm)


def resnet10(k: int, shape: Shape, num_classes: int, trials: int | None, norm: str) -> nn.Module:
    """The builder of ``preact_resnet10``."""
    return PreActResNet(k, 1, shape[2], num_classes, trials, norm)
