"""Accuracy and loss of graph networks against epoch, by domain, between the majority baseline and the Bayes ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import at_best_or_last, headline, results_of
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import tidy
from dd_core.figures.panels import graphs
from dd_core.store.store import Store
from dd_core.study.study import Study

_VALUES = ("accuracy", "loss", "majority_baseline", "bayes_ceiling")
_HEIGHT, _LOWER = 165, 105
_ALIKE = 0.0005

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a column for each domain: accuracy above, loss below, with the best epoch of every trial."""
    progress = graphs.read_progress(study, connection, _VALUES)
    if progress is None:
        return None
    results = results_of(study, connection)
    best = {arm: rows for arm, rows in results.items() if arm in progress.names}
    splits = [split for split in graphs.SPLITS if any(row["split"] == split for row in progress.rows)]
    colour = graphs.colour_of(dict(graphs.SPLITS[split] for split in splits))
    ends = _ends(progress)
    panels = {
        arm: [
            _accuracy(progress, arm, _best(best.get(arm, []), splits, "accuracy"), colour, ends),
            _loss(study, progress, arm, _best(best.get(arm, []), splits, "loss"), colour),
        ]
        for arm in progress.names
    }
    at, found = at_best_or_last(study, best)
    return style.finish(
        graphs.in_columns(panels, progress.names),
        headline(progress.names, found, at) if found else "Accuracy and loss of graph networks over training",
        [
            *style.describe(study, [study.arms[arm].variant for arm in progress.names]),
            "Diamonds: best epoch of each trial, that of the lowest validation loss" if at == "best" else None,
            f"Dashed, of {progress.split} graphs: majority, always predicting the label more frequent in training; "
            "ceiling, the best accuracy that can be expected",
            "Training graphs are judged by the labels they were given",
            graphs.INTERVALS,
            *progress.notes,
        ],
        characters=graphs.characters(len(panels)),
    )


def _ends(progress: graphs.Progress) -> tuple[float, float]:
    """Ends of the axis of accuracies, the same for all domains."""
    names = ("accuracy_low", "accuracy_high", "majority_baseline", "bayes_ceiling")
    values = [row[name] for row in progress.rows for name in names if row[name] is not None]
    return max(min(values) - 0.04, 0.0), min(max(values) + 0.04, 1.04)


def _best(results: Sequence[Row], splits: Sequence[str], value: str) -> list[Row]:
    """A point for each trial and split at its best epoch."""
    return [
        {"series": graphs.SPLITS[row["split"]][0], "value": tidy(row[value])}
        | {"trial": row["trial"], "epoch": row["epoch"]}
        for row in results
        if row["result"] == "best" and row["split"] in splits and row["split"] != "train"
    ]  # fmt: skip


def _series(progress: graphs.Progress, arm: str, value: str) -> list[Row]:
    return [
        line
        for split, (name, _) in graphs.SPLITS.items()
        for line in graphs.as_series(progress.of(arm, split), {value: name})
    ]


def _diamonds(points: list[Row], x: alt.X, y: alt.Y, colour: alt.Color, form: str) -> list[alt.Chart]:
    if not points:
        return []
    mark = alt.Chart(style.data(points)).mark_point(
        shape="diamond", size=75, filled=True, opacity=1, stroke="white", strokeWidth=0.7
    )
    tooltip = ["series:N", "trial:O", alt.Tooltip("epoch:Q", title="best epoch"), alt.Tooltip("value:Q", format=form)]
    return [mark.encode(x=x, y=y, color=colour, tooltip=tooltip)]


def _accuracy(
    progress: graphs.Progress, arm: str, best: list[Row], colour: alt.Color, ends: tuple[float, float]
) -> style.Panel:
    x = graphs.epoch_axis(progress.last, labels=False)
    scale = alt.Scale(domain=list(ends), nice=False, zero=False)
    y = alt.Y("value:Q", scale=scale, title="accuracy", axis=alt.Axis(format=".0%", tickCount=5))
    known = progress.of(arm, progress.split)
    layers = [
        *graphs.rules(_references(known), y, ends, progress.width),
        *graphs.lines(_series(progress, arm, "accuracy"), x, y, colour, ".1%"),
        *_diamonds(best, x, y, colour, ".1%"),
    ]
    return alt.layer(*layers).properties(width=progress.width, height=_HEIGHT)


def _references(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Baseline and ceiling with their names, at the last epoch."""
    if not rows:
        return {}
    baseline, ceiling = (rows[-1][column] for column in ("majority_baseline", "bayes_ceiling"))
    if ceiling is None:
        return {f"majority {100 * baseline:.1f} %": baseline}
    if abs(baseline - ceiling) < _ALIKE:
        return {f"both {100 * baseline:.1f} %": baseline}
    return {f"majority {100 * baseline:.1f} %": baseline, f"ceiling {100 * ceiling:.1f} %": ceiling}


def _loss(study: Study, progress: graphs.Progress, arm: str, best: list[Row], colour: alt.Color) -> style.Panel:
    x = graphs.epoch_axis(progress.last)
    title = style.loss_title(study, [study.arms[arm].variant])
    y = alt.Y("value:Q", scale=alt.Scale(zero=False), title=title, axis=alt.Axis(tickCount=4))
    layers = [
        *graphs.lines(_series(progress, arm, "loss"), x, y, colour, ".3f"),
        *_diamonds(best, x, y, colour, ".3f"),
    ]
    return alt.layer(*layers).properties(width=progress.width, height=_LOWER)
