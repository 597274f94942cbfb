"""Largest eigenvalue and trace of the Hessian in the weights against width, below the test error."""

from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.double_descent import curvature_peak, fold
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import Widths
from dd_core.figures.drawing.selection import select, shown_variants
from dd_core.figures.panels import weight_hessian
from dd_core.figures.panels.test_error import test_error_panels, test_errors
from dd_core.store.store import Store
from dd_core.study.study import Study


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw them at the latest checkpoint epoch whose Hessian all analysed arms have."""
    selection = select(connection, study, "hessian_spectra")
    if selection is None:
        return None
    trials = weight_hessian.trials(connection, study, [selection.epoch])
    rows = weight_hessian.long(trials)
    if not rows:
        return None
    widths = weight_hessian.thresholds(connection, study, selection)
    errors = test_errors(connection, study, selection)
    variants, others = shown_variants(study, {row["variant"] for row in rows})
    title = "Test error and the Hessian in the weights against width, by variant"
    if len(variants) == 1:
        title = headline(weight_hessian.means(rows), widths.get(variants[0]))
    lifted = style.for_log_axis(rows, ("value", "low", "high"))
    colour = weight_hessian.colour(rows)
    overlaps = [row for row in trials if row["overlap"] is not None]
    panels = {
        variant: _panels(
            [row for row in rows if row["variant"] == variant],
            [row for row in overlaps if row["variant"] == variant],
            [row for row in errors if row["variant"] == variant],
            widths[variant].threshold if variant in widths else None,
            colour,
        )
        for variant in variants
    }
    return style.finish(
        style.by_variant(panels),
        title,
        [
            *style.describe(study, variants, selection.epoch),
            weight_hessian.about(study, trials),
            weight_hessian.about_marks(trials),
            lifted,
            others,
            selection.note(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def headline(means: list[dict[str, Any]], widths: Widths | None) -> str:
    """One sentence on where the largest eigenvalue, or else the trace, peaks, and how far it falls from there."""
    present = {row["quantity"] for row in means}
    quantity = weight_hessian.LARGEST if weight_hessian.LARGEST in present else weight_hessian.TRACE
    values = {row["k"]: row["value"] for row in means if row["quantity"] == quantity and row["value"] > 0}
    what = f"The {quantity} of the Hessian in the weights"
    if len(values) < 3:
        return "Test error and the Hessian in the weights against width"
    top = curvature_peak(values)
    if top is None:
        return f"{what} has no peak within these widths"
    where = f"peaks at k = {top.k}"
    if widths and widths.peak:
        same = widths.peak.k == top.k
        where += ", as test error does," if same else f" (test error: k = {widths.peak.k})"
    return f"{what} {where} and falls {fold(top.value - top.after)} to k = {top.k_after}"


def _panels(
    rows: list[dict[str, Any]],
    overlaps: list[dict[str, Any]],
    errors: list[dict[str, Any]],
    threshold: int | None,
    colour: alt.Color,
) -> alt.VConcatChart:
    ks = sorted({row["k"] for row in rows})
    scale, axis = style.log_scale(rows, ("value", "low", "high"))
    y = alt.Y("value:Q", scale=scale, title=["Hessian in the weights,", weight_hessian.UNIT], axis=alt.Axis(**axis))
    x = style.k_axis(ks, labels=not overlaps)
    curves = weight_hessian.layers(rows, x, y, colour, ["quantity:N", "k:Q"])
    middle = alt.layer(*style.threshold_rule(threshold, ks), *curves).properties(width=style.WIDTH, height=250)
    return alt.vconcat(
        *test_error_panels(errors, ks, threshold),
        middle,
        *([_overlap(overlaps, ks, threshold)] if overlaps else []),
        spacing=14,
    )


def _overlap(rows: list[dict[str, Any]], ks: list[int], threshold: int | None) -> style.Panel:
    """Share of the squared gradient in the span of the top eigenvectors (Gur-Ari, Roberts & Dyer 2018)."""
    shares = [{"k": row["k"], "share": row["overlap"]} for row in rows]
    means = [{"k": k, "share": sum(own) / len(own)} for k in ks if (own := [s["share"] for s in shares if s["k"] == k])]
    most = max(row["num_eigenvalues"] or 0 for row in rows)
    title = ["|gradient|\u00b2 in the top", f"{most} directions, %"]
    y = alt.Y("share:Q", scale=alt.Scale(domain=[0, 100]), title=title)
    points = alt.Chart(style.data(shares)).encode(x=style.k_axis(ks), y=y)
    line = alt.Chart(style.data(means)).encode(x=style.k_axis(ks), y=y)
    return alt.layer(
        *style.threshold_rule(threshold, ks),
        points.mark_circle(size=18, opacity=0.7, color=style.GREY),
        line.mark_line(strokeWidth=2, color=style.GREY),
        line.mark_circle(size=42, opacity=1, color=style.GREY),
    ).properties(width=style.WIDTH, height=110)
