"""Curvature of the loss at the training images against width, below the test error to compare their peaks."""

from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.double_descent import curvature_peak, fold
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import Widths, errors_by_width
from dd_core.figures.drawing.selection import fetch, select, shown_variants
from dd_core.figures.panels.test_error import test_error_panels, test_errors
from dd_core.store.store import Store
from dd_core.study.study import Study

_VALUES = ("trace", "low", "high")

# Mean and extremes over trials of each trial's mean and median over images.
_TRACES = """
    SELECT variant, k, subset, statistic, avg(value) AS trace, min(value) AS low, max(value) AS high FROM (
        SELECT variant, k, subset, 'mean' AS statistic, mean_trace AS value FROM rows
        WHERE epoch = $epoch
        UNION ALL
        SELECT variant, k, subset, 'median', trace_p50 FROM rows WHERE epoch = $epoch
    ) WHERE isfinite(value) GROUP BY ALL ORDER BY variant, subset, statistic, k
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw test error and curvature against width at the latest checkpoint epoch whose curvature all arms have."""
    selection = select(connection, study, "curvature")
    if selection is None:
        return None
    traces = fetch(connection, study, "curvature", _TRACES, epoch=selection.epoch)
    if not traces:
        return None
    widths = errors_by_width(connection, study, selection)
    errors = test_errors(connection, study, selection)
    variants, others = shown_variants(study, {row["variant"] for row in traces})
    title = f"Test error and curvature at the training {study.data.examples} against width, by variant"
    if len(variants) == 1:
        title = headline(traces, widths.get(variants[0]), study.data.examples)
    together = _of_all(traces)
    shown = [*together, *style.by_label(traces)]
    lifted = style.for_log_axis(shown, _VALUES)
    colour = style.label_colour(shown)
    panels = {
        variant: _panels(
            [row for row in shown if row["variant"] == variant],
            [row for row in errors if row["variant"] == variant],
            widths[variant].threshold if variant in widths else None,
            colour,
            style.trace_title(study),
        )
        for variant in variants
    }
    return style.finish(
        style.by_variant(panels),
        title,
        [
            *style.describe(study, variants, selection.epoch),
            f"Line: mean over trials of mean and median over {study.data.examples}; band: lowest to highest trial"
            + ("; all labels: mean only" if any(row["images"] == style.ALL_LABELS for row in together) else ""),
            lifted,
            others,
            selection.note(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def _of_all(traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over all, which the title is about, of variants whose right and wrong labels are drawn apart."""
    noisy = {row["variant"] for row in traces if row["subset"] == "noisy"}
    return [
        {**row, "images": style.ALL_LABELS}
        for row in traces
        if row["variant"] in noisy and (row["subset"], row["statistic"]) == ("all", "mean")
    ]


def headline(traces: list[dict[str, Any]], widths: Widths | None, examples: str) -> str:
    """One sentence on where the mean curvature over all images (or graphs) peaks, and how far it falls from there."""
    means = {row["k"]: row["trace"] for row in traces if row["subset"] == "all" and row["statistic"] == "mean"}
    if sum(value > 0 for value in means.values()) < 3:
        return f"Curvature at the training {examples} against width"
    top = curvature_peak(means)
    if top is None:
        return f"Mean curvature at the training {examples} has no peak within these widths"
    where = f"peaks at k = {top.k}"
    if widths and widths.peak:
        same = widths.peak.k == top.k
        where += ", as test error does," if same else f" (test error: k = {widths.peak.k})"
    fall = f"falls {fold(top.value - top.after)} to k = {top.k_after}"
    return f"Mean curvature at the training {examples} {where} and {fall}"


def _panels(
    rows: list[dict[str, Any]],
    errors: list[dict[str, Any]],
    threshold: int | None,
    colour: alt.Color,
    title: list[str],
) -> alt.VConcatChart:
    ks = sorted({row["k"] for row in rows})
    base = alt.Chart(style.data(rows)).encode(
        x=style.k_axis(ks),
        color=colour,
        detail="statistic:N",
    )
    dash = alt.StrokeDash(
        "statistic:N",
        scale=alt.Scale(domain=["mean", "median"], range=[[1, 0], [5, 3]]),
        legend=style.line_legend(),
    )
    scale, axis = style.log_scale(rows, _VALUES)
    trace_band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", scale=scale, title=title, axis=alt.Axis(**axis)), y2="high:Q"
    )
    trace_line = base.mark_line(strokeWidth=2).encode(y=alt.Y("trace:Q", title=title), strokeDash=dash)
    points = base.mark_circle(size=34, opacity=1).encode(
        y=alt.Y("trace:Q"),
        tooltip=["images:N", "statistic:N", "k:Q", *style.numbers(trace="trace", low="lowest", high="highest")],
    )
    bottom = alt.layer(*style.threshold_rule(threshold, ks), trace_band, trace_line, points).properties(
        width=style.WIDTH, height=250
    )
    return alt.vconcat(*test_error_panels(errors, ks, threshold), bottom, spacing=14)
