"""Losses as settings of a variant: against torch, and every curvature of them against dense float64 Hessians."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from dd_core.curvature import double_backward_curvature, finite_difference_curvature, per_image_curvature
from dd_core.curvature.parameter_space import HessianOperator, analyse_hessian, exact_trace, ggn_eigenvalues
from dd_core.errors import UserError
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.calendar import Calendar
from dd_core.study.hessian import HessianSettings
from dd_core.study.recipe import Loss as Settings
from dd_core.study.study import Arm, Checkpoint
from dd_core.tables.files import read_parquet
from dd_core.tasks.losses import CrossEntropy, Loss, MeanSquaredError, make_loss
from dd_core.training.session import Session
from dd_core.training.train import train_arm

from .dense import HESSIAN, network, pictures

ARM = Arm("plain", 2)


class Focal(Loss):
    """A loss of somebody's own, as docs/extending.md has it: (1 - p_y)^gamma times the cross-entropy."""

    def __init__(self, gamma: float = 2.0):
        """``gamma``: 0 is the cross-entropy."""
        self.gamma = gamma

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Of each image."""
        nats = cross_entropy(outputs, labels, reduction="none")
        return (1 - (-nats).exp()) ** self.gamma * nats


class NoLoss:
    """Of another kind."""


def smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")(outputs, labels)


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(outputs, one_hot(labels, outputs.shape[1]).to(outputs), reduction="none").mean(1)


# Ours, and the same in torch.
LOSSES: dict[str, tuple[Loss, Any]] = {
    "smoothed": (CrossEntropy(0.1), smoothed),
    "squared": (MeanSquaredError(), squared),
    "own": (Focal(), Focal().losses),
}
CONVEX = ("smoothed", "squared")


def reference(model: nn.Module, images: Tensor, labels: Tensor, loss: Any) -> dict[str, Tensor]:
    """What every method should find, from dense Hessians by double backward."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("loss", "gradient_norm", *HESSIAN)}
    for image, label in zip(images, labels, strict=True):

        def of_image(x: Tensor, shape: Any = image.shape, label: Tensor = label) -> Tensor:
            value: Tensor = loss(model(x.view(1, *shape)), label[None])[0]
            return value

        x = image.reshape(-1).clone().requires_grad_(True)
        value = of_image(x)
        (g,) = torch.autograd.grad(value, x)
        matrix = hessian(of_image, image.reshape(-1), vectorize=True)
        assert isinstance(matrix, Tensor)
        found["loss"].append(value.detach())
        found["gradient_norm"].append(g.norm())
        found["trace"].append(matrix.trace())
        found["frobenius_norm"].append(matrix.norm())
        found["largest_eigenvalue"].append(torch.linalg.eigvalsh(matrix)[-1])
        found["gradient_curvature"].append(g @ matrix @ g / (g @ g))
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_values_gradients_and_hessians_in_the_outputs_are_torchs(name: str) -> None:
    ours, theirs = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    outputs = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    torch.testing.assert_close(ours.losses(outputs, labels), theirs(outputs, labels), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(ours.total(outputs, labels), theirs(outputs, labels).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(ours.values(outputs, labels)[0], theirs(outputs, labels).detach(), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(theirs(outputs, labels).sum(), outputs, create_graph=True)
    found = ours.gradient(outputs, labels)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ours.gradient(outputs.detach(), labels), expected.detach(), rtol=1e-11, atol=1e-13)
    v = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    product, of_torch = (torch.autograd.grad(g, outputs, v, retain_graph=True)[0] for g in (found, expected))
    torch.testing.assert_close(product, of_torch, rtol=1e-11, atol=1e-13)
    factored = ours.output_hessian(outputs, labels)
    assert (factored is None) == (name not in CONVEX)
    if factored is not None:
        rows = factored.directions * factored.roots[..., None]
        torch.testing.assert_close((rows.mT @ rows @ v[..., None]).squeeze(-1), of_torch, rtol=1e-11, atol=1e-13)
        combined = factored.combine(factored.gradient[:, None]).squeeze(1)
        torch.testing.assert_close(combined, expected.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(factored.loss, theirs(outputs, labels).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["exact", "top_directions", "double_backward"])
def test_curvature_in_the_images_is_that_of_the_dense_hessian(name: str, method: Any) -> None:
    """10 classes, 8 features: both ways of the exact estimator; the others without anything left to chance."""
    ours, theirs = LOSSES[name]
    for model in (network("cnn5", 1, 1, 10), network("preact_resnet10", 2, 1, 10)):
        images, labels = pictures(1, 3), torch.tensor([1, 0, 7])
        expected = reference(model, images, labels, theirs)
        if method == "double_backward":
            columns = double_backward_curvature(
                model, images, labels, torch.arange(3), lanczos_steps=64, num_probes=2, loss=ours
            )
        else:
            options = {"relative_error": 1e-9} if method == "top_directions" else {}
            found = per_image_curvature(model, images, labels, method=method, loss=ours, **options)
            columns = found.columns
            assert (found.method == method) == (name in CONVEX)
            if name not in CONVEX:
                reason = "Focal does not tell its Hessian in the outputs"
                assert found.note == f"double_backward instead of {method}: {reason}"
        for quantity in ("loss", "gradient_norm", "gradient_curvature"):
            torch.testing.assert_close(columns[quantity], expected[quantity], rtol=1e-8, atol=1e-11)
        if name in CONVEX or method == "double_backward":
            for quantity in HESSIAN:
                torch.testing.assert_close(columns[quantity], expected[quantity], rtol=1e-7, atol=1e-9)
        assert columns["probability"].isnan().all() == (name != "smoothed")


@pytest.mark.parametrize("name", CONVEX)
def test_top_directions_with_probes_are_unbiased(name: str) -> None:
    """50 classes, one top direction and more, over many images: errors are those they say."""
    ours, _ = LOSSES[name]
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 50)]
    model = nn.Sequential(*layers).double().eval()
    images, labels = pictures(1, 300), torch.arange(300) % 50
    exact = per_image_curvature(model, images, labels, loss=ours).columns
    found = per_image_curvature(
        model, images, labels, method="top_directions", relative_error=0.2, num_probes=10, loss=ours
    )
    assert found.num_passes is not None
    assert found.num_passes < 40
    assert (found.columns["trace_standard_error"] > 0).all()
    errors = (found.columns["trace"] - exact["trace"]) / exact["trace"]
    assert errors.std() < 0.3
    assert abs(errors.mean()) < 4 * errors.std() / 300**0.5
    torch.testing.assert_close(found.columns["gradient_norm"], exact["gradient_norm"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_published_finite_difference_is_of_the_loss(name: str) -> None:
    """A network without kinks: the difference quotient tends to the Hessian."""
    ours, theirs = LOSSES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 4)).double().eval()
    images, labels = pictures(1, 3), torch.tensor([1, 0, 3])
    found = finite_difference_curvature(
        model, images, labels, torch.arange(3), steps=(1e-5,), num_probes=4000, loss=ours
    )
    trace = reference(model, images, labels, theirs)["trace"]
    directional = next(values for column, values in found.items() if column.startswith("fd_directional"))
    error = next(v for c, v in found.items() if c.startswith("fd_directional") and c.endswith("_standard_error"))
    assert ((directional - trace).abs() < 5 * error + 1e-4).all()


def dense_in_the_weights(model: nn.Module, images: Tensor, labels: Tensor, loss: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, its gradient and Hessian in all parameters."""
    names, values = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)
    sizes = [v.numel() for v in values]
    flat = torch.cat([v.reshape(-1) for v in values])

    def mean(weights: Tensor) -> Tensor:
        parts = {n: w.view_as(v) for n, w, v in zip(names, weights.split(sizes), values, strict=True)}
        value: Tensor = loss(functional_call(model, parts, (images,)), labels).mean()
        return value

    w = flat.clone().requires_grad_(True)
    value = mean(w)
    matrix = hessian(mean, flat, vectorize=True)
    assert isinstance(matrix, Tensor)
    return value.detach(), torch.autograd.grad(value, w)[0], matrix


@pytest.mark.parametrize("name", LOSSES)
def test_curvature_in_the_weights_is_that_of_the_dense_hessian(name: str) -> None:
    """Operator, gradient, exact trace, Gauss-Newton eigenvalues, and gradient variance of single images."""
    ours, theirs = LOSSES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4)).double().eval()
    images, labels = pictures(1, 5), torch.tensor([0, 1, 2, 3, 0])
    value, gradient, matrix = dense_in_the_weights(model, images, labels, theirs)
    operator = HessianOperator(model, images, labels, batch_size=2, dtype=torch.float64, loss=ours)
    unit = torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(operator.matmat(unit), matrix, rtol=1e-9, atol=1e-12)
    found, own = operator.loss_and_gradient()
    assert found == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-13)
    single = [dense_in_the_weights(model, images[i : i + 1], labels[i : i + 1], theirs)[1] for i in range(5)]
    quantities = ("eigenvalues", "gradient", "gradient_variance")
    settings = HessianSettings(
        quantities=(*quantities, "exact_trace") if name in CONVEX else quantities, precision="float64"
    )
    result = analyse_hessian(model, images, labels, settings, loss=ours)
    assert result.gradient_variance == pytest.approx(
        torch.stack([(g - gradient).square().sum() for g in single]).mean().item(), rel=1e-8
    )
    assert result.eigenvalues is not None
    np.testing.assert_allclose(result.eigenvalues[0], torch.linalg.eigvalsh(matrix)[-1], rtol=1e-6)
    if name in CONVEX:
        assert result.trace_exact == pytest.approx(matrix.trace().item(), rel=1e-9)
        eigenvalues = ggn_eigenvalues(model, images, dtype=torch.float64, loss=ours)
        assert eigenvalues.sum() == pytest.approx(matrix.trace().item(), rel=1e-9)
    else:
        with pytest.raises(UserError, match="Focal does not tell; leave exact_trace out of the quantities"):
            exact_trace(model, images, loss=ours)


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"name": "mean_squared_error"}])
def test_monitors_measure_the_loss_that_is_trained(settings: dict[str, Any], make_study: Any, store: Store) -> None:
    """The Hessian monitor's trace against a dense one over its 8 images, and what evaluations record."""
    monitors = {"hessian": {"every": "4 steps", "num_images": 8, "num_probes": 600}, "noise": None}
    study = make_study({"loss": settings, "architecture": "cnn5"}, monitors=monitors, widths=(1,), trials=1)
    session = Session(study, Arm("plain", 1), store, torch.device("cpu"), torch.float64)
    session.train_epoch()
    stack = session.stacks[0]
    readings = session.recorder.readings
    inputs, targets = stack.training_examples(torch.arange(8)[:, None])
    parameters = list(stack.model.parameters())
    ours = make_loss(study.variants["plain"].loss)
    with stack.evaluating():
        loss = (smoothed if "label_smoothing" in settings else squared)(stack.model(inputs)[:, 0], targets[:, 0]).mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        trace = 0.0
        for gradient, parameter in zip(gradients, parameters, strict=True):
            for index, entry in enumerate(gradient.flatten()):
                trace += torch.autograd.grad(entry, parameter, retain_graph=True)[0].flatten()[index].item()
    _, _, value, error = readings["hutch_trace"][0][0]
    assert abs(value - trace) < 5 * error
    assert error < 0.2 * abs(trace)
    evaluation = stack.evaluate(1)
    with stack.evaluating(), torch.no_grad():
        outputs, labels = stack.model(inputs)[:, 0], targets[:, 0]
        scores = squared(outputs, labels)
        if "label_smoothing" in settings:
            scores = cross_entropy(outputs, labels, reduction="none")
    torch.testing.assert_close(ours.scores(outputs, labels), scores)
    np.testing.assert_allclose(evaluation.loss[0, :8], scores, rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 0.1}, {"name": "mean_squared_error"}, {"name": f"{__name__}:Focal"}]
)
def test_a_loss_is_a_line_in_the_study_and_reaches_every_table(
    settings: dict[str, Any], make_study: Any, store: Store
) -> None:
    """Trained, and curvature and Hessian of the checkpoint: the same loss in both as in torch."""
    quantities = ("eigenvalues", "gradient")
    study = make_study({"loss": settings}, widths=(2,), hessian={"quantities": quantities, "num_images": None})
    train_arm(study, ARM, store, 4)
    checkpoint = Checkpoint(ARM, 4)
    assert compute_curvature(study, checkpoint, store)
    assert hessian_of_checkpoint(study, checkpoint, store)
    images = read_parquet(store.result_path("per_image_curvature", study.name, checkpoint)).to_pandas()
    spectra = read_parquet(store.result_path("hessian_spectra", study.name, checkpoint)).to_pandas()
    means = images.groupby("trial").loss.mean()
    np.testing.assert_allclose(spectra.set_index("trial").loss, means, rtol=1e-5)
    assert set(images.method) == ({"double_backward"} if ":" in settings.get("name", "") else {"exact"})
    assert images.probability.isna().all() == ("name" in settings)


def test_what_is_no_loss_is_refused(make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loss, reason in (
        ({"name": "hinge"}, "there are cross_entropy and mean_squared_error, or name a class"),
        ({"name": "mean_squared_error", "label_smoothing": 0.1}, "label_smoothing belongs to cross_entropy"),
        ({"options": {"gamma": 1}}, "options belong to a class of your own"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"name": "a b:C"}, "package.module:Class"),
    ):
        with pytest.raises(ValidationError, match=reason):
            make_study({"loss": loss})
    for name, reason in (
        ("no_such_module:Focal", "cannot be imported"),
        (f"{__name__}:NoLoss", "no subclass of dd_core.tasks.losses.Loss"),
        (f"{__name__}:Nothing", "there is no Nothing in"),
    ):
        with pytest.raises(UserError, match=reason):
            make_loss(Settings(name=name))
    with pytest.raises(UserError, match=r"cannot be made with these options \(.*delta"):
        make_loss(Settings(name=f"{__name__}:Focal", options={"delta": 1}))


def test_a_calendar_counts_as_training_does() -> None:
    """100 examples in batches of 32: four steps an epoch, the last of 4 examples."""
    calendar = Calendar(100, 32)
    seen = 0
    for step in range(1, 13):
        epoch, (start, stop) = calendar.epoch_of(step), calendar.batch_of(step)
        assert calendar.steps_before(epoch) < step <= calendar.steps_after(epoch)
        assert (start, stop) == ([0, 32, 64, 96][(step - 1) % 4], [32, 64, 96, 100][(step - 1) % 4])
        seen += stop - start
        assert calendar.examples_within(step) == seen
        assert calendar.time_of(step) * 4 == step
        assert calendar.step_at(calendar.time_of(step)) == step
    assert calendar.examples_within(0) == 0
    np.testing.assert_array_equal(calendar.epoch_of(np.array([1, 4, 5])), [1, 1, 2])
