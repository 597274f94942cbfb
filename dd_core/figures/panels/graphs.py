"""What the figures of graph studies share: arms and their names, lines over epochs with bands, rules with labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import name_of
from dd_core.figures.charts.training_curves import thin
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch
from dd_core.figures.panels.task_lines import one_width
from dd_core.study.study import Study

_WIDTH, COLUMNS, MOST_ARMS = 200, 3, 6
SPLITS = {
    "train": ("training", style.TRAIN),
    "validation": ("validation", style.VALIDATION),
    "test": ("test", style.TEST),
}
INTERVALS = "Intervals in the title: at either end the wider of Student's over trials and Wilson's over their graphs"
_NEAR = 0.09  # of an axis: labels closer to each other than this would overlap


@dataclass(frozen=True)
class Progress:
    """Evaluations of the arms that are drawn.

    Attributes:
        names: by arm.
        rows: mean over trials of each value, with its lowest and highest trial, by arm, split and epoch.
        split: test, or validation where nothing is tested.
        last: epoch.
        notes: for the subtitle.
    """

    names: dict[str, str]
    rows: list[dict[str, Any]]
    split: str
    last: int
    notes: list[str | None]

    @property
    def width(self) -> int:
        """Width of a panel, pixels: as wide as other figures where there is a single domain."""
        return style.WIDTH if len(self.names) == 1 else _WIDTH

    def of(self, arm: str, split: str | None = None) -> list[dict[str, Any]]:
        """Rows of one arm, of all splits or of one."""
        return [row for row in self.rows if row["arm"] == arm and split in (None, row["split"])]


def read_progress(study: Study, connection: duckdb.DuckDBPyConnection, values: Sequence[str]) -> Progress | None:
    """Columns of ``graph_progress`` of one arm of each variant; None of other studies or where nothing is evaluated."""
    if study.data.graphs is None:
        return None
    arms, left_out = drawn_arms(connection, study, "graph_progress")
    if not arms:
        return None
    shown, notes = one_width(study, arms, MOST_ARMS)
    columns = ", ".join(f"avg({v}) AS {v}, min({v}) AS {v}_low, max({v}) AS {v}_high" for v in values)
    sql = f"""
        SELECT arm, split, epoch, count(*) AS num_trials, {columns} FROM rows
        WHERE list_contains($drawn, arm) AND list_contains($epochs, epoch) GROUP BY ALL ORDER BY arm, split, epoch
    """
    found = fetch(connection, study, "graph_progress", "SELECT DISTINCT epoch FROM rows")
    epochs = thin([row["epoch"] for row in found])
    rows = fetch(connection, study, "graph_progress", sql, drawn=list(shown), epochs=epochs)
    split = "test" if any(row["split"] == "test" for row in rows) else "validation"
    numbers = {arm: {row["num_trials"] for row in rows if row["arm"] == arm} for arm in shown}
    fewer = any(len(own) > 1 for own in numbers.values())
    notes = [
        "Line: mean over trials; band: lowest to highest" if study.trials > 1 else None,
        "Trials that stopped early are not in later means" if fewer else None,
        *notes,
        left_out,
    ]
    return Progress({arm: name_of(study, arm) for arm in shown}, rows, split, max(epochs), notes)


def epoch_axis(last: int, *, labels: bool = True) -> alt.X:
    """Epochs from 0, the early ones spread."""
    scale, ticks = style.epoch_scale(last)
    axis = alt.Axis(values=ticks, grid=False, labels=labels, labelOverlap="greedy", format="d")
    return alt.X("epoch:Q", scale=scale, axis=axis, title="epoch" if labels else None)


def lines(rows: Sequence[Mapping[str, Any]], x: alt.X, y: alt.Y, colour: alt.Color, form: str) -> list[alt.Chart]:
    """Layers of lines with bands: rows have ``series``, ``epoch``, ``value``, ``low`` and ``high``."""
    if not rows:
        return []
    base = alt.Chart(style.csv_data([dict(row) for row in rows])).encode(x=x, color=colour)
    lower = alt.Y("low:Q", scale=y["scale"], title=y["title"], axis=y["axis"])
    tooltip = ["series:N", "epoch:Q", *(alt.Tooltip(f"{name}:Q", format=form) for name in ("value", "low", "high"))]
    return [
        base.mark_area(opacity=0.16).encode(y=lower, y2="high:Q"),
        base.mark_line(strokeWidth=1.8).encode(y=y),
        base.mark_circle(size=60, opacity=0).encode(y=y, tooltip=tooltip),
    ]


def as_series(rows: Sequence[Mapping[str, Any]], values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of ``Progress`` as those of ``lines``: a series for each of some values, by column."""
    return [
        {"series": name, "epoch": row["epoch"], "value": row[value]}
        | {"low": row[f"{value}_low"], "high": row[f"{value}_high"]}
        for value, name in values.items()
        for row in rows
        if row[value] is not None
    ]  # fmt: skip


def colour_of(shown: Mapping[str, str]) -> alt.Color:
    """The colour of ``series``, by name."""
    scale = alt.Scale(domain=list(shown), range=list(shown.values()))
    return alt.Color("series:N", scale=scale, legend=style.line_legend(4))


def rules(values: Mapping[str, float], y: alt.Y, ends: tuple[float, float], width: int) -> list[alt.Chart]:
    """Layers of dashed lines with their names right of the panel, moved apart where they are close.

    Args:
        values: by name.
        y: the axis.
        ends: of the axis.
        width: of the panel, pixels.
    """
    known = sorted((value, name) for name, value in values.items())
    near, places = _NEAR * (ends[1] - ends[0]), list[float]()
    for value, _ in known:
        places.append(max(value, places[-1] + near) if places else value)
    if len(places) > 1 and (beyond := places[-1] - max(ends[1], known[-1][0])) > 0:
        places = [place - beyond for place in places]
    rows = [{"y": value, "name": name, "place": place} for (value, name), place in zip(known, places, strict=True)]
    if not rows:
        return []
    base = alt.Chart(style.data(rows))
    at = alt.Y("y:Q", scale=y["scale"], title=y["title"], axis=y["axis"])
    beside = alt.Y("place:Q", scale=y["scale"], title=y["title"], axis=y["axis"])
    aside = base.mark_text(align="left", fontSize=10, color=style.GREY)
    return [
        base.mark_rule(color=style.GREY, strokeDash=[4, 3], strokeWidth=1.2).encode(y=at),
        aside.encode(y=beside, x=alt.value(width + 5), text="name:N"),
    ]


def in_columns(panels: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> Any:
    """By arm the panels below each other, arms side by side under their names."""
    blocks = [
        alt.vconcat(*own, spacing=12).properties(
            title=alt.TitleParams(names[arm], fontSize=12, anchor="start", offset=6)
        )
        for arm, own in panels.items()
    ]
    return alt.concat(*blocks, columns=COLUMNS, spacing={"column": 28, "row": 34})


def characters(num: int) -> int:
    """Where lines of title and subtitle are broken above so many columns of panels."""
    return 66 if num == 1 else 78 if num == 2 else 112
