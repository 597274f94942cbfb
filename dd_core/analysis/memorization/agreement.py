"""How well a score agrees with memorisation itself: three measures, over all images and over the most memorised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dd_core.analysis.memorization.resampling import interval_about

MEASURES = ("pearson", "spearman", "cosine")
# The papers' top 5,000 of 50,000.
TOP_SHARE = 0.1
# Means over trials of the score, and the truth, both (images,), from how often each trial counts (trials,).
Estimate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Agreement:
    """One measure of a score over some images; NaN where undefined."""

    measure: str
    images: str
    num_images: int
    value: float
    low: float
    high: float


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; NaN for fewer than three images, or where one of the two is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of ranks, ties at their mean."""
    from scipy.stats import rankdata  # a third of a second, which the findings of most studies do without

    return pearson(rankdata(x), rankdata(y))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Similarity of the vectors as they are: nearly 1 for any two that are positive and vary little."""
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / lengths) if len(x) and lengths > 0 else np.nan


def top(truth: np.ndarray) -> np.ndarray:
    """Positions of the tenth that is memorised most, at least three; ties in the order of the images."""
    num = max(3, round(TOP_SHARE * len(truth)))
    return np.argsort(-truth, kind="stable")[:num]


def agree(
    estimate: Estimate, num_trials: int, num_samples: int = 500, seed: int = 0, is_resampled: bool = True
) -> list[Agreement]:
    """All measures over all images and the top.

    Args:
        estimate: scores and truths of all images, from how often each trial counts; NaN where a value is unknown.
        num_trials: that there are of the score.
        num_samples: bootstrap samples, of trials and images.
        seed: of the bootstrap.
        is_resampled: without, no intervals are made.
    """
    whole = _measured(*estimate(np.ones(num_trials)))
    samples: list[dict[tuple[str, str], tuple[float, int]]] = []
    random = np.random.default_rng(seed)
    for _ in range(num_samples if is_resampled and num_trials > 1 else 0):
        drawn = np.bincount(random.integers(num_trials, size=num_trials), minlength=num_trials).astype(float)
        score, truth = estimate(drawn)
        images = random.integers(len(score), size=len(score))
        samples.append(_measured(score[images], truth[images]))
    found = []
    for (images_of, measure), (value, num) in whole.items():
        spread = np.array([sample[images_of, measure][0] for sample in samples])
        low, high = interval_about(value, spread) if len(spread) else (np.nan, np.nan)
        found.append(Agreement(measure, images_of, num, value, low, high))
    return found


def _measured(score: np.ndarray, truth: np.ndarray) -> dict[tuple[str, str], tuple[float, int]]:
    """Every measure by images and name, with the number of images."""
    known = np.isfinite(score) & np.isfinite(truth)
    score, truth = score[known], truth[known]
    measured = {}
    for images, chosen in (("all", np.arange(len(truth))), ("top", top(truth) if len(truth) else np.zeros(0, int))):
        x, y = score[chosen], truth[chosen]
        for measure, function in zip(MEASURES, (pearson, spearman, cosine), strict=True):
            measured[images, measure] = (function(x, y), len(x))
    return measured
