"""Statistics of classified graphs against scipy, statsmodels, scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from dd_core.analysis.graphs.calibration import calibration_error
from dd_core.analysis.graphs.collapse import best_1_share, collapse, prediction_entropy
from dd_core.analysis.graphs.cycle import cycle_loss_floor, feature_variance
from dd_core.analysis.graphs.intervals import (
    difference_over_trials,
    effective_graphs,
    independent_graphs,
    mean_over_trials,
    p_above,
    share_over_trials,
    wilson,
)
from dd_core.analysis.graphs.measures import (
    Evaluated,
    best_with_wrong_labels,
    majority_label,
    measure,
    with_intervals,
)
from dd_core.data.graphs.causal import PRIOR
from dd_core.data.graphs.load import make_problems


def classified(number: int, seed: int = 0, bias: float = 0.0) -> Evaluated:
    """Graphs that a calibrated network is asked about."""
    random = np.random.default_rng(seed)
    probability = 1 / (1 + np.exp(-random.normal(bias, 1.5, number)))
    labels = (random.random(number) < probability).astype(np.int64)
    right = (probability > 0.5) == (labels == 1)
    given_to_label = np.where(labels == 1, probability, 1 - probability)
    levels = random.random((2, number))
    own = (levels[0], levels[1], random.random(number), random.random(number), probability)
    return Evaluated(labels, right, probability, -np.log(given_to_label), *own)


def test_an_evaluation_is_that_of_scikit_learn_and_statsmodels() -> None:
    graphs = classified(500)
    found = measure(graphs, majority=0, variance=1.0)
    labels, predicted, probability = graphs.labels, (graphs.probability > 0.5).astype(int), graphs.probability
    assert (graphs.predicted == predicted).all()
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    recalls = sklearn.metrics.recall_score(labels, predicted, average=None)
    assert [found["accuracy_class_0"], found["accuracy_class_1"]] == pytest.approx(recalls)
    assert found["class_balance_delta"] == pytest.approx(abs(recalls[1] - recalls[0]))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert found["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, probability))
    assert found["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probability))
    shares = np.bincount(predicted) / 500
    assert found["prediction_entropy"] == pytest.approx(scipy.stats.entropy(shares, base=2))
    assert (found["predicted_1_share"], found["largest_share"]) == (shares[1], shares.max())
    assert found["majority_baseline"] == pytest.approx(1 - labels.mean())
    assert found["bayes_ceiling"] == pytest.approx(np.maximum(probability, 1 - probability).mean())
    assert found["cycle_loss"] == pytest.approx(0.7 * graphs.cycle_loss_1.mean() + 0.3 * graphs.cycle_loss_2.mean())
    numbers = {name: np.array([value]) for name, value in found.items() if isinstance(value, int | float)}
    intervals = with_intervals(numbers)
    for name, chosen in (
        ("accuracy", labels >= 0),
        ("accuracy_class_0", labels == 0),
        ("accuracy_class_1", labels == 1),
    ):
        hits = int((predicted == labels)[chosen].sum())
        low, high = proportion_confint(hits, int(chosen.sum()), method="wilson")
        assert (intervals[f"{name}_low"][0], intervals[f"{name}_high"][0]) == pytest.approx((low, high))


def test_one_label_alone_leaves_null_what_needs_two() -> None:
    graphs = classified(50)
    only = Evaluated(**{name: values[graphs.labels == 1] for name, values in vars(graphs).items()})
    found = measure(only, majority=1, variance=1.0)
    for name in ("accuracy_class_0", "balanced_accuracy", "class_balance_delta", "auroc"):
        assert math.isnan(float(found[name])), name
    assert found["majority_baseline"] == 1 and found["accuracy"] == found["accuracy_class_1"]
    numbers = {name: np.array([value]) for name, value in found.items() if isinstance(value, int | float)}
    assert math.isnan(with_intervals(numbers)["accuracy_class_0_low"][0])


def test_the_calibration_error_is_that_of_scikit_learns_bins() -> None:
    graphs = classified(3000, seed=1)
    sharper = 1 / (1 + np.exp(-2 * np.log(graphs.probability / (1 - graphs.probability))))
    errors = []
    for probability in (graphs.probability, sharper):
        confidence = np.maximum(probability, 1 - probability)
        is_right, confidences = sklearn.calibration.calibration_curve(graphs.is_right, confidence, n_bins=15)
        counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
        expected = (np.abs(is_right - confidences) * counts[counts > 0]).sum() / 3000
        errors.append(calibration_error(probability, graphs.predicted, graphs.is_right))
        assert errors[-1] == pytest.approx(expected)
    assert errors[0] < 0.03 < 0.1 < errors[1], "a calibrated network, and one that is twice as sure"
    # All are as sure as 0.9, and two of three are right: one bin.
    three = calibration_error(np.full(3, 0.9), np.ones(3, int), np.array([True, True, False]))
    assert three == pytest.approx(0.9 - 2 / 3)
    assert math.isnan(calibration_error(np.array([np.nan]), np.ones(1, int), np.ones(1, bool)))


PUBLISHED = {  # class accuracies of 226 and 174 graphs, or of even labels, as the published notes tell them
    "planning, 10 epochs": (0.0044, 0.9943, 0.435, "full"),
    "planning, equal fusion": (0.0, 1.0, 0.435, "full"),
    "planning, learned fusion": (0.097, 0.822, 0.435, "partial"),
    "planning, 100 epochs": (0.018, 0.971, 0.435, "partial"),
    "causal, 100 epochs": (1.0, 0.0, 0.43, "full"),
    "knowledge graph, 100 epochs": (0.289, 0.793, 0.5, "partial"),
    "what its authors aim for": (0.55, 0.65, 0.5, "none"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_collapsed(name: str) -> None:
    zero, one, label_1_share, expected = PUBLISHED[name]
    predicted_1 = label_1_share * one + (1 - label_1_share) * (1 - zero)
    assert collapse(predicted_1, label_1_share, zero, one) == expected
    # The other way round it is the same.
    assert collapse(1 - predicted_1, 1 - label_1_share, one, zero) == expected


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_collapse_contains_the_published_check_and_never_blames_the_truth(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    accuracies = [float((predicted == label)[labels == label].mean()) if (labels == label).any() else math.nan
                  for label in (0, 1)]  # fmt: skip
    graded = collapse(float(predicted.mean()), float(labels.mean()), *accuracies)
    if len(set(labels.tolist())) == 2 and 0.0 in accuracies:
        assert graded == "full"
    assert collapse(float(labels.mean()), float(labels.mean()), 1.0, 1.0) != "partial"
    if (predicted == labels).all():
        assert graded == "none"


def test_who_predicts_as_the_best_classifier_has_not_collapsed() -> None:
    """Causal as published: 30 % of the graphs tell their label, the others are 0 more often."""
    random = np.random.default_rng(0)
    best = np.where(random.random(2000) < 0.3, random.choice([0.05, 0.95], 2000), 0.35)
    labels = (random.random(2000) < best).astype(int)
    predicted_1 = float((best > 0.5).mean())
    share = best_1_share(best, labels)
    assert share == pytest.approx(predicted_1)
    accuracies = [float(((best > 0.5) == labels)[labels == label].mean()) for label in (0, 1)]
    assert collapse(predicted_1, float(labels.mean()), *accuracies) == "partial"
    assert collapse(predicted_1, float(labels.mean()), *accuracies, best_1_share=share) == "none"
    for undecided in (0.5, 1450 / 2858):  # the labels of published plans
        assert best_1_share(np.full(4, undecided), np.array([1, 1, 1, 0])) == 0.75


def test_entropy_of_predictions() -> None:
    assert [prediction_entropy(share) for share in (0.0, 0.5, 1.0)] == [0.0, 1.0, 0.0]


def test_the_floor_of_the_cycle_loss_is_the_variance_of_what_is_dropped() -> None:
    assert cycle_loss_floor(np.array([0.25, 0.5, 1.0]), 2.0) == pytest.approx(0.7 * 2 * np.mean([0.75, 0.5, 0]))
    random = np.random.default_rng(0)
    # What comes back as the best constant for dropped nodes, and is exact for the others.
    features = random.normal(size=(4000, 8, 64))
    features[:, 2:] = features[:, 2:].mean((0, 1)) - features[:, 2:]
    assert 0.7 * (features[:, 2:] ** 2).sum() / features.size == pytest.approx(
        cycle_loss_floor(np.full(3, 0.25), 1.0), rel=5e-3
    )
    table, kinds = random.normal(2, 3, (5, 4)).astype(np.float32), random.integers(0, 5, 300)
    assert feature_variance(table, kinds) == pytest.approx(table[kinds].var(0).mean(), rel=1e-5)
    # The docstring's bound: of many nodes the half nearest to 0.
    squares = np.sort((random.normal(size=(200, 200, 64)) ** 2).mean(2), 1)
    assert squares[:, :100].mean() == pytest.approx(0.86, abs=0.005)


def test_intervals_over_trials_are_the_wider_of_two() -> None:
    far, near = [0.40, 0.55, 0.70], [0.5, 0.5, 0.5]
    t = scipy.stats.ttest_1samp(far, 0).confidence_interval()
    found = share_over_trials(far, 1000)
    assert (found.mean, found.low, found.high) == pytest.approx((0.55, t.low, t.high))
    found = share_over_trials(near, 100)
    assert (found.low, found.high) == pytest.approx(proportion_confint(50, 100, method="wilson"))
    found = share_over_trials([0.6], 100)
    assert (found.low, found.high) == pytest.approx(proportion_confint(60, 100, method="wilson"))
    above = share_over_trials([0.6], 100, [0.45])
    assert (above.mean, above.low, above.high) == pytest.approx((0.15, found.low - 0.45, found.high - 0.45))
    assert share_over_trials([0.0, 1.0], 100).high == 1.0
    collapsed = difference_over_trials([100], [100], [0], [100])
    assert collapsed.mean == 1 and 0.9 < collapsed.low < collapsed.high == 1.0
    even = difference_over_trials([50], [100], [49], [100])
    assert even.low == 0 and even.high == pytest.approx(0.1466, abs=2e-3), "Newcombe's interval, both ways"
    assert math.isnan(difference_over_trials([1], [2], [0], [0]).mean)
    values = np.random.default_rng(0).normal(size=(3, 50))
    assert mean_over_trials(list(values)).low == pytest.approx(
        scipy.stats.ttest_1samp(values.mean(1), 0).confidence_interval().low
    )
    assert mean_over_trials([values[0]]).high == pytest.approx(
        scipy.stats.ttest_1samp(values[0], 0).confidence_interval().high
    )


def test_wilson_covers_at_the_ends_too() -> None:
    """Exact coverage by the binomial distribution; the score interval's mean coverage is 95 %."""
    number, coverages = 60, []
    low, high = wilson(np.arange(number + 1), np.full(number + 1, number))
    for p in np.linspace(0.01, 0.99, 99):
        covered = (low <= p) & (p <= high)
        coverages.append(scipy.stats.binom.pmf(np.arange(number + 1), number, p)[covered].sum())
    assert np.mean(coverages) == pytest.approx(0.95, abs=0.01) and min(coverages) > 0.87
    assert np.isnan(wilson([0], [0])).all()


def test_more_right_than_possible_is_improbable() -> None:
    assert p_above(60, 100, 0.5) == pytest.approx(scipy.stats.binom.sf(59, 100, 0.5))
    assert p_above(100, 100, 1.0) == 1.0 and math.isnan(p_above(0, 0, 0.5))
    # With graphs of different ceilings chance has less room, so that the test errs on its side.
    random = np.random.default_rng(0)
    best = random.choice([0.5, 1.0], (4000, 100))
    hits = (random.random(best.shape) < best).sum(1)
    assert np.mean([p_above(int(own), 100, 0.75) < 0.05 for own in hits]) <= 0.05


def test_triples_of_one_scenario_are_right_or_wrong_together() -> None:
    """Labels are drawn anew for each scenario of a published test set; what does not show its label is called 0."""
    problems = make_problems("as_published", "fixed", 4, "causal", 0, 2858)
    random = np.random.default_rng(0)
    ids = random.permutation(2858)[:858]
    best, group, ceiling = problems.best_probability[ids], problems.group[ids], problems.ceiling(ids)
    assert all(len(set(problems.labels[problems.group == scenario])) == 1 for scenario in range(50))
    labels = random.random((4000, group.max() + 1)) < PRIOR
    hits = (~labels[:, group] | np.isin(best, (0, 1))).sum(1)
    number = independent_graphs(best, group)
    together, apart = (
        np.mean([p_above(int(own), 858, ceiling, given) < 0.01 for own in hits]) for given in (number, None)
    )
    assert together < 0.01 < 0.02 < apart
    assert 300 < number < 700 and independent_graphs(best, np.arange(858)) == pytest.approx(858)
    assert independent_graphs(np.array([0.0, 1.0]), np.zeros(2, np.int64)) == 2


def test_labels_by_noise_and_majority() -> None:
    random = np.random.default_rng(0)
    flipped = np.where(random.random(200_000) < 0.2, 0, 1)
    assert best_with_wrong_labels(np.array([1.0]), 0.2)[0] == pytest.approx(flipped.mean(), abs=5e-3)
    assert [majority_label(np.array(labels)) for labels in ([0, 0, 1], [0, 1], [1, 1, 0])] == [0, 1, 1]


def test_trials_that_share_graphs_say_less_than_all_their_graphs() -> None:
    random, found = np.random.default_rng(0), []
    for _ in range(200):
        m = np.bincount(np.concatenate([random.permutation(300)[:120] for _ in range(4)]))
        found.append(m.sum() ** 2 / (m**2).sum())
    assert effective_graphs(120, 4, 300) == pytest.approx(np.mean(found), rel=5e-3)
    assert effective_graphs(120, 1, 300) == 120 and effective_graphs(300, 4, 300) == 300
