"""Fits as rows and columns of the tables ``loss_slopes`` and ``loss_slope_fits``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dd_core.analysis.loss_slopes.breaks import two_power_fit
from dd_core.analysis.loss_slopes.criteria import akaike_weights, criteria
from dd_core.analysis.loss_slopes.curved_fits import offset_fit, smooth_break_fit
from dd_core.analysis.loss_slopes.errors import autocorrelation
from dd_core.analysis.loss_slopes.fits import Errors, Fit, linear_fit
from dd_core.analysis.loss_slopes.knee import DECISIVE
from dd_core.analysis.loss_slopes.points import Points, independent_points

# Columns of parameters in a logarithm's or the loss's unit, and their names in ``Fit``.
_PARAMETERS = {name: name for name in ("intercept", "slope", "slope_after", "intercept_after", "offset")}
_PARAMETERS |= {"break_width": "width"}


def models_of(points: Points, errors: Errors, smooth: bool) -> list[Fit]:
    """Every model that the points allow; the power law first."""
    fits: list[Fit | None] = [linear_fit(points, "power", errors), linear_fit(points, "exponential", errors)]
    fits.append(offset_fit(points, errors))
    two = two_power_fit(points, errors)
    fits.append(two)
    if smooth and two is not None:
        fits.append(smooth_break_fit(points, two, errors))
    return [fit for fit in fits if fit is not None]


def fit_rows(
    segment: str, fits: list[Fit], per_epoch: float, first_epoch: float, last_epoch: float
) -> list[dict[str, Any]]:
    """Rows of one segment's models, which share their points; its ends are those asked for, not those of its points."""
    size = independent_points(replace(fits[0].points, adaptive=True))
    rows = []
    for fit in fits:
        num = len(fit.points)
        plain, effective = (criteria(fit.rss, num, fit.num_parameters, m) for m in (None, size))
        row: dict[str, Any] = {
            "segment": segment,
            "model": fit.model,
            "estimator": fit.estimator,
            "first_epoch": first_epoch,
            "last_epoch": last_epoch,
            "num_points": num,
            "effective_sample_size": size,
            "num_parameters": fit.num_parameters,
            **{column: fit.value.get(name) for column, name in _PARAMETERS.items()},
            **{f"{column}_standard_error": fit.standard_error.get(name) for column, name in _PARAMETERS.items()},
            "slope_low": fit.low["slope"],
            "slope_high": fit.high["slope"],
            "break_epoch": _divided(fit.value.get("break_epoch"), per_epoch),
            "break_epoch_low": _divided(fit.low.get("break_epoch"), per_epoch),
            "break_epoch_high": _divided(fit.high.get("break_epoch"), per_epoch),
            "rss": fit.rss,
            "r_squared": fit.r_squared,
            **{name: getattr(plain, name) for name in ("aic", "aicc", "bic")},
            **{f"{name}_effective": getattr(effective, name) for name in ("aic", "aicc", "bic")},
        }
        rows.append(row)
    for suffix in ("", "_effective"):
        weights = akaike_weights([row[f"aicc{suffix}"] for row in rows])
        for row, weight in zip(rows, weights, strict=True):
            row[f"akaike_weight{suffix}"] = float(weight)
    return [{name: plain_value(value) for name, value in row.items()} for row in rows]


def _divided(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def straight_columns(fits: list[Fit], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of the straight segment."""
    line = fits[0]
    rho = autocorrelation(line.standardised)
    columns: dict[str, Any] = {
        "num_points": len(line.points),
        "effective_sample_size": rows[0]["effective_sample_size"],
        "estimator": line.estimator,
        "r_squared": line.r_squared,
        "residual_autocorrelation": float(rho[1]) if len(rho) > 1 else None,
        "residual_normality": normality(line.standardised),
        **slope_columns("alpha_full", line),
    }
    of = {row["model"]: row for row in rows}
    for column, model in (("exponential", "exponential"), ("two_power", "two_power"), ("offset", "power_offset")):
        for suffix, kind in (("", "aicc_effective"), ("_plain", "aicc")):
            one, other = of["power"][kind], of.get(model, {}).get(kind)
            columns[f"delta_aic_{column}{suffix}"] = None if one is None or other is None else other - one
    known = [row for row in rows if row["aicc_effective"] is not None]
    columns["best_model"] = min(known, key=lambda row: row["aicc_effective"])["model"] if known else None
    return columns


def early_break(
    rows: Sequence[Mapping[str, Any]], knee_epoch_break: float | None, early_stop: float
) -> dict[str, float]:
    """Columns on where the power law of the early window ends: the first decisive break after that window.

    Breaks are those of the whole curve, of the straight segment, and the knee, as each may hide another: the whole
    curve's best one is often the end of burn-in, and that is no end of a law that began after it.

    Args:
        rows: of ``loss_slope_fits`` of one run.
        knee_epoch_break: the break that ends burn-in, epochs.
        early_stop: where the early window ends, epochs.
    """
    by_name = {(row["segment"], row["model"]): row for row in rows}
    found: list[tuple[float, float, float]] = []
    for segment in ("whole", "straight"):
        one, two = (by_name.get((segment, model)) for model in ("power", "two_power"))
        criteria_known = one and two and None not in (one["aicc_effective"], two["aicc_effective"])
        if one and two and criteria_known and two["aicc_effective"] < one["aicc_effective"] - DECISIVE:
            found.append((two["break_epoch"], two["slope"], two["slope_after"]))
    if knee_epoch_break is not None:
        before, after = (by_name[segment, "power"] for segment in ("before break", "after break"))
        found.append((knee_epoch_break, before["slope"], after["slope"]))
    late = [each for each in found if each[0] > early_stop]
    names = ("early_break_epoch", "early_break_slope_before", "early_break_slope_after")
    return dict(zip(names, min(late), strict=True)) if late else {}


def normality(residuals: np.ndarray) -> float | None:
    """Correlation of sorted residuals with normal quantiles (Q-Q; Filliben 1975); None of constants."""
    if not np.ptp(residuals) > 0:
        return None
    import scipy.stats  # takes a third of a second to load

    (_, _), (_, _, correlation) = scipy.stats.probplot(residuals)
    return float(correlation)


def slope_columns(name: str, fit: Fit) -> dict[str, float]:
    """A slope with its error and interval, as columns that begin with a name."""
    return {
        name: fit.value["slope"],
        f"{name}_standard_error": fit.standard_error["slope"],
        f"{name}_low": fit.low["slope"],
        f"{name}_high": fit.high["slope"],
    }


def plain_value(value: Any) -> Any:
    """A Python value for a table; None for numbers that are not finite."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
