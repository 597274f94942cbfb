"""Where one power law ends and another begins: the break that leaves the smallest sum of squares, of all there are."""

import math
from dataclasses import replace

import numpy as np

from dd_core.analysis.loss_slopes.fits import Errors, Fit, linear_fit, residuals_of
from dd_core.analysis.loss_slopes.points import Points, independent_points, with_its_weights

FEWEST_IN_SEGMENT = 15
# 95 % of the likelihood ratio of a break's place (Hansen 2000, table I).
_BREAK_QUANTILE = 7.35


def prefix_rss(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted RSS of the least-squares line through the first m points, for m = 0 to n: (n + 1,).

    By running sums of centred values, O(n) for all m together; the line through one point or two leaves 0.
    """
    x, y = x - x.mean(), y - y.mean()
    sums = np.zeros((6, len(x) + 1))
    np.cumsum(weight * np.array([np.ones(len(x)), x, y, x * x, x * y, y * y]), axis=1, out=sums[:, 1:])
    m, sx, sy, sxx, sxy, syy = sums
    m[0] = 1
    vxx, vxy, vyy = sxx - sx * sx / m, sxy - sx * sy / m, syy - sy * sy / m
    with np.errstate(invalid="ignore", divide="ignore"):
        rss = vyy - np.where(vxx > 0, vxy * vxy / vxx, 0)
    return np.maximum(np.nan_to_num(rss), 0)


def split_profile(x: np.ndarray, y: np.ndarray, weight: np.ndarray, fewest: int = FEWEST_IN_SEGMENT) -> np.ndarray:
    """RSS of two separate lines, the first through m points, for m = 0 to n; inf where a side has too few.

    This is the dynamic programme of Bai & Perron (2003) for one break: exact, over all admissible ones.
    """
    both = prefix_rss(x, y, weight) + prefix_rss(x[::-1], y[::-1], weight[::-1])[::-1]
    both[: min(fewest, len(both))] = np.inf
    both[max(len(x) - fewest + 1, 0) :] = np.inf
    return both


def two_power_fit(points: Points, errors: Errors | None = None) -> Fit | None:
    """Two power laws, each over its own points, parted where they leave the smallest sum of squares.

    A break counts as three parameters, as its place is searched for (Ninomiya 2015): seven in all. The interval of the
    break holds all places whose likelihood ratio is below Hansen's quantile, counted by the effective sample size.

    Args:
        points: ascending.
        errors: of the slopes, each from its own side.

    Returns:
        None where no break leaves 15 points on both sides.
    """
    if len(points) < 2 * FEWEST_IN_SEGMENT:
        return None
    return with_its_weights(points, lambda p: _two_power_fit(p, errors), residuals_of)


def _two_power_fit(points: Points, errors: Errors | None) -> Fit | None:
    x, y = points.log_time, points.log_loss
    profile = split_profile(x, y, points.weight)
    places = np.full(len(profile), np.inf)
    places[1:-1] = np.exp((x[:-1] + x[1:]) / 2)  # steps, between the neighbouring points
    best = int(np.argmin(profile))
    if not math.isfinite(profile[best]):
        return None
    fixed = replace(points, adaptive=False)
    before, after = (linear_fit(part, "power", errors) for part in (fixed[slice(best)], fixed[slice(best, None)]))
    fitted = np.concatenate([before.fitted, after.fitted])
    rss = before.rss + after.rss
    size = independent_points(points)
    floor = max(rss / len(y), 2.0**-48) * len(y)
    likely = np.flatnonzero(size * (profile / floor - 1) <= _BREAK_QUANTILE)
    low, high = (float(places[likely[0]]), float(places[likely[-1]])) if len(likely) else (float(places[best]),) * 2
    parts = {}
    for name in ("value", "standard_error", "low", "high"):
        one, two = getattr(before, name), getattr(after, name)
        parts[name] = {**one, "slope_after": two["slope"], "intercept_after": two["intercept"]}
    parts["value"]["break_epoch"] = float(places[best])
    parts["standard_error"]["break_epoch"] = math.nan
    parts["low"]["break_epoch"], parts["high"]["break_epoch"] = low, high
    estimator = "huber" if "huber" in (before.estimator, after.estimator) else "ols"
    return Fit("two_power", estimator, points, 7, **parts, fitted=fitted, rss=rss)
