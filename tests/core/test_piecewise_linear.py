"""Which networks are piecewise linear in the image: by their layers, by their functions, by numbers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dd_core.curvature.input_space.piecewise_linear import (
    disagreement,
    is_piecewise_linear,
    why_not_piecewise_linear,
)
from dd_core.errors import UserError
from dd_core.models.build import build

IMAGES, LABELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)


class Applies(nn.Module):
    """A function between a convolution and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        """Eight channels of eight times eight pixels go in and out."""
        super().__init__()
        self.conv, self.function, self.head = nn.Conv2d(3, 8, 3, padding=1), function, nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.head(self.function(self.conv(x)).flatten(1))
        return logits


class BranchesOnValues(Applies):
    """torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        if x.abs().max() > 1e9:
            raise AssertionError
        return super().forward(x)


def sequential(layer: nn.Module, features: int = 512) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.Flatten(), nn.Linear(features, 4)).eval()


@pytest.mark.parametrize("trials", [None, 2])
@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
def test_the_networks_of_this_platform_are(architecture: str, trials: int | None) -> None:
    model = build(architecture, 2, 3, 10, trials=trials).eval()
    assert why_not_piecewise_linear(model) is None
    if trials is None:
        verdict, reason = is_piecewise_linear(model, IMAGES, LABELS)
        assert verdict
        assert "all layers are piecewise linear" in reason
        assert disagreement(model, IMAGES, LABELS) < 1e-10


@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.ReLU(), 512),
        (nn.LeakyReLU(), 512),
        (nn.PReLU(8), 512),
        (nn.ReLU6(), 512),
        (nn.Hardtanh(), 512),
        (nn.BatchNorm2d(8), 512),
        (nn.Dropout(), 512),
        (nn.Identity(), 512),
        (nn.MaxPool2d(2), 128),
        (nn.AvgPool2d(2), 128),
        (nn.AdaptiveAvgPool2d(1), 8),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 2048),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(8, 2, 1)), 128),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_piecewise_linear_layers_are_known_and_the_numbers_agree(layer: nn.Module, features: int) -> None:
    model = sequential(layer, features)
    assert why_not_piecewise_linear(model) is None
    assert disagreement(model, IMAGES, LABELS) < 1e-10


@pytest.mark.parametrize(
    "layer", [nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Tanh(), nn.Sigmoid(), nn.Hardswish(), nn.GroupNorm(2, 8)]
)
def test_other_layers_are_named_and_the_numbers_disagree(layer: nn.Module) -> None:
    model = sequential(layer)
    reason = f"layer '1' is {type(layer).__name__}"
    assert why_not_piecewise_linear(model) == reason
    assert is_piecewise_linear(model, IMAGES, LABELS) == (False, reason)
    assert disagreement(model, IMAGES, LABELS) > 1e-4


def test_a_layer_deep_inside_is_named_by_its_path() -> None:
    model = build("preact_resnet10", 2, 3, 10).eval()
    model.blocks[2].relu = nn.GELU().eval()
    assert why_not_piecewise_linear(model) == "layer 'blocks.2.relu' is GELU"


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "softplus": F.softplus,
    "mul": lambda x: x * x,
    "pow": lambda x: x**2,
    "truediv": lambda x: 1 / (3 + x.abs()),
    "sin": torch.sin,
    "sigmoid": lambda x: x * x.sigmoid(),
    "softmax": lambda x: x.softmax(1),
    "matmul": lambda x: x @ x.transpose(2, 3),
}
LINEAR_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "clamp": lambda x: x.clamp(-0.3, 0.3),
    "scaled": lambda x: 2 * x / 3 - 1,
    "residual": lambda x: x + F.relu(x),
    "gate": lambda x: x * (x > 0),
    "absolute": lambda x: x.abs() - torch.maximum(x, 0.1 - x),
    "reshaped": lambda x: torch.cat(x.view(x.size(0), -1, 4).chunk(2, 1), 1).reshape(x.shape),
    "dropout": lambda x: F.dropout(x, training=False),
    "pooled": lambda x: F.interpolate(F.max_pool2d(x, x.shape[2:]), size=(8, 8)),
    "product": lambda x: x @ torch.ones(8, 8, dtype=x.dtype),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_the_forward_pass_are_caught_by_tracing_and_by_numbers(name: str) -> None:
    torch.manual_seed(0)
    model = Applies(FUNCTIONS[name]).eval()
    reason = why_not_piecewise_linear(model)
    assert reason == f"the model's forward pass applies {name}"
    assert disagreement(model, IMAGES, LABELS) > 1e-4
    inside = nn.Sequential(nn.Identity(), model).eval()
    assert why_not_piecewise_linear(inside) == f"layer '1' applies {name}"


@pytest.mark.parametrize("name", LINEAR_FUNCTIONS)
def test_piecewise_linear_functions_are_let_through(name: str) -> None:
    torch.manual_seed(0)
    model = Applies(LINEAR_FUNCTIONS[name]).eval()
    assert why_not_piecewise_linear(model) is None
    assert is_piecewise_linear(model, IMAGES, LABELS)[0]


def test_a_subclass_with_a_forward_pass_of_its_own_is_looked_into() -> None:
    class Softened(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.softplus(super().forward(x))

    model = nn.Sequential(Softened(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval()
    assert why_not_piecewise_linear(model) == "layer '0' applies softplus"


def test_what_cannot_be_traced_is_decided_by_numbers() -> None:
    torch.manual_seed(0)
    soft, hard = BranchesOnValues(F.gelu).eval(), BranchesOnValues(F.relu).eval()
    assert why_not_piecewise_linear(soft) is None
    for model, expected in ((soft, False), (hard, True)):
        verdict, reason = is_piecewise_linear(model, IMAGES, LABELS)
        assert verdict is expected
        assert "this comparison alone decides" in reason
    soft.act = nn.GELU().eval()
    assert why_not_piecewise_linear(soft) == "layer 'act' is GELU"


def test_a_saturated_network_hides_nothing() -> None:
    torch.manual_seed(0)
    model = BranchesOnValues(F.gelu).double().eval()
    model.head.weight.data *= 1e6
    images, predicted = IMAGES.double(), model(IMAGES.double()).argmax(1)
    assert (model(images).softmax(1).max(1).values == 1).all()
    assert disagreement(model, images, predicted) > 1e-3
    model.function = F.relu
    assert disagreement(model, images, predicted) < 1e-10


def test_a_constant_network_agrees() -> None:
    model = sequential(nn.ReLU())
    model[3].weight.data.zero_()
    assert disagreement(model, IMAGES, LABELS) == 0


@pytest.mark.parametrize("training", ["", "1"])
def test_training_mode_is_refused(training: str) -> None:
    model = sequential(nn.BatchNorm2d(8))
    model.get_submodule(training).train()
    for judge in (
        lambda: why_not_piecewise_linear(model),
        lambda: is_piecewise_linear(model, IMAGES, LABELS),
        lambda: disagreement(model, IMAGES, LABELS),
    ):
        with pytest.raises(UserError, match="training mode, where images influence each other"):
            judge()


def test_a_batch_norm_without_statistics_is_named() -> None:
    reason = why_not_piecewise_linear(sequential(nn.BatchNorm2d(8, track_running_stats=False)))
    assert reason is not None
    assert reason.startswith("layer '1' is BatchNorm2d without running statistics")


def test_the_model_is_not_changed_by_the_comparison() -> None:
    model = sequential(nn.ReLU())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    disagreement(model, IMAGES, LABELS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", None),
        ("vgg11_bn", None),
        ("densenet121", None),
        ("mobilenet_v3_small", "'features.0.2' is Hardswish"),
    ],
)
def test_well_known_networks_are_judged_rightly(name: str, reason: str | None) -> None:
    found = why_not_piecewise_linear(torchvision.models.get_model(name).eval())
    assert found == (reason and f"layer {reason}")
