"""Models of a loss curve, fitted in log loss: exponential, power law, power law with an offset, smooth break.

exponential: log L = a + b t. power: log L = a + b log t. power_offset: L = exp(a) t^b + c, c >= 0. two_power_smooth:
log L = a + b x + (b' - b) s log(1 + exp((x - u) / s)), x = log t, which bends from slope b to b' around u.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares
from statsmodels.regression.linear_model import OLS
from statsmodels.robust.norms import HuberT
from statsmodels.robust.robust_linear_model import RLM

from dd_core.analysis.loss_slopes.errors import Method, Uncertainty, uncertainty
from dd_core.analysis.loss_slopes.points import Points, with_its_weights

_NORMAL_MAD = 0.6744897501960817  # median of |z| of normal z
_FAR = 5.0  # robust standard deviations
_ON_BOUND = 1e-8


@dataclass(frozen=True)
class Errors:
    """How standard errors are computed: the method, and samples of the bootstrap."""

    method: Method = "newey_west"
    num_samples: int = 2000


@dataclass(frozen=True)
class Fit:
    """A model fitted to points.

    Attributes:
        model: its name.
        estimator: ols, huber or trust_region.
        points: what it was fitted to.
        num_parameters: without the variance of residuals.
        value: parameters by name: intercept, slope and, where the model has them, slope_after, intercept_after,
            break_epoch (here in steps), offset.
        standard_error: of these.
        low: ends of 95 % intervals.
        high: ends of 95 % intervals.
        fitted: (n,), log loss by the model.
        rss: smallest sum of weighted squared residuals; of huber, that of least squares, which the criteria compare.
    """

    model: str
    estimator: str
    points: Points
    num_parameters: int
    value: dict[str, float]
    standard_error: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    fitted: np.ndarray = field(repr=False)
    rss: float

    @property
    def residuals(self) -> np.ndarray:
        """(n,), log loss minus the model's."""
        return self.points.log_loss - self.fitted

    @property
    def standardised(self) -> np.ndarray:
        """(n,), residuals times the root of their weights: of equal variance, if the weights are right."""
        return self.residuals * np.sqrt(self.points.weight)

    @property
    def r_squared(self) -> float:
        """1 - squared residuals over squares around the mean, each point once whatever its weight; NaN of constants."""
        y = self.points.log_loss
        total = float(((y - y.mean()) ** 2).sum())
        return 1 - float((self.residuals**2).sum()) / total if total > 0 else math.nan


def has_outliers(residuals: np.ndarray) -> bool:
    """Whether one of (n,) lies further than five robust standard deviations (1.4826 MAD) from the median.

    One of 200 normal ones does so once in 9,000 fits.
    """
    centred = np.abs(residuals - np.median(residuals))
    return bool(centred.max() > _FAR * np.median(centred) / _NORMAL_MAD)


def linear_fit(
    points: Points, model: str = "power", errors: Errors | None = None, huber_delta: float | None = 1.5
) -> Fit:
    """A straight line in log-log (``power``) or semi-log axes (``exponential``): least squares, or Huber's.

    Huber's estimate takes over where ``has_outliers`` says so of the least-squares residuals; the campaign says only
    that it is a fallback. Its delta, beyond which residuals count linearly, is ``huber_delta`` robust standard
    deviations: 1.5 (a table of the campaign), or 1.0117 for its other reading, 1.5 median |residual|. Both are bounded
    in influence; 1.5 wastes less where residuals are normal.

    Args:
        points: at least 3.
        model: ``power`` or ``exponential``.
        errors: how sure the parameters are.
        huber_delta: None: always least squares.
    """
    return with_its_weights(points, lambda p: _linear_fit(p, model, errors or Errors(), huber_delta), _residuals)


def _residuals(fit: "Fit | None") -> np.ndarray:
    return np.zeros(0) if fit is None else fit.residuals


def _linear_fit(points: Points, model: str, errors: Errors, huber_delta: float | None) -> Fit:
    x = points.log_time if model == "power" else points.time
    root = np.sqrt(points.weight)
    y = root * points.log_loss
    centre = x.mean()
    design = np.stack([root, root * (x - centre)], 1)
    estimate = np.asarray(OLS(y, design).fit().params)
    residuals = y - design @ estimate
    rss = float(residuals @ residuals)
    estimator, curvature = "ols", None
    if huber_delta is not None and has_outliers(residuals):
        robust = RLM(y, design, M=HuberT(t=huber_delta)).fit()
        if np.isfinite(robust.params).all() and robust.scale > 0:
            estimator, estimate = "huber", np.asarray(robust.params)
            delta = huber_delta * robust.scale
            residuals = y - design @ estimate
            curvature = (np.abs(residuals) <= delta).astype(np.float64)
            residuals = np.clip(residuals, -delta, delta)
    shift = np.array([[1.0, -centre], [0.0, 1.0]])  # to the intercept at x = 0
    estimate = shift @ estimate
    sure = uncertainty(np.stack([root, root * x], 1), estimate, residuals, errors.method, errors.num_samples, curvature)
    return _fit(model, estimator, points, 2, ("intercept", "slope"), estimate, sure, estimate[0] + estimate[1] * x, rss)


def _fit(
    model: str,
    estimator: str,
    points: Points,
    num_parameters: int,
    names: tuple[str, ...],
    estimate: np.ndarray,
    sure: Uncertainty,
    fitted: np.ndarray,
    rss: float,
) -> Fit:
    columns = (estimate, sure.standard_error, sure.low, sure.high)
    value, standard_error, low, high = (dict(zip(names, map(float, column), strict=True)) for column in columns)
    return Fit(model, estimator, points, num_parameters, value, standard_error, low, high, fitted, rss)


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
    return with_its_weights(points, lambda p: _offset_fit(p, errors or Errors()), _residuals)


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
    return _fit(
        "power_offset", "trust_region", points, 3, ("intercept", "slope", "offset"), estimate, sure, fitted, rss
    )


def _transformed(sure: Uncertainty, to: np.ndarray, before: np.ndarray, after: np.ndarray) -> Uncertainty:
    """Of linear combinations; intervals keep their width in standard errors."""
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
    return with_its_weights(points, lambda p: _smooth_break_fit(p, start, errors or Errors()), _residuals)


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
    return _fit("two_power_smooth", "trust_region", points, 5, names, estimate, sure, fitted, rss)
