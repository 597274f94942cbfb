"""Largest eigenvalue and trace of the Hessian in the weights during training: narrow, threshold, wide."""

from typing import Any

import altair as alt
import duckdb

from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import shown_widths
from dd_core.figures.drawing.selection import MOST_LINES, select, shown_variants
from dd_core.figures.panels import weight_hessian
from dd_core.store.store import Store
from dd_core.study.study import Study

_PANEL = 230


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw both against epoch; one row per variant, one column per width.

    Raises:
        DataMissingError: no arm has been analysed at two epochs.
    """
    selection = select(connection, study, "hessian_spectra")
    if selection is None:
        return None
    trials = weight_hessian.trials(connection, study, study.checkpoints)
    every_row = weight_hessian.long(trials)
    epochs: dict[tuple[str, int], set[int]] = {}
    for row in every_row:
        epochs.setdefault((row["variant"], row["k"]), set()).add(row["epoch"])
    widths = weight_hessian.thresholds(connection, study, selection)
    several = {variant for (variant, _), found in epochs.items() if len(found) > 1}
    variants, others = shown_variants(study, several, MOST_LINES)
    drawn = {
        variant: shown_widths(ks, widths[variant].threshold if variant in widths else None)
        for variant in variants
        if (ks := sorted(k for (own, k), found in epochs.items() if own == variant and len(found) > 1))
    }
    if not every_row:
        return None
    if not drawn:
        raise DataMissingError(why_none(study, {epoch for found in epochs.values() for epoch in found}))
    rows, shown = ([row for row in part if row["k"] in drawn.get(row["variant"], ())] for part in (every_row, trials))
    title = headline(weight_hessian.means(rows), drawn)
    lifted = style.for_log_axis(rows, ("value", "low", "high"))
    colour = weight_hessian.colour(rows)
    lines = {
        variant: _line(names, [row for row in rows if row["variant"] == variant], colour)
        for variant, names in drawn.items()
    }
    return style.finish(
        style.lines_by_variant(lines),
        title,
        [
            *style.describe(study, list(drawn)),
            weight_hessian.about(study, shown),
            weight_hessian.about_marks(shown),
            lifted,
            others,
            selection.note(study),
        ],
        characters=90,
    )


def why_none(study: Study, epochs: set[int]) -> str:
    """Why no arm has two epochs: the study asks for one alone, or the others are not there yet."""
    asked = set(study.hessian.epochs or ()) or {max(study.checkpoints)}
    if len(asked) < 2:
        return (
            f"the Hessian in the weights is analysed at epoch {style.listed([str(e) for e in sorted(epochs)])} alone, "
            "and over training means several: name several epochs under hessian: in the study file"
        )
    return f"of the {len(asked)} epochs named under hessian: no arm has two yet; materialise hessian_spectra"


def headline(means: list[dict[str, Any]], drawn: dict[str, dict[int, str]]) -> str:
    """One sentence that says at which epoch the largest eigenvalue, or else the trace, is largest at each width."""
    present = {row["quantity"] for row in means}
    quantity = weight_hessian.LARGEST if weight_hessian.LARGEST in present else weight_hessian.TRACE
    if len(drawn) > 1:
        return "The Hessian in the weights over training, by variant and width"
    found = []
    for k in next(iter(drawn.values())):
        values = {row["epoch"]: row["value"] for row in means if row["k"] == k and row["quantity"] == quantity}
        if values:
            found.append(f"epoch {max(values, key=values.__getitem__)} (k = {k})")
    where = style.listed(found) if found else "no epoch"
    return f"Of the epochs analysed, the {quantity} of the Hessian in the weights is largest at {where}"


def _line(names: dict[int, str], rows: list[dict[str, Any]], colour: alt.Color) -> alt.HConcatChart:
    scale, ticks = style.epoch_scale(max(row["epoch"] for row in rows))
    y_scale, log_axis = style.log_scale(rows, ("value", "low", "high"))

    def panel(k: int, name: str, *, first: bool) -> style.Panel:
        x = alt.X("epoch:Q", scale=scale, axis=alt.Axis(values=ticks, labelOverlap="greedy"), title="epoch")
        title = ["Hessian in the weights,", weight_hessian.UNIT] if first else None
        y = alt.Y("value:Q", scale=y_scale, title=title, axis=alt.Axis(labels=first, ticks=first, **log_axis))
        own = [row for row in rows if row["k"] == k]
        curves = weight_hessian.layers(own, x, y, colour, ["quantity:N", "epoch:Q"])
        heading = style.heading(_PANEL, f"k = {k}, {name}")
        return alt.layer(*curves, *heading).properties(width=_PANEL, height=270)

    return alt.hconcat(*(panel(k, name, first=i == 0) for i, (k, name) in enumerate(names.items())), spacing=16)
