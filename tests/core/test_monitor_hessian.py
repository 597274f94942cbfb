"""The monitor of the Hessian in the weights: against dense Hessians, plain loops and numpy."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian, hvp
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dd_core.curvature.parameter_space import by_trial as lanczos
from dd_core.curvature.parameter_space.by_trial import by_trial, hessian_product, hutch_plus_plus, hutchinson, shaped
from dd_core.study.monitors import (
    HessianMonitor,
)
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.monitors.vectors import random_signs
from dd_core.training.trial_stack import TrialStack

from .monitored import MakeStudy, make_stack, moment, options, plain_network, training_set

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
