"""Eigenvalues and spectral densities of Hessians in the weights: against dense ones."""

import numpy as np
import pytest
import torch
from hessian_eigenthings.algorithms.spectral_density import spectral_density as their_density
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.curvature.parameter_space import (
    KrylovSpace,
    analyse_hessian,
    extreme_eigenpairs,
    spectral_density,
)
from dd_core.curvature.parameter_space.lanczos import grow, random_signs
from dd_core.study.hessian import HessianSettings

from .dense_hessians import CASES, dense, labels_for, network, of_matrix, operator_of, pictures, seeded, space_of

# Eigenvalues


@pytest.mark.parametrize(("architecture", "classes"), CASES)
def test_both_ends_of_the_spectrum_are_those_of_the_dense_hessian(architecture: str, classes: int) -> None:
    _, hessian = dense(architecture, classes)
    expected, vectors = torch.linalg.eigh(hessian)
    operator = operator_of(architecture, classes)
    pairs = extreme_eigenpairs(operator, space_of(operator, 300), 4, 1e-9)
    np.testing.assert_allclose(pairs.largest, expected[-4:].flip(0).numpy(), rtol=1e-8, atol=1e-10)
    assert pairs.smallest == pytest.approx(expected[0].item(), rel=1e-8, abs=1e-10)
    # Residuals are measured, not estimated.
    direct = (pairs.vectors @ hessian - torch.from_numpy(pairs.largest)[:, None] * pairs.vectors).norm(dim=1)
    np.testing.assert_allclose(pairs.residuals, direct.numpy(), rtol=1e-3, atol=1e-14)
    assert pairs.residuals.max() <= 2e-9 * expected.abs().max()
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-7)
    assert abs(float(pairs.vectors[0] @ vectors[:, -1])) == pytest.approx(1, abs=1e-6)


@settings(max_examples=25)
@given(
    eigenvalues=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=40),
    seed=st.integers(0, 100),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_an_eigenvalue_lies_within_the_residual_of_each_reported_one(
    eigenvalues: list[float], seed: int, dtype: torch.dtype
) -> None:
    basis = torch.linalg.qr(
        torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64, generator=seeded(seed))
    )
    matrix = (basis.Q * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.Q.T
    operator = of_matrix(matrix.to(dtype))
    pairs = extreme_eigenpairs(operator, space_of(operator, 25, seed), 3, 1e-4)
    rounding = 100 * torch.finfo(dtype).eps * max(map(abs, eigenvalues))
    assert pairs.smallest is not None
    assert pairs.smallest_residual is not None
    for value, residual in (
        *zip(pairs.largest, pairs.residuals, strict=True),
        (pairs.smallest, pairs.smallest_residual),
    ):
        assert np.abs(np.array(eigenvalues) - value).min() <= residual + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exhausted_space_invents_no_eigenvalues(dtype: torch.dtype) -> None:
    """Rank 5, where hessian-eigenthings reports 53 beside 100 in float32 after 20 steps."""
    basis = torch.linalg.qr(torch.randn(400, 5, dtype=torch.float64, generator=seeded())).Q
    matrix = ((basis * torch.tensor([100.0, 10, 5, 2, -3], dtype=torch.float64)) @ basis.T).to(dtype)
    operator = of_matrix(matrix)
    for steps in (6, 12, 20, 60):
        space = space_of(operator, steps)
        while not space.is_full:
            grow(operator, [space])
        values = space.ritz()[0]
        np.testing.assert_allclose(values[-4:], [2, 5, 10, 100], atol=1e-2)
        assert values[0] == pytest.approx(-3, abs=1e-2)
        assert np.abs(values[1:-4]).max(initial=0) < 1e-3
        basis_found = space.vectors(np.eye(space.num_steps))
        identity = torch.eye(space.num_steps, dtype=dtype)
        torch.testing.assert_close(basis_found @ basis_found.T, identity, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_equal_eigenvalues_are_found_once_the_space_is_exhausted() -> None:
    operator = of_matrix(torch.diag(torch.tensor([3.0, 3, 3, 1, 1, -2], dtype=torch.float64)))
    pairs = extreme_eigenpairs(operator, space_of(operator, 6), 5, 1e-12)
    np.testing.assert_allclose(pairs.largest, [3, 3, 3, 1, 1], atol=1e-12)
    assert pairs.smallest == pytest.approx(-2)


def test_many_steps_do_not_repeat_the_largest_eigenvalue() -> None:
    """Where hessian-eigenthings, which gives reorthogonalisation up after 50 steps, reports 100 eight times."""
    outliers, bulk = torch.tensor([100.0, 50, 20, 10, 5]), torch.rand(1995, generator=seeded()) * 0.1 - 0.02
    operator = of_matrix(torch.diag(torch.cat([outliers, bulk])))
    space = space_of(operator, 100)
    while not space.is_full:
        grow(operator, [space])
    np.testing.assert_allclose(space.ritz()[0][-6:], [0.08, 5, 10, 20, 50, 100], rtol=1e-4, atol=1e-3)


def test_lanczos_stops_when_the_residuals_are_small_enough() -> None:
    operator = operator_of("cnn5", 10)
    spaces = {tolerance: space_of(operator, 200) for tolerance in (1e-2, 1e-8)}
    pairs = {t: extreme_eigenpairs(operator, space, 2, t) for t, space in spaces.items()}
    assert spaces[1e-2].num_steps < spaces[1e-8].num_steps < 200
    for tolerance, found in pairs.items():
        assert max(*found.residuals, found.smallest_residual) <= 1.01 * tolerance * max(
            found.largest[0], -found.smallest
        )


def test_the_largest_eigenvalues_alone_do_not_wait_for_the_other_end() -> None:
    operator = of_matrix(torch.diag(torch.cat([torch.tensor([50.0]), torch.linspace(-1, 1, 500)])).double())
    space, whole = space_of(operator, 200), space_of(operator, 200)
    alone = extreme_eigenpairs(operator, space, 1, 1e-6, both_ends=False)
    assert (alone.smallest, alone.smallest_residual) == (None, None)
    assert alone.largest == pytest.approx([50])
    assert extreme_eigenpairs(operator, whole, 1, 1e-6).smallest == pytest.approx(-1, abs=1e-4)
    assert space.num_steps < whole.num_steps


# Density


def test_the_quadrature_integrates_polynomials_exactly() -> None:
    """With m steps from r: sum of w_i p(node_i) = r^T p(H) r / P for every polynomial p of degree below 2 m."""
    _, hessian = dense("mlp", 10)
    operator = operator_of("mlp", 10)
    start = random_signs(1, operator.size, seeded()).double()[0]
    space = KrylovSpace(start, 4, seeded())
    while not space.is_full:
        grow(operator, [space])
    nodes, weights = space.quadrature()
    vector = start
    for power in range(1, 8):
        vector = hessian @ vector
        expected = float(start @ vector) / len(start)
        assert float((weights * nodes**power).sum()) == pytest.approx(expected, rel=1e-9)


def test_a_full_space_gives_the_very_density_of_the_eigenvalues() -> None:
    """With equal weight on each eigenvalue the smoothed density is the kernel density estimate of the spectrum."""
    eigenvalues = np.array([-1.0, 0, 0.5, 2, 7])
    found = spectral_density([(eigenvalues, np.full(5, 0.2))], 400, 0.02)
    kernels = np.exp(-(((found.grid[:, None] - eigenvalues) / 0.16) ** 2) / 2) / (0.16 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found.density, kernels.mean(1), rtol=1e-9, atol=1e-300)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-3)
    assert np.isfinite(found.log10_density).all()


def test_nodes_and_weights_are_those_of_hessian_eigenthings() -> None:
    operator = operator_of("cnn5", 10)
    theirs = their_density(operator, num_runs=3, lanczos_steps=8, num_grid_points=16, seed=5)
    # Run l of theirs draws its signs with seed + l.
    spaces = [space_of(operator, 8, 5 + run) for run in range(3)]
    while not spaces[0].is_full:
        grow(operator, spaces)
    for run, space in enumerate(spaces):
        nodes, weights = space.quadrature()
        np.testing.assert_allclose(nodes, theirs.raw_eigenvalues[run].numpy(), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(weights, theirs.raw_weights[run].numpy(), rtol=1e-6, atol=1e-12)


def test_the_density_has_the_moments_of_the_spectrum() -> None:
    """Mean and second moment of the true spectrum, within four of the estimate's own standard deviations."""
    _, hessian = dense("preact_resnet10", 10)
    options = HessianSettings(quantities=("density",), density_probes=24, density_steps=6, precision="float64")
    result = analyse_hessian(network("preact_resnet10", 10), pictures(), labels_for(10), options)
    assert result.density_nodes is not None
    assert result.density_weights is not None
    assert result.density_nodes.shape == (24, 6)
    np.testing.assert_allclose(result.density_weights.sum(1), 1)
    for power, expected in ((1, hessian.trace().item()), (2, hessian.square().sum().item())):
        samples = (result.density_weights * result.density_nodes**power).sum(1) * len(hessian)
        assert abs(samples.mean() - expected) < 4 * samples.std() / np.sqrt(24)
