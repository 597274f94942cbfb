"""Errors of many variants at one width each: a row per variant, where panels against width would have one point."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from dd_core.figures.drawing import style

_ROW, _MOST_ROWS = 16, 60


def errors_by_variant(
    means: list[dict[str, Any]], trials: list[dict[str, Any]], variants: Sequence[str], colour: alt.Color
) -> tuple[style.Panel, str | None]:
    """A panel with a row per variant.

    Args:
        means: have ``variant``, ``split``, ``error`` and its lowest and highest trial, percent.
        trials: the same of single trials.
        variants: in the order of the study.
        colour: of ``split``.

    Returns:
        The panel, and a sentence for the subtitle if there are more variants than rows.
    """
    names = list(variants[:_MOST_ROWS])
    axis = alt.Axis(ticks=False, domain=False, labelLimit=260, labelPadding=8, grid=True)
    y = alt.Y("variant:N", sort=names, scale=alt.Scale(domain=names), title=None, axis=axis)
    x = alt.X("error:Q", title="error, %", scale=alt.Scale(zero=True))

    def rows(found: list[dict[str, Any]], *columns: str) -> alt.InlineData:
        kept = [row for row in found if row["variant"] in names and row["error"] is not None]
        return style.data([{name: row[name] for name in ("variant", "split", "error", *columns)} for row in kept])

    base = alt.Chart(rows(means, "error_low", "error_high")).encode(y=y, color=colour)
    tooltip = ["variant:N", "split:N", alt.Tooltip("error:Q", format=".3g", title="error, %")]
    panel = alt.layer(
        base.mark_rule(strokeWidth=2, opacity=0.4).encode(x=alt.X("error_low:Q"), x2="error_high:Q"),
        alt.Chart(rows(trials)).mark_circle(size=10, opacity=0.6).encode(x=x, y=y, color=colour),
        base.mark_circle(size=38, opacity=1).encode(x=x, tooltip=tooltip),
    ).properties(width=style.WIDTH, height=_ROW * len(names))
    return panel, f"Variants: the first {_MOST_ROWS} of {len(variants)}" if len(variants) > _MOST_ROWS else None


def lowest(means: list[dict[str, Any]], split: str) -> dict[str, Any] | None:
    """The variant with the lowest error of a split."""
    known = [row for row in means if row["split"] == split and row["error"] is not None]
    return min(known, key=lambda row: row["error"]) if known else None
