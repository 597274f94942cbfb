"""How well a score tells some images from the others: ROC and precision-recall, with bootstrap intervals."""

from dataclasses import dataclass

import numpy as np

from dd_core.analysis.memorization.resampling import counts, percentile_interval

# Images times samples at a time, to keep the memory small.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Detection:
    """Means over trials, with 95 % bootstrap intervals; NaN where undefined.

    Attributes:
        auroc: area under the ROC curve.
        average_precision: area under the precision-recall curve, in steps.
        num_trials: in which the score is known and there are images of both kinds.
        num_positive: of these trials, together.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    average_precision: float
    average_precision_low: float
    average_precision_high: float
    num_trials: int
    num_positive: int


def weighted_areas(score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision where every image counts as often as its weight says, one value per row of weights.

    AUROC is the probability that a positive scores higher than another, ties half. Average precision is
    sum_n (R_n - R_{n-1}) P_n over the thresholds from the highest on, as scikit-learn has it.

    Args:
        score: (images,), at least one, no NaN; may be infinite.
        is_positive: bool (images,).
        weights: (samples, images), not negative.

    Returns:
        Two arrays (samples,); NaN where the weights leave only one kind.
    """
    order = np.argsort(-score, kind="stable")
    ordered, positive = score[order], is_positive[order]
    ends = (
        np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1) if len(ordered) else np.zeros(0, int)
    )
    weights = weights[:, order]
    hits = np.cumsum(weights * positive, 1)[:, ends]
    alarms = np.cumsum(weights * ~positive, 1)[:, ends]
    zero = np.zeros((len(weights), 1))
    new_hits, new_alarms = np.diff(hits, axis=1, prepend=zero), np.diff(alarms, axis=1, prepend=zero)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = hits[:, -1] * alarms[:, -1]
        areas = (new_alarms * (hits - new_hits / 2)).sum(1) / total
        precision = np.where(new_hits > 0, hits / (hits + alarms), 0)
        averages = np.where(total > 0, (new_hits * precision).sum(1) / hits[:, -1], np.nan)
    return areas, averages


def detect(
    scores: list[np.ndarray],
    targets: list[np.ndarray],
    image_ids: list[np.ndarray],
    num_samples: int = 500,
    seed: int = 0,
) -> Detection:
    """Detection by one score over the trials of an arm.

    Args:
        scores: of each trial (images,), more is more likely a positive; NaN: unknown, left out.
        targets: of each trial bool (images,).
        image_ids: of each trial (images,); an image counts as often in all trials of a sample.
        num_samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        With one trial no interval; with no trial that has images of both kinds nothing but NaN.
    """
    trials: list[tuple[np.ndarray, ...]] = []
    for score, target, ids in zip(scores, targets, image_ids, strict=True):
        known = ~np.isnan(score)
        if (target & known).any() and (~target & known).any():
            trials.append((score[known], target[known], ids[known]))
    if not trials:
        return Detection(np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0)
    single = [weighted_areas(score, target, np.ones((1, len(score)))) for score, target, _ in trials]
    values = np.array(single)[..., 0].mean(0)
    low = high = np.full(2, np.nan)
    if len(trials) > 1:
        samples = _samples(trials, num_samples, np.random.default_rng(seed))
        intervals = np.array([percentile_interval(own) for own in samples])
        low, high = intervals[:, 0], intervals[:, 1]
    num_positive = sum(int(target.sum()) for _, target, _ in trials)
    return Detection(
        auroc=float(values[0]),
        auroc_low=float(low[0]),
        auroc_high=float(high[0]),
        average_precision=float(values[1]),
        average_precision_low=float(low[1]),
        average_precision_high=float(high[1]),
        num_trials=len(trials),
        num_positive=num_positive,
    )


def _samples(trials: list[tuple[np.ndarray, ...]], num_samples: int, random: np.random.Generator) -> np.ndarray:
    """(2, samples): both areas, mean over the trials that were drawn, with the images that were drawn."""
    all_ids = np.unique(np.concatenate([ids for *_, ids in trials]))
    places = [np.searchsorted(all_ids, ids) for *_, ids in trials]
    parts = []
    step = max(1, min(num_samples, _CHUNK // max(len(all_ids), 1)))
    for start in range(0, num_samples, step):
        size = min(step, num_samples - start)
        of_images, of_trials = counts(len(all_ids), size, random), counts(len(trials), size, random)
        pairs = zip(trials, places, strict=True)
        # (trials, 2, samples)
        areas = np.stack([weighted_areas(score, target, of_images[:, place]) for (score, target, _), place in pairs])
        weights = of_trials.T[:, None] * ~np.isnan(areas)
        with np.errstate(invalid="ignore"):
            parts.append((np.nan_to_num(areas) * weights).sum(0) / weights.sum(0))
    return np.concatenate(parts, axis=1)
