"""What the curvature tests share: small networks as after some training, and every value from a dense Hessian."""

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, Bottleneck

from dd_core.models.build import build
from dd_core.study.curvature_names import CURVATURE_COLUMNS

Values = dict[str, Tensor]
# The values that have a meaning whatever the method; the others are its errors.
QUANTITIES = tuple(name for name in CURVATURE_COLUMNS if not name.endswith(("_error", "_residual")))
HESSIAN = ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_curvature")


def used(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Float64, in eval mode, BatchNorm with statistics of its own and gains of both signs, one of them 0.

    Args:
        model: any.
        images: if given, the last layer is scaled so that their logits have the standard deviation 1.
    """
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3, generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2, generator=generator)
            if len(module.weight) > 2:
                module.weight.data[1::3] *= -1
                module.weight.data[-1] = 0
    if images is not None:
        last = list(model.children())[-1]
        factor = 1 / model(images).std().item()
        for parameter in last.parameters():
            parameter.data *= factor
    return model


def network(architecture: str, k: int, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """One of the platform's."""
    torch.manual_seed(seed)
    return used(build(architecture, k, channels, classes), pictures(channels, 20))


def mlp(classes: int = 10) -> nn.Module:
    """64 inputs, two hidden layers, BatchNorm1d."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(inplace=True)]
    return used(nn.Sequential(nn.Flatten(), *layers, nn.Dropout(), nn.Linear(12, classes)), pictures(1, 20))


class Noted(list[int]):
    """What a network writes down: its copies write into the same list."""

    def __deepcopy__(self, memo: object) -> "Noted":
        """Itself."""
        return self


class TorchvisionNetwork(nn.Module):
    """As a user writes them: torchvision's blocks, a strided stem, an overlapping max-pool, functions."""

    def __init__(self, classes: int, bottleneck: bool):
        """Three channels in; 8 or 16 features."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        block = Bottleneck(8, 4, 2, shortcut) if bottleneck else BasicBlock(8, 16, 2, shortcut)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), block)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = torch.flatten(self.avgpool(functional.relu(self.layer1(x))), 1)
        logits: Tensor = self.fc(x)
        return logits


def torchvision_network(bottleneck: bool, classes: int = 10) -> nn.Module:
    """In eval mode, as after some training."""
    torch.manual_seed(0)
    return used(TorchvisionNetwork(classes, bottleneck), pictures(3, 20))


def pictures(channels: int, number: int = 3, side: int = 8, seed: int = 1) -> Tensor:
    """Float64 (number, channels, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, channels, side, side, dtype=torch.float64, generator=generator)


def hessians(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(N, D, D) by double backward of the loss, image by image; nothing about softmax is assumed."""
    found = []
    for image, label in zip(images, labels, strict=True):

        def loss(x: Tensor, shape: tuple[int, ...] = (1, *image.shape), label: Tensor = label) -> Tensor:
            return cross_entropy(model(x.view(shape)), label.view(1))

        matrix = hessian(loss, image.reshape(-1), vectorize=True)
        assert isinstance(matrix, Tensor)
        found.append(matrix)
    return torch.stack(found)


def dense(model: nn.Module, images: Tensor, labels: Tensor) -> Values:
    """All ``QUANTITIES`` from the losses and their Hessians."""
    x = images.clone().requires_grad_(True)
    losses = cross_entropy(model(x), labels, reduction="none")
    gradients = torch.autograd.grad(losses.sum(), x)[0].flatten(1)
    matrices = hessians(model, images, labels)
    along = torch.einsum("nd,nde,ne->n", gradients, matrices, gradients)
    square = gradients.square().sum(-1)
    return {
        "loss": losses.detach(),
        "probability": model(images).softmax(1).gather(1, labels[:, None]).squeeze(1).detach(),
        "gradient_norm": gradients.norm(dim=-1),
        "gradient_curvature": along / torch.where(square > 0, square, 1),
        "trace": matrices.diagonal(dim1=1, dim2=2).sum(-1),
        "frobenius_norm": matrices.flatten(1).norm(dim=-1),
        "largest_eigenvalue": torch.linalg.eigvalsh(matrices)[:, -1],
    }


def assert_close(ours: Values, theirs: Values, rel: float = 1e-9, atol: float = 1e-12, **factors: float) -> None:
    """Every quantity agrees, theirs multiplied by its factor."""
    for name in QUANTITIES:
        expected = theirs[name] * factors.get(name, 1)
        torch.testing.assert_close(ours[name], expected, rtol=rel, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def relative_errors(ours: Values, theirs: Values) -> Values:
    """|ours - theirs| / |theirs| by quantity."""
    return {name: ((ours[name] - theirs[name]) / theirs[name]).abs() for name in QUANTITIES}
