"""Straight lines through a loss curve: a power law in log-log axes, an exponential in semi-log axes.

exponential: log L = a + b t. power: log L = a + b log t. ``Fit`` is the form of all models, also of those in
``curved_fits`` and ``breaks``.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from dd_core.analysis.loss_slopes.errors import Method, Uncertainty, uncertainty
from dd_core.analysis.loss_slopes.points import Points, with_its_weights

_NORMAL_MAD = 0.6744897501960817  # median of |z| of normal z
_FAR = 5.0  # robust standard deviations


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
    return with_its_weights(points, lambda p: _linear_fit(p, model, errors or Errors(), huber_delta), residuals_of)


def residuals_of(fit: "Fit | None") -> np.ndarray:
    """The residuals of a fit; none without one."""
    return np.zeros(0) if fit is None else fit.residuals


def _linear_fit(points: Points, model: str, errors: Errors, huber_delta: float | None) -> Fit:
    # To load it takes a second: whoever only looks at what is known shall not wait for it.
    from statsmodels.regression.linear_model import OLS
    from statsmodels.robust.norms import HuberT
    from statsmodels.robust.robust_linear_model import RLM

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
    return make_fit(
        model, estimator, points, 2, ("intercept", "slope"), estimate, sure, estimate[0] + estimate[1] * x, rss
    )


def make_fit(
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
    """A fit of parameters, (p,) each, in the order of their names."""
    columns = (estimate, sure.standard_error, sure.low, sure.high)
    value, standard_error, low, high = (dict(zip(names, map(float, column), strict=True)) for column in columns)
    return Fit(model, estimator, points, num_parameters, value, standard_error, low, high, fitted, rss)
