"""Pre-activation ResNets of width k as in the code of Nakkiran et al. 2019, "Deep Double Descent" (ResNet18k).

Widths k, 2k, 4k, 8k with strides 1, 2, 2, 2; the identity shortcut leaves from the block's raw input, the 1x1
convolution shortcut from its activated input, without BatchNorm; no BatchNorm or ReLU after the last block; global
average; linear.
"""

from torch import Tensor, nn

from dd_core.models.stacking import BatchNorm, Classifier, Convolution


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, and a shortcut (He et al. 2016, "Identity Mappings")."""

    def __init__(self, inputs: int, outputs: int, stride: int, trials: int):
        """``inputs`` and ``outputs`` count the channels of one network."""
        super().__init__()
        self.bn1 = BatchNorm(inputs, trials)
        self.conv1 = Convolution(inputs, outputs, 3, trials, stride=stride)
        self.bn2 = BatchNorm(outputs, trials)
        self.conv2 = Convolution(outputs, outputs, 3, trials)
        self.relu = nn.ReLU(inplace=True)  # of BatchNorm's output, which nothing else needs
        self.shortcut = (
            Convolution(inputs, outputs, 1, trials, stride=stride) if stride != 1 or inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T*inputs, H, W) to (B, T*outputs, H/stride, W/stride)."""
        activated = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.relu(self.bn2(self.conv1(activated)))) + shortcut


class PreActResNet(nn.Module):
    """ResNet18k with two blocks per stage, ResNet10k with one."""

    def __init__(self, k: int, blocks_per_stage: int, channels: int, num_classes: int, trials: int | None):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        copies = trials or 1
        self.conv1 = Convolution(channels, k, 3, copies)
        blocks = []
        width = k
        for stage, stride in enumerate((1, 2, 2, 2)):
            for index in range(blocks_per_stage):
                outputs = k * 2**stage
                blocks.append(PreActBlock(width, outputs, stride if index == 0 else 1, copies))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = Classifier(width, num_classes, trials)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        return self.linear(self.blocks(self.conv1(images)).mean((2, 3)))
