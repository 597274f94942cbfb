"""Scores made comparable: in which direction they point, where "never" belongs, and ranks."""

import numpy as np

from dd_core.tables.memorization import NEVER_IS_LARGEST, SCORES


def is_measured(values: np.ndarray) -> bool:
    """Whether there is any number; a score that nothing was recorded for is NaN for every image."""
    return bool(np.isfinite(values).any())


def as_ordered(score: str, values: np.ndarray) -> np.ndarray:
    """A score so that more is more memorised, and "never" is infinite.

    Args:
        score: a key of ``SCORES``.
        values: (images,), of one trial.

    Returns:
        (images,); NaN where it is not known.
    """
    ordered = np.asarray(values, float)
    if score in NEVER_IS_LARGEST and is_measured(ordered):
        ordered = np.where(np.isnan(ordered), np.inf, ordered)
    return SCORES[score][1] * ordered


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean, over the values that are not NaN; NaN stays."""
    found = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    from scipy.stats import rankdata  # a third of a second, which the findings of most studies do without

    found[known] = rankdata(values[known])
    return found


def as_numbers(score: str, values: np.ndarray, longest: float) -> np.ndarray:
    """As ``as_ordered``, with a number for "never", for what is computed of values and not of ranks.

    Args:
        score: a key of ``SCORES``.
        values: (images,).
        longest: stands for "never" where a score is a time: one evaluation after the last. Of forgetting events it is
            one more than any image has.
    """
    values = np.asarray(values, float)
    ordered = as_ordered(score, values)
    if not np.isinf(ordered).any():
        return ordered
    most = np.nanmax(values) + 1 if score == "forgetting_events" else longest
    return np.where(np.isinf(ordered), np.sign(ordered) * most, ordered)
