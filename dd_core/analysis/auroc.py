"""How well a score tells mislabelled images from others."""

import math

import numpy as np


def auroc(score: np.ndarray, is_noisy: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a noisy image scores higher than a clean one, ties half.

    Args:
        score: (N,), any real dtype.
        is_noisy: bool (N,).

    Returns:
        NaN without noisy images, without clean ones, or with a score that is not finite.
    """
    noisy, clean = score[is_noisy], np.sort(score[~is_noisy])
    if not len(noisy) or not len(clean) or not np.isfinite(score).all():
        return math.nan
    below = np.searchsorted(clean, noisy, side="left")
    not_above = np.searchsorted(clean, noisy, side="right")
    return float((below + not_above).sum() / (2 * len(noisy) * len(clean)))
