"""The Hessian in the parameters against dense float64 Hessians by double backward, in every quantity."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hessian_eigenthings.algorithms.spectral_density import spectral_density as their_density
from hessian_eigenthings.algorithms.trace import hutch_plus_plus as their_hutch_plus_plus
from hessian_eigenthings.algorithms.trace import hutchinson as their_hutchinson
from hessian_eigenthings.operators.base import LambdaOperator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dd_core.curvature.parameter_space import (
    HessianOperator,
    KrylovSpace,
    analyse_hessian,
    exact_trace,
    extreme_eigenpairs,
    ggn_eigenvalues,
    hutch_plus_plus,
    hutchinson,
    spectral_density,
)
from dd_core.curvature.parameter_space.lanczos import grow, random_signs
from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.study.hessian import HessianSettings
from dd_core.tasks.losses import CrossEntropy

NUM_IMAGES = 5
CASES = [
    ("mlp", 2),
    ("mlp", 10),
    ("mlp", 100),
    ("cnn5", 2),
    ("cnn5", 10),
    ("preact_resnet10", 2),
    ("preact_resnet10", 10),
]


def network(architecture: str, classes: int, seed: int = 0) -> nn.Module:
    """Float64, in eval mode, with BatchNorm statistics and weights as after some training."""
    torch.manual_seed(seed)
    if architecture == "mlp":
        layers = [nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers, nn.Linear(5, classes))
    else:
        model = build(architecture, 1, 1, classes)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    return model


def pictures(number: int = NUM_IMAGES, side: int = 8) -> Tensor:
    return torch.randn(number, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def labels_for(classes: int, number: int = NUM_IMAGES) -> Tensor:
    return torch.arange(number) * 7 % classes


def gradient_and_hessian(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy in all parameters, by differentiating twice."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).requires_grad_(True)
    parts = theta.split([p.numel() for p in parameters])
    values = {name: part.view(p.shape) for name, part, p in zip(names, parts, parameters, strict=True)}
    loss = cross_entropy(functional_call(model, values, (images,)), labels)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    rows = [
        torch.autograd.grad(gradient, theta, basis, retain_graph=True, is_grads_batched=True)[0]
        for basis in torch.eye(len(theta), dtype=theta.dtype).split(200)
    ]
    return gradient.detach(), torch.cat(rows)


@functools.cache
def dense(architecture: str, classes: int) -> tuple[Tensor, Tensor]:
    return gradient_and_hessian(network(architecture, classes), pictures(), labels_for(classes))


def operator_of(architecture: str, classes: int, **options: Any) -> HessianOperator:
    options = {"dtype": torch.float64, **options}
    return HessianOperator(network(architecture, classes), pictures(), labels_for(classes), **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_matrix(matrix: Tensor, block_size: int = 4) -> Any:
    """An operator that is a matrix, for what must hold for any symmetric matrix."""
    operator: Any = LambdaOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)
    operator.matmat = lambda vectors: vectors @ matrix
    operator.block_size = block_size
    return operator


def space_of(operator: Any, steps: int, seed: int = 0) -> KrylovSpace:
    generator = seeded(seed)
    return KrylovSpace(random_signs(1, operator.size, generator).to(operator.dtype)[0], steps, generator)


# The operator


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 1), (2, 3), (3, 8), (250, 2)])
@pytest.mark.parametrize(("architecture", "classes"), CASES)
def test_products_are_those_of_the_dense_hessian(
    architecture: str, classes: int, batch_size: int, block_size: int
) -> None:
    gradient, hessian = dense(architecture, classes)
    operator = operator_of(architecture, classes, batch_size=batch_size, block_size=block_size)
    vectors = torch.randn(5, len(hessian), dtype=torch.float64, generator=seeded())
    for _ in range(2):  # again, from what was kept of the first pass
        torch.testing.assert_close(operator.matmat(vectors), vectors @ hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.matvec(vectors[0]), hessian @ vectors[0], rtol=1e-10, atol=1e-12)
    loss, own_gradient = operator.loss_and_gradient()
    expected = cross_entropy(network(architecture, classes)(pictures()), labels_for(classes)).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-10, atol=1e-13)


def test_single_precision_is_close_to_double() -> None:
    _, hessian = dense("preact_resnet10", 10)
    vectors = torch.randn(2, len(hessian), generator=seeded())
    products = operator_of("preact_resnet10", 10, dtype=torch.float32).matmat(vectors)
    assert products.dtype == torch.float32
    expected = vectors.double() @ hessian
    assert (products.double() - expected).norm() < 1e-6 * expected.norm()


def test_smooth_networks_have_products_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.GELU(), nn.Linear(4, 3)).double().eval()
    _, hessian = gradient_and_hessian(model, pictures(), labels_for(3))
    vector = torch.randn(len(hessian), dtype=torch.float64, generator=seeded())
    operator = HessianOperator(model, pictures(), labels_for(3), dtype=torch.float64, batch_size=2)
    torch.testing.assert_close(operator.matvec(vector), hessian @ vector, rtol=1e-10, atol=1e-12)


def test_parameters_that_the_loss_does_not_see_have_zero_rows() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 3), nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(images.flatten(1))

    operator = HessianOperator(Extra().double().eval(), pictures(), labels_for(3), dtype=torch.float64)
    product = operator.matvec(torch.randn(operator.size, dtype=torch.float64, generator=seeded()))
    assert product[-6:].tolist() == [0] * 6
    assert product[:-6].abs().max() > 1e-3
    alone = HessianOperator(Extra().eval(), pictures(), labels_for(3), layers=("unused",))
    assert alone.matvec(torch.ones(6)).tolist() == [0] * 6


def test_the_model_and_images_are_left_as_they_were() -> None:
    model, images = network("preact_resnet10", 10), pictures()
    model.linear.bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    before = images.clone()
    analyse_hessian(model, images, labels_for(10), HessianSettings(batch_size=2, lanczos_steps=12, density_steps=4))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert torch.get_default_dtype() == torch.float32


def test_out_of_memory_halves_the_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hessian = dense("mlp", 10)
    operator = operator_of("mlp", 10)
    sizes: list[int] = []

    def scarce(_: object, logits: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        if len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cross_entropy(logits, labels, reduction="sum")

    monkeypatch.setattr(CrossEntropy, "total", scarce)
    vectors = torch.randn(2, len(hessian), dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(operator.matmat(vectors), vectors @ hessian, rtol=1e-10, atol=1e-12)
    assert sizes == [5, 2, 2, 1]
    operator.matmat(vectors)
    assert sizes[4:] == [2, 2, 1]


def test_memory_that_does_not_hold_one_image_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CrossEntropy, "total", none)
    with pytest.raises(UserError, match="memory"):
        operator_of("mlp", 10).loss_and_gradient()


# Layers

BN1, BN2 = ([(name, own) for own in ("weight", "bias")] for name in ("bn1", "bn2"))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("linear",), ["linear.weight", "linear.bias"]),
        (("linear", "conv1"), ["conv1.weight", "linear.weight", "linear.bias"]),
        (("blocks.1.bn2",), ["blocks.1.bn2.weight", "blocks.1.bn2.bias"]),
        ((r"blocks\.\d\.conv2",), [f"blocks.{i}.conv2.weight" for i in range(4)]),
        (("blocks.0",), [f"blocks.0.{n}.{w}" for n, w in (*BN1, ("conv1", "weight"), *BN2, ("conv2", "weight"))]),
    ],
)  # fmt: skip
def test_the_hessian_of_chosen_layers_is_a_block_of_the_whole(patterns: tuple[str, ...], names: list[str]) -> None:
    _, hessian = dense("preact_resnet10", 10)
    model = network("preact_resnet10", 10)
    chosen = torch.cat([torch.full((p.numel(),), name in names) for name, p in model.named_parameters()])
    block = hessian[chosen][:, chosen]
    operator = operator_of("preact_resnet10", 10, layers=patterns)
    assert list(operator.layers.parameters) == names
    vector = torch.randn(operator.size, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(operator.matvec(vector), block @ vector, rtol=1e-10, atol=1e-12)
    trace = exact_trace(model, pictures(), layers=patterns, dtype=torch.float64)
    assert trace.per_image.mean() == pytest.approx(block.trace().item(), rel=1e-10)


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_of_the_layers() -> None:
    with pytest.raises(UserError, match=r"'blocks.9' matches no layer; the layers are conv1, blocks.0.bn1"):
        operator_of("preact_resnet10", 10, layers=("linear", "blocks.9"))
    with pytest.raises(UserError, match="matches no layer"):
        operator_of("preact_resnet10", 10, layers=("onv1",))  # a part of a name is not the name
    with pytest.raises(UserError, match="not a regular expression"):
        operator_of("preact_resnet10", 10, layers=("(",))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no parameters"):
        HessianOperator(nn.Flatten().eval(), pictures(), labels_for(10))


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


# Stochastic traces


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_estimates_are_those_of_hessian_eigenthings_probe_by_probe(block_size: int) -> None:
    operator = operator_of("cnn5", 10, block_size=block_size)
    draws = torch.Generator().manual_seed(3)
    signs = torch.cat([random_signs(min(block_size, 12 - i), operator.size, draws) for i in range(0, 12, block_size)])

    class Replay:
        """Their vector arithmetic, with our random vectors."""

        def __init__(self, vectors: Tensor):
            self.vectors = iter(vectors.double())

        def rademacher_like(self, a: Tensor, generator: object = None) -> Tensor:
            return next(self.vectors)

        def dot(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    ours = hutchinson(operator, 12, seeded(3))
    theirs = their_hutchinson(operator, num_samples=12, backend=Replay(signs))
    assert (ours.estimate, ours.standard_error) == pytest.approx((theirs.estimate, theirs.stderr), rel=1e-9)
    if block_size != 100:
        return
    draws = torch.Generator().manual_seed(3)
    signs = torch.cat([random_signs(6, operator.size, draws) for _ in range(2)])
    ours = hutch_plus_plus(operator, 18, seeded(3))
    theirs = their_hutch_plus_plus(operator, num_matvecs=18, backend=Replay(signs))
    assert (ours.estimate, ours.standard_error) == pytest.approx((theirs.estimate, theirs.stderr), rel=1e-7)


@pytest.mark.parametrize("estimator", [hutchinson, hutch_plus_plus])
def test_estimates_scatter_around_the_trace_as_their_standard_error_says(estimator: Callable[..., Any]) -> None:
    _, hessian = dense("mlp", 10)
    operator = of_matrix(hessian)
    found = [estimator(operator, 30, seeded(seed)) for seed in range(200)]
    deviations = np.array([(f.estimate - hessian.trace().item()) for f in found])
    errors = np.array([f.standard_error for f in found])
    assert abs(deviations.mean()) < 4 * deviations.std() / np.sqrt(200)  # unbiased
    assert 0.85 < deviations.std() / np.sqrt((errors**2).mean()) < 1.15


def test_hutch_plus_plus_is_exact_where_the_sketch_spans_the_range() -> None:
    basis = torch.linalg.qr(torch.randn(300, 4, dtype=torch.float64, generator=seeded())).Q
    matrix = (basis * torch.tensor([9.0, 4, 1, -2], dtype=torch.float64)) @ basis.T
    found = hutch_plus_plus(of_matrix(matrix), 18, seeded())
    assert found.estimate == pytest.approx(12, rel=1e-10)
    assert found.standard_error < 1e-10


# The exact trace


@pytest.mark.parametrize("batch_size", [1, 2, 250])
@pytest.mark.parametrize(("architecture", "classes"), CASES)
def test_the_exact_trace_is_that_of_the_dense_hessian(architecture: str, classes: int, batch_size: int) -> None:
    _, hessian = dense(architecture, classes)
    model = network(architecture, classes)
    found = exact_trace(model, pictures(), batch_size=batch_size, dtype=torch.float64)
    assert found.per_image.shape == (NUM_IMAGES,)
    assert found.per_image.mean() == pytest.approx(hessian.trace().item(), rel=1e-10)
    diagonal, start = hessian.diagonal(), 0
    by_layer = dict.fromkeys(found.per_layer, 0.0)
    for name, parameter in model.named_parameters():
        by_layer[name.rpartition(".")[0]] += float(diagonal[start : start + parameter.numel()].sum())
        start += parameter.numel()
    assert found.per_layer == pytest.approx(by_layer, rel=1e-9, abs=1e-14)


def test_the_exact_trace_of_each_image_is_that_of_its_own_hessian() -> None:
    model, images = network("mlp", 10), pictures()
    found = exact_trace(model, images, dtype=torch.float64)
    for i in range(NUM_IMAGES):
        _, hessian = gradient_and_hessian(model, images[i : i + 1], labels_for(10)[i : i + 1])
        assert found.per_image[i] == pytest.approx(hessian.trace().item(), rel=1e-10)


def test_all_kinds_of_convolutions_have_their_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 6, (1, 3), groups=6, bias=False),
        nn.BatchNorm2d(6, affine=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    model = model.double().eval()
    images = pictures(3, 9)
    _, hessian = gradient_and_hessian(model, images, labels_for(3, 3))
    found = exact_trace(model, images, dtype=torch.float64)
    assert found.per_image.mean() == pytest.approx(hessian.trace().item(), rel=1e-10)


def test_single_precision_traces_are_close_to_double() -> None:
    model, images = network("preact_resnet10", 10), pictures()
    exact = exact_trace(model, images, dtype=torch.float64).per_image
    np.testing.assert_allclose(exact_trace(model.float(), images).per_image, exact, rtol=1e-5)


@settings(max_examples=10)
@given(order=st.permutations(range(NUM_IMAGES)), repeats=st.integers(1, 3))
def test_permuted_and_repeated_images_give_permuted_and_repeated_traces(order: list[int], repeats: int) -> None:
    model, images = network("cnn5", 10), pictures()
    straight = exact_trace(model, images, dtype=torch.float64).per_image
    chosen = order * repeats
    np.testing.assert_allclose(
        exact_trace(model, images[chosen], dtype=torch.float64).per_image, straight[chosen], rtol=1e-10
    )


@pytest.mark.parametrize("architecture", ["mlp", "cnn5", "preact_resnet10"])
def test_gauss_newton_eigenvalues_are_those_of_the_dense_matrix(architecture: str) -> None:
    model, images = network(architecture, 3), pictures()
    found = ggn_eigenvalues(model, images, dtype=torch.float64)
    parameters = list(model.parameters())
    logits = model(images)
    jacobian = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(logits[i, c], parameters, retain_graph=True)])
            for i, c in itertools.product(range(NUM_IMAGES), range(3))
        ]
    ).view(NUM_IMAGES, 3, -1)
    p = logits.softmax(1).detach()
    softmax_hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    matrix = torch.einsum("icp,icd,idq->pq", jacobian, softmax_hessian, jacobian) / NUM_IMAGES
    expected = torch.linalg.eigvalsh(matrix).flip(0)[: NUM_IMAGES * 2].clamp(min=0)
    assert found.shape == (NUM_IMAGES * 2,)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-8, atol=1e-10)
    assert found.sum() == pytest.approx(exact_trace(model, images, dtype=torch.float64).per_image.mean(), rel=1e-10)


def test_a_network_that_fits_its_labels_has_the_eigenvalues_of_gauss_newton() -> None:
    """The rest of the Hessian is weighted by p - e_y, which vanishes: known answer for lambda max."""
    model, images = network("mlp", 10), pictures()
    model[-1].weight.data *= 30
    labels = model(images).argmax(1)
    options = HessianSettings(
        quantities=("eigenvalues",), num_eigenvalues=1, precision="float64", lanczos_tolerance=1e-6
    )
    found = analyse_hessian(model, images, labels, options).eigenvalues
    assert found is not None
    largest = ggn_eigenvalues(model, images, dtype=torch.float64)[0]
    assert found[0] == pytest.approx(largest, rel=0.05)
    assert largest > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_network_is_flat_and_nothing_is_nan(dtype: torch.dtype) -> None:
    model, images = network("preact_resnet10", 10).to(dtype), pictures().to(dtype)
    model.linear.weight.data *= 1e6
    predicted = model(images).argmax(1)
    assert (model(images).softmax(1).amax(1) == 1).all()
    precision = "float32" if dtype == torch.float32 else "float64"
    result = analyse_hessian(model, images, predicted, HessianSettings(precision=precision, density_steps=5))
    assert result.trace_exact == 0
    assert result.loss == 0
    for name, value in vars(result).items():
        if isinstance(value, float | np.ndarray):
            assert np.isfinite(value).all() or name == "log10_density", name
    assert result.eigenvalues is not None
    assert np.abs(result.eigenvalues).max() == 0
    assert result.gradient_sharpness == 0


def test_tiny_curvature_keeps_its_relative_accuracy_in_single_precision() -> None:
    """Two classes 90 nats apart: trace = q / (1 + q)^2 ||J0 - J1||^2 with q = exp(-90), too small for float32."""
    model, image = network("cnn5", 2), pictures(1)
    model.linear.bias.data[0] += 90 - float((model(image)[0, 0] - model(image)[0, 1]).detach())
    logits = model(image)[0]
    slopes = torch.autograd.grad(logits[0] - logits[1], list(model.parameters()))
    q = np.exp(-float((logits[0] - logits[1]).detach()))
    expected = q * sum(float(slope.square().sum()) for slope in slopes)
    assert exact_trace(model, image, dtype=torch.float64).per_image[0] == pytest.approx(expected, rel=1e-9)
    assert exact_trace(model, image, dtype=torch.float32).per_image[0] == pytest.approx(expected, rel=1e-4)


def test_constant_images_and_logits_shifted_by_a_constant() -> None:
    model, images = network("cnn5", 10), torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    before = exact_trace(model, images, dtype=torch.float64).per_image
    _, hessian = gradient_and_hessian(model, images, labels_for(10, 3))
    assert before.mean() == pytest.approx(hessian.trace().item(), rel=1e-9)
    model.linear.bias.data += 50
    np.testing.assert_allclose(exact_trace(model, images, dtype=torch.float64).per_image, before, rtol=1e-10)


class _Gelu(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.GELU(), nn.Linear(4, 3))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.again(torch.relu(self.first(torch.relu(self.first(images.flatten(1))))))


class _Tied(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))
        self[3].weight = self[1].weight


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(64)), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.flatten(1) * self.scale)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(_Gelu, "GELU"), (_Twice, "'first' is used more than once"), (_Tied, "share weights"), (_Scaled, "mul")],
)
def test_networks_for_which_the_trace_is_not_exact_are_refused(model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        exact_trace(model().double().eval(), pictures())
    assert "leave exact_trace out" in str(caught.value)


def test_the_identity_does_fail_for_gelu_so_the_refusal_is_needed() -> None:
    torch.manual_seed(0)
    smooth = _Gelu().double().eval()
    twin = copy.deepcopy(smooth)
    twin[2] = nn.Identity().eval()
    labels = labels_for(3)
    _, hessian = gradient_and_hessian(smooth, pictures(), labels)
    _, linear = gradient_and_hessian(twin, pictures(), labels)
    parameters = list(smooth.parameters())
    logits = smooth(pictures())
    p = logits.softmax(1).detach()
    trace = 0.0
    for i, c in itertools.product(range(NUM_IMAGES), range(3)):
        # sum_c p_c ||J_c - sum_d p_d J_d||^2 is the trace of the Gauss-Newton matrix.
        centred = logits[i, c] - (p[i] * logits[i]).sum()
        slopes = torch.autograd.grad(centred, parameters, retain_graph=True)
        trace += float(p[i, c]) * sum(float(s.square().sum()) for s in slopes) / NUM_IMAGES
    assert abs(trace - hessian.trace().item()) > 0.01 * abs(hessian.trace().item())
    assert exact_trace(twin, pictures(), dtype=torch.float64).per_image.mean() == pytest.approx(linear.trace().item())


# The whole analysis


@pytest.mark.parametrize(("architecture", "classes"), [("mlp", 100), ("cnn5", 10), ("preact_resnet10", 10)])
def test_every_number_of_the_analysis_is_that_of_the_dense_hessian(architecture: str, classes: int) -> None:
    gradient, hessian = dense(architecture, classes)
    options = HessianSettings(
        num_eigenvalues=3, lanczos_steps=200, lanczos_tolerance=1e-9, batch_size=2, precision="float64", block_size=3
    )
    model = network(architecture, classes)
    result = analyse_hessian(model, pictures(), labels_for(classes), options)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    assert (result.num_images, result.num_parameters) == (NUM_IMAGES, len(hessian))
    assert result.layers[-1] == ("linear" if architecture != "mlp" else "6")
    assert result.eigenvalues is not None
    np.testing.assert_allclose(result.eigenvalues, eigenvalues[-3:].flip(0).numpy(), rtol=1e-8)
    assert result.smallest_eigenvalue == pytest.approx(eigenvalues[0].item(), rel=1e-8, abs=1e-12)
    assert result.trace_exact == pytest.approx(hessian.trace().item(), rel=1e-9)
    assert result.trace_by_layer is not None
    assert sum(result.trace_by_layer.values()) == pytest.approx(hessian.trace().item(), rel=1e-9)
    for estimate, error in (
        (result.trace_hutchinson, result.trace_hutchinson_error),
        (result.trace_hutch_plus_plus, result.trace_hutch_plus_plus_error),
    ):
        assert estimate is not None
        assert error is not None
        assert abs(estimate - hessian.trace().item()) < 5 * error
    assert result.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-9)
    sharpness = (gradient @ hessian @ gradient / gradient.square().sum()).item()
    assert result.gradient_sharpness == pytest.approx(sharpness, rel=1e-9)
    overlap = ((vectors[:, -3:].T @ gradient).square().sum() / gradient.square().sum()).item()
    assert result.gradient_overlap == pytest.approx(overlap, rel=1e-5, abs=1e-12)
    own = [gradient_of(model, pictures()[i : i + 1], labels_for(classes)[i : i + 1]) for i in range(NUM_IMAGES)]
    norms = np.array([float(g.norm()) for g in own])
    spread = np.mean([float((g - gradient).square().sum()) for g in own])
    assert result.gradient_variance == pytest.approx(spread, rel=1e-9)
    found = (result.image_gradient_norm_mean, result.image_gradient_norm_median, result.image_gradient_norm_max)
    assert found == pytest.approx((norms.mean(), np.median(norms), norms.max()), rel=1e-9)


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    parts = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    return torch.cat([part.reshape(-1) for part in parts])


def test_the_batch_size_and_block_size_do_not_matter() -> None:
    base = HessianSettings(precision="float64", num_eigenvalues=3, density_steps=6, density_probes=3)
    results = [
        analyse_hessian(network("cnn5", 10), pictures(), labels_for(10), base.model_copy(update=sizes))
        for sizes in ({}, {"batch_size": 1, "block_size": 8}, {"batch_size": 3, "block_size": 8})
    ]
    for name in vars(results[0]):
        for other in results[1:]:
            first, second = getattr(results[0], name), getattr(other, name)
            if isinstance(first, float | np.ndarray):
                np.testing.assert_allclose(second, first, rtol=1e-7, atol=1e-9, err_msg=name)


def test_only_what_was_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    matmat = HessianOperator.matmat
    monkeypatch.setattr(HessianOperator, "matmat", lambda o, v: (products.append(len(v)), matmat(o, v))[1])
    model, images, labels = network("mlp", 10), pictures(), labels_for(10)
    result = analyse_hessian(model, images, labels, HessianSettings(quantities=("exact_trace", "gradient_variance")))
    assert products == []
    filled = {name for name, value in vars(result).items() if value is not None}
    basics = {"num_images", "num_parameters", "layers", "loss", "gradient_norm"}
    variance = {
        "gradient_variance",
        "image_gradient_norm_mean",
        "image_gradient_norm_median",
        "image_gradient_norm_max",
    }
    assert filled == basics | variance | {"trace_exact", "trace_by_layer"}
    result = analyse_hessian(model, images, labels, HessianSettings(quantities=("hutchinson",), hutchinson_probes=7))
    assert sum(products) == 7
    assert result.trace_exact is None


def test_the_seed_decides_the_random_vectors() -> None:
    def estimate(seed: int) -> float | None:
        options = HessianSettings(quantities=("hutchinson",), precision="float64")
        return analyse_hessian(network("mlp", 10), pictures(), labels_for(10), options, seed=seed).trace_hutchinson

    assert estimate(1) == estimate(1) != estimate(2)


# Refusals

Change = Callable[[nn.Module], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.train(), r"model is in training mode.*model\.eval\(\)"),
        (lambda m: m.blocks[1].bn2.train(), r"layer 'blocks.1.bn2' \(BatchNorm\) is in training mode"),
        (lambda m: m.conv1.weight.data.fill_(torch.nan), "conv1.weight has NaN"),
        (lambda m: m.blocks[0].bn1.running_var.fill_(torch.inf), "blocks.0.bn1.running_var has NaN or infinite"),
    ],
)
def test_a_model_that_cannot_be_analysed_is_refused(change: Change, reason: str) -> None:
    model = network("preact_resnet10", 10)
    change(model)
    with pytest.raises(UserError, match=reason):
        analyse_hessian(model, pictures(), labels_for(10), HessianSettings())


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (pictures(0), torch.empty(0, dtype=torch.int64), "no images"),
        (pictures(2), torch.tensor([0, 10]), "labels reach from 0 to 10, but the network has 10 classes"),
        (pictures(2), torch.tensor([-1, 3]), "labels reach from -1"),
        (pictures(2), torch.tensor([0, 1, 2]), r"shape \(3,\); 2 images need int64 labels"),
        (pictures(2), torch.tensor([0.0, 1.0]), "labels are torch.float32"),
        (pictures(2) * torch.nan, torch.tensor([0, 1]), "images have NaN"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), r"images of shape \(3, 8, 8\) do not fit the model"),
    ],
)
def test_data_that_do_not_fit_are_refused(images: Tensor, labels: Tensor, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        analyse_hessian(network("preact_resnet10", 10), images, labels, HessianSettings())
    assert "\n" not in str(caught.value)


def test_a_stack_of_networks_is_refused() -> None:
    model = build("cnn5", 1, 1, 10, trials=2).eval()
    with pytest.raises(UserError, match="must give logits of shape"):
        analyse_hessian(model, torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]), HessianSettings())
