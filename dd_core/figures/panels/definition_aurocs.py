"""How well every definition tells mislabelled images from others, at a narrow, the threshold and a wide network."""

from collections import defaultdict
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import Selection, column_names, fetch
from dd_core.figures.panels.image_scores import LOCAL, Definition, published
from dd_core.study.study import Study

_PANEL, _ROW = 150, 19
_PREFIX = "auroc_"
_PUBLISHED, _OTHERS = "published finite difference", "loss, gradient and Hessian"


def read(connection: duckdb.DuckDBPyConnection, study: Study, selection: Selection) -> list[dict[str, Any]]:
    """AUROC of every definition, one row per arm, trial and definition that was computed; None without wrong labels."""
    present = column_names(connection, "curvature")
    columns = [name.removeprefix(_PREFIX) for name in present if _PREFIX in name]
    differences = [*published(columns, study, "norm"), *published(columns, study, "directional")]
    definitions = [*LOCAL, *differences]
    # Without wrong labels there is no AUROC; the mean then says that it was computed.
    has = {
        d.column: [name for name in (f"{_PREFIX}{d.column}", f"mean_{d.column}") if name in present]
        for d in definitions
    }
    values = ", ".join(
        f"{_PREFIX}{column}, coalesce({', '.join(names)}) IS NOT NULL AS has_{column}" for column, names in has.items()
    )
    rows = fetch(
        connection,
        study,
        "curvature",
        f"SELECT arm, variant, k, trial, {values} FROM rows WHERE epoch = $epoch AND subset = 'all' ORDER BY ALL",
        epoch=selection.epoch,
    )
    return [
        {
            **{key: row[key] for key in ("arm", "variant", "k", "trial")},
            "definition": definition,
            "auroc": row[f"{_PREFIX}{definition.column}"],
        }
        for row in rows
        for definition in definitions
        if row[f"has_{definition.column}"]
    ]


def means(aurocs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and extremes over trials by variant, k and definition."""
    groups: dict[tuple[str, int, Definition], list[float]] = defaultdict(list)
    for row in aurocs:
        groups[row["variant"], row["k"], row["definition"]].append(row["auroc"])
    return [
        {
            "variant": variant,
            "k": k,
            "definition": definition,
            "name": definition.name,
            "family": _PUBLISHED if definition.is_published else _OTHERS,
            "auroc": sum(values) / len(values),
            "low": min(values),
            "high": max(values),
        }
        for (variant, k, definition), values in groups.items()
    ]


def panels(aurocs: list[dict[str, Any]], drawn: dict[str, dict[int, str]]) -> alt.VConcatChart:
    """One line of panels for each variant, one panel for each width, best definition first.

    Args:
        aurocs: finite values.
        drawn: by variant the widths to show, and what they are; at least one variant.
    """
    rows = [row for row in means(aurocs) if row["k"] in drawn.get(row["variant"], ())]
    families = [family for family in (_OTHERS, _PUBLISHED) if any(row["family"] == family for row in rows)]
    colours = {_OTHERS: style.GREY, _PUBLISHED: style.PUBLISHED}
    colour = alt.Color(
        "family:N",
        scale=alt.Scale(domain=families, range=[colours[family] for family in families]),
        legend=style.point_legend() if len(families) > 1 else None,
    )
    lines = {
        variant: _line([row for row in rows if row["variant"] == variant], names, colour)
        for variant, names in drawn.items()
    }
    return style.lines_by_variant(lines)


def _line(rows: list[dict[str, Any]], names: dict[int, str], colour: alt.Color) -> alt.HConcatChart:
    sorting_k = next((k for k, name in names.items() if "threshold" in name), max(names))
    # A definition that the width sorted by does not have comes last.
    order = sorted(rows, key=lambda row: (row["k"] == sorting_k, row["auroc"]), reverse=True)
    labels = list(dict.fromkeys(row["name"] for row in order))
    lowest = min(0.4, *(row["low"] for row in rows))
    scale = alt.Scale(domain=[int(10 * lowest) / 10, 1], nice=False)
    height = _ROW * len(labels)

    def panel(k: int, name: str, *, first: bool) -> style.Panel:
        axis = alt.Axis(labels=first, ticks=False, domain=False, labelLimit=240, grid=True, labelPadding=8)
        y = alt.Y("name:N", sort=labels, scale=alt.Scale(domain=labels), title=None, axis=axis)
        shown = [{key: v for key, v in row.items() if key != "definition"} for row in rows if row["k"] == k]
        base = alt.Chart(style.data(shown)).encode(y=y, color=colour)
        x = alt.X("auroc:Q", scale=scale, title="AUROC, wrong labels", axis=alt.Axis(format=".1f", tickCount=5))
        span = base.mark_rule(strokeWidth=2.5, opacity=0.55).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
        dot = base.mark_circle(size=55, opacity=1).encode(x=x, tooltip=["name:N", alt.Tooltip("auroc:Q", format=".3f")])
        value = base.mark_text(align="left", fontSize=10, color=style.GREY).encode(
            x=alt.value(_PANEL + 6), text=alt.Text("auroc:Q", format=".2f"), color=alt.value(style.GREY)
        )
        chance = alt.Chart(style.data([{"auroc": 0.5}])).mark_rule(color=style.GREY, strokeDash=[4, 3]).encode(x=x)
        above = style.heading(_PANEL, f"k = {k}", name)
        return alt.layer(chance, span, dot, value, *above).properties(width=_PANEL, height=height)

    return alt.hconcat(*(panel(k, name, first=i == 0) for i, (k, name) in enumerate(names.items())), spacing=20)
