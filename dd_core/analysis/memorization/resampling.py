"""Bootstraps over trials and images, which are crossed: the same images are in many trials.

Both are drawn with replacement, independently of each other, and a value counts as often as its trial times as often as
its image (Owen 2007, "The pigeonhole bootstrap"), which is conservative where images differ from trial to trial.
"""

import numpy as np

_LEVEL = 0.95


def counts(num: int, num_samples: int, random: np.random.Generator) -> np.ndarray:
    """How often each of so many things is drawn, float64 (samples, num)."""
    if num < 1:
        return np.zeros((num_samples, 0))
    drawn = random.integers(num, size=(num_samples, num)) + num * np.arange(num_samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=num * num_samples).reshape(num_samples, num).astype(float)


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the samples that are defined; NaN if fewer than half are."""
    known = samples[~np.isnan(samples)]
    if len(known) < max(2, len(samples) / 2):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def interval_about(value: float, samples: np.ndarray) -> tuple[float, float]:
    """A percentile interval of a correlation, moved to the value.

    Truth and scores are themselves means over trials. Drawing trials again adds noise to them a second time, which
    lowers all correlations of the samples; so their spread is taken about the value, on the scale of Fisher's z.
    """
    if np.isnan(value) or np.isnan(samples).all():
        return np.nan, np.nan
    z, centre = np.arctanh(np.clip(samples, -1 + 1e-12, 1 - 1e-12)), np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    low, high = percentile_interval(z - np.nanmedian(z) + centre)
    return float(np.tanh(low)), float(np.tanh(high))
