"""Top directions and probes: unbiased, with true standard errors, and exact where that is cheaper."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.curvature import per_image_curvature, softmax_hessian
from dd_core.curvature.input_space.exact import exact_curvature
from dd_core.curvature.input_space.linearized import LinearizedNetwork
from dd_core.curvature.input_space.ranking import direction_ranking
from dd_core.curvature.input_space.top_directions import plan_directions, top_directions_curvature
from dd_core.study.curvature_names import CURVATURE_COLUMNS

from .dense import Values, assert_close, network, pictures

NUM_CLASSES = 100
UNBIASED = ("trace", "gradient_curvature")


def confident(scale: float) -> nn.Module:
    """CNN5 of k = 16, whose largest probability is .02 (scale 0.1), .25 (1), .98 (3) or 1 - 1e-4 (6)."""
    model = network("cnn5", 16, 1, NUM_CLASSES)
    for parameter in model.linear.parameters():  # type: ignore[union-attr]
        parameter.data *= scale
    return model


def data(model: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """Images labelled as the network thinks, with the least probable class, or with one of middle rank, in turn."""
    x = pictures(1, number)
    ranks = model(x).argsort(dim=1, descending=True)
    return x, torch.stack([ranks[i, (0, -1, 40)[i % 3]] for i in range(number)])


def estimates(model: nn.Module, x: Tensor, label: Tensor, number: int, **settings: Any) -> Values:
    """The same image under many ids: independent estimates."""
    many = x.expand(number, -1, -1, -1), label.expand(number)
    found = per_image_curvature(model, *many, image_ids=torch.arange(number), method="top_directions", **settings)
    assert found.method == "top_directions"
    assert found.num_passes is not None
    assert found.num_passes < NUM_CLASSES - 1
    return found.columns


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize(("scale", "relative_error"), [(6, 0.01), (3, 0.1), (2, 0.4)])
def test_estimates_are_unbiased(scale: float, relative_error: float, num_probes: int) -> None:
    """Also squared Frobenius norms, for which two probes are needed."""
    number, model = 150, confident(scale)
    x, labels = data(model, 3)
    exact = per_image_curvature(model, x, labels).columns
    for i in range(3):
        ours = estimates(
            model, x[i : i + 1], labels[i : i + 1], number, num_probes=num_probes, relative_error=relative_error
        )
        pairs = [(name, ours[name], exact[name][i]) for name in UNBIASED]
        if num_probes > 1:
            pairs.append(("frobenius_norm", ours["frobenius_norm"].square(), exact["frobenius_norm"][i].square()))
        for name, values, expected in pairs:
            error = values.std() / number**0.5
            assert (values.mean() - expected).abs() < 4.5 * error, (name, i)
        for name in ("loss", "probability", "gradient_norm"):
            torch.testing.assert_close(ours[name], exact[name][i].expand(number), rtol=1e-9, atol=0)
        # A lower bound, and no further off than the trace that is left.
        assert (ours["largest_eigenvalue"] <= exact["largest_eigenvalue"][i] * (1 + 1e-9)).all()
        mean_rest = ours["largest_eigenvalue_residual"].mean()
        assert (ours["largest_eigenvalue"] + 2 * mean_rest >= exact["largest_eigenvalue"][i]).all()


@pytest.mark.parametrize("num_probes", [1, 2, 5])
def test_standard_errors_are_true_over_many_images(num_probes: int) -> None:
    """By design they lean to the safe side: bounds enter where few probes say little."""
    scores: dict[str, list[Tensor]] = {"trace": [], "frobenius_norm": []}
    for scale in (2, 3, 6):
        model = confident(scale)
        x, labels = data(model, 30)
        exact = per_image_curvature(model, x, labels).columns
        for seed in range(2):
            ours = per_image_curvature(
                model, x, labels, method="top_directions", num_probes=num_probes, relative_error=0.1, seed=seed
            ).columns
            for name, found in scores.items():
                error = ours[f"{name}_standard_error"]
                chosen = error > 0
                found.append(((ours[name] - exact[name]) / error)[chosen])
    for name, parts in scores.items():
        z = torch.cat(parts)
        assert len(z) > 100
        assert 0.5 < z.square().mean().sqrt() < 2, (name, z.square().mean().sqrt())
        assert 0.3 < z.abs().median() < 1, name


@pytest.mark.parametrize("relative_error", [0.3, 0.1, 0.03])
def test_the_error_asked_for_is_met(relative_error: float) -> None:
    model = confident(3)
    x, labels = data(model, 45)
    exact = per_image_curvature(model, x, labels)
    ours = per_image_curvature(model, x, labels, method="top_directions", relative_error=relative_error)
    errors = (ours.columns["trace"] / exact.columns["trace"] - 1).abs()
    assert errors.square().mean().sqrt() < 1.2 * relative_error
    assert ours.num_passes is not None
    assert exact.num_passes is not None
    assert ours.num_passes < exact.num_passes


def test_a_smaller_error_takes_more_passes() -> None:
    model = confident(3)
    x, labels = data(model, 16)
    passes = [
        per_image_curvature(model, x, labels, method="top_directions", relative_error=error).num_passes or 0
        for error in (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
    ]
    assert passes == sorted(passes)
    assert passes[0] < 8
    assert passes[-1] > 50


@pytest.mark.parametrize("rank", [0, 1, 5, 50, -1])
def test_mislabelled_images_of_a_confident_network_are_as_cheap_as_others(rank: int) -> None:
    """The gradient of a mislabelled image has a direction of no energy; it must not hide those that have some."""
    model = confident(6)
    x = pictures(1, 20)
    labels = model(x).argsort(dim=1, descending=True)[:, rank]
    ours = per_image_curvature(model, x, labels, method="top_directions", relative_error=0.05)
    assert ours.num_passes is not None
    assert ours.num_passes < 8
    exact = per_image_curvature(model, x, labels).columns
    assert ((ours.columns["trace"] / exact["trace"] - 1).abs() < 0.25).all()


def test_where_exact_is_cheaper_it_is_exact() -> None:
    for model in (
        confident(0.1),
        network("cnn5", 2, 1, 2),
        network("cnn5", 2, 1, 3),
        network("cnn5", 1, 1, NUM_CLASSES),
    ):
        x = pictures(1, 4)
        labels = model(x).argmin(1)
        exact = per_image_curvature(model, x, labels)
        ours = per_image_curvature(model, x, labels, method="top_directions")
        assert ours.num_passes == exact.num_passes
        assert_close(ours.columns, exact.columns, rel=1e-9)
        assert (ours.columns["trace_standard_error"] == 0).all()


def test_a_network_that_does_not_end_in_a_linear_layer_is_exact_and_told() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU()]
    model = nn.Sequential(*layers).double().eval()
    x, labels = pictures(1), torch.arange(3)
    ours = per_image_curvature(model, x, labels, method="top_directions")
    assert ours.method == "exact"
    assert ours.note == "exact instead of top_directions: the network's last linear layer was not found"
    assert_close(ours.columns, per_image_curvature(model, x, labels).columns)


@settings(max_examples=5)
@given(order=st.permutations(range(24)), cut=st.integers(0, 24), batch_size=st.none() | st.integers(1, 30))
def test_images_do_not_depend_on_order_shard_or_batch(order: list[int], cut: int, batch_size: int | None) -> None:
    model = confident(3)
    x, labels = data(model, 24)
    ids = 7 * torch.arange(24)
    settings: dict[str, Any] = {"method": "top_directions", "relative_error": 0.1, "seed": 5}
    whole = per_image_curvature(model, x, labels, image_ids=ids, **settings).columns
    parts = [
        per_image_curvature(model, x[p], labels[p], image_ids=ids[p], batch_size=batch_size, **settings).columns
        for p in (order[:cut], order[cut:])
        if p
    ]
    for name in CURVATURE_COLUMNS:
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, whole[name][order], rtol=1e-9, atol=1e-300)


def test_seeds_and_ids_decide_the_probes() -> None:
    model = confident(3)
    x, labels = data(model, 3)
    one, same, other, moved = (
        per_image_curvature(
            model, x, labels, image_ids=torch.arange(3) + shift, method="top_directions", relative_error=0.2, seed=seed
        ).columns["trace"]
        for seed, shift in ((0, 0), (0, 0), (1, 0), (0, 3))
    )
    assert torch.equal(one, same)
    assert (one != other).any()
    assert (one != moved).any()


def test_precision_is_that_of_the_passes() -> None:
    model = confident(3)
    x, labels = data(model, 30)
    settings: dict[str, Any] = {"method": "top_directions", "relative_error": 0.1}
    double = per_image_curvature(model, x, labels, **settings).columns
    single = per_image_curvature(model.float(), x.float(), labels, **settings).columns
    narrow = per_image_curvature(model, x.float(), labels, precision=torch.bfloat16, **settings).columns
    for name in ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_norm"):
        assert ((single[name] / double[name] - 1).abs()).median() < 1e-5, name
        assert ((narrow[name] / double[name] - 1).abs()).median() < 1e-2, name


@pytest.mark.parametrize("num_top", [0, 3, 20])
def test_the_basis_is_orthonormal_and_begins_with_the_gradient(num_top: int) -> None:
    model = confident(3)
    x, labels = data(model, 12)
    linearized = LinearizedNetwork(model, torch.float64).forward(x)
    assert linearized.classifier_weight is not None
    plan = plan_directions(softmax_hessian(linearized.logits, labels), labels, linearized.classifier_weight)
    basis = plan.basis(num_top)
    eye = torch.eye(1 + num_top, dtype=torch.float64).expand(12, -1, -1)
    torch.testing.assert_close(basis @ basis.transpose(1, 2), eye, rtol=0, atol=1e-10)
    # Its first row of K = diag(sqrt p) d J is the gradient over the scale; K K^T has the exact trace.
    softmax = softmax_hessian(linearized.logits, labels)
    rows = linearized.pull_back(softmax.directions).flatten(2) * softmax.roots[..., None]
    first = (basis[:, :1] @ rows).squeeze(1) * plan.gradient_scale[:, None]
    gradient = linearized.pull_back(softmax.combine(softmax.gradient[:, None])).flatten(1)
    torch.testing.assert_close(first, gradient, rtol=1e-8, atol=1e-10)
    # The energies are those of the last layer alone.
    weighted = softmax.directions @ linearized.classifier_weight * softmax.roots[..., None]
    torch.testing.assert_close(plan.energy, weighted.square().sum((1, 2)), rtol=1e-9, atol=1e-12)
    left = (weighted - basis.transpose(1, 2) @ (basis @ weighted)).square().sum((1, 2))
    torch.testing.assert_close(plan.left[:, num_top], left, rtol=1e-6, atol=1e-9 * plan.energy.max().item())


def test_all_directions_of_few_classes_leave_nothing_to_chance() -> None:
    model = network("cnn5", 4, 1, 8)
    x, labels = pictures(1, 5), torch.arange(5)
    linearized = LinearizedNetwork(model, torch.float64).forward(x)
    assert linearized.classifier_weight is not None
    plan = plan_directions(softmax_hessian(linearized.logits, labels), labels, linearized.classifier_weight)
    signs = torch.ones(5, 2, 7, dtype=torch.float64)
    ours = top_directions_curvature(linearized, plan, 6, signs)
    assert_close(ours, exact_curvature(linearized, softmax_hessian(linearized.logits, labels)), rel=1e-9)
    assert (ours["trace_standard_error"] <= 1e-7 * ours["trace"]).all()


def test_a_measured_ranking_keeps_estimates_unbiased_and_their_errors_true() -> None:
    number, model = 200, confident(3)
    x, labels = data(model, 16)
    assert direction_ranking(model, x, labels, num_images=10) is None  # would cost more than it saves
    ranking = direction_ranking(model, x, labels, num_images=10_000)
    assert ranking is not None
    assert ranking.left[:8].mean() < 0.7  # the mean Jacobian says something of each
    exact = per_image_curvature(model, x, labels).columns["trace"]
    for i in range(3):
        one = x[i : i + 1], labels[i : i + 1], number
        ours = estimates(model, *one, relative_error=0.1, num_probes=2, ranking=ranking)
        assert (ours["trace"].mean() - exact[i]).abs() < 4.5 * ours["trace"].std() / number**0.5
        predicted = ours["trace_standard_error"].square().mean().sqrt()
        assert 0.4 * predicted < ours["trace"].std() < 1.6 * predicted
    errors, passes = [], []
    for own in (None, ranking):
        found = per_image_curvature(model, x, labels, method="top_directions", relative_error=0.05, ranking=own)
        errors.append((found.columns["trace"] / exact - 1).square().mean().sqrt())
        passes.append(found.num_passes or 0)
    assert passes[1] < passes[0]
    assert errors[1] < 1.2 * 0.05
