"""Slopes of windows: log-log, in linear axes, and of many windows at once."""

import math
from typing import Any

import numpy as np

from dd_core.analysis.loss_slopes.curve import FEWEST_POINTS, Curve
from dd_core.analysis.loss_slopes.fits import Errors, Fit, linear_fit
from dd_core.analysis.loss_slopes.points import Sampling

_TOLERANCE = 0.5  # epochs that may be missing at the ends of a window


def window_slope(
    curve: Curve, first: float, last: float, sampling: Sampling, errors: Errors | None = None
) -> Fit | str:
    """Power law over a window, epochs; a sentence where the run has no such window, or too few points there."""
    epoch = curve.epoch
    if not len(epoch) or epoch[-1] < last - _TOLERANCE or epoch[0] > first + 1 + _TOLERANCE:
        have = f"{epoch[0]:.3g} to {epoch[-1]:.3g}" if len(epoch) else "none"
        return f"Epochs {first:g} to {last:g} are not all in the run, which has losses of epochs {have}."
    part = curve.window(first, last)
    points = sampling.points(curve.step[part], curve.loss[part])
    if len(points) < FEWEST_POINTS:
        return f"Epochs {first:g} to {last:g} have {len(points)} points, at least {FEWEST_POINTS} are needed."
    return linear_fit(points, "power", errors)


def linear_slope(curve: Curve, first: float, last: float) -> float | None:
    """Least squares of epoch means on the epoch in linear axes, nats per epoch: the campaign's logger.

    Of the epochs that lie in the window (5 to 15: the sixth to the fifteenth, its numbers 5 to 14 counted from 0). It
    depends on the unit of loss and on how far the loss has fallen, so it does not compare runs; ``window_slope`` does.
    None for fewer than two epochs.
    """
    numbers, means = curve.epoch_means()
    inside = (numbers - 1 >= first - 1e-9) & (numbers <= last + 1e-9)
    x, y = numbers[inside].astype(np.float64), means[inside]
    if len(x) < 2:
        return None
    x = x - x.mean()
    return float(x @ y / (x @ x))


def scan(
    curve: Curve, starts: tuple[float, ...], stops: tuple[float, ...], sampling: Sampling, errors: Errors
) -> list[tuple[float, float, Fit]]:
    """Power laws over all windows of these starts and stops that the run has."""
    found = []
    for first in starts:
        for last in stops:
            fit = window_slope(curve, first, last, sampling, errors) if last > first else ""
            if isinstance(fit, Fit):
                found.append((first, last, fit))
    return found


def start_spread(curve: Curve, starts: tuple[float, ...], stop: float, sampling: Sampling) -> float | None:
    """Standard deviation (n - 1) of the early slope over where its window starts; None if one of them is missing."""
    fits = [window_slope(curve, start, stop, sampling, Errors("independent")) for start in starts if start < stop]
    slopes = [fit.value["slope"] for fit in fits if isinstance(fit, Fit)]
    if len(slopes) < max(2, len(fits)):
        return None
    return float(np.std(slopes, ddof=1))


def in_bits(nats: Any) -> Any:
    """A loss, or its slope in linear axes, in bits. Log-log slopes have no unit: only their intercept shifts."""
    return nats / math.log(2)
