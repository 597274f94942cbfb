"""Whether graph networks come to predict one label alone: accuracy by class and share of the label, over training."""

import itertools
from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import collapse_words, outcomes, results_of
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import fetch
from dd_core.figures.panels import graphs
from dd_core.store.store import Store
from dd_core.study.study import Study

_CLASSES = {"accuracy_class_0": "accuracy, label 0", "accuracy_class_1": "accuracy, label 1"}
_SHARE = {"largest_share": "share of the label predicted most"}
_COLOURS = {
    "accuracy, label 0": style.BLUE,
    "accuracy, label 1": style.VERMILLION,
    _SHARE["largest_share"]: style.BLACK,
}
# Light to dark, so that they are told apart without colour.
_GRADES = {"none": "#F3F3F3", "partial": style.ORANGE, "full": "#7A1F00"}
_HEIGHT, _LOWER, _STRIP, _MOST_STRIPS = 130, 80, 11, 12

# An evaluation stands for the time until the next one.
_GRADED = """
    SELECT arm, trial, epoch, collapse,
           coalesce(lead(epoch) OVER (PARTITION BY arm, trial ORDER BY epoch), epoch + 0.5) AS until
    FROM rows WHERE list_contains($drawn, arm) AND split = $split AND trial < $most ORDER BY arm, trial, epoch
"""

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a column for each domain: accuracy by class, largest share of predictions, how far trials collapse."""
    progress = graphs.read_progress(study, connection, (*_CLASSES, *_SHARE))
    if progress is None:
        return None
    graded = fetch(
        connection, study, "graph_progress", _GRADED,
        drawn=list(progress.names), split=progress.split, most=_MOST_STRIPS,
    )  # fmt: skip
    colour = graphs.colour_of(_COLOURS)
    panels = {
        arm: [
            _lines(progress, arm, _CLASSES, "accuracy", (0.0, 1.0), colour, _HEIGHT),
            _lines(progress, arm, _SHARE, "share", (0.5, 1.0), colour, _LOWER),
            _strips(progress, [row for row in graded if row["arm"] == arm]),
        ]
        for arm in progress.names
    }
    results = {arm: rows for arm, rows in results_of(study, connection).items() if arm in progress.names}
    return style.finish(
        graphs.in_columns(panels, progress.names),
        headline(study, progress.names, results),
        [
            *style.describe(study, [study.arms[arm].variant for arm in progress.names]),
            f"Of {progress.split} graphs. A network that ignores its input has one class right and the other wrong",
            "Strips: how far each trial has collapsed, from an evaluation to the next"
            + (f"; the first {_MOST_STRIPS} trials" if study.trials > _MOST_STRIPS else ""),
            *progress.notes,
        ],
        characters=graphs.characters(len(panels)),
    )


def headline(study: Study, names: dict[str, str], results: dict[str, list[Row]]) -> str:
    """One sentence: in which domains how many trials have collapsed at their best and last epochs."""
    parts = []
    for at in ("best", "last"):
        found = outcomes(study, results, at)
        said = [f"{names[arm]} ({words})" for arm, own in found.items() if (words := collapse_words(own))]
        if found:
            parts.append(f"at the {at} epoch {', '.join(said) or 'no trial'}")
    return (
        f"Collapsed to one label: {'; '.join(parts)}" if parts else "How even predictions of labels are, over training"
    )


def _lines(
    progress: graphs.Progress,
    arm: str,
    values: dict[str, str],
    title: str,
    ends: tuple[float, float],
    colour: alt.Color,
    height: int,
) -> style.Panel:
    x = graphs.epoch_axis(progress.last, labels=False)
    y = alt.Y("value:Q", scale=alt.Scale(domain=list(ends)), title=title, axis=alt.Axis(format=".0%", tickCount=4))
    rows = graphs.as_series(progress.of(arm, progress.split), values)
    return alt.layer(*graphs.lines(rows, x, y, colour, ".1%")).properties(width=progress.width, height=height)


def _strips(progress: graphs.Progress, graded: Sequence[Row]) -> style.Panel:
    """A strip for each trial."""
    x = graphs.epoch_axis(progress.last)
    trials = sorted({row["trial"] for row in graded})
    axis = alt.Axis(ticks=False, domain=False, grid=False, labelFontSize=9)
    y = alt.Y("trial:O", title="trial", axis=axis, scale=alt.Scale(domain=trials, paddingInner=0.15, paddingOuter=0))
    scale = alt.Scale(domain=list(_GRADES), range=list(_GRADES.values()))
    legend = alt.Legend(title="collapse", orient="top", symbolType="square", titleOrient="left")
    rows = [
        {"trial": trial, "epoch": own[0]["epoch"], "until": own[-1]["until"], "collapse": grade}
        for (trial, grade), found in itertools.groupby(graded, key=lambda row: (row["trial"], row["collapse"]))
        for own in [list(found)]
    ]
    strips = alt.Chart(style.csv_data(rows)).mark_rect(clip=True).encode(
        x=x, x2="until:Q", y=y, fill=alt.Fill("collapse:N", scale=scale, legend=legend),
        tooltip=["trial:O", "epoch:Q", "collapse:N"],
    )  # fmt: skip
    return alt.layer(strips).properties(width=progress.width, height=max(16, _STRIP * len(trials)))
