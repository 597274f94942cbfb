"""Whether probabilities are as often right as they say."""

import numpy as np

_NUM_BINS = 15


def calibration_error(probability: np.ndarray, predicted: np.ndarray, is_right: np.ndarray) -> float:
    """Expected calibration error with 15 bins of equal width (Guo et al. 2017, equation 3).

    The mean over graphs of how far the confidence of their bin, the mean probability of the predicted label, is from
    the share of its graphs that are right. Bins are closed above, as in the paper; of two labels those below 1/2 stay
    empty.

    Args:
        probability: float64 (N,), of label 1.
        predicted: int64 (N,), 0 or 1.
        is_right: bool (N,).

    Returns:
        Fraction; NaN without graphs or with a probability that is not finite.
    """
    confidence = np.where(predicted == 1, probability, 1 - probability)
    if not len(confidence) or not np.isfinite(confidence).all():
        return float("nan")
    places = np.clip(np.ceil(confidence * _NUM_BINS).astype(np.int64) - 1, 0, _NUM_BINS - 1)
    gaps = np.bincount(places, weights=is_right - confidence, minlength=_NUM_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
