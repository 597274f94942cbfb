"""Stock layers compute the same function, and BackPACK on them gives per-image gradients and the Hessian's diagonal."""

import warnings

import numpy as np
import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import DiagHessian
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, relu

from core.dense_hessians import CASES, dense, labels_for, network, pictures
from dd_core.curvature.parameter_space import diagonal_ggn, exact_trace, gradient_sums
from dd_core.curvature.parameter_space.stock_layers import stock_network
from dd_core.errors import UserError
from dd_core.models.build import build

ARCHITECTURES = ("preact_resnet10", "preact_resnet18", "cnn5")


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stock_network_is_the_same_function_of_the_same_parameters(architecture: str, side: int) -> None:
    model, images = network(architecture, 10), pictures(3, side)
    stock = stock_network(model, images)
    assert torch.equal(stock(images), model(images))
    assert dict(stock.named_parameters()) == dict(model.named_parameters())
    assert {id(p) for p in stock.parameters()} == {id(p) for p in model.parameters()}
    assert not stock.training
    for module in stock.modules():
        assert type(module).__module__.startswith("torch."), type(module)
    assert {node.op for node in stock.graph.nodes} - {"placeholder", "call_module", "output"} <= {
        "call_function",
        "call_method",
    }


def test_own_parameters_are_copies() -> None:
    model, images = network("cnn5", 10), pictures()
    stock = stock_network(model, images, own_parameters=True)
    assert not {id(p) for p in stock.parameters()} & {id(p) for p in model.parameters()}
    assert torch.equal(stock(images), model(images))


def test_a_layer_that_changes_its_forward_pass_is_not_taken_for_a_stock_layer() -> None:
    class _Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Flatten(), _Doubled(64, 3)).double().eval()
    assert torch.equal(stock_network(model, pictures())(pictures()), model(pictures()))


def test_a_forward_pass_that_depends_on_values_is_refused() -> None:
    class _Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.linear(images.flatten(1))
            return logits if logits.sum() > 0 else -logits

    with pytest.raises(UserError, match="cannot be rewritten with stock layers"):
        gradient_sums(_Branching().double().eval(), pictures(), labels_for(3))


@pytest.mark.parametrize("batch_size", [2, 250])
@pytest.mark.parametrize(("architecture", "classes"), CASES)
def test_the_diagonal_is_that_of_the_dense_hessian(architecture: str, classes: int, batch_size: int) -> None:
    _, hessian = dense(architecture, classes)
    model = network(architecture, classes)
    found = diagonal_ggn(model, pictures(), labels_for(classes), batch_size=batch_size)
    assert {name: p.shape for name, p in found.items()} == {name: p.shape for name, p in model.named_parameters()}
    flat = torch.cat([part.reshape(-1) for part in found.values()])
    torch.testing.assert_close(flat, hessian.diagonal(), rtol=1e-9, atol=1e-13)


def test_backpack_and_the_exact_trace_agree_on_a_wider_network() -> None:
    torch.manual_seed(0)
    model = build("preact_resnet18", 4, 3, 10).eval()
    images = torch.randn(4, 3, 16, 16)
    found = diagonal_ggn(model, images, torch.arange(4))
    own = exact_trace(model, images)
    assert own.per_image.mean() == pytest.approx(float(sum(part.double().sum() for part in found.values())), rel=1e-5)
    for layer, trace in own.per_layer.items():
        theirs = sum(float(p.double().sum()) for name, p in found.items() if name.rpartition(".")[0] == layer)
        assert trace == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 250])
@pytest.mark.parametrize("architecture", ["cnn5", "preact_resnet10", "mlp"])
def test_norms_and_variances_are_those_of_the_gradients_one_by_one(architecture: str, batch_size: int) -> None:
    model, images, labels = network(architecture, 10), pictures(), labels_for(10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    each = [
        torch.autograd.grad(cross_entropy(model(images[i : i + 1]), labels[i : i + 1]), parameters) for i in range(5)
    ]
    found = gradient_sums(model, images, labels, batch_size=batch_size)
    squared = [sum(float(part.square().sum()) for part in parts) for parts in each]
    np.testing.assert_allclose(found.squared_norms.numpy(), squared, rtol=1e-10)
    for index, name in enumerate(names):
        stacked = torch.stack([parts[index] for parts in each])
        torch.testing.assert_close(found.total[name], stacked.sum(0), rtol=1e-9, atol=1e-12)
        variance = found.total_squared[name] / 5 - (found.total[name] / 5).square()
        torch.testing.assert_close(variance, stacked.var(0, correction=0), rtol=1e-7, atol=1e-12)


def test_chosen_layers_alone_count() -> None:
    model, images, labels = network("preact_resnet10", 10), pictures(), labels_for(10)
    chosen = gradient_sums(model, images, labels, layers=("blocks.0", "linear"))
    whole = gradient_sums(model, images, labels)
    assert {name.split(".")[0] for name in chosen.total} == {"blocks", "linear"}
    assert all(name.startswith(("blocks.0.", "linear.")) for name in chosen.total)
    for name in chosen.total:
        torch.testing.assert_close(chosen.total_squared[name], whole.total_squared[name])
    assert (chosen.squared_norms < whole.squared_norms).all()


class _Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize(
    ("model", "name"),
    [(_Custom(), "weight"), (nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)), r"1\.weight")],
)
def test_layers_that_backpack_does_not_know_are_refused_by_name(model: nn.Module, name: str) -> None:
    with pytest.raises(UserError, match=f"BackPACK does not know the layer of '{name}'"):
        gradient_sums(model.double().eval(), pictures(), labels_for(3))


def test_functional_layers_are_understood_or_refused_but_never_wrong() -> None:
    class _Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(adaptive_avg_pool2d(relu(self.conv(images)), 1).flatten(1))

    model = _Functional().double().eval()
    gradients = torch.autograd.grad(cross_entropy(model(pictures(1)), labels_for(3, 1)), list(model.parameters()))
    found = gradient_sums(model, pictures(1), labels_for(3, 1))
    expected = sum(float(g.square().sum()) for g in gradients)
    assert found.squared_norms.item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(UserError, match="BackPACK"):
        diagonal_ggn(model, pictures(1), labels_for(3, 1))


def test_diag_hessian_cannot_be_used_on_these_networks() -> None:
    """Why ``diagonal_ggn`` exists: extended it raises, not extended it leaves nothing behind."""
    model, images, labels = network("preact_resnet10", 10).float(), pictures().float(), labels_for(10)
    with backpack(DiagHessian()):
        cross_entropy(model(images), labels).backward()
    assert not any(hasattr(p, "diag_h") for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extended = extend(stock_network(model, images), use_converter=True).eval()
        loss = extend(nn.CrossEntropyLoss())(extended(images.requires_grad_(True)), labels)
        with pytest.raises(NotImplementedError, match="SumModule"), backpack(DiagHessian()):
            loss.backward()
