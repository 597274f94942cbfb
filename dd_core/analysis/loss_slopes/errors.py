"""How sure a slope is when neighbouring points are alike: autocorrelation, Newey-West, moving blocks."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats
from statsmodels.stats.sandwich_covariance import S_hac_simple

Method = Literal["newey_west", "block_bootstrap", "independent"]


def autocorrelation(residuals: np.ndarray) -> np.ndarray:
    """Sample autocorrelation of (n,) at lags 0 to n - 1 (biased, so that it is positive definite); NaN of constants."""
    r = residuals - residuals.mean()
    power = np.abs(np.fft.rfft(r, 2 * len(r))) ** 2
    covariance = np.fft.irfft(power, 2 * len(r))[: len(r)]
    if not covariance[0] > 0:
        return np.full(len(r), np.nan)
    return covariance / covariance[0]


def correlation_time(residuals: np.ndarray) -> float:
    """1 + 2 (sum of autocorrelations), at least 1: how many points tell as much as one independent one.

    The sum ends before the first pair of neighbouring lags that is not positive, and pairs may not grow (Geyer 1992,
    initial monotone sequence), as later lags are noise. 1 for fewer than 4 points or constant residuals.
    """
    if len(residuals) < 4:
        return 1.0
    rho = autocorrelation(residuals)
    if np.isnan(rho[0]):
        return 1.0
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0]] if len(negative) else pairs)
    return max(1.0, float(2 * pairs.sum() - 1))


def effective_sample_size(residuals: np.ndarray) -> float:
    """Points over their correlation time; from 1 to n."""
    return max(1.0, len(residuals) / correlation_time(residuals)) if len(residuals) else 0.0


def bandwidth(num_points: int) -> int:
    """Lags of Newey-West: 1.3 sqrt(n), as Lazarus, Lewis, Stock & Watson (2018) recommend with fixed-b intervals."""
    return max(1, min(num_points - 1, math.ceil(1.3 * math.sqrt(num_points))))


def fixed_b_quantile(share: float) -> float:
    """97.5 % quantile of a t statistic with Bartlett's kernel over a share b of the points (Kiefer & Vogelsang 2005).

    1.96 for b = 0. The quantile grows with b, as the variance is then estimated from few independent pieces: the usual
    one leaves intervals too short.
    """
    return 1.9600 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3


@dataclass(frozen=True)
class Uncertainty:
    """Of estimated parameters (p,).

    Attributes:
        covariance: (p, p).
        low: (p,), lower ends of 95 % intervals.
        high: (p,), upper ends.
    """

    covariance: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """(p,)."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0))


def uncertainty(
    jacobian: np.ndarray,
    estimate: np.ndarray,
    residuals: np.ndarray,
    method: Method,
    num_samples: int = 2000,
    curvature: np.ndarray | None = None,
) -> Uncertainty:
    """Covariance and intervals of a regression's parameters, linearised where it is not linear.

    Args:
        jacobian: (n, p), derivative of each fitted value by each parameter; the regressors of a linear model.
        estimate: (p,).
        residuals: (n,), or Huber's psi of them.
        method: ``newey_west``: sandwich with Bartlett's kernel, robust to unequal variances as well, and fixed-b
            intervals; ``block_bootstrap``: moving blocks of residuals (Kunsch 1989), percentiles; ``independent``:
            the textbook's, with Student's t.
        num_samples: of the bootstrap.
        curvature: (n,), Huber's derivative of psi; ones for least squares.
    """
    num, p = jacobian.shape
    weights = np.ones(num) if curvature is None else curvature
    bread = np.linalg.pinv(jacobian.T @ (weights[:, None] * jacobian))
    freedom = max(num - p, 1)
    if method == "block_bootstrap":
        draws = moving_block_draws(bread @ jacobian.T, residuals, num_samples)
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        return Uncertainty(np.atleast_2d(np.cov(draws.T)), estimate + low, estimate + high)
    if method == "independent":
        covariance = bread @ (jacobian.T @ jacobian) @ bread * (residuals @ residuals) / freedom
        quantile = float(scipy.stats.t.ppf(0.975, freedom))
    else:
        lags = bandwidth(num)
        meat = S_hac_simple(jacobian * residuals[:, None], nlags=lags)
        covariance = bread @ meat @ bread * num / freedom
        quantile = fixed_b_quantile((lags + 1) / num)
    half = quantile * np.sqrt(np.maximum(np.diag(covariance), 0))
    return Uncertainty(covariance, estimate - half, estimate + half)


def moving_block_draws(influence: np.ndarray, residuals: np.ndarray, num_samples: int, seed: int = 0) -> np.ndarray:
    """Changes of parameters (B, p) when blocks of neighbouring residuals are drawn anew, with replacement.

    Blocks are as long as Newey-West has lags. All samples are drawn at once, in parts that fit the memory.

    Args:
        influence: (p, n), the change of parameters by each residual.
        residuals: (n,).
        num_samples: B.
        seed: of the draws.
    """
    num = len(residuals)
    length = min(num, bandwidth(num) + 1)
    random = np.random.default_rng(seed)
    centred = residuals - residuals.mean()
    num_blocks = -(-num // length)
    draws = np.empty((num_samples, len(influence)))
    part = max(1, 4_000_000 // num)
    for begin in range(0, num_samples, part):
        size = min(part, num_samples - begin)
        starts = random.integers(0, num - length + 1, (size, num_blocks))
        index = (starts[:, :, None] + np.arange(length)).reshape(size, -1)[:, :num]
        draws[begin : begin + size] = centred[index] @ influence.T
    return draws
