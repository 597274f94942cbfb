"""The hand-written backward pass against autograd: every rule, every way of joining, and refusal of all else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.curvature.input_space.autograd_backward import AutogradNetwork, differs
from dd_core.curvature.input_space.linearized import LinearizedNetwork, NotLinearizableError
from dd_core.models.build import build

from .dense import mlp, network, pictures, torchvision_network, used

SIDE = (9, 8)


class Applies(nn.Module):
    """A function of the module and a convolution's output, then a linear layer."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], features: int = 432, channels: int = 6):
        """Three channels of nine times eight pixels in."""
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm, self.relu, self.inplace = nn.BatchNorm2d(channels), nn.ReLU(), nn.ReLU(inplace=True)
        self.constant = nn.Parameter(torch.randn(1, channels, *SIDE))
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 9, 8) to logits."""
        logits: Tensor = self.head(self.function(self, self.first(x)).flatten(1))
        return logits


class Sums(nn.Module):
    """Reads the image in two places and does not end in a linear layer."""

    def __init__(self) -> None:
        """216 pixels to as many logits."""
        super().__init__()
        self.layer = nn.Linear(216, 216)

    def forward(self, x: Tensor) -> Tensor:
        """The image itself is added to the output."""
        return x.flatten(1) + F.relu(self.layer(x.flatten(1)))


def images(number: int = 3) -> Tensor:
    return torch.randn(number, 3, *SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cotangents(number: int, classes: int, many: int = 4) -> Tensor:
    return torch.randn(number, many, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def autograd(model: nn.Module, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and J^T v by automatic differentiation; the images are copied, so that a layer in place may start."""
    source = x.clone().requires_grad_(True)
    logits = model(source * 1)
    pulled = [torch.autograd.grad(logits, source, v, retain_graph=True)[0] for v in vectors.unbind(1)]
    return logits.detach(), torch.stack(pulled, 1)


def check(model: nn.Module, x: Tensor) -> None:
    """Logits and pull-back are autograd's, in contiguous and channels-last memory, and nothing given is changed."""
    with torch.no_grad():
        vectors = cotangents(len(x), model(x.clone()).shape[1])
    before = vectors.clone(), x.clone()
    logits, expected = autograd(model, x, vectors)
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        moved = x.contiguous(memory_format=layout) if x.ndim == 4 else x
        linearized = LinearizedNetwork(model, torch.float64).forward(moved)
        torch.testing.assert_close(linearized.logits, logits, rtol=1e-12, atol=1e-12)
        for keep in (False, True):
            at = LinearizedNetwork(model, torch.float64).forward(moved, keep_inputs=keep)
            got = at.pull_back(vectors, (lambda *_: None) if keep else None)
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        if linearized.classifier_weight is not None and linearized.classifier_weight.shape[0] == vectors.shape[2]:
            features = linearized.pull_back_features(vectors @ linearized.classifier_weight)
            torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(vectors, before[0])
    assert torch.equal(x, before[1])


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "strided": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), 100),
    "strides left over": (lambda: nn.Conv2d(3, 5, 4, stride=3), 20),
    "dilated": (lambda: nn.Conv2d(3, 5, 3, dilation=2, padding=1), 210),
    "grouped": (lambda: nn.Conv2d(3, 6, 3, groups=3, stride=(2, 1), padding=(0, 2)), 240),
    "even kernel": (lambda: nn.Conv2d(3, 5, (2, 4), padding=(1, 0)), 250),
    "packed with a wide kernel": (lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), 288),
    "one by one": (lambda: nn.Conv2d(3, 4, 1), 288),
    "one by one strided": (lambda: nn.Conv2d(3, 4, 1, stride=2), 80),
    "one by one strided unevenly": (lambda: nn.Conv2d(3, 4, 1, stride=(2, 3)), 60),
    "one by one strided and grouped": (lambda: nn.Conv2d(3, 6, 1, stride=2, groups=3), 120),
    "one by one strided and padded": (lambda: nn.Conv2d(3, 4, 1, stride=2, padding=1), 120),
    "max-pool": (lambda: nn.MaxPool2d((3, 2)), 36),
    "max-pool with a border": (lambda: nn.MaxPool2d(3, 3, 1), 27),
    "max-pool overlapping": (lambda: nn.MaxPool2d(3, 2), 36),
    "max-pool overlapping in a size it divides": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, (4, 3)), nn.MaxPool2d(3, 2)),
        12,
    ),
    "max-pool with a border in a size it divides": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3, 3, 1)),
        27,
    ),
    "max-pool dilated": (lambda: nn.MaxPool2d(2, 2, 1, dilation=2), 60),
    "max-pool with ceil_mode": (lambda: nn.MaxPool2d(2, 2, ceil_mode=True), 60),
    "max-pool at stride 1": (lambda: nn.MaxPool2d(3, 1, 1), 216),
    "average": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), 75),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d((2, 3)), 18),
    "leaky": (lambda: nn.LeakyReLU(0.2), 216),
    "leaky in place": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.2, inplace=True)), 216),
    "relu6": (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU6(inplace=True)), 216),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.7), 216),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity()), 216),
    "norm without gains": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU()), 216),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_go_back_as_autograd_does(name: str) -> None:
    torch.manual_seed(0)
    layer, features = LAYERS[name]
    body = [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), layer(), nn.ReLU()]
    check(nn.Sequential(*body, nn.Flatten(), nn.Linear(features, 5)).double().eval(), images())


@settings(max_examples=40)
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    side=st.tuples(st.integers(9, 13), st.integers(9, 13)),
)
def test_every_convolution_goes_back_as_autograd_does(
    channels: Any, kernel: Any, stride: Any, padding: Any, dilation: int, side: Any
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, kernel, stride, padding, dilation)
    model = nn.Sequential(nn.Conv2d(1, channels[0], 1), nn.ReLU(), layer, nn.Flatten()).double().eval()
    check(model, torch.randn(2, 1, *side, dtype=torch.float64))


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    side=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_every_max_pool_goes_back_as_autograd_does(
    kernel: Any, stride: Any, padding: int, dilation: int, ceil_mode: bool, side: Any
) -> None:
    border = tuple(min(padding, size // 2) for size in kernel)
    model = nn.Sequential(nn.MaxPool2d(kernel, stride, border, dilation, ceil_mode=ceil_mode), nn.Flatten()).eval()
    check(model, torch.randn(2, 2, *side, dtype=torch.float64))


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional relu": lambda m, h: torch.relu(F.relu(h) + h.relu()),
    "in place": lambda m, h: m.second(m.inplace(m.norm(h))),
    "norm read twice": lambda m, h: (lambda n: m.relu(n) + n)(m.norm(h)),
    "norm and function": lambda m, h: F.relu(m.norm(h)),
    "module used twice": lambda m, h: m.relu(m.second(m.relu(m.second(h)))),
    "norm used twice": lambda m, h: m.relu(m.norm(m.second(m.relu(m.norm(h))))),
    "residual": lambda m, h: m.second(m.relu(m.norm(h))) + h,
    "residual of three": lambda m, h: torch.add(m.second(h), h) + m.relu(h),
    "residual in place": lambda m, h: m.second(m.relu(h)).add_(h),
    "number added": lambda m, h: (1.5 + m.second(h)) + m.relu(h + 2),
    "view": lambda m, h: h.contiguous().view(h.size(0), -1).reshape(h.shape[0], 6, -1).contiguous(),
    "nothing used": lambda m, h: (m.second(h), h)[1],
}
REDUCED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mean": lambda m, h: m.relu(h).mean((2, 3)),
    "mean kept": lambda m, h: torch.mean(m.relu(h), dim=(-1, -2), keepdim=True),
    "pooled": lambda m, h: F.adaptive_avg_pool2d(m.relu(h), 1).squeeze(-1),
    "maximum": lambda m, h: F.max_pool2d(h, h.shape[2:]),
    "averaged": lambda m, h: F.avg_pool2d(h, kernel_size=(9, 8)),
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *REDUCED])
def test_functions_and_joins_go_back_as_autograd_does(name: str) -> None:
    torch.manual_seed(0)
    model = Applies(FUNCTIONS[name]) if name in FUNCTIONS else Applies(REDUCED[name], features=6)
    check(used(model), images())


@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
@pytest.mark.parametrize(("k", "channels"), [(1, 1), (3, 3)])
def test_the_platforms_networks_go_back_as_autograd_does(architecture: str, k: int, channels: int) -> None:
    check(network(architecture, k, channels, 10), pictures(channels))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_users_network_goes_back_as_autograd_does(bottleneck: bool) -> None:
    check(torchvision_network(bottleneck), pictures(3, side=11))


def test_networks_of_linear_layers_go_back_as_autograd_does() -> None:
    check(mlp(), pictures(1))
    check(nn.Sequential(nn.Linear(7, 4)).double().eval(), torch.randn(3, 7, dtype=torch.float64))
    check(Sums().double().eval(), images())
    by_pixel = nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3), nn.Linear(72, 5), nn.ReLU(), nn.Flatten())
    check(used(by_pixel), images())


def test_bfloat16_is_close_and_stays_in_its_type() -> None:
    model, x = network("preact_resnet18", 4, 3, 10).float(), pictures(3).float()
    vectors = cotangents(3, 10)
    logits, expected = autograd(model, x, vectors.float())
    linearized = LinearizedNetwork(model, torch.bfloat16).forward(x)
    got = linearized.pull_back(vectors)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(linearized.logits, logits, rtol=1e-5, atol=1e-6)  # the forward pass keeps its precision
    errors = (got.float() - expected).flatten(2).norm(dim=2) / expected.flatten(2).norm(dim=2)
    assert errors.median() < 0.03


def test_a_visitor_sees_every_layer_once_with_its_input_and_cotangents() -> None:
    torch.manual_seed(0)
    model = used(Applies(FUNCTIONS["in place"]))
    seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def visit(name: str, layer: nn.Module, layer_input: Tensor, arrived: Tensor) -> None:
        assert name not in seen
        seen[name] = layer, layer_input, arrived.clone()

    x = images()
    vectors = cotangents(3, 5)
    LinearizedNetwork(model, torch.float64).forward(x, keep_inputs=True).pull_back(vectors, visit)
    assert list(seen) == ["head", "second", "norm", "first"]
    assert {name: (tuple(i.shape), tuple(c.shape)) for name, (_, i, c) in seen.items()} == {
        "head": ((3, 432), (3, 4, 5)),
        "second": ((3, 6, 9, 8), (3, 4, 6, 9, 8)),
        "norm": ((3, 6, 9, 8), (3, 4, 6, 9, 8)),
        "first": ((3, 3, 9, 8), (3, 4, 6, 9, 8)),
    }
    # Weight gradients from what the visitor saw are autograd's.
    for number in range(4):
        logits = model(x)
        loss = (logits * vectors[:, number]).sum()
        expected = dict(zip(("head", "second", "first"), torch.autograd.grad(loss, _weights(model)), strict=True))
        for name, gradient in expected.items():
            layer, layer_input, arrived = seen[name]
            value = layer(layer_input)
            (ours,) = torch.autograd.grad(value, layer.weight, arrived[:, number])
            torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-12)


def _weights(model: Any) -> list[Tensor]:
    return [model.head.weight, model.second.weight, model.first.weight]


def test_a_visitor_sees_a_layer_that_is_used_twice_twice() -> None:
    torch.manual_seed(0)
    seen: list[str] = []
    at = LinearizedNetwork(used(Applies(FUNCTIONS["module used twice"])), torch.float64).forward(images(), True)
    at.pull_back(cotangents(3, 5), lambda name, *_: seen.append(name))
    assert seen == ["head", "second", "second", "first"]
    without = LinearizedNetwork(used(Applies(FUNCTIONS["residual"])), torch.float64).forward(images())
    with pytest.raises(ValueError, match="keep_inputs"):
        without.pull_back(cotangents(3, 5), lambda *_: None)


def test_a_network_can_be_read_again_after_a_change() -> None:
    model, x = network("preact_resnet10", 2, 3, 10), pictures(3)
    LinearizedNetwork(model, torch.float64).forward(x)
    for parameter in model.parameters():
        parameter.data.mul_(1.3)
    model.linear = nn.Linear(16, 7).double()
    check(model, x)


def test_linearising_leaves_the_model_as_it_was() -> None:
    model, x = network("cnn5", 2, 3, 10), pictures(3)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LinearizedNetwork(model, torch.bfloat16).forward(x).pull_back(cotangents(3, 10))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Standardised(nn.Conv2d):
    """A layer that uses its weight in another way than its class does."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the weight."""
        return F.conv2d(x, 2 * self.weight, self.bias, padding=1)


# Piecewise linear, but without a rule; some of them used to lose a branch without a word.
UNKNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "scaled residual": lambda m, h: h + 0.5 * m.relu(h),
    "difference": lambda m, h: h - m.relu(h),
    "doubled": lambda m, h: h + h,
    "weighted sum": lambda m, h: torch.add(h, m.relu(h), alpha=2),
    "constant added": lambda m, h: h + m.constant,
    "joined": lambda m, h: torch.cat([h[:, :3], m.relu(h[:, 3:])], 1) + h,
    "relu by keyword": lambda m, h: h + torch.relu(input=h),
    "module by keyword": lambda m, h: h + m.relu(input=h),
    "maximum of two": lambda m, h: torch.maximum(h, m.second(h)),
    "clamped": lambda m, h: h.clamp(-0.1, 0.3) + h,
    "over the batch": lambda m, h: h + h.mean(-4, keepdim=True).expand(h.shape),
    "attribute": lambda m, h: h + h.mT.mT,
}
# What the graph does not show: the function differs from the network.
HIDDEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "input overwritten": lambda m, h: m.inplace(h) + h,
    "input overwritten by a function": lambda m, h: F.relu(h, inplace=True) + h,
}
SMOOTH: dict[str, Callable[[Any, Tensor], Tensor]] = {"gelu": lambda m, h: F.gelu(h), "product": lambda m, h: h * h}


def nothing_unknown(name: str) -> nn.Module:
    torch.manual_seed(0)
    return used(Applies({**UNKNOWN, **HIDDEN, **SMOOTH}[name]))


@pytest.mark.parametrize("name", [*UNKNOWN, *SMOOTH])
def test_unknown_operations_are_refused(name: str) -> None:
    with pytest.raises(NotLinearizableError):
        LinearizedNetwork(nothing_unknown(name), torch.float64).forward(images())


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), "layer '0' pads"),
        (nn.Conv2d(3, 3, 3, padding="same"), "layer '0' pads"),
        (nn.BatchNorm2d(3, track_running_stats=False), "layer '0' normalises by the batch"),
        (nn.PReLU(3), r"layer '0' \(PReLU\)"),
        (nn.ConvTranspose2d(3, 3, 3, padding=1), r"layer '0' \(ConvTranspose2d\)"),
        (Standardised(3, 3, 3, padding=1), "conv2d"),
    ],
)
def test_unknown_layers_are_refused_by_name(layer: nn.Module, match: str) -> None:
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double().eval()
    with pytest.raises(NotLinearizableError, match=match):
        LinearizedNetwork(model, torch.float64).forward(images())


def test_stacked_networks_are_refused() -> None:
    with pytest.raises(NotLinearizableError, match="several networks"):
        LinearizedNetwork(build("cnn5", 1, 1, 4, trials=2).eval())


@pytest.mark.parametrize("name", HIDDEN)
def test_what_the_graph_does_not_show_is_found_by_comparison(name: str) -> None:
    model = nothing_unknown(name)
    assert differs(LinearizedNetwork(model, torch.float64).forward(images()), model, images())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
def test_what_the_graph_shows_raises_no_alarm(architecture: str, dtype: torch.dtype) -> None:
    """Saturated or not: the comparison does not pass through the softmax."""
    for scale in (1, 1e6):
        model = network(architecture, 2, 3, 10).float()
        model.linear.weight.data *= scale  # type: ignore[union-attr]
        x = pictures(3, 2).float()
        assert not differs(LinearizedNetwork(model, dtype).forward(x), model, x)
        assert not differs(AutogradNetwork(model).forward(x), model, x)
