"""Monitors: every number against an independent reference, no trace in the training, no waiting for the device."""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian, hvp
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from dd_core.curvature.parameter_space import by_trial as lanczos
from dd_core.curvature.parameter_space.by_trial import by_trial, hessian_product, hutch_plus_plus, hutchinson, shaped
from dd_core.curvature.parameter_space.twice_differentiable import TwiceDifferentiable
from dd_core.data.datasets import load
from dd_core.data.randomness import generator
from dd_core.data.trials import TrialData
from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.models.stacking import load_state
from dd_core.study.calendar import Calendar
from dd_core.study.monitors import (
    HessianMonitor,
    MonitorEntry,
    MonitorSettings,
    NoiseMonitor,
    NormMonitor,
    ValidationMonitor,
    expected_steps,
)
from dd_core.training.monitors import Measurement, Moment, Monitor, Timetable, noise
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.monitors.noise import Noise
from dd_core.training.monitors.norms import Norms
from dd_core.training.monitors.validation import Validation
from dd_core.training.monitors.vectors import random_signs
from dd_core.training.trial_stack import TrialStack

MakeStudy = Callable[..., Any]
OFF = {"validation": None, "norms": None, "hessian": None, "noise": None}
# Cheap, and often.
BUSY: dict[str, Any] = {
    "validation": {"every": "1 steps"},
    "norms": {"every": "1 steps"},
    "hessian": {"every": "3 steps", "num_images": 20, "iterations": 3, "num_probes": 6},
    "noise": {"every": "2 steps", "num_batches": 2, "window": 128},
}


def make_stack(
    make_study: MakeStudy,
    trials: tuple[int, ...] = (0, 1),
    k: int = 1,
    steps: int = 6,
    dtype: torch.dtype = torch.float64,
    monitors: dict[str, Any] | None = None,
    epochs: int = 4,
    **variant: Any,
) -> TrialStack:
    """Some trials of the tiny study, with 70 validation images, after some steps of training."""
    study = make_study(
        variant,
        data={"dataset": "digits", "num_train": 100, "num_validation": 70},
        monitors=MonitorSettings.model_validate(OFF if monitors is None else monitors),
        epochs=epochs,
        checkpoints=(0, epochs),
        widths=(k,),
    )
    stack = TrialStack(study, study.arms[f"plain.k{k:03d}"], list(trials), torch.device("cpu"), dtype)
    stack.run_steps(steps)
    return stack


def options(entry: MonitorEntry) -> dict[str, Any]:
    return entry.model_dump(exclude={"every"})


def plain_network(stack: TrialStack, position: int) -> nn.Module:
    """One trial's network on its own, in eval mode."""
    arm = next(iter(stack.study.arms.values()))
    model = build(stack.variant.architecture, arm.k, 1, 10).double()
    load_state(model, stack.weights_of(position))
    return model.eval()


def plain_images(data: TrialData, ids: np.ndarray) -> Tensor:
    raw = load("digits").images[ids].astype(np.float64)
    return torch.from_numpy((raw - data.mean) / data.std).permute(0, 3, 1, 2)


def training_set(stack: TrialStack, position: int, number: int) -> tuple[Tensor, Tensor]:
    """A trial's first training images and given labels."""
    data = stack.data[position]
    return plain_images(data, data.train_ids[:number]), torch.from_numpy(data.train_labels[:number])


def moment(stack: TrialStack, step: int = 6) -> Moment:
    return Moment(step, 1, torch.ones(len(stack.trials), dtype=torch.float64), stack.stepper.gradient_norms)


def values_and_errors(measurement: Measurement) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = {name: got if isinstance(got, tuple) else (got, torch.zeros_like(got)) for name, got in measurement.items()}
    return {name: (value.double(), error.double()) for name, (value, error) in pairs.items()}


def all_monitors(stack: TrialStack, **changes: dict[str, Any]) -> dict[str, Monitor]:
    few: dict[str, Any] = {"num_images": 20, "iterations": 4, "num_probes": 6, **changes.get("hessian", {})}
    return {
        "validation": Validation(stack),
        "norms": Norms(stack),
        "hessian": Hessian(stack, **{**options(HessianMonitor()), **few}),
        "noise": Noise(stack, **{**options(NoiseMonitor(num_batches=3)), **changes.get("noise", {})}),
    }


def feed(monitor: Monitor, losses: Tensor, first_step: int = 1) -> Moment:
    """Show a monitor batch losses (n, T)."""
    now = Moment(0, 1, losses[0], losses[0])
    for index, loss in enumerate(losses):
        now = Moment(first_step + index, 1, loss, loss)
        monitor.observe(now)
    return now


def some_losses(num: int, trials: int = 2, seed: int = 0) -> np.ndarray:
    """A power law with noise that is not white, (num, trials)."""
    noise = np.random.default_rng(seed).normal(size=(num + 1, trials))
    return np.exp(0.1 * (noise[1:] + 0.7 * noise[:-1])) * (np.arange(num)[:, None] + 2.0) ** -0.3


# --- validation and norms


def test_validation_is_the_mean_over_all_validation_images(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    stack._eval_size = 30  # batches of 30, 30 and 10
    got = Validation(stack).measure(moment(stack))
    for position, data in enumerate(stack.data):
        labels = torch.from_numpy(data.validation_labels)
        logits = plain_network(stack, position)(plain_images(data, data.validation_ids))
        assert len(labels) == 70
        assert got["loss_val_nats"][position].item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-9)
        assert got["acc_val"][position].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_weight_norm_is_that_of_all_parameters_and_follows_them(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, architecture="cnn5")
    norms = Norms(stack)
    for _ in range(2):
        got = norms.measure(moment(stack))["weight_norm"]
        for position in range(2):
            weights = torch.cat([p.flatten() for p in plain_network(stack, position).parameters()])
            assert got[position].item() == pytest.approx(weights.norm().item(), rel=1e-12)
        state = {name: tensor * 1.5 if "model" in name else tensor for name, tensor in stack.state().items()}
        stack.load_state(state)
        stack.run_steps(2)


def test_weight_norm_of_millions_of_float32_weights_is_exact(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, trials=(0,), steps=0)
    stack.model = nn.Linear(2000, 2000)
    with torch.no_grad():
        stack.model.weight.normal_(generator=torch.Generator().manual_seed(0))
    expected = torch.cat([p.detach().double().flatten() for p in stack.model.parameters()]).norm().item()
    now = Moment(1, 1, torch.ones(1), torch.ones(1))
    assert Norms(stack).measure(now)["weight_norm"].item() == pytest.approx(expected, rel=1e-8)


def test_grad_norm_is_that_of_the_moment(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    now = Moment(1, 1, torch.ones(2), torch.tensor([3.0, 4.0]))
    assert Norms(stack).measure(now)["grad_norm"].tolist() == [3.0, 4.0]


# --- the Hessian


def dense_hessian(stack: TrialStack, position: int, num_images: int) -> Tensor:
    """(P, P), parameters in the order of the model."""
    model = plain_network(stack, position)
    images, labels = training_set(stack, position, num_images)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return cross_entropy(functional_call(model, weights, (images,)), labels)

    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    matrix = hessian(loss, flat)
    assert isinstance(matrix, Tensor)
    return matrix


@pytest.fixture(scope="module")
def curved(make_study: MakeStudy) -> tuple[TrialStack, list[np.ndarray]]:
    """Two small networks with max-pooling, biases and BatchNorm, and their dense Hessians on 24 images."""
    stack = make_stack(make_study, architecture="cnn5", steps=12)
    return stack, [dense_hessian(stack, position, 24).numpy() for position in range(2)]


def make_hessian(stack: TrialStack, **changes: Any) -> Hessian:
    return Hessian(stack, **{**options(HessianMonitor()), "num_images": 24, **changes})


def signs_of(stack: TrialStack, number: int, step: int = 6) -> np.ndarray:
    """The start vector and the probes, (T, number, P)."""
    size = sum(p.numel() for p in stack.model.parameters()) // len(stack.trials)
    return torch.stack(list(random_signs(stack, step, number, size, torch.float64)), dim=1).numpy()


@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
def test_products_are_those_of_each_trials_own_hessian(make_study: MakeStudy, architecture: str) -> None:
    """By PyTorch's own double backward through a plain network."""
    stack = make_stack(make_study, architecture=architecture, k=2)
    positions = torch.arange(30)[:, None].expand(-1, 2)
    with stack.evaluating():
        product, size = hessian_product(
            stack.model, lambda: stack.losses(*stack.training_examples(positions), torch.float64)
        )
    vectors = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = product(vectors)
    for position in range(2):
        model = plain_network(stack, position)
        images, labels = training_set(stack, position, 30)
        names = [name for name, _ in model.named_parameters()]
        weights = tuple(parameter.detach() for parameter in model.parameters())
        direction = tuple(shaped(vectors[position : position + 1], weights))

        def loss(
            *w: Tensor, model: nn.Module = model, names: Any = names, x: Tensor = images, y: Any = labels
        ) -> Tensor:
            return cross_entropy(functional_call(model, dict(zip(names, w, strict=True)), (x,)), y)

        expected = by_trial(hvp(loss, weights, direction)[1], 1)
        torch.testing.assert_close(got[position : position + 1], expected, rtol=1e-9, atol=1e-11)


def test_enough_lanczos_iterations_find_the_largest_eigenvalue(curved: tuple[TrialStack, list[np.ndarray]]) -> None:
    stack, dense = curved
    got = make_hessian(stack, iterations=60, num_probes=2).measure(moment(stack))
    for position, matrix in enumerate(dense):
        assert float(got["lambda_max"][position]) == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-9)
        assert float(got["lambda_max_residual"][position]) < 1e-6 * float(got["lambda_max"][position])


def test_few_lanczos_iterations_give_the_best_value_of_their_krylov_space_and_its_residual(curved: Any) -> None:
    stack, dense = curved
    got = make_hessian(stack, iterations=5, num_probes=2).measure(moment(stack))
    starts = signs_of(stack, 3)[:, 0]
    for position, matrix in enumerate(dense):
        powers = [starts[position]]
        for _ in range(4):
            powers.append(matrix @ powers[-1] / np.linalg.norm(powers[-1]))
        basis = np.linalg.qr(np.array(powers).T)[0]
        values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
        ritz = basis @ vectors[:, -1]
        residual = np.linalg.norm(matrix @ ritz - values[-1] * ritz)
        assert float(got["lambda_max"][position]) == pytest.approx(values[-1], rel=1e-8)
        assert float(got["lambda_max_residual"][position]) == pytest.approx(residual, rel=1e-6)
        assert np.abs(np.linalg.eigvalsh(matrix) - values[-1]).min() <= residual


def test_power_iteration_is_a_plain_loop_with_a_rayleigh_quotient(curved: Any) -> None:
    stack, dense = curved
    got = make_hessian(stack, lambda_max="power_iteration", iterations=5, num_probes=2).measure(moment(stack))
    for position, matrix in enumerate(dense):
        v = signs_of(stack, 3)[position, 0]
        for _ in range(4):
            v = matrix @ v
            v /= np.linalg.norm(v)
        v /= np.linalg.norm(v)
        value = v @ matrix @ v
        assert float(got["lambda_max"][position]) == pytest.approx(value, rel=1e-8)
        residual = np.linalg.norm(matrix @ v - value * v)
        assert float(got["lambda_max_residual"][position]) == pytest.approx(residual, rel=1e-8)


def test_hutchinson_is_the_mean_over_its_probes_and_their_spread(curved: Any) -> None:
    stack, dense = curved
    got = make_hessian(stack, num_probes=7).measure(moment(stack))["hutch_trace"]
    assert isinstance(got, tuple)
    for position, matrix in enumerate(dense):
        probes = signs_of(stack, 8)[position, 1:]
        forms = np.einsum("mp,pq,mq->m", probes, matrix, probes)
        assert float(got[0][position]) == pytest.approx(forms.mean(), rel=1e-9)
        assert float(got[1][position]) == pytest.approx(forms.std(ddof=1) / math.sqrt(7), rel=1e-9)


def test_both_traces_are_unbiased_and_their_errors_true(curved: Any) -> None:
    """Over 150 steps, whose signs are independent; Hutchinson's error has a formula."""
    stack, dense = curved
    matrices = torch.from_numpy(np.stack(dense))

    def product(vectors: Tensor) -> Tensor:
        return (matrices @ vectors[:, :, None]).squeeze(2)

    for estimate in (hutchinson, hutch_plus_plus):
        runs = [
            estimate(product, random_signs(stack, step, 9, matrices.shape[1], torch.float64), 9)
            for step in range(1, 151)
        ]
        values, errors = (torch.stack(column).numpy() for column in zip(*runs, strict=True))
        for position, matrix in enumerate(dense):
            spread = values[:, position].std(ddof=1)
            assert abs(values[:, position].mean() - np.trace(matrix)) < 4 * spread / math.sqrt(150)
            assert np.sqrt((errors[:, position] ** 2).mean()) == pytest.approx(spread, rel=0.25)
            if estimate is hutchinson:
                off = matrix - np.diag(np.diag(matrix))
                assert spread == pytest.approx(math.sqrt(2 * (off**2).sum() / 9), rel=0.25)


def test_hutch_plus_plus_is_the_published_algorithm_with_what_is_left_for_the_complement(curved: Any) -> None:
    stack, dense = curved
    settings = options(HessianMonitor(hutch_trace="hutch_plus_plus", num_probes=11))
    got = Hessian(stack, **{**settings, "num_images": 24}).measure(moment(stack))["hutch_trace"]
    assert isinstance(got, tuple)
    for position, matrix in enumerate(dense):
        probes = signs_of(stack, 12)[position, 1:]
        basis = np.linalg.qr(matrix @ probes[:3].T)[0]
        outside = probes[3:8].T - basis @ (basis.T @ probes[3:8].T)
        forms = np.einsum("pm,pq,qm->m", outside, matrix, outside)
        assert float(got[0][position]) == pytest.approx(np.trace(basis.T @ matrix @ basis) + forms.mean(), rel=1e-8)
        assert float(got[1][position]) == pytest.approx(forms.std(ddof=1) / math.sqrt(5), rel=1e-8)


def test_the_batch_is_fixed_and_no_larger_than_the_training_set(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    all_images, more = (make_hessian(stack, num_images=n, iterations=3).measure(moment(stack)) for n in (100, 5000))
    assert torch.equal(all_images["lambda_max"], more["lambda_max"])
    fewer = make_hessian(stack, num_images=50, iterations=3).measure(moment(stack))
    assert not torch.equal(fewer["lambda_max"], more["lambda_max"])


def test_a_probe_is_a_function_of_seed_trial_and_step_alone(make_study: MakeStudy) -> None:
    both, alone = make_stack(make_study, steps=0), make_stack(make_study, trials=(1,), steps=0)
    signs = torch.stack(list(random_signs(both, 5, 3, 10_001, torch.float32)), dim=1)  # (T, 3, P)
    assert torch.equal(signs[1:], torch.stack(list(random_signs(alone, 5, 3, 10_001, torch.float32)), dim=1))
    assert signs.abs().eq(1).all()
    flat = torch.cat([signs.flatten(0, 1), *random_signs(alone, 6, 1, 10_001, torch.float32)]).double()
    # All means and inner products are as of independent coins.
    gram = flat @ flat.T / 10_001
    assert (gram - torch.eye(len(flat))).abs().max() < 0.05
    assert flat.mean(1).abs().max() < 0.05


def matrix_product(matrices: Iterable[Any]) -> lanczos.Product:
    stacked = torch.stack([torch.as_tensor(np.asarray(matrix), dtype=torch.float64) for matrix in matrices])
    return lambda vectors: (stacked @ vectors[:, :, None]).squeeze(2)


def test_lanczos_ends_well_in_exhausted_spaces() -> None:
    """Rank 2, zero, and nothing but negative eigenvalues: no value from beyond the space is taken for the largest."""
    low = np.diag([5.0, -9.0] + [0.0] * 18)
    matrices = [low, np.zeros((20, 20)), -np.eye(20), -np.diag(np.arange(1.0, 21.0)), 3 * np.eye(20)]
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 20)))
    value, residual = lanczos.lanczos_largest(matrix_product(matrices), start, 20)
    torch.testing.assert_close(value, torch.tensor([5.0, 0, -1, -1, 3]).double(), rtol=1e-9, atol=1e-12)
    assert residual.max() < 1e-8
    value, residual = lanczos.lanczos_largest(matrix_product(matrices), start, 50)  # no more than there are dimensions
    torch.testing.assert_close(value, torch.tensor([5.0, 0, -1, -1, 3]).double(), rtol=1e-9, atol=1e-12)


def test_power_iteration_of_a_zero_matrix_is_zero() -> None:
    value, residual = lanczos.power_iteration(matrix_product([np.zeros((4, 4))]), torch.ones(1, 4).double(), 5)
    assert value.item() == residual.item() == 0


def test_a_sketch_of_low_rank_leaves_the_trace_exact(make_study: MakeStudy) -> None:
    """Hutch++ with three sketch vectors of a matrix of rank 1: the other two directions are rounding, and not used."""
    direction = np.random.default_rng(0).normal(size=30)
    product = matrix_product([np.outer(direction, direction), np.zeros((30, 30))])
    stack = make_stack(make_study, steps=0)
    value, error = hutch_plus_plus(product, random_signs(stack, 1, 9, 30, torch.float64), 9)
    assert value.tolist() == pytest.approx([direction @ direction, 0])
    assert error.max() < 1e-10


@given(st.integers(1, 10), st.integers(0, 2**32 - 1), st.sampled_from(["any", "repeated", "huge", "tiny"]))
def test_the_largest_eigenpair_of_small_matrices_is_numpys(size: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.sort(rng.normal(size=size))
    if kind == "repeated":
        values[:] = np.round(values)
    values *= {"huge": 1e12, "tiny": 1e-12}.get(kind, 1)
    matrix = (vectors * values) @ vectors.T
    matrix = (matrix + matrix.T) / 2
    value, last = lanczos._largest_eigenpair(torch.from_numpy(np.stack([matrix, -matrix])))
    expected, own = np.linalg.eigh(matrix)
    scale = np.abs(values).max()
    assert value.tolist() == pytest.approx([expected[-1], -expected[0]], rel=1e-10, abs=1e-10 * scale)
    if size > 1 and expected[-1] - expected[-2] > 1e-3 * scale:
        assert last[0].item() == pytest.approx(own[-1, -1] ** 2, abs=1e-9)


def test_a_matrix_with_nan_leaves_the_others_their_eigenvalues() -> None:
    matrices = torch.stack([torch.full((3, 3), torch.nan), torch.diag(torch.tensor([1.0, 2.0, 3.0]))]).double()
    value, _ = lanczos._largest_eigenpair(matrices)
    assert value[0].isnan()
    assert value[1].item() == pytest.approx(3)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("stride", "padding", "dilation", "kernel"), [(1, 1, 1, 3), (2, 0, 1, 1), (2, 2, 2, 3)])
def test_the_quicker_layers_have_pytorchs_values_and_derivatives(groups, stride, padding, dilation, kernel) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 9, kernel, stride, padding, dilation, groups).double()
    norm = nn.BatchNorm2d(9).double().eval()
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    images = torch.randn(4, 6, 7, 7, dtype=torch.float64, requires_grad=True)
    inputs = [images, *conv.parameters(), *norm.parameters()]
    directions = [torch.randn_like(tensor) for tensor in inputs]

    def derivatives() -> list[Tensor]:
        out = norm(torch.tanh(conv(images)))
        gradients = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(gradients, inputs, directions, create_graph=True)
        third = torch.autograd.grad(second, inputs, directions)
        return [out, *gradients, *second, *third]

    expected = derivatives()
    with TwiceDifferentiable():
        got = derivatives()
    assert len(got) == 1 + 3 * len(inputs)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_batch_norm_in_training_stays_pytorchs() -> None:
    norm, images = nn.BatchNorm2d(2), torch.randn(3, 2, 4, 4)
    with TwiceDifferentiable():
        got = norm(images)
    assert norm.running_mean.abs().max() > 0
    torch.testing.assert_close(got, norm(images))


# --- noise of the losses


def make_noise(stack: TrialStack, **changes: Any) -> Noise:
    return Noise(stack, **{**options(NoiseMonitor()), "num_batches": 3, **changes})


def reference(losses: np.ndarray, first_step: int, kind: str) -> tuple[float, float]:
    """psd_tail and resid_power of (n,) losses, by NumPy and SciPy."""
    x, y = np.log(first_step + np.arange(len(losses)) + 1.0), np.log(losses)
    line = scipy.stats.linregress(x, y)
    residuals = y - line.intercept - line.slope * x
    if kind == "density":
        f, p = scipy.signal.periodogram(residuals, window="hann", detrend=False, scaling="density")
        tail, low = (f >= 15 / 32) & (f < 0.5), (f >= 1 / 64) & (f < 1 / 16)
        return p[tail].mean(), p[low].mean() * (1 / 16 - 1 / 64)
    power = np.abs(np.fft.rfft(residuals)) ** 2
    if kind == "periodogram":
        return np.mean(power[-16:]), np.sum(power[8:32])
    f, p = scipy.signal.periodogram(losses, window="hann", detrend="constant", scaling="spectrum")
    p[1:] /= 2  # one-sided, and in other units
    p[-1] *= 2 if len(losses) % 2 == 0 else 1
    p *= np.square(scipy.signal.get_window("hann", len(losses)).sum())
    return p[f >= 0.3].sum() / (p[(f >= 0.1) & (f < 0.3)].sum() + 1e-10), np.sum(power[8:32])


@pytest.mark.parametrize("kind", ["density", "periodogram", "ratio"])
@pytest.mark.parametrize(("num", "window"), [(100, 512), (128, 128), (331, 200), (600, 512), (517, 600)])
def test_spectra_are_those_of_scipy(make_study: MakeStudy, kind: str, num: int, window: int) -> None:
    stack = make_stack(make_study, steps=0)
    losses = some_losses(num)
    monitor = make_noise(stack, psd=kind, window=window)
    got = monitor.measure(feed(monitor, torch.from_numpy(losses)))
    last = losses[-window:]
    for position in range(2):
        tail, power = reference(last[:, position], num - len(last) + 1, kind)
        assert float(got["psd_tail"][position]) == pytest.approx(tail, rel=1e-9)
        assert float(got["resid_power"][position]) == pytest.approx(power, rel=1e-9)


@pytest.mark.parametrize("num", [100, 101, 255, 512])
def test_the_density_of_white_noise_is_twice_its_variance_whatever_the_window(num: int) -> None:
    """Which |rfft|^2 is not. 5,000 series, so that the mean is known to a percent."""
    rng = np.random.default_rng(num)
    series = 0.2 * rng.normal(size=(num, 5000))
    trend = (np.arange(num) + 900.0)[:, None] ** -1.7
    tail, power = noise.density(torch.from_numpy(np.exp(series) * trend), 899)
    assert tail.mean().item() == pytest.approx(2 * 0.04, rel=0.03)
    assert power.mean().item() == pytest.approx(2 * 0.04 * (1 / 16 - 1 / 64), rel=0.03)


def test_at_512_losses_the_bands_are_the_bins_of_the_campaign() -> None:
    bins = torch.arange(257.0)
    assert noise._band(bins, 512, 1 / 64, 1 / 16).tolist() == list(range(8, 32))
    assert noise._band(bins, 512, 15 / 32, 1 / 2).tolist() == list(range(240, 256))


def test_a_loss_that_is_not_finite_makes_nan_for_its_own_trial(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(150))
    losses[120, 0] = torch.inf
    monitor = make_noise(stack)
    got = monitor.measure(feed(monitor, losses))
    assert got["psd_tail"][0].isnan()
    assert got["resid_power"].isfinite().tolist() == [False, True]


def test_a_loss_of_zero_counts_as_the_smallest_that_float32_can_tell(make_study: MakeStudy) -> None:
    """A wide network that knows its labels by heart has such batches, and noise all the same."""
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(150))
    measured = []
    for smallest in (0.0, 2.0**-31):
        losses[120:, 0] = smallest
        monitor = make_noise(stack)
        measured.append(monitor.measure(feed(monitor, losses)))
    for metric in ("psd_tail", "resid_power"):
        assert measured[0][metric].isfinite().all()
        assert torch.equal(measured[0][metric], measured[1][metric])


def test_there_is_no_spectrum_of_fewer_than_a_hundred_losses(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    monitor = make_noise(stack)
    assert set(monitor.measure(feed(monitor, torch.from_numpy(some_losses(99))))) == {"grad_var"}
    now = feed(monitor, torch.from_numpy(some_losses(1)), first_step=100)
    assert set(monitor.measure(now)) == set(Noise.metrics)


@pytest.mark.parametrize("grad_var", ["batches", "ema"])
@pytest.mark.parametrize("before", [0, 57, 128, 300])
def test_an_interrupted_noise_monitor_goes_on_with_the_same_bits(
    make_study: MakeStudy, grad_var: str, before: int
) -> None:
    stack = make_stack(make_study, dtype=torch.float32)
    whole, first, second = (make_noise(stack, window=128, grad_var=grad_var) for _ in range(3))
    losses = torch.from_numpy(some_losses(420)).float()
    if before:
        feed(whole, losses[:before])
        feed(first, losses[:before])
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    feed(first, losses[:3])  # a state is not a view of what goes on
    second.load_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.state().items())
    stack.run_steps(1)
    results = [monitor.measure(feed(monitor, losses[before:], before + 1)) for monitor in (whole, second)]
    for name, (value, error) in values_and_errors(results[0]).items():
        assert torch.equal(value, values_and_errors(results[1])[name][0])
        assert torch.equal(error, values_and_errors(results[1])[name][1])


def test_another_window_after_an_interruption_takes_the_last_losses(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(700))
    long = make_noise(stack, window=600)
    feed(long, losses[:650])
    for window in (200, 900):
        other = make_noise(stack, window=window)
        other.load_state(long.state())
        got = other.measure(feed(other, losses[650:], 651))
        start = max(50, 700 - window)
        expected = noise.density(losses[start:], start + 1)
        torch.testing.assert_close(got["psd_tail"], expected[0], rtol=1e-12, atol=0)


# --- variance of the gradient


def image_gradients(stack: TrialStack, position: int) -> np.ndarray:
    """The gradient of every training image, float64 (N, P)."""
    model = plain_network(stack, position)
    rows = []
    for image, label in zip(*training_set(stack, position, stack.num_train), strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("num_batches", "size"), [(3, 32), (2, 32), (8, 12), (200, 1)])
def test_the_variance_between_batches_is_numpys(make_study: MakeStudy, num_batches: int, size: int) -> None:
    """100 images hold three batches of 32; more batches are smaller, and scaled to 32."""
    stack = make_stack(make_study)
    got = make_noise(stack, num_batches=num_batches).measure(moment(stack, step=12))["grad_var"]
    assert isinstance(got, tuple)
    number = min(num_batches, 100)
    for position, trial in enumerate(stack.trials):
        order = generator(stack.study.seed, trial, "monitor_images", 12).permutation(100)
        gradients = image_gradients(stack, position)[order[: number * size]]
        means = gradients.reshape(number, size, -1).mean(1)
        assert float(got[0][position]) == pytest.approx(means.var(0, ddof=1).mean() * size / 32, rel=1e-9)
        assert float(got[1][position]) > 0 or number == 2


def test_the_variance_between_batches_is_unbiased_and_its_error_true(make_study: MakeStudy) -> None:
    """Over 120 steps, whose batches are independent, against the covariance of all images' gradients."""
    stack = make_stack(make_study, trials=(0,), batch_size=10)
    monitor = make_noise(stack, num_batches=6)
    runs = [monitor.measure(moment(stack, step))["grad_var"] for step in range(1, 121)]
    values, errors = (np.array([float(run[i]) for run in runs]) for i in range(2))
    truth = image_gradients(stack, 0).var(0, ddof=1).mean() / 10
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / math.sqrt(120)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.3)


def test_the_moving_variance_is_the_campaigns_recursion(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    monitor = make_noise(stack, grad_var="ema", decay=0.3)
    assert torch.as_tensor(monitor.measure(moment(stack))["grad_var"]).isnan().all()
    rng = np.random.default_rng(0)
    mean = variance = None
    for step in range(1, 8):
        by_parameter = [torch.from_numpy(rng.normal(size=p.shape)) for p in stack.model.parameters()]
        for parameter, gradient in zip(stack.model.parameters(), by_parameter, strict=True):
            parameter.grad = gradient
        monitor.observe(moment(stack, step))
        rows = np.concatenate([g.reshape(2, -1).numpy() for g in by_parameter], axis=1)
        if mean is None:
            mean, variance = rows.copy(), np.zeros_like(rows)
        else:
            delta = rows - mean
            mean += 0.3 * delta
            variance = (1 - 0.3) * (variance + 0.3 * delta**2)
        got = monitor.measure(moment(stack, step))["grad_var"]
        np.testing.assert_allclose(got, variance.mean(1), rtol=1e-12)


def test_the_moving_variance_leaves_an_overflowing_gradient_out(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    finite, first, later = (make_noise(stack, grad_var="ema") for _ in range(3))
    parameter = next(iter(stack.model.parameters()))
    overflown = parameter.grad.clone()
    overflown[: len(overflown) // 2] = torch.inf  # of trial 0

    def observe(monitor: Noise, gradient: Tensor, factor: float = 1.0) -> None:
        before, parameter.grad = parameter.grad, gradient * factor
        monitor.observe(moment(stack))
        parameter.grad = before

    sound = parameter.grad
    for monitor, overflows_at in ((finite, None), (first, 0), (later, 1)):
        for index, factor in enumerate((1.0, 2.0, 3.0)):
            if index == overflows_at:
                observe(monitor, overflown)
            observe(monitor, sound, factor)
    values = [torch.as_tensor(monitor.measure(moment(stack))["grad_var"]) for monitor in (finite, first, later)]
    assert values[0][0] > 0
    assert values[0][0] == values[1][0] == values[2][0]


# --- all of them


def test_values_do_not_depend_on_which_trials_are_stacked(make_study: MakeStudy) -> None:
    losses = torch.from_numpy(some_losses(120, trials=2))
    both = make_stack(make_study, steps=3)
    together = all_monitors(both)
    feed(together["noise"], losses)
    for position, trial in enumerate((0, 1)):
        alone = make_stack(make_study, trials=(trial,), steps=3)
        separate = all_monitors(alone)
        feed(separate["noise"], losses[:, position : position + 1])
        for name, monitor in separate.items():
            expected = values_and_errors(monitor.measure(moment(alone, 120)))
            got = values_and_errors(together[name].measure(moment(both, 120)))
            assert set(got) == set(monitor.metrics)
            for metric in expected:
                for ours, theirs in zip(got[metric], expected[metric], strict=True):
                    torch.testing.assert_close(ours[position], theirs[0], rtol=1e-8, atol=1e-12)


def test_a_trial_without_finite_weights_leaves_the_others_untouched(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, dtype=torch.float32)
    variations = [{}, {"hessian": {"lambda_max": "power_iteration", "hutch_trace": "hutch_plus_plus"}}]

    def measured() -> list[dict[str, tuple[Tensor, Tensor]]]:
        found = []
        for changes in variations:
            for monitor in all_monitors(stack, **changes).values():
                if monitor.watches_every_step:
                    feed(monitor, torch.from_numpy(some_losses(100)))
                found.append(values_and_errors(monitor.measure(moment(stack, 100))))
        return found

    before = measured()
    stack.diverge(0)
    after = measured()
    for ours, theirs in zip(after, before, strict=True):
        for metric in ours:
            assert torch.equal(ours[metric][0][1], theirs[metric][0][1]), metric
            if metric not in ("acc_val", "grad_norm", "psd_tail", "resid_power"):
                assert ours[metric][0][0].isnan(), metric


class Traces:
    """Everything a monitor could leave a trace in."""

    def __init__(self, stack: TrialStack):  # noqa: D107
        model = stack.model
        self.gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        self.tensors = {name: tensor.clone() for name, tensor in stack.state().items()}
        self.modes = [module.training for module in model.modules()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]
        self.random = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        self.grad_mode = torch.is_grad_enabled()

    def assert_equal(self, stack: TrialStack) -> None:  # noqa: D102
        now = Traces(stack)
        assert self.tensors.keys() == now.tensors.keys()
        assert all(torch.equal(tensor, now.tensors[name]) for name, tensor in self.tensors.items())
        assert len(self.gradients) == len(now.gradients) > 0
        for (tensor, value), (same, _) in zip(self.gradients, now.gradients, strict=True):
            assert tensor is same
            assert torch.equal(tensor, value)
        assert self.modes == now.modes
        assert all(self.modes)
        assert self.flags == now.flags
        assert torch.equal(self.random[0], now.random[0])
        assert np.array_equal(self.random[1], now.random[1])
        assert self.random[2] == now.random[2]
        assert self.grad_mode == now.grad_mode


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hessian": {"lambda_max": "power_iteration", "hutch_trace": "hutch_plus_plus"}, "noise": {"grad_var": "ema"}},
        {"noise": {"psd": "periodogram"}},
        {"noise": {"psd": "ratio"}},
    ],
)
def test_a_measurement_leaves_no_trace_and_does_not_wait_for_the_device(make_study: MakeStudy, changes: Any) -> None:
    stack = make_stack(make_study)
    monitors = all_monitors(stack, **changes)
    for monitor in monitors.values():
        before = Traces(stack)
        with NoWaiting():
            feed(monitor, torch.from_numpy(some_losses(100)))
            monitor.measure(moment(stack, 100))
        before.assert_equal(stack)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: numbers fetched, and sizes or errors that depend on values."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2")
    CHECKED = (
        "_linalg_eigh",
        "_linalg_svd",
        "linalg_cholesky_ex",
        "linalg_solve",
        "linalg_inv_ex",
        "_linalg_check_errors",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        name = func.overloadpacket.__name__
        assert name not in (*self.WAITING, *self.CHECKED), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert not any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]), "a mask waits"
        return func(*args, **(kwargs or {}))


def test_the_watch_for_waiting_sees_it() -> None:
    tensor = torch.arange(3.0)
    for waiting in (
        lambda: tensor.sum().item(),
        lambda: bool(tensor.any()),
        lambda: tensor[tensor > 1],
        lambda: tensor.nonzero(),
        lambda: torch.linalg.eigvalsh(torch.eye(2)),
    ):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waiting()


@pytest.mark.parametrize("noise_options", [{}, {"grad_var": "ema"}])
def test_training_with_every_monitor_gives_the_same_bits(make_study: MakeStudy, noise_options: dict[str, Any]) -> None:
    busy = {**BUSY, "noise": {**BUSY["noise"], **noise_options}}
    stacks = [make_stack(make_study, steps=0, dtype=torch.float32, monitors=m) for m in (OFF, busy)]
    metrics = [[stack.train_epoch(epoch) for epoch in (1, 2)] for stack in stacks]
    states = [{n: t for n, t in stack.state().items() if not n.startswith("monitors.")} for stack in stacks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for bare, observed in zip(*metrics, strict=True):
        np.testing.assert_array_equal(bare.loss, observed.loss)
        assert bare.readings == {}
        assert set(observed.readings) >= {"loss_val_nats", "weight_norm", "lambda_max", "grad_var"}


def test_what_is_recorded_is_what_is_expected(make_study: MakeStudy) -> None:
    """The completeness check computes the steps without torch."""
    monitors = {
        "validation": {"every": "1/4 epoch"},
        "norms": {"every": "3/2 epochs"},
        "hessian": {"every": "37 steps", "num_images": 8, "iterations": 2, "num_probes": 2},
        "noise": {"every": "5 epochs", "num_batches": 2, "window": 128},
    }
    stack = make_stack(make_study, trials=(0,), steps=0, dtype=torch.float32, monitors=monitors, epochs=30)
    recorded: dict[str, list[int]] = {}
    for epoch in range(1, 31):
        for metric, rows in stack.train_epoch(epoch).readings.items():
            assert rows.shape[1] == 4
            assert np.isfinite(rows[:, 2]).all()
            recorded.setdefault(metric, []).extend(rows[:, 1].astype(int).tolist())
            assert set(rows[:, 0]) == {epoch}
    assert recorded == expected_steps(stack.study.monitors, True, stack.calendar, stack.calendar.steps_after(30))
    assert recorded["psd_tail"] == [100, 120]
    assert len(recorded["grad_var"]) == 6


def test_an_interrupted_training_measures_the_same_bits(make_study: MakeStudy) -> None:
    def trained(until: int, monitors: Any = BUSY) -> TrialStack:
        stack = make_stack(make_study, steps=0, dtype=torch.float32, monitors=monitors, epochs=30)
        for epoch in range(1, until + 1):
            stack.train_epoch(epoch)
        return stack

    often = {**OFF, "noise": {"every": "1 steps", "num_batches": 2, "window": 128, "grad_var": "ema"}}
    whole, first = trained(26, often), trained(26, often)
    second = trained(0, often)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    ours, theirs = second.train_epoch(27).readings, whole.train_epoch(27).readings
    assert ours.keys() == theirs.keys() == set(Noise.metrics)
    for metric, rows in ours.items():
        np.testing.assert_array_equal(rows, theirs[metric])


def test_metrics_are_those_of_the_settings() -> None:
    for monitor, entry in (
        (Validation, ValidationMonitor),
        (Norms, NormMonitor),
        (Hessian, HessianMonitor),
        (Noise, NoiseMonitor),
    ):
        assert set(monitor.metrics) == set(entry.first_steps)


# --- monitors of a user's own


class Largest(Monitor):
    """As a user writes them."""

    metrics = ("largest_weight",)

    def measure(self, moment: Moment) -> Measurement:  # noqa: D102
        weights = by_trial(self.stack.model.parameters(), len(self.stack.trials))
        return {"largest_weight": weights.abs().amax(1)}


class Undeclared(Largest):
    """Forgot to name its metric."""

    metrics = ()


class OfAll(Largest):
    """One value for all trials."""

    def measure(self, moment: Moment) -> Measurement:  # noqa: D102
        return {"largest_weight": super().measure(moment)["largest_weight"].max()}  # type: ignore[union-attr]


class Again(Largest):
    """Measures what another one does."""

    metrics = ("grad_norm",)


def own(use: str, **options: Any) -> dict[str, Any]:
    return {**OFF, "custom": {"own": {"use": use, "every": "1 steps", "options": options}}}


def test_a_monitor_of_the_users_own_is_recorded(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0, monitors=own(f"{__name__}:Largest"))
    rows = stack.train_epoch(1).readings["largest_weight"]
    assert rows[:, 1].tolist() == [1, 2, 3, 4]
    expected = [max(p.abs().max().item() for p in plain_network(stack, t).parameters()) for t in range(2)]
    assert rows[-1, 2:4].tolist() == expected
    assert np.isnan(rows[:, 4:]).all()


@pytest.mark.parametrize(
    ("monitors", "reason"),
    [
        (own("nowhere.to:Find"), "monitors.own: nowhere.to:Find cannot be imported"),
        (own(f"{__name__}:Missing"), "monitors.own: .*Missing"),
        (own(f"{__name__}:TrialStack"), "is not a subclass of .*Monitor"),
        (own(f"{__name__}:Largest", size=3), "cannot be made with these options"),
        (own(f"{__name__}:Undeclared"), "Undeclared measured 'largest_weight', which is not among its metrics"),
        (own(f"{__name__}:OfAll"), r"OfAll measured largest_weight of shape \(\); one value for each of the 2 trials"),
        ({**own(f"{__name__}:Again"), "norms": {}}, "monitors.own: grad_norm is measured by monitors.norms"),
    ],
)
def test_a_monitor_that_cannot_work_is_one_sentence(make_study: MakeStudy, monitors: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_stack(make_study, steps=1, monitors=monitors)


def test_a_moment_is_made_only_if_somebody_looks() -> None:
    def never() -> Moment:
        raise AssertionError

    Timetable({}, Calendar(4, 1)).after_step(1, never)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_values_are_the_cpus_and_nothing_waits(make_study: MakeStudy) -> None:
    here = make_stack(make_study)
    arm = next(iter(here.study.arms.values()))
    there = TrialStack(here.study, arm, here.trials, torch.device("cuda"), torch.float64)
    there.run_steps(1)
    there.load_state(here.state())
    losses = torch.from_numpy(some_losses(110))
    pairs = zip(all_monitors(here).values(), all_monitors(there).values(), strict=True)
    for ours, theirs in pairs:
        feed(ours, losses)
        on_gpu = losses.cuda()
        theirs.measure(moment(there, 1))  # libraries set themselves up at the first call
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            feed(theirs, on_gpu)
            got = theirs.measure(moment(there, 110))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = values_and_errors(ours.measure(moment(here, 110)))
        for metric, pair in values_and_errors(got).items():
            if metric != "grad_norm":
                for a, b in zip(pair, expected[metric], strict=True):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-7, atol=1e-10)
