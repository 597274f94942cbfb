"""A panel with a row for each family of runs: a box of their values, the runs as points, and a word at the right."""

from typing import Any

import altair as alt

from dd_core.figures.drawing import style
from dd_core.figures.panels.loss_slopes import Runs

_ROW = 30
_FEW = 4  # runs of which a box says nothing
BOX = "Box: median and middle half; whiskers: at most 1.5 times as far; points: runs"


def family_rows(
    runs: Runs,
    rows: list[dict[str, Any]],
    x: alt.X,
    width: int,
    *,
    labels: bool = True,
    right: tuple[str, dict[str, str]] | None = None,
    below: list[Any] | None = None,
) -> list[Any]:
    """The layers of such a panel.

    Args:
        runs: all of the study; every family that was fitted has a row.
        rows: have ``family``, ``run`` and ``value``; a family's may be none.
        x: of ``value``.
        width: of the panel, pixels.
        labels: whether the families are named.
        right: what stands at the right of the panel: its heading, and the text of each family.
        below: layers to draw first.
    """
    y = runs.family_axis(runs.fitted, labels=labels)
    layers = list(below or [])
    many = {name for name in runs.families if sum(row["family"] == name for row in rows) > _FEW}
    boxed = [row for row in rows if row["family"] in many]
    if boxed:
        box = alt.Chart(style.data([{name: row[name] for name in ("family", "value")} for row in boxed]))
        median = alt.TickConfig(color="black", thickness=2)
        mark = box.mark_boxplot(size=14, outliers=False, opacity=0.55, median=median, ticks=False)
        layers.append(mark.encode(x=x, y=y, color=runs.colour(runs.fitted, named=False)))
    points = alt.Chart(style.data([{name: row[name] for name in ("family", "run", "value")} for row in rows]))
    tooltip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("value:Q", format=".3g", title=str(x.title) if isinstance(x.title, str) else "value"),
    ]
    layers.append(points.mark_circle(size=10, opacity=0.6, color="black").encode(x=x, y=y, tooltip=tooltip))
    if right:
        words = alt.Chart(style.data([{"family": family, "text": text} for family, text in right[1].items()]))
        aside = words.mark_text(align="left", fontSize=10, color=style.GREY)
        layers.append(aside.encode(alt.XValue(width + 5), alt.Text("text:N"), y=y))
        above = alt.Chart(style.data([{}])).mark_text(align="left", fontSize=10, color=style.GREY, baseline="bottom")
        layers.append(above.encode(alt.XValue(width + 5), alt.YValue(-2), alt.TextValue(right[0])))
    return layers


def height(runs: Runs, beside: int = 46) -> int:
    """Height of such a panel, pixels; at least that of the panel beside it."""
    return max(_ROW * len({row["family"] for row in runs.fitted}), beside)
