"""Where burn-in ends, by three readings."""

import math

import numpy as np

from dd_core.analysis.loss_slopes.breaks import prefix_rss
from dd_core.analysis.loss_slopes.curve import FEWEST_POINTS, Curve
from dd_core.analysis.loss_slopes.points import Points

DECISIVE = 2.0  # difference of AIC or AICc from which on a model counts as better


def knee_epoch_aic(points: Points, steps_per_epoch: float) -> float | None:
    """First epoch at whose end AIC(power law) <= AIC(exponential) - 2, both of the curve up to there; None: never.

    The campaign's definition. Both models have two parameters, so that this compares their sums of squares.
    """
    if len(points) < FEWEST_POINTS:
        return None
    power, exponential = (prefix_rss(x, points.log_loss, points.weight) for x in (points.log_time, points.time))
    last = math.ceil(points.time[-1] / steps_per_epoch - 1e-9)
    ends = np.searchsorted(points.time, np.arange(1, last + 1) * steps_per_epoch, side="right")
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = ends * np.log(power[ends] / exponential[ends])
    good = (ends >= FEWEST_POINTS) & (gain <= -DECISIVE)
    return float(np.argmax(good) + 1) if good.any() else None


def knee_epoch_at_loss(curve: Curve, loss: float) -> float | None:
    """Number of the first epoch, from 1, whose mean loss is at most ``loss`` nats; None: never."""
    numbers, means = curve.epoch_means()
    low = np.flatnonzero(means <= loss)
    return float(numbers[low[0]]) if len(low) else None
