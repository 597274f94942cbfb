"""How the curvature at the training images spreads during training, at a narrow, the threshold and a wide network."""

from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import errors_by_width, shown_widths
from dd_core.figures.drawing.selection import MOST_LINES, fetch, select, shown_variants
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study

_PANEL = 230
_QUANTILES = ("p05", "p25", "p50", "p75", "p95")

# Quantiles over images, averaged over trials.
_SPREAD = f"""
    SELECT variant, k, epoch, subset, {", ".join(f"avg(trace_{q}) AS {q}" for q in _QUANTILES)}
    FROM rows WHERE list_contains($drawn, arm) AND list_contains($epochs, epoch) AND isfinite(mean_trace)
    GROUP BY ALL ORDER BY variant, k, subset, epoch
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw quantile bands of the trace against epoch; one row per variant, one column per width."""
    selection = select(connection, study, "curvature")
    if selection is None:
        return None
    widths = errors_by_width(connection, study, selection)
    drawn: dict[str, dict[int, str]] = {}
    shown, others = shown_variants(study, {study.arms[key].variant for key in selection.arms}, MOST_LINES)
    for variant in shown:
        ks = [study.arms[key].k for key in selection.arms if study.arms[key].variant == variant]
        if ks:
            known = widths.get(variant)
            drawn[variant] = shown_widths(ks, known.threshold if known else None)
    keys = [Arm(variant, k).key for variant, ks in drawn.items() for k in ks]
    found = fetch(connection, study, "curvature", _SPREAD, drawn=keys, epochs=list(study.checkpoints))
    spread = style.by_label(found)
    if not spread:
        return None
    title = headline(spread, drawn, selection.epoch, study.data.examples)
    lifted = style.for_log_axis(spread, _QUANTILES)
    colour = style.label_colour(spread)
    lines = {
        variant: _line(names, [row for row in spread if row["variant"] == variant], colour, style.trace_title(study))
        for variant, names in drawn.items()
    }
    return style.finish(
        style.lines_by_variant(lines),
        title,
        [
            *style.describe(study, list(drawn)),
            f"Line: median of the {study.data.examples}; bands: 25 to 75 % and 5 to 95 % of them; quantiles averaged "
            "over trials",
            lifted,
            others,
            selection.note(study),
        ],
        characters=90,
    )


def headline(spread: list[dict[str, Any]], drawn: dict[str, dict[int, str]], epoch: int, examples: str) -> str:
    """One sentence that compares the medians at wrongly and rightly labelled images, or graphs."""
    if len(drawn) > 1:
        return f"Curvature at the training {examples} over training, by variant and width"
    ratios = []
    for k in next(iter(drawn.values())):
        medians = {row["images"]: row["p50"] for row in spread if row["k"] == k and row["epoch"] == epoch}
        if medians.get("right label") and medians.get("wrong label"):
            ratios.append(f"{style.number(medians['wrong label'] / medians['right label'])} times (k = {k})")
    if not ratios:
        return f"Curvature at the training {examples} over training"
    return f"By epoch {epoch} mislabelled {examples} reach {style.listed(ratios)} the median curvature of the others"


def _line(names: dict[int, str], spread: list[dict[str, Any]], colour: alt.Color, words: list[str]) -> alt.HConcatChart:
    scale, ticks = style.epoch_scale(max(row["epoch"] for row in spread))
    y_scale, log_axis = style.log_scale(spread, _QUANTILES)

    def panel(k: int, name: str, *, first: bool) -> style.Panel:
        base = alt.Chart(style.data([row for row in spread if row["k"] == k])).encode(
            x=alt.X("epoch:Q", scale=scale, axis=alt.Axis(values=ticks, labelOverlap="greedy"), title="epoch"),
            color=colour,
        )
        title = words if first else None
        axis = alt.Axis(labels=first, ticks=first, **log_axis)

        def band(lower: str, upper: str, opacity: float) -> alt.Chart:
            y = alt.Y(f"{lower}:Q", scale=y_scale, title=title, axis=axis)
            return base.mark_area(opacity=opacity).encode(y=y, y2=f"{upper}:Q")

        line = base.mark_line(strokeWidth=2).encode(y=alt.Y("p50:Q", scale=y_scale, title=title, axis=axis))
        shown = style.numbers(**dict(zip(_QUANTILES, ("5 %", "25 %", "median", "75 %", "95 %"), strict=True)))
        points = line.mark_circle(size=28, opacity=1).encode(tooltip=["images:N", "epoch:Q", *shown])
        heading = style.heading(_PANEL, f"k = {k}, {name}")
        layers = [band("p05", "p95", 0.14), band("p25", "p75", 0.3), line, points, *heading]
        return alt.layer(*layers).properties(width=_PANEL, height=270)

    panels = [panel(k, name, first=i == 0) for i, (k, name) in enumerate(names.items())]
    return alt.hconcat(*panels, spacing=16)
