"""Curvature by double backward against dense float64 Hessians of smooth and of piecewise linear networks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import cross_entropy

from dd_core.curvature.evaluation import SMALLEST_PASS
from dd_core.curvature.input_space.double_backward import double_backward_curvature
from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.study.curvature_names import CURVATURE_COLUMNS
from tests.core.dense import Noted

Values = dict[str, Tensor]
# Exact whatever the number of probes; the Lanczos value once it has converged.
EXACT = ("loss", "probability", "gradient_norm", "gradient_curvature", "largest_eigenvalue")


def small_network(activation: type[nn.Module], classes: int = 4) -> nn.Module:
    """25 pixels; BatchNorm with statistics of its own."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 2)
    layers = [nn.Conv2d(1, 4, 3), norm, activation(), nn.Flatten(), nn.Linear(36, 12), activation()]
    return nn.Sequential(*layers, nn.Linear(12, classes)).double().eval()


def resnet(activation: type[nn.Module], k: int = 4) -> nn.Module:
    torch.manual_seed(0)
    model = build("preact_resnet10", k, 1, 10).double()
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = activation()
    model.eval()
    spread = model(data(20, side=8)[0]).std()
    for tensor in (model.linear.weight.data, model.linear.bias.data):
        tensor /= spread  # logits of order 1: no image is saturated
    return model


def data(number: int, side: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(number, 1, side, side, dtype=torch.float64)
    return images, torch.arange(number) % classes, 100 + torch.arange(number)


def hessians(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(N, D, D) by double backward of the loss, image by image."""
    found = []
    for image, label in zip(images, labels, strict=True):

        def loss(x: Tensor, shape: tuple[int, ...] = (1, *image.shape), label: Tensor = label) -> Tensor:
            return cross_entropy(model(x.view(shape)), label.view(1))

        matrix = hessian(loss, image.reshape(-1), vectorize=True)
        assert isinstance(matrix, Tensor)
        found.append(matrix)
    return torch.stack(found)


def dense(model: nn.Module, images: Tensor, labels: Tensor) -> Values:
    """All columns from the losses and their Hessians."""
    x = images.clone().requires_grad_(True)
    losses = cross_entropy(model(x), labels, reduction="none")
    gradients = torch.autograd.grad(losses.sum(), x)[0].flatten(1)
    matrices = hessians(model, images, labels)
    along = torch.einsum("nd,nde,ne->n", gradients, matrices, gradients)
    return {
        "loss": losses.detach(),
        "probability": (-losses.detach()).exp(),
        "gradient_norm": gradients.norm(dim=-1),
        "gradient_curvature": along / gradients.square().sum(-1),
        "trace": matrices.diagonal(dim1=1, dim2=2).sum(-1),
        "frobenius_norm": matrices.flatten(1).norm(dim=-1),
        "largest_eigenvalue": torch.linalg.eigvalsh(matrices)[:, -1],
    }


def assert_close(ours: Values, theirs: Values, names: tuple[str, ...], rel: float = 1e-9, atol: float = 1e-12) -> None:
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rel, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("activation", [nn.GELU, nn.Softplus, nn.Tanh, nn.ReLU])
def test_a_full_basis_gives_every_value_of_the_dense_hessian(activation: type[nn.Module]) -> None:
    model, (images, labels, ids) = small_network(activation), data(6)
    ours = double_backward_curvature(model, images, labels, ids, lanczos_steps=40, num_probes=2)
    assert list(ours) == list(CURVATURE_COLUMNS)
    expected = dense(model, images, labels)
    assert_close(ours, expected, (*EXACT, "trace", "frobenius_norm"))
    for name in ("trace_standard_error", "frobenius_norm_standard_error", "largest_eigenvalue_residual"):
        assert (ours[name] < 1e-9).all(), name
    assert all(column.shape == (6,) and column.dtype == torch.float64 for column in ours.values())


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
def test_a_resnet_has_the_values_of_its_dense_hessian(activation: type[nn.Module]) -> None:
    """A ReLU network's Hessian has rank C - 1 = 9, which ten steps exhaust: nothing is left to chance."""
    model, (images, labels, ids) = resnet(activation), data(4, side=8, classes=10)
    ours = double_backward_curvature(model, images, labels, ids, lanczos_steps=20, num_probes=10)
    expected = dense(model, images, labels)
    assert_close(ours, expected, EXACT, rel=1e-6)
    if activation is nn.ReLU:
        assert_close(ours, expected, ("trace", "frobenius_norm"), rel=1e-6)
        assert (ours["trace_standard_error"] < 1e-6 * expected["trace"]).all()
    else:
        deviations = (ours["trace"] - expected["trace"]) / ours["trace_standard_error"]
        assert (deviations.abs() < 6).all()  # the error of ten probes is itself uncertain
        assert_close(ours, expected, ("frobenius_norm",), rel=0.1)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Softplus])
def test_few_steps_are_unbiased_and_their_standard_errors_are_true(activation: type[nn.Module]) -> None:
    """The same image under 400 ids is 400 independent estimates."""
    model, (images, labels, _) = small_network(activation), data(1)
    expected = dense(model, images, labels)
    many = images.expand(400, -1, -1, -1), labels.expand(400), torch.arange(400)
    ours = double_backward_curvature(model, *many, lanczos_steps=2, num_probes=5)
    for name, measured in (("trace", ours["trace"]), ("frobenius_norm", ours["frobenius_norm"].square())):
        truth = expected[name] if name == "trace" else expected[name].square()
        spread = measured.std().item()
        assert spread > 1e-4 * truth.abs().item()
        assert abs(measured.mean().item() - truth.item()) < 4 * spread / 20, name
        stated = ours[f"{name}_standard_error"]
        if name == "frobenius_norm":
            stated = 2 * stated * ours[name]
        assert stated.square().mean().sqrt().item() == pytest.approx(spread, rel=0.15), name


def test_the_largest_eigenvalue_is_a_lower_bound_and_within_its_residual_lies_an_eigenvalue() -> None:
    model, (images, labels, ids) = small_network(nn.Softplus), data(6)
    spectra = torch.linalg.eigvalsh(hessians(model, images, labels))
    for steps in (1, 2, 4):
        ours = double_backward_curvature(model, images, labels, ids, lanczos_steps=steps, num_probes=1)
        found = ours["largest_eigenvalue"]
        assert (found <= spectra[:, -1] + 1e-12).all()
        nearest = (spectra - found[:, None]).abs().min(-1).values
        assert (nearest <= ours["largest_eigenvalue_residual"] + 1e-12).all()
        assert ours["trace_standard_error"].isnan().all()


def test_a_hessian_below_zero_keeps_its_sign() -> None:
    """Logits 0 and 3 - |x|^2, label 0: H = -2p + p (1 - p) 4 xx^T, all eigenvalues but one equal and below 0."""

    class Bowl(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            square = x.flatten(1).square().sum(-1)
            return torch.stack([torch.zeros_like(square), 3 - square], dim=1)

    model, (images, labels, ids) = Bowl().eval(), data(3, side=2)
    images = images * 0.05
    ours = double_backward_curvature(model, images, 0 * labels, ids, lanczos_steps=4)
    expected = dense(model, images, 0 * labels)
    assert (expected["largest_eigenvalue"] < 0).all()
    assert_close(ours, expected, EXACT, rel=1e-8)
    assert ((ours["trace"] - expected["trace"]).abs() < 6 * ours["trace_standard_error"]).all()


@pytest.mark.parametrize("scale", [1e4, 1e8])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
def test_saturated_images_are_flat_and_nothing_is_nan(activation: type[nn.Module], scale: float) -> None:
    model, (images, _, ids) = small_network(activation), data(5)
    model[-1].weight.data *= scale
    model[-1].bias.data *= scale
    predicted = model(images).argmax(1)
    right = double_backward_curvature(model, images, predicted, ids)
    for name in CURVATURE_COLUMNS:
        assert right[name].isfinite().all(), name
        if name != "probability":
            assert (right[name].abs() < 1e-12).all(), name
    wrong = double_backward_curvature(model, images, (predicted + 1) % 4, ids)
    assert all(wrong[name].isfinite().all() for name in CURVATURE_COLUMNS)
    assert (wrong["gradient_norm"] > 1).all()


@pytest.mark.parametrize("gap", [30.0, 300.0])
def test_tiny_curvature_keeps_its_relative_accuracy(gap: float) -> None:
    """Two classes of a ReLU network: H = p (1 - p) dd^T, d the slope of the difference of the logits."""
    model, (images, _, ids) = small_network(nn.ReLU, classes=2), data(1)
    bias = model[-1].bias.data
    difference = model(images)[0]
    bias[0] += gap - (difference[0] - difference[1]).item()
    x = images.clone().requires_grad_(True)
    logits = model(x)[0]
    (slope,) = torch.autograd.grad(logits[0] - logits[1], x)
    q = torch.exp(logits[1] - logits[0]).item()
    ours = double_backward_curvature(model, images, torch.tensor([0]), ids)
    expected = q / (1 + q) ** 2 * slope.norm().item() ** 2
    for name in ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_curvature"):
        assert ours[name].item() == pytest.approx(expected, rel=1e-9, abs=0), name
    assert ours["gradient_norm"].item() == pytest.approx(q / (1 + q) * slope.norm().item(), rel=1e-9, abs=0)
    assert ours["loss"].item() == pytest.approx(math.log1p(q), rel=1e-9, abs=0)


def test_without_a_gradient_there_is_no_curvature_along_it() -> None:
    """A symmetric network: tanh(0) and its logits' slopes cancel, the loss is stationary but curved."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False))
    model = model.double().eval()
    model[1].weight.data.zero_()[0, 0] = 1
    model[3].weight.data.zero_()
    images, labels, ids = data(3)
    ours = double_backward_curvature(model, images, labels % 2, ids)
    for name in CURVATURE_COLUMNS:
        if name not in ("loss", "probability"):
            assert torch.equal(ours[name], torch.zeros(3).double()), name


# Nothing but the image itself


def assert_same(ours: Values, theirs: Values, rel: float) -> None:
    assert_close(ours, theirs, CURVATURE_COLUMNS, rel=rel, atol=0)


@pytest.mark.parametrize("batch_size", [1, 17, 30, 64])
def test_the_batch_size_does_not_matter_in_single_precision(batch_size: int) -> None:
    model, (images, labels, ids) = resnet(nn.GELU).float(), data(30, side=8, classes=10)
    whole = double_backward_curvature(model, images.float(), labels, ids, lanczos_steps=4, num_probes=2)
    other = double_backward_curvature(
        model, images.float(), labels, ids, lanczos_steps=4, num_probes=2, batch_size=batch_size
    )
    assert_same(other, whole, rel=1e-6)


@settings(max_examples=5)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_permuted_images_and_shards_give_the_same_rows(order: list[int], cut: int) -> None:
    model, (images, labels, ids) = small_network(nn.GELU), data(5)
    whole = double_backward_curvature(model, images, labels, ids, num_probes=2)
    first, second = (
        double_backward_curvature(model, images[part], labels[part], ids[part], num_probes=2)
        for part in (order[:cut], order[cut:])
    )
    joined = {name: torch.cat([first[name], second[name]]) for name in CURVATURE_COLUMNS}
    assert_close(joined, {name: column[order] for name, column in whole.items()}, CURVATURE_COLUMNS, rel=1e-9)


def test_single_precision_is_close_to_double() -> None:
    model, (images, labels, ids) = resnet(nn.GELU), data(6, side=8, classes=10)
    exact = double_backward_curvature(model, images, labels, ids)
    ours = double_backward_curvature(model.float(), images.float(), labels, ids)
    assert_close(ours, exact, EXACT, rel=1e-4)
    assert_close(ours, exact, ("trace", "frobenius_norm"), rel=0.1, atol=1e-3)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    model, (images, labels, ids) = small_network(nn.GELU), data(3)
    before = double_backward_curvature(model, images, labels, ids)
    model[-1].bias.data += 100
    assert_close(double_backward_curvature(model, images, labels, ids), before, CURVATURE_COLUMNS, rel=1e-9)


def test_the_model_is_left_as_it_was_and_out_of_memory_halves_the_pass() -> None:
    class Small(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model
            self.sizes = Noted()

        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(len(images))
            result: Tensor = self.model(images)
            return result

    model, (images, labels, ids) = small_network(nn.GELU), data(20)
    whole = double_backward_curvature(model, images, labels, ids)
    small = Small(model).eval()
    ours = double_backward_curvature(small, images, labels, ids, batch_size=SMALLEST_PASS)
    assert small.sizes[-3:] == [8, 8, 8]
    assert_close(ours, whole, CURVATURE_COLUMNS, rel=1e-9)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"lanczos_steps": 0}, "lanczos_steps must be 1"), ({"num_probes": 0}, "at least one probe")],
)
def test_impossible_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        double_backward_curvature(small_network(nn.GELU), *data(2), **change)


def test_training_mode_and_broken_weights_are_refused() -> None:
    model, (images, labels, ids) = small_network(nn.GELU), data(2)
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        double_backward_curvature(model.train(), images, labels, ids)
    model.eval()[0].weight.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        double_backward_curvature(model, images, labels, ids)
