"""How sure a slope is when neighbouring points are alike: autocorrelation, Newey-West, moving blocks."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

Method = Literal["newey_west", "block_bootstrap", "independent"]
_LARGEST_MEMORY = 0.99


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


def newey_west_lags(num_points: int) -> int:
    """Floor of 4 (n / 100)^(2/9), the rule of Newey & West (1994)."""
    return min(max(num_points - 1, 0), int(4 * (num_points / 100) ** (2 / 9)))


def fixed_b_quantile(share: float) -> float:
    """97.5 % quantile of a t statistic with Bartlett's kernel over a share b of the points (Kiefer & Vogelsang 2005).

    1.96 for b = 0. It grows with b, as the variance is then estimated from fewer independent pieces; with the normal
    quantile intervals are too short.
    """
    return 1.9600 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3


def long_run_covariance(scores: np.ndarray) -> np.ndarray:
    """Covariance (p, p) of the sum of autocorrelated scores (n, p): prewhitened Newey-West.

    A first-order vector autoregression takes most of the autocorrelation out, Newey-West sees what is left, and the
    autoregression is put back (Andrews & Monahan 1992). Its coefficients are corrected for their downward bias where
    regressors have a trend, by (2 + 4 A) / n, and have singular values of at most 0.99. Without it intervals of
    strongly correlated points are far too short. Fewer than 10 p points: plain Newey-West, by statsmodels.
    """
    from statsmodels.stats.sandwich_covariance import S_hac_simple  # takes a second to load

    num, p = scores.shape
    lags = newey_west_lags(num)
    if num < 10 * p:
        return np.asarray(S_hac_simple(scores, nlags=lags))
    now, following = scores[:-1], scores[1:]
    regression = np.linalg.pinv(now) @ following
    left, values, right = np.linalg.svd(regression + (2 * np.eye(p) + 4 * regression) / num)
    regression = left @ (np.minimum(values, _LARGEST_MEMORY)[:, None] * right)
    inner = S_hac_simple(following - now @ regression, nlags=lags) * num / (num - 1)
    colour = np.linalg.inv(np.eye(p) - regression)
    return np.asarray(colour.T @ inner @ colour)


@dataclass(frozen=True)
class Uncertainty:
    """How sure estimated parameters (p,) are.

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

    ``newey_west`` is a sandwich of ``long_run_covariance``, with residuals over 1 - leverage (MacKinnon & White's HC3),
    and intervals by the fixed-b quantile or that of Student's t for the effective sample size, whichever is wider. It
    minds unequal variances, too, as bins of few and many steps have. docs/loss_slopes.md has its measured coverage.
    ``block_bootstrap`` draws moving blocks of residuals (Kunsch 1989), ``independent`` is the textbook's.

    Args:
        jacobian: (n, p), derivative of each fitted value by each parameter; the regressors of a linear model.
        estimate: (p,).
        residuals: (n,), or Huber's psi of them.
        method: see above.
        num_samples: of the bootstrap.
        curvature: (n,), Huber's derivative of psi; ones for least squares.
    """
    num, p = jacobian.shape
    weights = np.ones(num) if curvature is None else curvature
    # In orthonormal regressors, as what autocorrelation does to them must not depend on the parameters' units.
    regressors, values, axes = np.linalg.svd(jacobian, full_matrices=False)
    known = values > 1e-12 * values[0]
    back = axes.T * np.where(known, 1 / np.where(known, values, 1), 0)
    bread = np.linalg.pinv(regressors.T @ (weights[:, None] * regressors), hermitian=True)
    leverage = ((regressors @ bread) * regressors).sum(1) * weights
    free = residuals / np.maximum(1 - leverage, 1e-3)
    if method == "block_bootstrap":
        draws = moving_block_draws(back @ bread @ regressors.T, free, num_samples)
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        return Uncertainty(np.atleast_2d(np.cov(draws.T)), estimate + low, estimate + high)
    if method == "independent":
        freedom = max(num - p, 1)
        inner = (regressors.T @ regressors) * (residuals @ residuals) / freedom
        quantile = _t_quantile(freedom)
    else:
        inner = long_run_covariance(regressors * free[:, None])
        fixed_b = fixed_b_quantile((newey_west_lags(num) + 1) / num)
        quantile = max(fixed_b, _t_quantile(effective_sample_size(residuals) - p))
    covariance = back @ bread @ inner @ bread @ back.T
    half = quantile * np.sqrt(np.maximum(np.diag(covariance), 0))
    return Uncertainty(covariance, estimate - half, estimate + half)


def _t_quantile(freedom: float) -> float:
    return float(scipy.special.stdtrit(max(freedom, 1.0), 0.975))


def block_length(residuals: np.ndarray) -> int:
    """Length of moving blocks: n^(1/3) (Hall et al. 1995) or four correlation times, at most a quarter of all."""
    num = len(residuals)
    return max(1, min(num // 4, math.ceil(max(num ** (1 / 3), 4 * (correlation_time(residuals) - 1)))))


def moving_block_draws(influence: np.ndarray, residuals: np.ndarray, num_samples: int, seed: int = 0) -> np.ndarray:
    """Changes of parameters (B, p) when blocks of neighbouring residuals are drawn anew, with replacement.

    All samples are drawn at once, in parts that fit the memory.

    Args:
        influence: (p, n), the change of parameters by each residual.
        residuals: (n,).
        num_samples: B.
        seed: of the draws.
    """
    num = len(residuals)
    length = block_length(residuals)
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
