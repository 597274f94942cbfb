"""Loss curves with what was fitted to them: the three straightest runs, the three least straight, their residuals."""

import math
from collections.abc import Callable
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import log_axis
from dd_core.figures.drawing.selection import fetch
from dd_core.figures.panels.loss_slopes import read_runs
from dd_core.store.store import Store
from dd_core.study.study import Study

_EACH, _WIDTH, _HEIGHT, _RESIDUALS = 3, 240, 170, 62
_POINTS_PER_DECADE = 40
_CURVE_POINTS = 60
_DATA = "#9A9A9A"
_POWER, _EXPONENTIAL, _OFFSET, _TWO = "power law", "exponential", "power law with offset", "two power laws"
_MODELS = {"power": _POWER, "power_offset": _OFFSET, "exponential": _EXPONENTIAL, "two_power": _TWO}
_COLOURS = {_POWER: style.BLUE, _OFFSET: style.GREEN, _EXPONENTIAL: style.ORANGE, _TWO: style.VERMILLION}

# Geometric means over bins of equal width in log step: one step a bin early on, hundreds late.
_BATCHES = f"""
    SELECT arm, trial, avg(step) AS step, exp(avg(ln(train_loss))) AS loss FROM rows
    JOIN (SELECT unnest($arms_drawn) AS arm, unnest($trials) AS trial) USING (arm, trial)
    WHERE step > 0 AND train_loss > 0 AND isfinite(train_loss)
    GROUP BY arm, trial, floor({_POINTS_PER_DECADE} * log10(step)) ORDER BY arm, trial, step
"""
_FITS = """
    SELECT arm, trial, segment, model, first_epoch, last_epoch, intercept, slope, "offset", break_epoch FROM rows
    JOIN (SELECT unnest($arms_drawn) AS arm, unnest($trials) AS trial) USING (arm, trial)
    WHERE slope IS NOT NULL AND intercept IS NOT NULL AND segment IN ('straight', 'before break', 'after break')
    ORDER BY ALL
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw data and fits of up to six runs, each with the residuals of its power law beneath.

    Raises:
        DataMissingError: there are runs, but none was fitted, or their losses are gone.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    ranked = sorted(runs.having("r_squared"), key=lambda row: -row["r_squared"])
    if not ranked:
        raise DataMissingError(f"no run has fits; {runs.endings()}")
    best, worst = _extremes(ranked)
    drawn = [*best, *worst]
    which = {"arms_drawn": [row["arm"] for row in drawn], "trials": [row["trial"] for row in drawn]}
    points = fetch(connection, study, "training_batches", _BATCHES, **which)
    fits = fetch(connection, study, "loss_slope_fits", _FITS, **which)
    panels = {}
    for row in drawn:
        own = [[r for r in rows if (r["arm"], r["trial"]) == (row["arm"], row["trial"])] for rows in (points, fits)]
        if own[0]:
            panels[row["run"]] = _panel(row, *own)
    if not panels:
        raise DataMissingError("the batch losses of the fitted runs are not there any more")
    lines = [
        (f"straightest of {len(ranked)} runs", [panels[row["run"]] for row in best if row["run"] in panels]),
        ("least straight", [panels[row["run"]] for row in worst if row["run"] in panels]),
    ]
    titled = [_line(words if worst else "", own) for words, own in lines if own]
    return style.finish(
        alt.vconcat(*titled, spacing=34),
        headline(ranked),
        [
            "Points: batch losses, geometric means over bins of log time. Fits: from the knee (dashed) on; two power "
            "laws over the whole run, where they are decisively better than one. Dotted: where the straight segment "
            "breaks, if two power laws have its lowest AICc",
            "Beneath: residuals of the power law, in log loss; what has a shape there is not in the line",
            *runs.describe(study),
        ],
        characters=100 if len(drawn) > 2 else 74,
    )


def _extremes(ranked: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The best and the worst of runs in order; no run is both."""
    each = min(_EACH, -(-len(ranked) // 2)) if len(ranked) > 1 else 1
    worst = ranked[max(each, len(ranked) - _EACH) :]
    return ranked[:each], worst


def headline(ranked: list[dict[str, Any]]) -> str:
    """How straight the straightest and the least straight run are."""
    best, worst = ranked[0], ranked[-1]
    if best is worst:
        return f"The loss curve of {best['run']} is a straight line with R\u00b2 = {best['r_squared']:.4f}"
    return (
        f"R\u00b2 of a straight line ranges from {worst['r_squared']:.4f} ({worst['run']}) to {best['r_squared']:.4f} "
        f"({best['run']})"
    )


def _line(words: str, panels: list[Any]) -> alt.HConcatChart:
    line = alt.hconcat(*panels, spacing=26)
    return line.properties(title=alt.TitleParams(words, fontSize=12, anchor="start", offset=8)) if words else line


def curves(fits: list[dict[str, Any]], steps_per_epoch: float) -> list[dict[str, Any]]:
    """Fitted losses along their windows.

    Args:
        fits: rows of ``loss_slope_fits`` of one run.
        steps_per_epoch: its optimiser steps of an epoch.

    Returns:
        Rows with ``model`` in words, ``part`` (what is drawn in one stroke), ``epoch`` and ``loss``. Two power laws
        need not meet where they part.
    """
    by_name = {(fit["segment"], fit["model"]): fit for fit in fits}
    made = []

    def add(model: str, fit: dict[str, Any], last: float, log_loss: Callable[[float], float], part: int = 0) -> None:
        start = max(fit["first_epoch"], 1 / steps_per_epoch)
        for epoch in np.geomspace(start, last, _CURVE_POINTS).tolist() if last > start else ():
            loss = math.exp(min(log_loss(epoch * steps_per_epoch), 700.0))
            made.append({"model": model, "part": part, "epoch": float(f"{epoch:.5g}"), "loss": float(f"{loss:.5g}")})

    def power(fit: dict[str, Any]) -> Callable[[float], float]:
        return lambda step: float(fit["intercept"] + fit["slope"] * math.log(step))

    if line := by_name.get(("straight", "power")):
        add(_POWER, line, line["last_epoch"], power(line))
    if offset := by_name.get(("straight", "power_offset")):
        above = power(offset)
        add(_OFFSET, offset, offset["last_epoch"], lambda step: math.log(math.exp(above(step)) + offset["offset"]))
    if decay := by_name.get(("straight", "exponential")):
        add(_EXPONENTIAL, decay, decay["last_epoch"], lambda step: float(decay["intercept"] + decay["slope"] * step))
    before, after = (by_name.get((segment, "power")) for segment in ("before break", "after break"))
    if before and after:
        add(_TWO, before, after["first_epoch"], power(before))
        add(_TWO, after, after["last_epoch"], power(after), part=1)
    return made


def _panel(run: dict[str, Any], points: list[dict[str, Any]], fits: list[dict[str, Any]]) -> alt.VConcatChart:
    steps_per_epoch = run["steps_per_epoch"]
    for row in points:
        row["epoch"] = float(f"{row['step'] / steps_per_epoch:.5g}")
    fitted = curves(fits, steps_per_epoch)
    scale, x_axis = log_axis([points[0]["epoch"], points[-1]["epoch"] * 1.0001])
    losses = [row["loss"] for row in points]
    y_scale, y_axis = log_axis([min(losses), max(losses) * 1.0001])
    shown = [name for name in _COLOURS if any(row["model"] == name for row in fitted)]
    colours = alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values()))
    colour = alt.Color("model:N", scale=colours, legend=style.line_legend(columns=4) if shown else None)
    above_axis = alt.Axis(values=x_axis.values, labels=False, ticks=False)
    x = alt.X("epoch:Q", scale=scale, axis=above_axis, title=None)
    y = alt.Y("loss:Q", scale=y_scale, axis=y_axis, title="batch loss, nats")
    kept = [{name: row[name] for name in ("epoch", "loss")} for row in points]
    tooltip = [alt.Tooltip("epoch:Q", format=".3g"), alt.Tooltip("loss:Q", format=".3g")]
    layers = [
        alt.Chart(style.csv_data(kept)).mark_circle(size=12, color=_DATA, opacity=1).encode(x=x, y=y, tooltip=tooltip)
    ]
    # The broad line first: where one power law is enough, both lie on each other.
    for names, width, opacity in (((_TWO,), 5.0, 0.45), ((_POWER, _OFFSET, _EXPONENTIAL), 1.6, 1.0)):
        if rows := [row for row in fitted if row["model"] in names]:
            lines = alt.Chart(style.csv_data(rows)).mark_line(strokeWidth=width, opacity=opacity, clip=True)
            said = [alt.Tooltip("model:N"), *style.numbers(epoch="epoch", loss="loss")]
            dots = lines.mark_circle(size=40, opacity=0, clip=True).encode(tooltip=said)
            layers += [layer.encode(x=x, y=y, color=colour, detail=alt.Detail("part:N")) for layer in (lines, dots)]
    inner = next((fit for fit in fits if (fit["segment"], fit["model"]) == ("straight", "two_power")), None)
    breaks = run["best_model"] == "two_power" and inner is not None
    knee = [
        *_rule(run["first_fit_epoch"], points, x, [4, 3], style.GREY),
        *_rule(inner["break_epoch"] if breaks and inner else None, points, x, [1, 2], style.VERMILLION),
    ]
    words = f"R\u00b2 = {run['r_squared']:.4f}, lowest AICc: {_MODELS.get(run['best_model'], 'unknown')}"
    top = alt.layer(*layers, *knee, *style.heading(_WIDTH, run["run"], words)).properties(width=_WIDTH, height=_HEIGHT)
    power = next((fit for fit in fits if (fit["segment"], fit["model"]) == ("straight", "power")), None)
    if power is None:
        return alt.vconcat(top)
    below = _residuals(points, power, alt.X("epoch:Q", scale=scale, axis=x_axis, title="epoch"), knee)
    return alt.vconcat(top, below, spacing=8)


def _rule(epoch: float | None, points: list[dict[str, Any]], x: alt.X, dash: list[int], colour: str) -> list[alt.Chart]:
    """A line at an epoch, if that is within what is drawn."""
    if epoch is None or not points[0]["epoch"] <= epoch <= points[-1]["epoch"]:
        return []
    rule = alt.Chart(style.data([{"epoch": epoch}]))
    return [rule.mark_rule(color=colour, strokeDash=dash, strokeWidth=1.3).encode(x=x)]


def _residuals(points: list[dict[str, Any]], power: dict[str, Any], x: alt.X, knee: list[alt.Chart]) -> style.Panel:
    rows = [
        {
            "epoch": row["epoch"],
            "residual": math.log(row["loss"]) - power["intercept"] - power["slope"] * math.log(row["step"]),
        }
        for row in points
        if power["first_epoch"] <= row["epoch"] <= power["last_epoch"]
    ]  # fmt: skip
    most = max((abs(row["residual"]) for row in rows), default=1.0) or 1.0
    y = alt.Y(
        "residual:Q", title="residual", scale=alt.Scale(domain=[-1.1 * most, 1.1 * most], nice=False),
        axis=alt.Axis(tickCount=3, format="~g"),
    )  # fmt: skip
    zero = alt.Chart(style.data([{"residual": 0}])).mark_rule(color=style.BLUE, strokeWidth=1.2).encode(y=y)
    base = alt.Chart(style.data(rows)).mark_circle(size=12, color=_DATA, opacity=1).encode(x=x, y=y)
    return alt.layer(zero, base, *(rule.encode(x=x) for rule in knee)).properties(width=_WIDTH, height=_RESIDUALS)
