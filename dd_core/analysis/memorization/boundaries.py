"""Does what an image showed during a task tell how much of it is forgotten when the next task begins?

As ``csl_per_sample_analysis`` of seed 002 asks it: the change of loss from the last evaluation of a task to the first
of the next, on classes that came before, against statistics of the task before.
"""

from dataclasses import dataclass

import numpy as np

from dd_core.analysis.memorization.agreement import spearman
from dd_core.analysis.memorization.resampling import counts, percentile_interval

STATISTICS = ("mean", "max", "slope")
NUM_GROUPS = 5
# Values of a bootstrap at a time, 8 bytes each, several times over.
_MOST_DRAWN = 500_000


@dataclass(frozen=True)
class Forecast:
    """How a statistic orders images by what will be forgotten.

    Attributes:
        num_images: with both.
        value: Spearman's rank correlation with the change of loss; NaN where undefined.
        low, high: 95 % bootstrap interval over images.
        by_fifth: mean change of loss of the images by fifth of the statistic, lowest first; empty for fewer than five.
    """

    num_images: int
    value: float
    low: float
    high: float
    by_fifth: list[float]


def statistic(name: str, curve: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Mean, maximum or least-squares slope per epoch over the evaluations of a task, (images,); NaN: not defined.

    Args:
        name: of ``STATISTICS``.
        curve: (evaluations, images); NaN: not evaluated.
        epochs: (evaluations,).
    """
    known = ~np.isnan(curve)
    num = known.sum(0)
    values = np.where(known, curve, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "mean":
            return np.where(num > 0, values.sum(0) / num, np.nan)
        if name == "max":
            most = np.where(known, curve, -np.inf).max(0, initial=-np.inf)
            return np.where(num > 0, most, np.nan)
        time = np.where(known, np.asarray(epochs, float)[:, None], 0)
        centred = np.where(known, time - time.sum(0) / num, 0)
        slope = (centred * values).sum(0) / np.square(centred).sum(0)
        return np.where(num > 1, slope, np.nan)


def resampled(x: np.ndarray, y: np.ndarray, num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Spearman's correlation of samples of the pairs with replacement, (num_samples,); NaN where one side is constant.

    Values are sorted once: how often each is drawn gives the ranks of a sample.
    """
    codes = [np.unique(values, return_inverse=True)[1] for values in (x, y)]
    step, found = max(1, _MOST_DRAWN // len(x)), []
    for start in range(0, num_samples, step):
        weights = counts(len(x), min(step, num_samples - start), random)
        first, second = (_ranks(weights, own) - (len(x) + 1) / 2 for own in codes)
        products = [(weights * a * b).sum(1) for a, b in ((first, second), (first, first), (second, second))]
        with np.errstate(invalid="ignore"):
            found.append(products[0] / np.sqrt(products[1] * products[2]))
    return np.concatenate(found)


def _ranks(weights: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Ranks from 1 of values drawn so often, ties at their mean, (samples, images)."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: np.ndarray = (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, codes]
    return ranks


def foretell(predictor: np.ndarray, change: np.ndarray, num_samples: int = 500, seed: int = 0) -> Forecast:
    """Rank correlation of a statistic with the change of loss, and the change by fifth of the statistic.

    Args:
        predictor: (images,).
        change: (images,), nats; positive where the image is forgotten.
        num_samples: of the bootstrap.
        seed: of the bootstrap.
    """
    known = np.isfinite(predictor) & np.isfinite(change)
    predictor, change = predictor[known], change[known]
    value = spearman(predictor, change) if len(change) else np.nan
    low = high = np.nan
    if np.isfinite(value):
        low, high = percentile_interval(resampled(predictor, change, num_samples, np.random.default_rng(seed)))
    fifths: list[float] = []
    if len(change) >= NUM_GROUPS:
        order = np.argsort(predictor, kind="stable")
        fifths = [float(change[own].mean()) for own in np.array_split(order, NUM_GROUPS)]
    return Forecast(len(change), value, low, high, fifths)
