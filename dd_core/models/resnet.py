"""ResNet18 of width k (He et al. 2016, "Deep Residual Learning for Image Recognition"), with a stem for small images.

A 3x3 convolution of stride 1 takes the place of the 7x7 one of stride 2 and of the max-pooling behind it. Four stages
of two blocks have k, 2k, 4k, 8k channels and strides 1, 2, 2, 2. The shortcut is the identity, or a 1x1 convolution and
a normalisation where the shape changes (option B). Global average; linear. k = 64 is the standard network.
"""

from torch import Tensor, nn

from dd_core.models.stacking import Classifier, Convolution, normalisation
from dd_core.study.architectures import Shape


class BasicBlock(nn.Module):
    """3x3 convolution and normalisation, twice, with a ReLU between and one after the sum with the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, trials: int, norm: str, *, has_bias: bool | None = None):
        """``inputs`` and ``outputs`` count the channels of one network.

        ``has_bias``: of its convolutions; None: where nothing normalises.
        """
        super().__init__()
        has_bias = norm == "none" if has_bias is None else has_bias
        self.conv1 = Convolution(inputs, outputs, 3, trials, stride=stride, bias=has_bias)
        self.bn1 = normalisation(norm, outputs, trials)
        self.conv2 = Convolution(outputs, outputs, 3, trials, bias=has_bias)
        self.bn2 = normalisation(norm, outputs, trials)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                Convolution(inputs, outputs, 1, trials, stride=stride, bias=has_bias),
                normalisation(norm, outputs, trials),
            )
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T*inputs, H, W) to (B, T*outputs, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """Two blocks per stage; names of parameters are torchvision's, but for ``blocks`` and ``linear``."""

    def __init__(self, k: int, channels: int, num_classes: int, trials: int | None, norm: str):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        copies = trials or 1
        self.conv1 = Convolution(channels, k, 3, copies, bias=norm == "none")
        self.bn1 = normalisation(norm, k, copies)
        self.relu = nn.ReLU(inplace=True)
        blocks = []
        width = k
        for stage, stride in enumerate((1, 2, 2, 2)):
            for index in range(2):
                outputs = k * 2**stage
                blocks.append(BasicBlock(width, outputs, stride if index == 0 else 1, copies, norm))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = Classifier(width, num_classes, trials)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        return self.linear(self.blocks(self.relu(self.bn1(self.conv1(images)))).mean((2, 3)))


def resnet18(k: int, shape: Shape, num_classes: int, trials: int | None, norm: str) -> nn.Module:
    """The builder of ``resnet18``."""
    return ResNet(k, shape[2], num_classes, trials, norm)
