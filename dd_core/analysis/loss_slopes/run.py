"""Everything about one run's loss curve, as the rows of ``loss_slopes`` and ``loss_slope_fits``."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dd_core.analysis.loss_slopes.burn_in import burn_in_break
from dd_core.analysis.loss_slopes.curve import FEWEST_POINTS, Curve, clean_curve
from dd_core.analysis.loss_slopes.fits import Errors, Fit, linear_fit
from dd_core.analysis.loss_slopes.knee import knee_epoch_aic, knee_epoch_at_loss
from dd_core.analysis.loss_slopes.plateau import plateau_epoch
from dd_core.analysis.loss_slopes.points import Sampling
from dd_core.analysis.loss_slopes.rows import (
    early_break,
    fit_rows,
    models_of,
    plain_value,
    slope_columns,
    straight_columns,
)
from dd_core.analysis.loss_slopes.slopes import in_bits, linear_slope, scan, start_spread, window_slope
from dd_core.analysis.loss_slopes.spectra import (
    PSD_TAIL,
    RESID_POWER,
    band_mean,
    batch_noise_floor,
    longest_stretch,
    welch_psd,
)
from dd_core.study.loss_slopes import LossSlopeSettings

LATEST_KNEE = 0.4  # share of the training; a break later than that is no burn-in


@dataclass(frozen=True)
class Run:
    """What was recorded of a run.

    Attributes:
        step: int64 (n,), 1-based optimiser steps of batch losses, as recorded: unsorted, twice, with gaps.
        loss: float64 (n,), nats; may hold NaN, infinite, zero and negative ones.
        steps_per_epoch: optimiser steps of an epoch.
        val_step: steps of validation (or test) losses; may be empty.
        val_loss: these, nats.
        lambda_step: steps of the largest Hessian eigenvalue; may be empty.
        largest_eigenvalue: these.
        status: of the training, as in the table.
    """

    step: np.ndarray
    loss: np.ndarray
    steps_per_epoch: float
    val_step: np.ndarray
    val_loss: np.ndarray
    lambda_step: np.ndarray
    largest_eigenvalue: np.ndarray
    status: str = "finished"


def analyse_run(run: Run, settings: LossSlopeSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit all models to a run's loss curve. Whatever the losses are, this does not raise.

    Returns:
        The columns of ``loss_slopes`` from ``outcome`` on (without ``validation_is_test`` and ``source_sha256``), and
        the rows of ``loss_slope_fits`` from ``segment`` on; None where undefined, ``reason`` says why.
    """
    curve = clean_curve(run.step, run.loss, run.steps_per_epoch, settings.largest_loss, run.status)
    columns: dict[str, Any] = dict.fromkeys(_COLUMNS)
    reasons = list(curve.reason)
    columns |= {
        "outcome": curve.outcome,
        "num_steps": curve.num_steps,
        "num_left_out": curve.num_left_out,
        "steps_per_epoch": curve.steps_per_epoch,
        "last_epoch": float(curve.epoch[-1]) if len(curve.step) else None,
        "standard_error_method": settings.standard_error,
        **_validation(run, curve),
        **_lambda(run, curve, settings),
    }
    if len(curve.step):
        columns["loss_at_early_stop"] = curve.mean_of_epoch(settings.early[1])
        columns["last_train_loss"] = curve.mean_of_epoch(math.ceil(curve.epoch[-1] - 1e-9))
    rows: list[dict[str, Any]] = []
    if curve.outcome == "fitted":
        fitted, rows, more = _fits(curve, settings)
        columns |= fitted
        reasons += more
    columns["reason"] = " ".join(reasons) or None
    return {name: plain_value(value) for name, value in columns.items()}, rows


_COLUMNS = (
    *("outcome", "reason", "num_steps", "num_left_out", "steps_per_epoch", "last_epoch", "first_fit_epoch"),
    *("num_points", "effective_sample_size", "standard_error_method", "estimator", "r_squared"),
    *("residual_autocorrelation", "residual_normality", "knee_epoch", "knee_epoch_at_loss", "knee_epoch_break"),
    *("knee_epoch_break_low", "knee_epoch_break_high"),
    *("burn_in_loss", "alpha_early", "alpha_early_standard_error", "alpha_early_low", "alpha_early_high"),
    *("alpha_early_bits", "alpha_early_linear", "alpha_early_linear_bits"),
    *("alpha_full", "alpha_full_standard_error", "alpha_full_low", "alpha_full_high", "alpha_start_spread"),
    *("early_break_epoch", "early_break_slope_before", "early_break_slope_after"),
    *("delta_aic_exponential", "delta_aic_two_power", "delta_aic_offset"),
    *("delta_aic_exponential_plain", "delta_aic_two_power_plain", "delta_aic_offset_plain", "best_model"),
    *("loss_at_early_stop", "last_train_loss", "best_validation_loss", "best_validation_epoch", "last_validation_loss"),
    *(
        "largest_eigenvalue_plateau_epoch",
        "largest_eigenvalue_early",
        "spectral_density_tail",
        "noise_floor",
        "residual_power",
    ),
)


def _validation(run: Run, curve: Curve) -> dict[str, Any]:
    step, loss = np.asarray(run.val_step, dtype=np.float64), np.asarray(run.val_loss, dtype=np.float64)
    order = np.argsort(step, kind="stable")
    step, loss = step[order], loss[order]
    if not len(loss):
        return {}
    final = {"last_validation_loss": float(loss[-1])}
    if not np.isfinite(loss).any():
        return final
    best = int(np.nanargmin(np.where(np.isfinite(loss), loss, np.nan)))
    return {
        "best_validation_loss": float(loss[best]),
        "best_validation_epoch": float(step[best] / curve.steps_per_epoch),
        **final,
    }


def _lambda(run: Run, curve: Curve, settings: LossSlopeSettings) -> dict[str, Any]:
    epoch = np.asarray(run.lambda_step, dtype=np.float64) / curve.steps_per_epoch
    value = np.asarray(run.largest_eigenvalue, dtype=np.float64)
    inside = np.flatnonzero((epoch > settings.early[0]) & (epoch <= settings.early[1] + 1e-9) & np.isfinite(value))
    early = float(value[inside[np.argmax(epoch[inside])]]) if len(inside) else None
    return {
        "largest_eigenvalue_plateau_epoch": plateau_epoch(epoch, value, settings.plateau),
        "largest_eigenvalue_early": early,
    }


def _fits(curve: Curve, settings: LossSlopeSettings) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Columns and rows of a curve that can be fitted, and sentences on what is missing."""
    errors = Errors(settings.standard_error, settings.bootstrap_samples)
    sampling = Sampling(settings.num_points if settings.points == "log_spaced" else None, settings.weights)
    per_epoch = curve.steps_per_epoch
    whole = sampling.points(curve.step, curve.loss)
    reasons: list[str] = []

    last_epoch = float(curve.epoch[-1])
    all_of_it = models_of(whole, errors, settings.smooth_break)
    rows = fit_rows("whole", all_of_it, per_epoch, 0.0, last_epoch)
    by_name = {fit.model: fit for fit in all_of_it}
    latest = LATEST_KNEE * float(curve.step[-1])
    burn_in = burn_in_break(whole, by_name["power"], by_name.get("two_power"), latest, errors)
    knees: dict[str, float | None] = {
        "knee_epoch": knee_epoch_aic(whole, per_epoch),
        "knee_epoch_at_loss": knee_epoch_at_loss(curve, settings.burn_in_loss),
        "knee_epoch_break": None,
    }
    if burn_in is not None:
        parted = burn_in.two.value["break_epoch"] / per_epoch
        stop = last_epoch if burn_in.later is None else burn_in.later / per_epoch
        knees["knee_epoch_break"] = parted
        for end in ("low", "high"):
            knees[f"knee_epoch_break_{end}"] = getattr(burn_in.two, end)["break_epoch"] / per_epoch
        before, after = (linear_fit(side, "power", errors) for side in (burn_in.before, burn_in.after))
        rows += fit_rows("before break", [before], per_epoch, 0.0, parted)
        rows += fit_rows("after break", [after], per_epoch, parted, stop)
    knee = knees[{"aic": "knee_epoch", "loss": "knee_epoch_at_loss", "break": "knee_epoch_break"}[settings.knee]]
    part = curve.window(knee or 0.0, math.inf)
    if knee is None and settings.knee != "break":
        reasons.append("Burn-in does not end as the settings read it, so the whole curve is the straight segment.")
    straight = sampling.points(curve.step[part], curve.loss[part])
    if len(straight) < FEWEST_POINTS:
        reasons.append(
            f"Fewer than {FEWEST_POINTS} points lie after the knee, so the whole curve is the straight segment."
        )
        knee, part, straight = None, slice(0, len(curve.step)), whole
    models = models_of(straight, errors, settings.smooth_break)
    new = fit_rows("straight", models, per_epoch, knee or 0.0, last_epoch)
    rows += new
    columns: dict[str, Any] = {**knees, "first_fit_epoch": knee or 0.0, **straight_columns(models, new)}
    columns["burn_in_loss"] = float(curve.loss[part][: max(1, int(straight.count[0]))].mean())
    columns |= _spectrum(curve, part, models[0])

    early = window_slope(curve, *settings.early, sampling, errors)
    if isinstance(early, str):
        reasons.append("alpha_early is null: " + early)
    else:
        columns |= early_break(rows, knees["knee_epoch_break"], settings.early[1])
        columns |= _early(curve, early, settings, sampling)
        rows += fit_rows("early", [early], per_epoch, *settings.early)
    columns["alpha_start_spread"] = start_spread(curve, settings.starts, settings.early[1], sampling)
    for first, last, fit in scan(curve, settings.scan_starts, settings.scan_stops, sampling, errors):
        rows += fit_rows("scan", [fit], per_epoch, first, last)
    return columns, rows, reasons


def _early(curve: Curve, fit: Fit, settings: LossSlopeSettings, sampling: Sampling) -> dict[str, Any]:
    """The early slope, and the same in the other unit and in linear axes."""
    bits = window_slope(replace(curve, loss=in_bits(curve.loss)), *settings.early, sampling, Errors("independent"))
    linear = linear_slope(curve, *settings.early)
    return {
        **slope_columns("alpha_early", fit),
        "alpha_early_bits": bits.value["slope"] if isinstance(bits, Fit) else None,
        "alpha_early_linear": linear,
        "alpha_early_linear_bits": None if linear is None else float(in_bits(linear)),
    }


def _spectrum(curve: Curve, part: slice, line: Fit) -> dict[str, Any]:
    """Spectrum of the residuals of single steps, around the straight segment's line."""
    step, loss = curve.step[part], curve.loss[part]
    stretch = longest_stretch(step)
    step, loss = step[stretch], loss[stretch]
    fitted = line.value["intercept"] + line.value["slope"] * np.log(step)
    frequency, density, enough = welch_psd(np.log(loss) - fitted)
    columns: dict[str, Any] = {"noise_floor": batch_noise_floor(loss - np.exp(fitted))}
    if enough:
        columns["spectral_density_tail"] = band_mean(frequency, density, PSD_TAIL)
        columns["residual_power"] = band_mean(frequency, density, RESID_POWER)
    return columns
