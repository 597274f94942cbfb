"""What the figures of class-incremental training share: which arms are drawn, their colours, and where tasks begin."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.plasticity import newest_classes, reference_of, task_ends
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import has_view, shown_variants
from dd_core.study.study import Arm, Study

COLOURS = (
    style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.GREY, style.BLACK,
)  # fmt: skip
# More bands than these hide each other.
MOST_BANDS = 4
_MOST_RULES = 40


def one_width(study: Study, arms: Collection[str], most: int = len(COLOURS)) -> tuple[dict[str, str], list[str | None]]:
    """The arms to draw, one of each variant, with their names, and sentences about the others.

    Args:
        study: has the arms.
        arms: keys of those with data.
        most: arms that one can still read.
    """
    widths = {name: [k for k in study.all_widths if Arm(name, k).key in arms] for name in study.variants}
    names, others = shown_variants(study, [name for name, ks in widths.items() if ks], most)
    shown = {Arm(name, max(widths[name])).key: name for name in names}
    several = any(len(widths[name]) > 1 for name in names)
    return shown, [others, "Of each variant the widest network" if several else None]


def main_arms(
    study: Study, connection: duckdb.DuckDBPyConnection, names: Mapping[str, str], most: int
) -> tuple[list[str], str | None]:
    """The arms with panels of their own, and a sentence if these are not all.

    Where there is no room for all: the first, the one that others are compared with, and the best on newest classes in
    later tasks; then the next ones.

    Args:
        study: has the arms.
        connection: may have ``class_progress``, by which the best is known.
        names: of the arms with data, in the study's order.
        most: panels that one can still read.
    """
    if len(names) <= most:
        return list(names), None
    newest = newest_classes(study, connection) if has_view(connection, "class_progress") else {}
    known = {arm: newest[arm] for arm in names if arm in newest}
    chosen = {next(iter(names)): "the first"}
    if known:
        reference = reference_of(study, known)
        chosen.setdefault(reference, names[reference])
        gaps = {arm: known[arm].minus(known[reference]).mean for arm in known if arm not in chosen}
        chosen |= {arm: "the best of the others in later tasks" for arm in gaps if gaps[arm] == max(gaps.values())}
    kept = list(dict.fromkeys([*chosen, *names]))[:most]
    which = [chosen[arm] for arm in kept if arm in chosen] + ["the next"] * (len(chosen) < most)
    said = f"Variants: {len(kept)} of {len(names)}, {style.listed(list(dict.fromkeys(which)))}"
    return [arm for arm in names if arm in kept], said


def series_colour(names: Sequence[str], *, legend: bool = True, title: str = "series:N") -> alt.Color:
    """The colour of ``series``; a legend where there are several."""
    scale = alt.Scale(domain=list(names), range=list(COLOURS[: len(names)]))
    return alt.Color(title, scale=scale, legend=style.line_legend(4) if legend and len(names) > 1 else None)


def boundaries(study: Study) -> list[alt.Chart]:
    """Rules at the last epochs of all tasks but the last; none where these would be a grey wall."""
    ends = [{"epoch": end} for end in task_ends(study)[:-1]]
    if not 0 < len(ends) <= _MOST_RULES:
        return []
    rules = alt.Chart(style.data(ends)).mark_rule(color="#BBBBBB", strokeDash=[2, 3])
    return [rules.encode(x=alt.X("epoch:Q"))]


def epoch_axis(study: Study) -> alt.X:
    """Epochs on a linear axis, as all tasks are equally long; its ticks are ends of tasks."""
    ends = [0, *task_ends(study)]
    step = -(-len(ends) // 8)
    axis = alt.Axis(values=ends[::step], grid=False, labelOverlap="greedy", format="d")
    return alt.X("epoch:Q", scale=alt.Scale(domain=[0, study.epochs], nice=False), axis=axis, title="epoch")


def band(
    base: Any, x: alt.X, colour: alt.Color, y: alt.Y, tooltip: list[Any], *, points: bool, banded: bool = True
) -> list[alt.Chart]:
    """Layers of a mean as a line, of its interval from ``low`` to ``high`` as a band, and points if asked for."""
    lower = alt.Y("low:Q", scale=y["scale"], title=y["title"])
    area = base.mark_area(opacity=0.14).encode(x=x, color=colour, y=lower, y2="high:Q")
    layers = [area, base.mark_line(strokeWidth=1.8).encode(x=x, color=colour, y=y)]
    marked = base.mark_circle(size=34 if points else 60, opacity=1 if points else 0)
    return [*layers[not banded :], marked.encode(x=x, color=colour, y=y, tooltip=tooltip)]
