"""Convolutions and BatchNorm that are cheap to differentiate twice: PyTorch's values and derivatives in every form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dd_core.curvature.parameter_space import HessianOperator, operator
from dd_core.curvature.parameter_space import twice_differentiable as own
from dd_core.curvature.parameter_space.twice_differentiable import TwiceDifferentiable
from dd_core.models.strided_pointwise import SoundConvolutions

from .dense_hessians import gradient_and_hessian

Layer = Callable[[Tensor], Tensor]


def derivatives(layer: Layer, images: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The value, and derivatives of first, second and third order in the images and all parameters."""
    inputs = [images, *parameters]
    directions = [torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).to(tensor) for tensor in inputs]
    out = layer(images)
    gradients = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(gradients, inputs, directions, create_graph=True)
    third = torch.autograd.grad(second, inputs, directions)
    return [out, *gradients, *second, *third]


def assert_same_derivatives(layer: nn.Module, images: Tensor, forward: Layer | None = None) -> None:
    parameters, forward = list(layer.parameters()), forward or layer
    expected = derivatives(forward, images, parameters)
    with TwiceDifferentiable(), SoundConvolutions():
        got = derivatives(forward, images, parameters)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each of the calls so far was replaced."""
    calls = []

    def watched(function: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        def run(*args: object, **kwargs: object) -> Tensor | None:
            result = function(*args, **kwargs)
            calls.append(result is not None)
            return result

        return run

    for name in ("_convolution", "_batch_norm"):
        monkeypatch.setattr(own, name, watched(getattr(own, name)))
    return calls


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "one by one": lambda: nn.Conv2d(6, 9, 1, stride=2),
    "padding": lambda: nn.Conv2d(6, 9, 3, padding=1),
    "groups": lambda: nn.Conv2d(6, 9, 3, stride=2, padding=2, dilation=2, groups=3),
    "uneven": lambda: nn.Conv2d(6, 4, (1, 3), stride=(2, 1), padding=(0, 2)),
    "same": lambda: nn.Conv2d(6, 4, (3, 5), padding="same", dilation=(2, 1)),
    "valid, no bias": lambda: nn.Conv2d(6, 4, 3, padding="valid", bias=False),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 4, 3, 2, 1)),
    "three dimensions": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv3d(2, 4, 2, padding=1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_have_pytorchs_values_and_derivatives(name: str, replaced: list[bool]) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]().double()
    assert_same_derivatives(conv, torch.randn(3, 6, 5, 7, dtype=torch.float64, requires_grad=True))
    assert replaced == [True]


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_batch_norms_have_pytorchs_values_and_derivatives(affine: bool, replaced: list[bool]) -> None:
    for norm, shape in ((nn.BatchNorm1d, ()), (nn.BatchNorm2d, (3, 2)), (nn.BatchNorm3d, (1, 3, 2))):
        layer = norm(9, affine=affine).double().eval()
        layer.running_var.uniform_(0.5, 2)
        layer.running_mean.normal_()
        images = torch.randn(4, 9, *shape, dtype=torch.float64, requires_grad=True)
        assert_same_derivatives(layer, images, lambda x, layer=layer: torch.tanh(layer(x)))
    assert replaced == [True] * 3


def test_every_form_of_the_call_is_understood(replaced: list[bool]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3).double()
    mean, variance = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5

    def forward(x: Tensor) -> Tensor:
        y = F.conv2d(x, layer.weight, layer.bias, 1, 1) + F.conv2d(input=x, weight=layer.weight, padding=[1])
        y = F.batch_norm(y, mean, variance, weight=layer.bias) + F.batch_norm(y, mean, variance, eps=0.1)
        return torch.tanh(y)

    assert_same_derivatives(layer, torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True), forward)
    assert replaced == [True] * 4


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_other_uses_of_the_functions_stay_pytorchs(replaced: list[bool]) -> None:
    """Statistics of the batch, an image without a batch, an even kernel that keeps the size, transforms."""
    norm, images = nn.BatchNorm2d(2), torch.randn(3, 2, 4, 4)
    conv = nn.Conv2d(2, 5, 2, padding="same")
    with TwiceDifferentiable():
        assert norm(images).mean().abs() < 1e-6
        got = conv(images[0]), conv(images)
        assert replaced == [False] * 3
        mapped = vmap(nn.Conv2d(2, 5, 3))(images)
    assert norm.running_mean.abs().max() > 0
    assert mapped.shape == (3, 5, 2, 2)
    assert replaced == [False] * 3
    torch.testing.assert_close(got[0], conv(images[0]))
    torch.testing.assert_close(got[1], conv(images))


class _Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 2, 3)
        self.block = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(27, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.block, torch.tanh(self.before(x)), use_reentrant=False)
        return self.head(h.flatten(1))


def test_networks_with_checkpointed_blocks_have_their_dense_hessian(replaced: list[bool]) -> None:
    torch.manual_seed(0)
    model, images = _Checkpointed().double().eval(), torch.randn(4, 1, 9, 9, dtype=torch.float64)
    labels = torch.arange(4) % 3
    hessian = HessianOperator(model, images, labels, dtype=torch.float64)
    products = hessian.matmat(torch.eye(hessian.size, dtype=torch.float64))
    assert replaced == [True]
    torch.testing.assert_close(products, gradient_and_hessian(model, images, labels)[1], rtol=1e-9, atol=1e-11)


def test_the_hessian_never_takes_an_image_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what PyTorch's double backward does, and what is slow; without the mode it is seen here."""
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4) % 2
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3, padding=1), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2)).eval()

    def kernels() -> set[int]:
        hessian = HessianOperator(model, images, labels)
        with torch.profiler.profile(record_shapes=True) as profile:
            hessian.matvec(torch.randn(hessian.size))
        shapes = [event.input_shapes for event in profile.events() if event.name == "aten::convolution"]
        return {max(shape[1][2:]) for shape in shapes}

    assert kernels() == {3}
    monkeypatch.setattr(operator, "TwiceDifferentiable", torch.enable_grad)
    assert 8 in kernels()
