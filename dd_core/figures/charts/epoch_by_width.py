"""Test error over epoch and width, as a map and as curves, with the epoch from which on labels are fitted."""

import math
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.charts.training_curves import thin
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON
from dd_core.figures.drawing.selection import fetch, select, shown_variants
from dd_core.figures.drawing.zoom import zoomable
from dd_core.store.store import Store
from dd_core.study.study import Study

MAX_COLUMNS = 60
_MARK = f"first epoch with training error at most {style.percent(EPSILON)}"

# Every evaluation belongs to the last kept epoch before it; a cell is the mean over its evaluations and the trials.
# Cells reach a little under the next one, which is drawn over them, so that no background shows between the two.
_CELLS = """
    SELECT variant, k, first AS epoch, x_low, 1.01 * x_high AS x_high, 100 * avg(test_error) AS error
    FROM rows
    ASOF JOIN (SELECT unnest($kept) AS first, unnest($low) AS x_low, unnest($high) AS x_high) AS columns
    ON rows.epoch >= columns.first
    WHERE isfinite(test_error) GROUP BY ALL ORDER BY variant, k, first
"""
_FITTED = """
    SELECT variant, k, min(epoch) AS epoch FROM (
        SELECT variant, k, epoch FROM rows GROUP BY ALL HAVING avg(train_error) <= $epsilon
    ) GROUP BY ALL ORDER BY variant, k
"""
_LIMITS = (
    "SELECT quantile_cont(100 * test_error, [0.01, 0.9]) AS limits FROM rows WHERE epoch > 0 AND isfinite(test_error)"
)


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the heat map, and below it the same errors as a curve for each width; side by side for variants."""
    selection = select(connection, study, "training_evals")
    if selection is None:
        return None
    found = fetch(connection, study, "training_evals", "SELECT DISTINCT epoch FROM rows ORDER BY epoch")
    epochs = [row["epoch"] for row in found]
    columns = column_edges(epochs)
    cells = fetch(connection, study, "training_evals", _CELLS, **columns)
    if not cells:
        return None
    fitted = fetch(connection, study, "training_evals", _FITTED, epsilon=EPSILON)
    limits = fetch(connection, study, "training_evals", _LIMITS)[0]["limits"] or [0, 100]
    variants, others = shown_variants(study, {row["variant"] for row in cells})
    ks = sorted({row["k"] for row in cells if row["variant"] in variants})
    ends = (columns["low"][0], columns["high"][-1])
    domain = (math.floor(limits[0]), max(math.ceil(limits[1]), math.floor(limits[0]) + 2))
    panels = {}
    for number, variant in enumerate(variants):
        own = [row for row in cells if row["variant"] == variant]
        labelled = [row for row in fitted if row["variant"] == variant]
        curves = _curves(own, labelled, ends, epochs[-1], domain, ks, number)
        several = len({row["k"] for row in own}) > 1  # a map of one row says less than its curve
        heat = [_panel(own, labelled, ends, epochs[-1], domain)] if several else []
        panels[variant] = alt.vconcat(*heat, zoomable(curves, f"curves_{number}"), spacing=18).resolve_scale(
            color="independent"
        )
    return style.finish(
        style.by_variant(panels),
        headline(cells, fitted) if len(variants) == 1 else "Test error over epoch and width, by variant",
        [
            *style.describe(study, variants),
            f"Mean over trials, and over the evaluations of a column. Dots: {_MARK}",
            "In the interactive page a click on a width in the legend shows it alone" if len(ks) > 1 else None,
            others,
            selection.note(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def column_edges(epochs: list[int]) -> dict[str, list[float]]:
    """Columns that are about equally wide on a logarithmic axis.

    Args:
        epochs: the evaluated epochs, ascending.

    Returns:
        ``kept``, the first epoch of each column, and its edges ``low`` and ``high``, halfway between evaluations.
    """
    kept = thin(epochs, MAX_COLUMNS)
    position = {epoch: i for i, epoch in enumerate(epochs)}
    inner = [(epochs[position[epoch] - 1] + epoch) / 2 for epoch in kept[1:]]
    step = epochs[-1] - epochs[-2] if len(epochs) > 1 else 1
    # Half an epoch before the first: the axis, log(1 + epoch), has no room for a whole one.
    low = [epochs[0] - 0.5, *inner]
    return {"kept": [float(epoch) for epoch in kept], "low": low, "high": [*inner, epochs[-1] + step / 2]}


def headline(cells: list[dict[str, Any]], fitted: list[dict[str, Any]]) -> str:
    """One sentence about the widths whose test error rises from its minimum and then falls, by a point or more each."""
    ks = sorted({row["k"] for row in cells})
    twice = []
    for k in ks:
        errors = [row["error"] for row in cells if row["k"] == k]
        lowest = errors.index(min(errors))
        highest = max(errors[lowest:])
        if highest - errors[lowest] >= 1 and highest - errors[-1] >= 1:
            twice.append(k)
    if twice:
        return (
            f"At {len(twice)} of {len(ks)} widths (k = {', '.join(map(str, twice))}) test error falls, rises and falls "
            "again during training"
        )
    return f"Test error over epoch and width; {len(fitted)} of {len(ks)} widths fit their training labels"


def _panel(
    cells: list[dict[str, Any]],
    fitted: list[dict[str, Any]],
    ends: tuple[float, float],
    last: int,
    limits: tuple[int, int],
) -> style.Panel:
    ks = sorted({row["k"] for row in cells}, reverse=True)
    _, ticks = style.epoch_scale(last)
    y = alt.Y("k:O", sort=ks, title="width multiplier k", scale=alt.Scale(domain=ks, paddingInner=0.04))
    scale = alt.Scale(type="symlog", constant=1, domain=list(ends), nice=False)
    x = alt.X("x_low:Q", scale=scale, title="epoch", axis=alt.Axis(values=ticks, grid=False, format="d"))
    colour = alt.Color(
        "error:Q",
        title=["test error, %", f"(up to {limits[0]}, from {limits[1]}: one colour)"],
        scale=alt.Scale(scheme="viridis", domain=list(limits), clamp=True),
        legend=alt.Legend(gradientLength=180, tickCount=6, format="d"),
    )
    heat = alt.Chart(style.csv_data(cells)).mark_rect(clip=True).encode(
        x=x, x2="x_high:Q", y=y, color=colour,
        tooltip=["k:O", alt.Tooltip("epoch:Q", title="from epoch"), *style.numbers(error="test error, %")],
    )  # fmt: skip
    dots = alt.Chart(style.data(fitted)).mark_circle(
        size=46, color="white", stroke="black", strokeWidth=1.2, opacity=1
    ).encode(
        x=alt.X("epoch:Q", scale=scale), y=y, tooltip=["k:O", alt.Tooltip("epoch:Q", title=_MARK)]
    )  # fmt: skip
    return alt.layer(heat, dots).properties(width=style.WIDTH, height=max(180, min(26 * len(ks), 480)))


def _curves(
    cells: list[dict[str, Any]],
    fitted: list[dict[str, Any]],
    ends: tuple[float, float],
    last: int,
    limits: tuple[int, int],
    ks: list[int],
    number: int,
) -> style.Panel:
    """The same errors against epoch, a line for each width; before they come down to the map's range they are cut."""
    _, ticks = style.epoch_scale(last)
    scale = alt.Scale(type="symlog", constant=1, domain=list(ends), nice=False)
    x = alt.X("epoch:Q", scale=scale, title="epoch", axis=alt.Axis(values=ticks, format="d"))
    y = alt.Y("error:Q", title="test error, %", scale=alt.Scale(domain=[0, 1.05 * limits[1]], nice=False))
    shades = alt.Scale(domain=ks, scheme=alt.SchemeParams(name="turbo", extent=[0.03, 0.97]))
    legend = alt.Legend(title="k", symbolType="stroke", symbolStrokeWidth=3, symbolLimit=0, columns=-(-len(ks) // 12))
    colour = alt.Color("k:O", scale=shades, legend=legend)
    kept = [{name: row[name] for name in ("k", "epoch", "error")} for row in cells]
    at = {(row["k"], row["epoch"]): row["error"] for row in cells}
    starts = {row["k"]: [epoch for k, epoch in at if k == row["k"] and epoch <= row["epoch"]] for row in fitted}
    marks = [row | {"error": at[row["k"], max(starts[row["k"]])]} for row in fitted if starts[row["k"]]]
    chosen = alt.selection_point(name=f"width_{number}", fields=["k"], bind="legend")
    opacity = alt.condition(chosen, alt.value(1), alt.value(0.08))
    base = alt.Chart(style.csv_data(kept)).encode(x=x, y=y, color=colour, opacity=opacity)
    shown = ["k:O", alt.Tooltip("epoch:Q", title="from epoch"), *style.numbers(error="test error, %")]
    dots = alt.Chart(style.data(marks)).mark_circle(size=46, stroke="black", strokeWidth=1.2)
    dots = dots.encode(x=x, y=y, color=colour, opacity=opacity, tooltip=shown)
    layers = [base.mark_line(strokeWidth=1.8), base.mark_circle(size=14).encode(tooltip=shown), dots]
    return alt.layer(*layers).properties(width=style.WIDTH, height=230).add_params(chosen)
