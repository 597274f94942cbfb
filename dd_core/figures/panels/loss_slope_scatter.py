"""Runs as points: a column of ``loss_slopes`` against the best validation loss, families by colour."""

from typing import Any

import altair as alt

from dd_core.analysis.intervals import interval, signed
from dd_core.analysis.loss_slopes.correlation import Correlation
from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import is_worth_it, log_axis
from dd_core.figures.panels.loss_slopes import Runs, val_ce_title


def axis_of(values: list[float]) -> tuple[alt.Scale, alt.Axis]:
    """A logarithmic axis where positive values span a decade, else a linear one without zero."""
    if min(values) > 0 and is_worth_it(values):
        return log_axis(values)
    margin = 0.04 * ((max(values) - min(values)) or abs(values[0]) or 1.0)
    domain = [min(values) - margin, max(values) + margin]
    return alt.Scale(zero=False, nice=False, domain=domain), alt.Axis(tickCount=5, format="~g")


def scatter(
    runs: Runs,
    rows: list[dict[str, Any]],
    column: str,
    title: str | list[str],
    size: tuple[int, int],
    *,
    errors: bool = False,
    behind: str | None = None,
    labels: bool = True,
) -> list[alt.Chart]:
    """Layers of such a panel.

    Args:
        runs: all, for the colours.
        rows: those with a value in ``column`` and in ``best_validation_loss``; at least one.
        column: on the x axis.
        title: of the x axis.
        size: width and height of the panel, pixels.
        errors: whether ``<column>_low`` and ``_high`` are drawn.
        behind: another column in grey, on the same axis, as far as it reaches.
        labels: whether the y axis has a title.
    """
    losses = [row["best_validation_loss"] for row in rows]
    values = [row[column] for row in rows]
    if errors:
        values += [row[end] for row in rows for end in (f"{column}_low", f"{column}_high") if row[end] is not None]
    if behind:
        values = _widened(values, [row[behind] for row in rows if row[behind] is not None])
    y_scale, y_axis = axis_of(losses)
    x_scale, x_axis = axis_of(values)
    y = alt.Y("best_validation_loss:Q", scale=y_scale, axis=y_axis, title=val_ce_title(rows) if labels else None)
    x = alt.X(f"{column}:Q", scale=x_scale, axis=x_axis, title=title)
    names = ["run", "family", "best_validation_loss", column]
    layers = []
    if behind:
        grey = [
            {"value": row[behind], "best_validation_loss": row["best_validation_loss"]}
            for row in rows
            if row[behind] is not None
        ]
        other = alt.X("value:Q", scale=x_scale, axis=x_axis, title=title)
        points = alt.Chart(style.data(grey)).mark_circle(size=16, color="#C4C4C4", opacity=1, clip=True)
        layers.append(points.encode(x=other, y=y))
    if errors:
        names += [f"{column}_low", f"{column}_high"]
    base = alt.Chart(style.data([{name: row[name] for name in names} for row in rows])).encode(
        y=y, color=runs.colour(runs.fitted)
    )
    tooltip = ["run:N", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in names[2:])]
    if errors:
        low = alt.X(f"{column}_low:Q", scale=x_scale, axis=x_axis, title=title)
        layers.append(base.mark_rule(strokeWidth=1, opacity=0.45, clip=True).encode(x=low, x2=f"{column}_high:Q"))
    layers.append(base.mark_circle(size=36, opacity=0.75).encode(x=x, tooltip=tooltip))
    return layers


def _widened(values: list[float], others: list[float]) -> list[float]:
    """The values and what an axis may show of others: twice as far at most, so that they do not crowd the values."""
    room = (max(values) - min(values)) or abs(values[0])
    return [*values, *(other for other in others if min(values) - room / 2 <= other <= max(values) + room / 2)]


def in_words(found: Correlation, name: str = "\u03c1") -> str:
    """``ρ = 0.91 (95 % interval 0.85 to 0.95)``, or why there is none."""
    if found.value is None:
        why = f"{found.why[:1].lower()}{found.why[1:].rstrip('.')}"
        return f"{name} unknown: {'one run is too few' if found.num_runs == 1 else why}"
    ends = f" (95 % interval {interval(found.low, found.high)})" if found.low is not None else " (no interval)"
    return f"{name} = {signed(found.value)}{ends}"


def p_in_words(found: Correlation) -> str:
    """``p = 0.003``, ``p < 1e-6``."""
    if found.p_value is None:
        return "p unknown"
    return "p < 1e-6" if found.p_value < 1e-6 else f"p = {found.p_value:.1g}"
