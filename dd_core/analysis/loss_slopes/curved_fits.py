"""Models that are not lines even in log-log axes: a power law with an offset, and one that bends smoothly.

power_offset: L = exp(a) t^b + c, c >= 0. two_power_smooth: log L = a + b x + (b' - b) s log(1 + exp((x - u) / s)),
x = log t, which bends from slope b to b' around u. Both minimise squared residuals of log loss.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import least_squares

from dd_core.analysis.loss_slopes.errors import Uncertainty, uncertainty
from dd_core.analysis.loss_slopes.fits import Errors, Fit, make_fit, residuals_of
from dd_core.analysis.loss_slopes.points import Points, with_its_weights

_ON_BOUND = 1e-8

Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # parameters to fitted values (n,) and Jacobian (n, p)


def _trust_region(
    points: Points, model: Model, starts: list[np.ndarray], low: list[float], high: list[float]
) -> np.ndarray:
    """The best of several starts."""
    y, root = points.log_loss, np.sqrt(points.weight)
    bounds = (np.array(low), np.array(high))
    best, lowest = starts[0], math.inf
    for start in starts:
        inside = np.clip(start, bounds[0] + 1e-12, bounds[1] - 1e-12)
        with np.errstate(all="ignore"):  # steps that overflow on the way are not taken
            found = least_squares(
                lambda p: root * (model(p)[0] - y),
                inside,
                lambda p: root[:, None] * model(p)[1],
                bounds=bounds,
                method="trf",
                max_nfev=100,
            )
        if found.cost < lowest:
            best, lowest = found.x, found.cost
    return np.asarray(best)


def offset_fit(points: Points, errors: Errors | None = None) -> Fit | None:
    """L = exp(a) t^b + c by scipy's trust-region with bounds 0 <= c <= highest loss, residuals in log loss.

    Started from the log-log lines of L - c at three values of c. Where the best c is 0, its error is unknown, and the
    others' are those of the plain power law. None for fewer than 5 points.
    """
    if len(points) < 5:
        return None
    return with_its_weights(points, lambda p: _offset_fit(p, errors or Errors()), residuals_of)


def _offset_fit(points: Points, errors: Errors) -> Fit:
    y = points.log_loss
    scale = float(y.mean())  # c in units of the mean loss
    centre = float(points.log_time.mean())
    x = points.log_time - centre

    def model(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = np.exp(np.clip(p[0] + p[1] * x, -700, 700))
        whole = power + p[2]
        share = power / whole
        return scale + np.log(whole), np.stack([share, share * x, 1 / whole], 1)

    relative = np.exp(y - scale)
    starts = []
    for part in (0.02, 0.5, 0.95):
        c = part * float(relative.min())
        slope, intercept = np.polyfit(x, np.log(relative - c), 1)
        starts.append(np.array([intercept, slope, c]))
    low, high = [-50.0, -50.0, 0.0], [50.0, 50.0, float(relative.max())]
    p = _trust_region(points, model, starts, low, high)
    fitted, jacobian = model(p)
    free = 3 if p[2] > _ON_BOUND * high[2] else 2  # at the bound the power law is all there is
    root = np.sqrt(points.weight)
    sure = uncertainty(
        root[:, None] * jacobian[:, :free], p[:free], root * (y - fitted), errors.method, errors.num_samples
    )
    if free == 2:
        sure = _extended(sure)
    to = np.array([[1.0, -centre, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, math.exp(scale)]])
    estimate = to @ p + [scale, 0.0, 0.0]
    sure = _transformed(sure, to, p, estimate)
    rss = float((points.weight * (y - fitted) ** 2).sum())
    return make_fit(
        "power_offset", "trust_region", points, 3, ("intercept", "slope", "offset"), estimate, sure, fitted, rss
    )


def _transformed(sure: Uncertainty, to: np.ndarray, before: np.ndarray, after: np.ndarray) -> Uncertainty:
    """How sure linear combinations are; intervals keep their width in standard errors."""
    known = np.isfinite(np.diag(sure.covariance))
    covariance = np.full(sure.covariance.shape, np.nan)
    inner = to[np.ix_(known, known)] @ sure.covariance[np.ix_(known, known)] @ to[np.ix_(known, known)].T
    covariance[np.ix_(known, known)] = inner
    error = np.sqrt(np.maximum(np.diag(covariance), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = (before - sure.low) / sure.standard_error, (sure.high - before) / sure.standard_error
    return Uncertainty(covariance, after - low * error, after + high * error)


def _extended(sure: Uncertainty) -> Uncertainty:
    """With one more parameter, of which nothing is known."""
    covariance = np.full((len(sure.low) + 1,) * 2, np.nan)
    covariance[:-1, :-1] = sure.covariance
    return Uncertainty(covariance, np.append(sure.low, np.nan), np.append(sure.high, np.nan))


def smooth_break_fit(points: Points, start: Fit, errors: Errors | None = None) -> Fit | None:
    """Two power laws that pass smoothly into each other, started from two that do not (``breaks.two_power_fit``)."""
    if len(points) < 7:
        return None
    return with_its_weights(points, lambda p: _smooth_break_fit(p, start, errors or Errors()), residuals_of)


def _smooth_break_fit(points: Points, start: Fit, errors: Errors) -> Fit:
    y, x = points.log_loss, points.log_time

    def model(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, after, u, s = p
        z = (x - u) / s
        soft, step = np.logaddexp(0, z), 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        turn = after - b
        jacobian = [
            np.ones(len(x)),
            (x - u) - s * soft,
            s * soft,
            -b - turn * step,
            turn * (soft - z * step),
        ]
        return a + b * (x - u) + turn * s * soft, np.stack(jacobian, 1)

    value = start.value
    u = math.log(value["break_epoch"])
    first = np.array([value["intercept"] + value["slope"] * u, value["slope"], value["slope_after"], u])
    starts = [np.append(first, width) for width in (0.05, 0.5)]
    low = [-200.0, -50.0, -50.0, float(x[0]), 1e-3]
    high = [200.0, 50.0, 50.0, float(x[-1]), max(float(np.ptp(x)), 1e-2)]
    p = _trust_region(points, model, starts, low, high)
    fitted, jacobian = model(p)
    root = np.sqrt(points.weight)
    sure = uncertainty(root[:, None] * jacobian, p, root * (y - fitted), errors.method, errors.num_samples)
    to = np.eye(5)
    to[0, 1], to[0, 3] = -p[3], -p[1]
    to[3, 3] = math.exp(p[3])
    estimate = np.array([p[0] - p[1] * p[3], p[1], p[2], math.exp(p[3]), p[4]])
    sure = _transformed(sure, to, p, estimate)
    rss = float((points.weight * (y - fitted) ** 2).sum())
    names = ("intercept", "slope", "slope_after", "break_epoch", "width")
    return make_fit("two_power_smooth", "trust_region", points, 5, names, estimate, sure, fitted, rss)
