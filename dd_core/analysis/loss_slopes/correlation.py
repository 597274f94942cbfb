"""Correlations over runs of which some share a configuration, with intervals that know it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

Kind = Literal["pearson", "spearman", "partial"]
KINDS: tuple[Kind, ...] = ("pearson", "spearman", "partial")


@dataclass(frozen=True)
class Correlation:
    """A correlation of two columns.

    Attributes:
        kind: ``pearson``; ``spearman`` (of ranks); ``partial`` (Pearson's, of what covariates leave over).
        value: None where undefined.
        low: lower end of the 95 % bootstrap interval over configurations; None for fewer than three.
        high: its upper end.
        p_value: against 0, by the t test with as many independent runs as the configurations are worth: the runs over
            the design effect (Kish 1965), the ratio of the variances of Fisher's z that bootstraps of configurations
            and of runs find.
        p_value_runs: the textbook's, which counts runs of one configuration as independent.
        num_runs: that have both columns.
        num_configurations: that these are of.
        why: why a value is missing; empty if none is.
    """

    kind: str
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_value_runs: float | None
    num_runs: int
    num_configurations: int
    why: str = ""


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    configuration: np.ndarray,
    kind: Kind,
    num_samples: int,
    covariates: np.ndarray | None = None,
    seed: int = 0,
) -> Correlation:
    """Correlation of (n,) with (n,) over the runs where both are finite.

    Args:
        x: (n,) float64.
        y: (n,) float64.
        configuration: int (n,); the bootstrap draws these whole (Cameron, Gelbach & Miller 2008).
        kind: see ``Correlation``.
        num_samples: of the bootstrap.
        covariates: (n, c), of ``partial``; without a constant.
        seed: of the bootstrap.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    groups = np.unique(configuration[known], return_inverse=True)[1]
    num, num_groups = len(x), int(groups.max()) + 1 if len(x) else 0
    covariates = np.zeros((num, 0)) if covariates is None or kind != "partial" else covariates[known]
    rank = int(np.linalg.matrix_rank(_with_constant(covariates))) if num else 1
    freedom = num - 1 - rank

    def undefined(why: str) -> Correlation:
        return Correlation(kind, None, None, None, None, None, num, num_groups, why)

    if freedom < 1:
        return undefined(f"{num} runs are too few.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return undefined("One of the two is the same in all runs.")
    value = float(_weighted(kind, x, y, covariates, np.ones((1, num)))[0])
    if not math.isfinite(value):
        return undefined("The covariates leave nothing over.")
    value = min(1.0, max(-1.0, value))
    p_runs = _p_value(value, freedom)
    if num_groups < 3:
        why = f"{num_groups} configurations are too few for an interval."
        return Correlation(kind, value, None, None, None, p_runs, num, num_groups, why)
    draws = resampled(kind, x, y, covariates, groups, num_samples, seed)
    draws = draws[np.isfinite(draws)]
    if len(draws) < num_samples / 2:
        why = "Most samples of the bootstrap have no correlation."
        return Correlation(kind, value, None, None, None, p_runs, num, num_groups, why)
    low, high = np.percentile(draws, [2.5, 97.5])
    effect = 1.0
    if num_groups < num:
        alone = resampled(kind, x, y, covariates, np.arange(num), num_samples, seed)
        effect = max(1.0, (_spread(draws) / _spread(alone)) ** 2) if _spread(alone) > 0 else 1.0
    p = _p_value(value, max(num / effect - 1 - rank, 1.0))
    return Correlation(kind, value, float(low), float(high), p, p_runs, num, num_groups)


def _p_value(value: float, freedom: float) -> float:
    return 2 * float(scipy.special.stdtr(freedom, -abs(value) * math.sqrt(freedom / max(1 - value**2, 1e-300))))


def _spread(draws: np.ndarray) -> float:
    """Robust standard deviation of Fisher's z, as some samples of few runs correlate perfectly."""
    z = np.arctanh(np.clip(draws[np.isfinite(draws)], -1 + 1e-6, 1 - 1e-6))
    below, above = np.percentile(z, [15.87, 84.13]) if len(z) else (0.0, 0.0)
    return float(above - below) / 2


def resampled(
    kind: Kind,
    x: np.ndarray,
    y: np.ndarray,
    covariates: np.ndarray,
    groups: np.ndarray,
    num_samples: int,
    seed: int = 0,
) -> np.ndarray:
    """Correlations (B,) of samples of whole groups, drawn with replacement; NaN where a sample has none."""
    return _weighted(kind, x, y, covariates, draw_groups(groups, num_samples, seed))


def draw_groups(groups: np.ndarray, num_samples: int, seed: int = 0) -> np.ndarray:
    """How often each run is in each sample, (B, n): all samples at once. ``groups``: int (n,), from 0."""
    num = int(groups.max()) + 1
    counts = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=num_samples)
    return counts[:, groups].astype(np.float64)


def _with_constant(covariates: np.ndarray) -> np.ndarray:
    return np.hstack([np.ones((len(covariates), 1)), covariates])


def _weighted(kind: Kind, x: np.ndarray, y: np.ndarray, covariates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlations (B,) by weights (B, n), whole numbers that say how often each run is there."""
    if kind == "spearman":
        total = weights.sum(1, keepdims=True)
        one, two = (_ranks(values, weights) - total / 2 for values in (x, y))  # their mean is half the total
        both, first, second = ((weights * a * b).sum(1) for a, b in ((one, two), (one, one), (two, two)))
        return _ratio(both, first, second, np.minimum(first, second) > 0)
    given = covariates if kind == "partial" else covariates[:, :0]
    columns = np.hstack([_with_constant(given), np.stack([x - x.mean(), y - y.mean()], 1)])
    size = columns.shape[1]
    outer = (columns[:, :, None] * columns[:, None, :]).reshape(len(x), -1)
    moments = (weights @ outer).reshape(-1, size, size)
    # What the constant and the covariates leave over of the last two, by the Schur complement.
    a, c, b = moments[:, :-2, :-2], moments[:, :-2, -2:], moments[:, -2:, -2:]
    left = b - np.swapaxes(c, 1, 2) @ np.linalg.pinv(a, hermitian=True) @ c
    variances, before = np.diagonal(left, axis1=1, axis2=2), np.diagonal(b, axis1=1, axis2=2)
    known = np.all(variances > 1e-12 * before, axis=1)
    return _ratio(left[:, 0, 1], variances[:, 0], variances[:, 1], np.asarray(known))


def _ratio(covariance: np.ndarray, one: np.ndarray, two: np.ndarray, known: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, covariance / np.sqrt(np.maximum(one * two, 0)), np.nan)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (B, n) of each run in each sample, from 1/2, where equal values share theirs."""
    distinct, inverse = np.unique(values, return_inverse=True)
    onehot = np.zeros((len(values), len(distinct)))
    onehot[np.arange(len(values)), inverse] = 1
    count = weights @ onehot
    return (np.cumsum(count, 1) - count / 2)[:, inverse]


def categories(*columns: np.ndarray) -> np.ndarray:
    """Indicators (n, c) of the values of columns, all but each column's first."""
    indicators = [np.zeros((len(columns[0]), 0))]
    for column in columns:
        _, inverse = np.unique(column.astype(str), return_inverse=True)
        indicators.append((inverse[:, None] == np.arange(1, inverse.max(initial=0) + 1)).astype(np.float64))
    return np.hstack(indicators)
