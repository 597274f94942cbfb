"""Scores against plain loops, detection against scikit-learn, agreement against scipy, truth in a made world."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from dd_core.analysis.memorization import agreement, boundaries, confident_learning, detection, published, scores, truth
from dd_core.analysis.memorization.ranks import as_numbers, as_ordered, ranks
from dd_core.analysis.memorization.resampling import counts, interval_about, percentile_interval
from dd_core.tables.memorization import SCORES

NAN = math.nan
SEEDS = st.integers(0, 10_000)


def curves(seed: int, num_epochs: int = 7, num_images: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive values, rights and wrongs, with gaps in the same places; and the epochs."""
    random = np.random.default_rng(seed)
    values = random.exponential(size=(num_epochs, num_images))
    right = (random.random((num_epochs, num_images)) < np.linspace(0.2, 0.9, num_epochs)[:, None]).astype(float)
    gaps = random.random(values.shape) < 0.2
    values[gaps], right[gaps] = NAN, NAN
    return values, right, np.cumsum(random.integers(1, 4, num_epochs))


@given(SEEDS)
def test_every_score_is_that_of_a_plain_loop(seed: int) -> None:
    values, right, epochs = curves(seed)
    known_values = values[~np.isnan(values)]
    tau, tau_squared = np.mean(known_values), np.mean(known_values**2)
    found = {
        "num": scores.num_evaluations(values),
        "total": scores.total(values),
        "mean": scores.mean(values),
        "time": scores.learning_time(values, epochs),
        "code": scores.learning_time_code(values),
        "events": scores.forgetting_events(right),
        "first": scores.first_learned_epoch(right, epochs),
        "last": scores.last_learned_epoch(right, epochs),
        "ssft": scores.second_split_forgetting(right, epochs),
    }
    for image in range(values.shape[1]):
        own = [(e, v, r) for e, v, r in zip(epochs, values[:, image], right[:, image], strict=True) if not np.isnan(v)]
        expected = dict.fromkeys(found, NAN)
        expected["num"] = len(own)
        if own:
            expected["total"] = sum(v for _, v, _ in own)
            expected["mean"] = expected["total"] / len(own)
            below = [np.mean([v for _, v, _ in own[: n + 1]]) < tau for n in range(len(own))]
            expected["code"] = 1 - np.mean(below)
        times = [e for n, (e, _, _) in enumerate(own) if sum(v**2 for _, v, _ in own[: n + 1]) / (n + 1) <= tau_squared]
        expected["time"] = times[0] if times else NAN
        hits = [e for e, _, r in own if r]
        expected["first"] = hits[0] if hits else NAN
        if hits:
            expected["events"] = sum(a[2] == 1 and b[2] == 0 for a, b in itertools.pairwise(own))
        good = [e for n, (e, _, _) in enumerate(own) if all(r for _, _, r in own[n:])]
        bad = [e for n, (e, _, _) in enumerate(own) if not any(r for _, _, r in own[n:])]
        expected["last"], expected["ssft"] = (good[0] if good else NAN), (bad[0] if bad else NAN)
        for name, value in expected.items():
            assert found[name][image] == pytest.approx(value, nan_ok=True), name


def test_an_image_that_is_never_learned_has_no_time_and_no_events_and_ranks_last() -> None:
    right = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 1]], float)
    epochs = np.array([1, 2, 3])
    assert np.isnan(scores.first_learned_epoch(right, epochs)[0])
    events = scores.forgetting_events(right)
    np.testing.assert_array_equal(events, [NAN, 1, 0])
    assert as_ordered("forgetting_events", events).tolist() == [math.inf, 1, 0]
    assert as_numbers("forgetting_events", events, 4).tolist() == [2, 1, 0]
    # Never forgotten is the contrary of memorised.
    assert as_ordered("ssft", np.array([NAN, 3.0])).tolist() == [-math.inf, -3]
    assert as_numbers("ssft", np.array([NAN, 3.0]), 4).tolist() == [-4, -3]
    assert np.isnan(as_ordered("ssft", np.array([NAN, NAN]))).all(), "nothing was measured"
    assert np.isnan(as_ordered("csl", np.array([NAN, 1.0])))[0]
    np.testing.assert_array_equal(ranks(np.array([3, NAN, 1, 3])), [2.5, NAN, 1, 2.5])


def test_curves_without_evaluations_give_no_scores() -> None:
    nothing, epochs = np.zeros((0, 3)), np.zeros(0)
    for found in (
        *(scores.total(nothing), scores.mean(nothing), scores.final(nothing), scores.learning_time(nothing, epochs)),
        *(scores.forgetting_events(nothing), scores.first_learned_epoch(nothing, epochs)),
        scores.learning_time_code(nothing),
    ):
        np.testing.assert_array_equal(found, [NAN] * 3)


@given(SEEDS)
def test_areas_are_those_of_scikit_learn_whatever_the_ties_and_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    score = random.integers(0, 5, 30).astype(float)
    score[score == 4] = math.inf
    target = np.r_[True, False, random.random(28) < 0.3]
    weights = random.integers(0, 3, (4, 30)).astype(float)
    weights[:, :2] = 1
    areas, averages = detection.weighted_areas(score, target, weights)
    finite = np.where(np.isinf(score), 9, score)
    for row, area, average in zip(weights, areas, averages, strict=True):
        assert area == pytest.approx(sklearn.metrics.roc_auc_score(target, finite, sample_weight=row))
        assert average == pytest.approx(sklearn.metrics.average_precision_score(target, finite, sample_weight=row))


def test_a_detection_is_the_mean_over_trials_with_an_interval_only_for_several() -> None:
    random = np.random.default_rng(0)
    targets = [random.random(200) < 0.2 for _ in range(4)]
    own = [random.normal(size=200) + 1.2 * target for target in targets]
    ids = [random.permutation(300)[:200] for _ in range(4)]
    found = detection.detect(own, targets, ids, num_samples=300)
    expected = np.mean([sklearn.metrics.roc_auc_score(t, s) for t, s in zip(targets, own, strict=True)])
    assert found.auroc == pytest.approx(expected)
    assert found.auroc_low < found.auroc < found.auroc_high
    assert found.average_precision_low < found.average_precision < found.average_precision_high
    assert (found.num_trials, found.num_positive) == (4, sum(map(sum, targets)))
    # One trial has no spread between trials; without one of the two kinds there is no area.
    single = detection.detect(own[:1], targets[:1], ids[:1])
    assert np.isnan(single.auroc_low) and 0.5 < single.auroc < 1
    nobody = detection.detect(own, [np.zeros(200, bool)] * 4, ids)
    assert np.isnan(nobody.auroc) and nobody.num_trials == 0


def test_intervals_cover_the_true_area_as_often_as_they_say() -> None:
    """Normal scores a distance d apart have the area Phi(d / sqrt 2); images are the same in all trials."""
    random, distance = np.random.default_rng(1), 1.0
    true = scipy.stats.norm.cdf(distance / math.sqrt(2))
    hits = 0
    for seed in range(60):
        target = np.arange(80) < 24
        of_image = random.normal(size=80) * math.sqrt(0.5)
        own = [distance * target + of_image + random.normal(size=80) * math.sqrt(0.5) for _ in range(4)]
        found = detection.detect(own, [target] * 4, [np.arange(80)] * 4, 200, seed)
        hits += found.auroc_low <= true <= found.auroc_high
    assert hits >= 51, "95 % of 60 is 57, and 51 is more than three deviations below"


def made_world(num_trials: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Membership, correctness and the true memorisation of images whose two probabilities are known, and stay."""
    always, random = np.random.default_rng(99), np.random.default_rng(seed)
    with_it, without = always.uniform(0.6, 1, 50), always.uniform(0, 0.6, 50)
    is_in = random.random((num_trials, 50)) < 0.7
    right = (random.random(is_in.shape) < np.where(is_in, with_it, without)).astype(float)
    return is_in, right, with_it - without


def test_memorisation_is_what_a_made_world_has_within_its_standard_error() -> None:
    is_in, right, true = made_world(400)
    found = truth.memorization(is_in, right)
    z = (found.value - true) / found.standard_error
    assert abs(z.mean()) < 4 / math.sqrt(50) and 0.7 < z.std() < 1.3
    assert (np.abs(z) < 1.96).mean() > 0.85
    # And by hand, for one image.
    assert found.value[7] == right[is_in[:, 7], 7].mean() - right[~is_in[:, 7], 7].mean()
    assert (found.num_in[7], found.num_out[7]) == (is_in[:, 7].sum(), (~is_in[:, 7]).sum())


def test_influence_is_memorisation_where_the_test_image_is_the_image_itself() -> None:
    is_in, right, _ = made_world(60)
    right[3, 5] = NAN  # a trial that diverged counts on no side
    found, own = truth.influence(is_in, right), truth.memorization(is_in, right)
    np.testing.assert_allclose(np.diag(found.value), own.value)
    np.testing.assert_allclose(np.diag(found.standard_error), own.standard_error)
    i, j = 4, 5
    known = ~np.isnan(right[:, j])
    sides = [right[known & side, j].mean() for side in (is_in[:, i], ~is_in[:, i])]
    assert found.value[i, j] == pytest.approx(sides[0] - sides[1])
    assert truth.largest_influences(found.value, 3)[:, 5].tolist() == np.argsort(-found.value[:, 5])[:3].tolist()


def test_the_strongest_influences_are_the_same_block_by_block() -> None:
    random = np.random.default_rng(4)
    is_in = random.random((6, 40)) < 0.7
    is_in[:, 7] = True
    right = (random.random((6, 9)) < 0.5).astype(float)
    whole = truth.influence(is_in, right)
    order = np.argsort(-np.nan_to_num(whole.value, nan=-math.inf), axis=0, kind="stable")
    for most in (3, 40, 100):
        found = truth.strongest(is_in, right, most, num_pairs=100)
        np.testing.assert_array_equal(found.places, order[:most], "six trials make many ties")
        np.testing.assert_array_equal(found.value, np.take_along_axis(whole.value, order[:most], 0))
        np.testing.assert_array_equal(found.standard_error, np.take_along_axis(whole.standard_error, order[:most], 0))
    assert truth.strongest(is_in, right, 0).places.shape == (0, 9)


def test_influences_of_many_images_never_lie_in_memory_at_once() -> None:
    random = np.random.default_rng(5)
    is_in, right = random.random((4, 3000)) < 0.7, (random.random((4, 1000)) < 0.8).astype(float)
    tracemalloc.start()
    truth.strongest(is_in, right, 2, num_pairs=30_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * 3000 * 1000, "bytes: a third of one array of all pairs, of which there were eleven"


@given(SEEDS)
def test_ranks_of_a_bootstrap_are_those_of_every_sample_anew(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 6, 12).astype(float), random.normal(size=12)
    drawn = np.random.default_rng(seed).integers(12, size=(5, 12))
    found = boundaries.resampled(x, y, 5, np.random.default_rng(seed))
    np.testing.assert_allclose(found, [agreement.spearman(x[own], y[own]) for own in drawn], atol=1e-12)


def test_an_image_that_no_trial_leaves_out_has_no_memorisation() -> None:
    is_in = np.array([[True, False], [True, True]])
    found = truth.memorization(is_in, np.ones((2, 2)))
    assert np.isnan(found.value[0]) and np.isnan(found.standard_error[0]) and found.num_out.tolist() == [0, 1]
    assert found.value[1] == 0 and found.standard_error[1] > 0.3, "one trial on either side says little"


def test_reliability_is_the_correlation_of_two_estimates() -> None:
    values, claimed = [], []
    for seed in range(40):
        is_in, right, _ = made_world(100, seed)
        values.append(truth.memorization(is_in, right).value)
        claimed.append(truth.reliability(is_in, right, num_splits=5))
    between = np.corrcoef(values)[np.triu_indices(40, 1)].mean()
    assert np.mean(claimed) == pytest.approx(between, abs=0.03)
    assert np.isnan(truth.reliability(is_in[:1], right[:1]))


@given(SEEDS)
def test_measures_of_agreement_are_those_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(size=40).round(1), random.normal(size=40)
    assert agreement.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert agreement.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert agreement.cosine(x, y) == pytest.approx(1 - scipy.spatial.distance.cosine(x, y))


def test_agreement_has_all_and_the_top_tenth_and_intervals_about_the_value() -> None:
    is_in, right, _ = made_world(120)
    score = right + np.random.default_rng(3).normal(size=right.shape)

    def estimate(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted = weights[:, None] * np.ones(is_in.shape)
        sides = [counted * side for side in (is_in, ~is_in)]
        shares = [(side * right).sum(0) / side.sum(0) for side in sides]
        return (sides[0] * -score).sum(0) / sides[0].sum(0), shares[0] - shares[1]

    found = {(a.images, a.measure): a for a in agreement.agree(estimate, 120, num_samples=100)}
    assert set(found) == {(images, measure) for images in ("all", "top") for measure in agreement.MEASURES}
    expected_score, expected_truth = estimate(np.ones(120))
    assert found["all", "spearman"].value == pytest.approx(
        scipy.stats.spearmanr(expected_score, expected_truth).statistic
    )
    chosen = np.argsort(-expected_truth)[:5]
    assert found["top", "cosine"].value == pytest.approx(
        agreement.cosine(expected_score[chosen], expected_truth[chosen])
    )
    assert (found["all", "pearson"].num_images, found["top", "pearson"].num_images) == (50, 5)
    assert all(a.low < a.value < a.high for a in found.values() if a.images == "all")
    assert np.isnan(agreement.agree(estimate, 120, is_resampled=False)[0].low)


def test_bootstrap_draws_and_intervals() -> None:
    drawn = counts(50, 400, np.random.default_rng(0))
    assert (drawn.sum(1) == 50).all() and drawn.mean() == 1
    assert drawn.var() == pytest.approx(1 - 1 / 50, rel=0.05), "multinomial"
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert np.isnan(percentile_interval(np.array([NAN, NAN, 1.0]))).all()
    low, high = interval_about(0.8, np.tanh(np.random.default_rng(1).normal(0.5, 0.1, 4000)))
    assert math.atanh(low) == pytest.approx(math.atanh(0.8) - 0.196, abs=0.02)
    assert math.atanh(high) == pytest.approx(math.atanh(0.8) + 0.196, abs=0.02)


def test_statistics_of_a_task_and_what_they_foretell() -> None:
    random = np.random.default_rng(0)
    epochs = np.array([1, 2, 4, 7])
    curve = random.random((4, 200))
    curve[1, 0] = NAN
    known = [0, 2, 3]
    slopes = boundaries.statistic("slope", curve, epochs)
    assert slopes[5] == pytest.approx(np.polyfit(epochs, curve[:, 5], 1)[0])
    assert slopes[0] == pytest.approx(np.polyfit(epochs[known], curve[known, 0], 1)[0])
    assert boundaries.statistic("max", curve, epochs)[0] == curve[known, 0].max()
    assert boundaries.statistic("mean", curve, epochs)[0] == pytest.approx(curve[known, 0].mean())
    assert np.isnan(boundaries.statistic("slope", curve[:1], epochs[:1])).all(), "one point has no slope"
    change = curve.mean(0) + 0.1 * random.normal(size=200)
    change[:3] = NAN
    found = boundaries.foretell(curve[0], change)
    expected = scipy.stats.spearmanr(curve[0, 3:], change[3:])
    assert (found.num_images, found.value) == (197, pytest.approx(expected.statistic))
    assert found.low < found.value < found.high
    order = np.argsort(curve[0, 3:])
    assert found.by_fifth[0] == pytest.approx(change[3:][order[:40]].mean())
    assert len(found.by_fifth) == 5 and found.by_fifth[4] > found.by_fifth[0]
    assert np.isnan(boundaries.foretell(np.ones(20), np.arange(20.0)).value), "a constant orders nothing"


def test_confident_learning_finds_labels_that_networks_which_never_saw_them_contradict() -> None:
    random = np.random.default_rng(0)
    true = np.arange(90) % 3
    labels = true.copy()
    labels[:6] = (labels[:6] + 1) % 3
    logits = random.normal(size=(5, 90, 3)) + 4 * np.eye(3)[true]
    predictions = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    is_in = random.random((5, 90)) < 0.5
    is_in[:, 10], is_in[:, 11] = True, [True, True, False, True, True]
    predictions[0] = np.where(np.arange(90)[:, None] == 20, NAN, predictions[0])
    folded = confident_learning.out_of_fold(predictions, is_in)
    np.testing.assert_allclose(folded[11], predictions[2, 11])
    assert np.isnan(folded[10]).all(), "every trial has seen it"
    found = confident_learning.suspicion(labels, folded)
    known = ~np.isnan(found)
    assert known.sum() == (~np.isnan(folded).any(1)).sum() and not known[10]
    assert sklearn.metrics.roc_auc_score((labels != true)[known], found[known]) > 0.99
    assert np.isnan(confident_learning.suspicion(np.zeros(90, int), folded)).all(), "no image of two of the classes"


def test_the_confident_joint_is_that_of_the_definition() -> None:
    """Northcutt et al. 2021, equation 1: counted where p of a class is at least its mean over those given it."""
    random = np.random.default_rng(2)
    predictions, labels = random.dirichlet([0.5] * 3, 60), np.arange(60) % 3
    thresholds = [predictions[labels == c, c].mean() for c in range(3)]
    expected = np.zeros((3, 3), int)
    for label, p in zip(labels, predictions, strict=True):
        above = [c for c in range(3) if p[c] >= thresholds[c]]
        if above:
            expected[label, max(above, key=lambda c: p[c])] += 1
    found = confident_learning.confident_joint(labels, predictions)
    off_diagonal = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(found[off_diagonal], expected[off_diagonal])


def test_published_numbers_are_told_by_our_names() -> None:
    detections = published.detections()
    assert len(detections) == 2 * 6 * 4 + 12 and {d.score for d in detections} <= set(SCORES)
    (best,) = [d for d in detections if (d.dataset, d.label_noise, d.method) == ("CIFAR-100", 0.1, "CSL")]
    assert best.auroc == 0.9897
    assert {a.score for a in published.agreements()} <= set(SCORES) and len(published.agreements()) == 10
