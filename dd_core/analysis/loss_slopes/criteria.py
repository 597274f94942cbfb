"""Information criteria of least-squares fits, counting points as independent or by what they are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Log losses recorded in float32 know nothing finer; a residual below is zero, whose logarithm no criterion survives.
_RESOLUTION = 2.0**-24


@dataclass(frozen=True)
class Criteria:
    """Criteria of one fit; NaN where undefined (AICc: too few points for the parameters).

    Attributes:
        aic: 2 K - 2 log likelihood, up to a constant of the points (Akaike 1974).
        aicc: with Hurvich and Tsai's (1989) correction for few points.
        bic: K log n instead of 2 K (Schwarz 1978).
    """

    aic: float
    aicc: float
    bic: float


def criteria(rss: float, num_points: int, num_parameters: int, sample_size: float | None = None) -> Criteria:
    """AIC, AICc and BIC of Gaussian residuals whose variance is estimated, too: K = num_parameters + 1.

    -2 log likelihood is m log(rss / n): n points have the variance rss / n, and tell as much as m independent ones. The
    campaign's formula is m = n; correlated steps then make every difference decisive.

    Args:
        rss: sum of squared residuals, of n points.
        num_points: n.
        num_parameters: of the model, without the variance.
        sample_size: m; n if None.
    """
    size = float(num_points if sample_size is None else sample_size)
    k = num_parameters + 1
    if num_points <= 0 or not math.isfinite(rss):
        return Criteria(math.nan, math.nan, math.nan)
    fit = size * math.log(max(rss / num_points, _RESOLUTION**2))
    aic = fit + 2 * k
    aicc = aic + 2 * k * (k + 1) / (size - k - 1) if size > k + 1 else math.nan
    return Criteria(aic, aicc, fit + k * math.log(size))


def akaike_weights(values: Sequence[float]) -> np.ndarray:
    """exp(-d/2) over its sum, d the distance from the lowest (Burnham & Anderson 2002); NaN stays NaN."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    weights = np.full(len(array), np.nan)
    if known.any():
        raw = np.exp(-(array[known] - array[known].min()) / 2)
        weights[known] = raw / raw.sum()
    return weights
