"""The guard and the estimators over torchvision's networks: numbers that agree with differences of gradients."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import models

from dd_core.curvature import per_image_curvature
from dd_core.curvature.parameter_space import HessianOperator

LABELS = torch.tensor([0, 2])


def _vgg() -> nn.Module:
    model = models.vgg11_bn(num_classes=3)
    model.features = nn.Sequential(*list(model.features)[:8])  # up to 128 channels
    model.classifier = nn.Linear(128 * 49, 3)
    return model


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import MBConvConfig

    return models.EfficientNet([MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 1)], 0.0, num_classes=3)


def _swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    options = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if version == 2 else {}
    return models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3, **options)


# A network, the side of its images, and whether its Hessian in the parameters is small enough for a test.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {
    "resnet18": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 0], num_classes=3), 32, False),
    "resnext": (
        lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 0, 0], 3, groups=4, width_per_group=8),
        32,
        False,
    ),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=3, width_mult=0.25), 32, True),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=3, width_mult=0.5), 32, True),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=3), 32, True),
    "vgg": (_vgg, 32, True),
    "densenet": (lambda: models.DenseNet(8, (2, 2), 16, num_classes=3), 32, True),
    "efficientnet": (_efficientnet, 32, True),
    "convnext": (_convnext, 32, True),
    "googlenet": (lambda: models.googlenet(num_classes=3, aux_logits=True, init_weights=False), 32, False),
    "inception": (lambda: models.inception_v3(num_classes=3, init_weights=False), 75, False),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=3), 32, True),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=3), 32, True),
    "regnet": (lambda: models.regnet_y_400mf(num_classes=3), 32, False),
    "vit": (lambda: models.VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=3), 8, True),
    "swin": (lambda: _swin(1), 16, True),
    "swin_v2": (lambda: _swin(2), 16, True),
    "maxvit": (lambda: models.MaxVit((32, 32), 8, 4, [8], [1], 8, 0.0, num_classes=3), 32, True),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """As after some training: statistics of its own, no bias of 0, a last layer that is not 0; float64 images."""
    make, side, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return model, torch.rand(2, 3, side, side, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_curvature_along_the_gradient_is_that_of_another_way(name: str) -> None:
    """The exact formula against double backward, double backward against differences of gradients, in float64."""
    model, x = made(name)
    ours = per_image_curvature(model, x.float(), LABELS, num_probes=1)
    exact = copy.deepcopy(model).double().requires_grad_(False)

    def gradient(at: Tensor, create_graph: bool = False) -> Tensor:
        return torch.autograd.grad(cross_entropy(exact(at), LABELS, reduction="sum"), at, create_graph=create_graph)[0]

    x.requires_grad_(True)
    slope = gradient(x, create_graph=True)
    unit = (slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).detach()
    if ours.method == "exact":
        changes = [torch.autograd.grad(slope, x, unit)[0]]
    else:  # the largest step that crosses no kink is the best
        steps = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
        changes = [(gradient(x + h * unit) - gradient(x - h * unit)) / (2 * h) for h in steps]
    expected = torch.stack([(change * unit).flatten(1).sum(1) for change in changes])
    off = ((ours.columns["gradient_curvature"] - expected) / expected).abs().amin(0)
    assert off.max() < 1e-3
    assert (ours.columns["gradient_norm"] / slope.flatten(1).norm(dim=1) - 1).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", [name for name, (_, _, small) in NETWORKS.items() if small])
def test_products_with_the_hessian_are_differences_of_gradients(name: str) -> None:
    model, x = made(name)
    operator = HessianOperator(model, x, LABELS, dtype=torch.float64)
    exact = copy.deepcopy(model).double()
    parameters = list(exact.parameters())
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    direction = torch.randn(operator.size, dtype=torch.float64)
    direction /= direction.norm()

    def gradient(step: float) -> Tensor:
        moved = (before + step * direction).split([p.numel() for p in parameters])
        for p, part in zip(parameters, moved, strict=True):
            p.data = part.view(p.shape)
        found = torch.autograd.grad(cross_entropy(exact(x), LABELS), parameters, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in found])

    product = operator.matvec(direction)
    off = [((gradient(h) - gradient(-h)) / (2 * h) - product).norm() / product.norm() for h in (1e-3, 1e-5, 1e-7)]
    assert min(off) < 1e-4
