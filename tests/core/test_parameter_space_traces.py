"""Traces of Hessians in the weights, estimated and exact: against dense ones."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hessian_eigenthings.algorithms.trace import hutch_plus_plus as their_hutch_plus_plus
from hessian_eigenthings.algorithms.trace import hutchinson as their_hutchinson
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.curvature.parameter_space import (
    analyse_hessian,
    exact_trace,
    ggn_eigenvalues,
    hutch_plus_plus,
    hutchinson,
)
from dd_core.curvature.parameter_space.lanczos import random_signs
from dd_core.errors import UserError
from dd_core.study.hessian import HessianSettings

from .dense_hessians import (
    CASES,
    NUM_IMAGES,
    dense,
    gradient_and_hessian,
    labels_for,
    network,
    of_matrix,
    operator_of,
    pictures,
    seeded,
)

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
