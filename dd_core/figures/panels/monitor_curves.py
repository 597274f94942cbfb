"""What monitors measured: which arms, metrics and steps are drawn, their means and bands, and the words for them."""

from collections.abc import Collection
from typing import Any

import duckdb

from dd_core.figures.charts.training_curves import thin
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON, errors_by_width, shown_widths
from dd_core.figures.drawing.selection import MOST_LINES, fetch, select, shown_variants
from dd_core.study.study import Arm, Study

_MOST_CUSTOM, _MOST_STEPS = 6, 100

_CURVATURE = "nats per squared weight"
# Words for a metric and the unit of its axis.
_METRICS = {
    "validation_loss": ("validation loss", "nats"),
    "validation_error": ("validation error", ""),
    "gradient_norm": ("norm of the batch gradient", "nats per weight"),
    "weight_norm": ("norm of all weights", "weight units"),
    "largest_eigenvalue": ("largest Hessian eigenvalue", _CURVATURE),
    "hessian_trace": ("trace of the Hessian", _CURVATURE),
    "gradient_variance": ("variance of the batch gradient", "nats² per weight²"),
    "spectral_density_tail": ("fastest fluctuations of the loss", ""),
    "residual_power": ("slow fluctuations of the loss", ""),
    "dormant_units": ("dormant units", "share of all"),
    "effective_rank": ("effective rank of the features", "directions"),
    "stable_rank": ("stable rank of the features", "directions"),
}
_NOISE_UNITS = {
    "density": {"spectral_density_tail": "per (cycle per step)", "residual_power": "variance of log loss"},
    "periodogram": {"spectral_density_tail": "squared amplitude", "residual_power": "squared amplitudes"},
    "ratio": {"spectral_density_tail": "ratio of powers", "residual_power": "squared amplitudes"},
}
# How far an estimate may be off is no panel of its own.
_HIDDEN = {"largest_eigenvalue_residual"}

_STEPS = """
    SELECT variant, metric, list(DISTINCT step) AS steps FROM rows
    WHERE list_contains($drawn, arm) AND isfinite(value) AND step IS NOT NULL GROUP BY ALL
"""
# What is not estimated by sampling has no standard error.
_CURVES = """
    SELECT variant, k, metric, step, avg(value) AS value, min(value - error) AS low, max(value + error) AS high
    FROM (SELECT *, if(isfinite(standard_error), standard_error, 0) AS error FROM rows)
    JOIN (SELECT unnest($variants) AS variant, unnest($metrics) AS metric, unnest($steps) AS step)
    USING (variant, metric, step)
    WHERE list_contains($drawn, arm) AND isfinite(value) GROUP BY ALL ORDER BY variant, k, metric, step
"""
_EXTREMES = """
    SELECT variant, k, metric, arg_min(step, value) AS lowest, arg_max(step, value) AS highest FROM (
        SELECT variant, k, metric, step, avg(value) AS value FROM rows
        WHERE list_contains($drawn, arm) AND isfinite(value) AND step IS NOT NULL GROUP BY ALL
    ) GROUP BY ALL ORDER BY variant, metric, k
"""
_FITTED = """
    SELECT variant, k, min(epoch) AS epoch FROM (
        SELECT variant, k, epoch FROM rows WHERE list_contains($drawn, arm)
        GROUP BY ALL HAVING avg(train_error) <= $epsilon
    ) GROUP BY ALL ORDER BY variant, k
"""


def roles_by_variant(
    connection: duckdb.DuckDBPyConnection, study: Study, arms: Collection[str]
) -> tuple[dict[str, dict[int, str]], str | None]:
    """Which widths of which variants are drawn and what they stand for, and a sentence about the other variants."""
    selection = select(connection, study, "training_evals")
    errors = {} if selection is None else errors_by_width(connection, study, selection)
    widths = {name: [k for k in study.all_widths if Arm(name, k).key in arms] for name in study.variants}
    roles = {
        name: shown_widths(ks, errors[name].threshold if name in errors else None) for name, ks in widths.items() if ks
    }
    shown, others = shown_variants(study, roles, MOST_LINES)
    return {name: roles[name] for name in shown}, others


def read_curves(connection: duckdb.DuckDBPyConnection, study: Study, drawn: list[str]) -> list[dict[str, Any]]:
    """Mean over trials and its band at up to ``_MOST_STEPS`` steps of every metric, ascending, with their epochs."""
    kept = [
        (row["variant"], row["metric"], step)
        for row in fetch(connection, study, "training_monitors", _STEPS, drawn=drawn)
        for step in thin(row["steps"], _MOST_STEPS)
    ]
    if not kept:
        return []
    variants, metrics, steps = map(list, zip(*kept, strict=True))
    parameters = {"variants": variants, "metrics": metrics, "steps": steps, "drawn": drawn}
    curves = fetch(connection, study, "training_monitors", _CURVES, **parameters)
    times = {variant: study.calendar(variant).time_of for variant in {row["variant"] for row in curves}}
    return [{**row, "epoch": round(float(times[row["variant"]](row["step"])), 4)} for row in curves]


def metrics_shown(present: Collection[str]) -> tuple[list[str], list[str]]:
    """The metrics with a panel: the platform's own, then some of the user's; and those without."""
    own = [metric for metric in _METRICS if metric in present]
    others = sorted(set(present) - set(_METRICS) - _HIDDEN)
    return [*own, *others[:_MOST_CUSTOM]], others[_MOST_CUSTOM:]


def read_fitted(connection: duckdb.DuckDBPyConnection, study: Study, drawn: list[str]) -> list[dict[str, Any]]:
    """The first epoch at which the mean training error is at most ``EPSILON``, by variant and k."""
    return fetch(connection, study, "training_evals", _FITTED, drawn=drawn, epsilon=EPSILON)


def read_extremes(connection: duckdb.DuckDBPyConnection, study: Study, drawn: list[str]) -> list[dict[str, Any]]:
    """The steps at which the mean over trials of every metric is lowest and highest, of all steps there are."""
    return fetch(connection, study, "training_monitors", _EXTREMES, drawn=drawn)


def words_of(study: Study, metric: str) -> tuple[str, str]:
    """What a metric is and its unit."""
    noise = study.monitors.noise
    if metric in ("spectral_density_tail", "residual_power") and noise is not None:
        return _METRICS[metric][0], _NOISE_UNITS[noise.psd][metric]
    return _METRICS.get(metric, (metric, ""))


def headline(study: Study, roles: dict[str, dict[int, str]], extremes: list[dict[str, Any]]) -> str:
    """One sentence: when validation loss is lowest and curvature highest, or else what is shown."""
    if len(roles) > 1:
        return "Losses, norms, curvature and gradient noise during training, by variant"
    (variant,) = roles
    parts: list[str] = []
    for metric, which, words in (
        ("validation_loss", "lowest", "validation loss is lowest"),
        ("largest_eigenvalue", "highest", "the largest eigenvalue of the Hessian is highest"),
        ("gradient_norm", "highest", "the gradient is largest"),
    ):
        epochs = [
            f"{style.number(float(study.calendar(variant).time_of(row[which])), 3)} (k = {row['k']})"
            for row in extremes
            if row["metric"] == metric
        ]
        if epochs and len(parts) < 2:
            parts.append(f"{words} at epoch {style.listed(epochs)}")
    sentence = "; ".join(parts) or "what monitors measured during training"
    return sentence[0].upper() + sentence[1:]
