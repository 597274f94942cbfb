"""What the figures of memorisation share: names of scores, words for intervals, and rows of points with whiskers."""

from collections.abc import Collection, Sequence
from typing import Any

import altair as alt

from dd_core.analysis.memorization.published import SOURCE
from dd_core.figures.drawing import style
from dd_core.study.study import Study

OURS = "this study"
ROW = 20
INTERVALS = "Lines: 95 % bootstrap intervals over trials and images"


def published_sets(study: Study, present: Collection[str]) -> list[str]:
    """The published data sets to compare with: the study's own where it is one of them, else all."""
    return [study.data.title] if study.data.title in present else sorted(present)


def class_ages_line(study: Study) -> str | None:
    """Why scores of images of different classes cannot be compared; None where all classes come at once."""
    if study.data.classes is None:
        return None
    return (
        "Classes came one group after the other: scores are sums, times and means over the evaluations since an "
        "image's class came, and not comparable between classes that came at different times"
    )


def whiskers(
    rows: list[dict[str, Any]],
    published: list[dict[str, Any]],
    x: alt.X,
    order: Sequence[str],
    width: int,
    *,
    labels: bool,
    series: Sequence[str],
    colours: Sequence[str],
    legend: bool,
) -> list[alt.Chart]:
    """Layers: a row for each score with its value, its interval, and what was published of it.

    Args:
        rows: with ``name``, ``series``, ``value``, ``low``, ``high`` and ``text``, which stands right of the panel.
        published: with ``name``, ``series`` and ``value``.
        x: the axis of ``value``.
        order: names of all rows, top first.
        width: of the panel, pixels.
        labels: whether the names are written.
        series: those of ours, then the published ones.
        colours: of these.
        legend: whether there is one.
    """
    axis = alt.Axis(labels=labels, ticks=False, domain=False, labelLimit=250, grid=True, labelPadding=8)
    y = alt.Y("name:N", sort=list(order), scale=alt.Scale(domain=list(order)), title=None, axis=axis)
    kinds = list(series)
    shapes = ["circle", "triangle-up"]
    num_published = sum(kind.startswith("published") for kind in kinds)
    marks = shapes[: len(kinds) - num_published] + ["diamond", "square"][:num_published]
    shown = alt.Legend(title=None, orient="top", columns=4, symbolOpacity=1, symbolSize=70) if legend else None
    colour = alt.Color("series:N", scale=alt.Scale(domain=kinds, range=list(colours)), legend=shown)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=kinds, range=marks), legend=shown)
    base = alt.Chart(style.data(rows)).encode(y=y, color=colour)
    offset = alt.YOffset("series:N", scale=alt.Scale(domain=kinds[: len(kinds) - num_published]))
    several = len({row["series"] for row in rows}) > 1
    base = base.encode(yOffset=offset) if several else base
    tooltip = ["name:N", "series:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))]
    known = "isValid(datum.low) && isValid(datum.high)"
    span = base.transform_filter(known).mark_rule(strokeWidth=2)
    layers = [
        span.encode(x=alt.X("low:Q", scale=x["scale"], title=x["title"]), x2="high:Q"),
        base.mark_point(size=45, filled=True, opacity=1).encode(x=x, shape=shape, tooltip=tooltip),
    ]
    if published:
        other = alt.Chart(style.data(published)).mark_point(size=55, filled=False, strokeWidth=1.6, opacity=1)
        seen = ["name:N", "series:N", alt.Tooltip("value:Q", format=".4f")]
        layers.append(other.encode(x=x, y=y, color=colour, shape=shape, tooltip=seen))
    texts = [{"name": row["name"], "text": row["text"]} for row in rows if row.get("text")]
    if texts:
        aside = alt.Chart(style.data(texts)).mark_text(align="left", fontSize=10, color=style.GREY)
        layers.append(aside.encode(y=y, x=alt.value(width + 5), text="text:N"))
    return layers


def source_line(what: str) -> str:
    """Where the published numbers come from."""
    return f"Published: {SOURCE}, {what}"
