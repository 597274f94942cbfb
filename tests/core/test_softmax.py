"""The softmax Hessian's factors: exact, and accurate relative to themselves however saturated the image."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dd_core.curvature import softmax_hessian, softmax_hessian_factor

logit_rows = st.integers(2, 12).flatmap(
    lambda classes: hnp.arrays(np.float64, classes, elements=st.floats(-1000, 1000, width=32))
)


@given(logits=logit_rows)
def test_the_factor_squares_to_the_softmax_hessian(logits: np.ndarray) -> None:
    log_p = torch.from_numpy(logits).log_softmax(0)
    p = log_p.exp()
    factor = softmax_hessian_factor(log_p)
    assert factor.shape == (len(p), len(p) - 1)
    square = factor @ factor.T
    torch.testing.assert_close(square, p.diag() - p[:, None] * p, rtol=0, atol=1e-15)
    # p (1 - p) on the diagonal also relative to itself, where the difference above has lost every digit.
    expected = p * -torch.expm1(log_p)
    others = torch.stack([torch.cat([p[:i], p[i + 1 :]]).sum() for i in range(len(p))])  # 1 - p without a difference
    near_one = p > 0.5
    expected[near_one] = (p * others)[near_one]
    torch.testing.assert_close(square.diagonal(), expected, rtol=1e-12, atol=1e-300)


@given(logits=st.lists(st.floats(-50, 50), min_size=4, max_size=4), shape=st.sampled_from([(2, 2), (4, 1), (1, 4)]))
def test_the_factor_of_many_images_is_that_of_each(logits: list[float], shape: tuple[int, int]) -> None:
    log_p = (torch.tensor(logits, dtype=torch.float64)[:, None] * torch.linspace(-1, 1, 5)).log_softmax(-1)
    together = softmax_hessian_factor(log_p.view(*shape, 5)).view(4, 5, 4)
    for i in range(4):
        torch.testing.assert_close(together[i], softmax_hessian_factor(log_p[i]), rtol=0, atol=0)


@given(logits=logit_rows)
def test_the_parts_give_the_hessian_the_gradient_and_the_loss(logits: np.ndarray) -> None:
    """One image for each label; the softmax is computed by hand, its differences as exact sums."""
    number = len(logits)
    shifted = logits - logits.max()
    total = math.fsum(np.exp(shifted))
    p = np.exp(shifted) / total
    rows = torch.from_numpy(logits).expand(number, -1)
    parts = softmax_hessian(rows, torch.arange(number))
    directions = parts.directions
    assert directions.shape == (number, number - 1, number)
    assert directions.abs().max() <= 2  # of order 1 however saturated
    square = directions.transpose(1, 2) @ (parts.roots.square()[..., None] * directions)
    torch.testing.assert_close(
        square, torch.from_numpy(np.diag(p) - np.outer(p, p)).expand_as(square), rtol=0, atol=1e-15
    )
    gradient = parts.combine(parts.gradient[:, None])[:, 0].numpy()
    np.testing.assert_allclose((parts.gradient[:, None] @ directions)[:, 0].numpy(), gradient, rtol=1e-9, atol=1e-13)
    for label in range(number):
        expected = p.copy()
        expected[label] = -math.fsum(np.delete(p, label))
        np.testing.assert_allclose(gradient[label], expected, rtol=1e-11, atol=1e-300)
        loss = math.log(total) - shifted[label]
        if shifted[label] == 0:  # the likeliest class: log(1 + the others)
            loss = math.log1p(math.fsum(np.exp(np.delete(shifted, label))))
        assert parts.loss[label].item() == pytest.approx(loss, rel=1e-12, abs=1e-300)
        assert parts.probability[label].item() == pytest.approx(p[label], rel=1e-12, abs=1e-300)


@given(logits=logit_rows, data=st.data())
def test_combinations_and_projections_are_products_with_the_directions(logits: np.ndarray, data: st.DataObject) -> None:
    classes = len(logits)
    parts = softmax_hessian(torch.from_numpy(logits)[None], torch.tensor([0]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    coefficients = torch.from_numpy(random.normal(size=(1, 3, classes - 1)))
    matrix = torch.from_numpy(random.normal(size=(classes, 4)))
    chosen = torch.from_numpy(random.permutation(classes - 1)[None, : 1 + classes // 2])
    torch.testing.assert_close(parts.combine(coefficients), coefficients @ parts.directions, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(parts.project(matrix), parts.directions @ matrix, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        parts.project(matrix, chosen), (parts.directions @ matrix)[:, chosen[0]], rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(
    ("dtype", "label"), list(itertools.product([torch.float32, torch.float64, torch.bfloat16], [0, 1]))
)
def test_logits_of_any_precision_give_float64(dtype: torch.dtype, label: int) -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype)
    parts = softmax_hessian(logits, torch.tensor([label]))
    for tensor in (parts.directions, parts.roots, parts.gradient, parts.loss, parts.probability):
        assert tensor.dtype == torch.float64
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([label]))
    torch.testing.assert_close(parts.loss[0], expected, rtol=1e-14, atol=0)
    assert softmax_hessian_factor(logits.log_softmax(1)).dtype == dtype
