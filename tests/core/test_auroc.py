"""The area under the ROC curve against counted pairs, scipy and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from dd_core.analysis.auroc import auroc


@given(images=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_it_is_the_share_of_pairs_in_the_right_order_ties_half(images: list[tuple[int, bool]]) -> None:
    score, noisy = np.array([value for value, _ in images], dtype=float), np.array([flag for _, flag in images])
    pairs = [(a > b) + (a == b) / 2 for a in score[noisy] for b in score[~noisy]]
    if not pairs:
        assert math.isnan(auroc(score, noisy))
        return
    found = auroc(score, noisy)
    assert found == pytest.approx(np.mean(pairs), rel=1e-12)
    assert found == pytest.approx(roc_auc_score(noisy, score), rel=1e-12)
    assert found == pytest.approx(mannwhitneyu(score[noisy], score[~noisy]).statistic / len(pairs), rel=1e-12)
    assert auroc(-score, noisy) == pytest.approx(1 - found, rel=1e-12, abs=1e-12)
    assert auroc(np.exp(score), noisy) == found  # the order alone counts


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_any_type_of_score_and_many_images(dtype: type) -> None:
    random = np.random.default_rng(0)
    noisy = random.random(50_000) < 0.2
    score = (100 * random.normal(size=50_000) + 50 * noisy).astype(dtype)
    assert auroc(score, noisy) == pytest.approx(roc_auc_score(noisy, score), rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 3])
def test_a_score_that_is_not_finite_has_none(value: float, where: int) -> None:
    score, noisy = np.arange(4.0), np.array([True, False, True, False])
    score[where] = value
    assert math.isnan(auroc(score, noisy))
