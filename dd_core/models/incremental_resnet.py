"""The ResNet18 of class-incremental training: torchvision's, with a stem for small images and biases everywhere.

Dohare et al. 2024, "Loss of plasticity in deep continual learning" (Nature 632), change three things of torchvision's
network: a 3x3 convolution of stride 1 takes the place of the 7x7 one, there is no max-pooling, and every convolution
has a bias. The names of parameters and buffers are torchvision's (``layer2.0.downsample.0.weight``, ``fc.weight``), so
that published files of weights fit; only the batch counters of BatchNorm, which nothing here needs, are left out. k =
64 is the published width.
"""

from torch import Tensor, nn

from dd_core.models.resnet import BasicBlock
from dd_core.models.stacking import Classifier, Convolution, normalisation
from dd_core.study.architectures import Shape


class IncrementalResNet(nn.Module):
    """Four stages of two blocks, k to 8k channels, strides 1, 2, 2, 2."""

    def __init__(self, k: int, channels: int, num_classes: int, trials: int | None):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        copies = trials or 1
        self.conv1 = Convolution(channels, k, 3, copies, bias=True)
        self.bn1 = normalisation("batch", k, copies)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(k, k, 1, copies)
        self.layer2 = _stage(k, 2 * k, 2, copies)
        self.layer3 = _stage(2 * k, 4 * k, 2, copies)
        self.layer4 = _stage(4 * k, 8 * k, 2, copies)
        self.fc = Classifier(8 * k, num_classes, trials)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        x = self.relu(self.bn1(self.conv1(images)))
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


def _stage(inputs: int, outputs: int, stride: int, trials: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, trials, "batch", has_bias=True),
        BasicBlock(outputs, outputs, 1, trials, "batch", has_bias=True),
    )


def _initialise(module: nn.Module) -> None:
    """He et al. 2015: normal weights whose variance is 2 (last layer: 1) over the number of inputs; biases 0."""
    if isinstance(module, Convolution | Classifier):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if isinstance(module, Convolution) else "linear")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def incremental_resnet18(k: int, shape: Shape, num_classes: int, trials: int | None) -> nn.Module:
    """The builder of ``incremental_resnet18``."""
    return IncrementalResNet(k, shape[2], num_classes, trials)
