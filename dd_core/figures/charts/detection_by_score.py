"""How well every memorisation score finds wrong labels and duplicates, beside what was published."""

import math
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.memorization.published import detections
from dd_core.analysis.memorization.sentences import WRONG_LABEL, detection_words, digits_of, noise_words, words_of
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch
from dd_core.figures.panels.memorization import (
    INTERVALS,
    OURS,
    ROW,
    class_ages_line,
    published_sets,
    source_line,
    whiskers,
)
from dd_core.figures.panels.task_lines import one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

# Widths of panels by how many stand side by side; all of it is legible on 800 pixels.
_PANELS = {1: 440, 2: 220, 3: 145}
_ROWS = "SELECT * EXCLUDE (study, recipe) FROM rows WHERE list_contains($drawn, arm) ORDER BY ALL"

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel for each kind and rate of wrong labels, and for each kind of duplicates, best score first.

    Raises:
        DataMissingError: there are rows, but no wrong label and no duplicate to find.
    """
    arms, left_out = drawn_arms(connection, study, "memorization_detection")
    if not arms:
        return None
    names, notes = one_width(study, arms)
    rows = fetch(connection, study, "memorization_detection", _ROWS, drawn=list(names))
    panels = _panels(study, [row for row in rows if row["auroc"] is not None], names)
    if not panels:
        raise DataMissingError("no image has a wrong label and none is a duplicate, so there is nothing to find")
    order = _order(panels)
    known = {name: _published(study, own) for name, own in panels.items()}
    series = [OURS, *dict.fromkeys(row["series"] for own in known.values() for row in own)]
    lowest = min([0.45, *(row["low"] for own in panels.values() for row in _points(own) if row["low"] is not None)])
    scale = alt.Scale(domain=[math.floor(20 * lowest) / 20, 1], nice=False)
    columns = min(len(panels), style.columns_for(len(panels), max(_PANELS)), max(_PANELS))
    drawn = [
        _panel(name, own, known[name], order, scale, series, labels=i % columns == 0, width=_PANELS[columns])
        for i, (name, own) in enumerate(panels.items())
    ]
    rates = {row["rate"] for own in known.values() for row in own if row["rate"] is not None}
    at = f" at {' and '.join(style.percent(rate) for rate in sorted(rates))} symmetric wrong labels" if rates else ""
    return style.finish(
        alt.concat(*drawn, columns=columns, spacing={"column": 42, "row": 44}),
        headline(panels),
        [
            f"AUROC: probability that an image to be found scores higher than another; dashed: chance. {INTERVALS}",
            source_line(f"ResNet18 on {' and '.join(published_sets(study, _DATASETS))}{at}, nearest rate")
            if len(series) > 1
            else None,
            *style.describe(study, list(names.values())),
            class_ages_line(study),
            *notes,
            left_out,
        ],
        characters=78,
    )  # fmt: skip


_DATASETS = {own.dataset for own in detections()}


def headline(panels: dict[str, list[Row]]) -> str:
    """Which score finds the target of the first panel best, how well, and which others may be as good."""
    first: dict[str, str] = {}
    for name, own in panels.items():
        first.setdefault(own[0]["target"], name)
    said = [
        detection_words(panels[name], f"{what} ({which})" if which else what)
        for name in first.values()
        for what, which in (_heading(name, panels[name]),)
    ]
    return f"What finds {'; '.join(said[:2])}"


def _panels(study: Study, rows: list[Row], names: dict[str, str]) -> dict[str, list[Row]]:
    """Rows by the name of their panel: wrong labels of every arm, then duplicates of the first arm that has any.

    Where there are several arms the panels of duplicates say, after a comma, which one it is.
    """
    panels: dict[str, list[Row]] = {}
    several = len({(row["label_noise_kind"], row["label_noise"]) for row in rows if row["target"] == WRONG_LABEL})
    for arm, variant in names.items():
        own = [row for row in rows if row["arm"] == arm and row["target"] == WRONG_LABEL]
        if own:
            name = noise_words(own[0])
            panels[name if several == len(names) or len(names) == 1 else f"{name}, {variant}"] = own
    for target in dict.fromkeys(row["target"] for row in rows if row["target"] != WRONG_LABEL):
        arm = next(arm for arm in names if any((row["arm"], row["target"]) == (arm, target) for row in rows))
        panels[f"{target}s" + (f", {names[arm]}" if len(names) > 1 else "")] = [
            row for row in rows if (row["arm"], row["target"]) == (arm, target)
        ]
    return panels


def _heading(name: str, rows: list[Row]) -> tuple[str, str | None]:
    """What a panel has to find, and which of these."""
    if rows[0]["target"] == WRONG_LABEL:
        return "wrong labels", name
    what, _, variant = name.partition(", ")
    return what, variant or None


def _order(panels: dict[str, list[Row]]) -> list[str]:
    """Names of scores, by the first panel that has them."""
    ordered = [row for own in panels.values() for row in sorted(own, key=lambda row: -row["auroc"])]
    return list(dict.fromkeys(words_of(row["score"]) for row in ordered))


def _points(rows: list[Row]) -> list[Row]:
    return [
        {
            "name": words_of(row["score"]), "series": OURS, "value": row["auroc"], "low": row["auroc_low"],
            "high": row["auroc_high"], "text": f"{row['auroc']:.{digits_of(row['auroc'])}f}",
        }
        for row in rows
    ]  # fmt: skip


def _published(study: Study, rows: list[Row]) -> list[Row]:
    """Published areas of the scores of a panel, at the nearest rate of wrong labels; none for other kinds of noise."""
    target = rows[0]["target"]
    if (target == WRONG_LABEL and rows[0]["label_noise_kind"] != "symmetric") or target == "near duplicate":
        return []
    of_target = [own for own in detections() if own.target == (WRONG_LABEL if target == WRONG_LABEL else "duplicate")]
    share = rows[0]["label_noise"]
    rates = sorted({own.label_noise for own in of_target if own.label_noise is not None})
    rate = min(rates, key=lambda other: abs(math.log(other / share))) if rates and share else None
    scores = {row["score"] for row in rows}
    return [
        {"name": words_of(own.score), "series": f"published, {own.dataset}", "value": own.auroc, "rate": rate}
        for own in of_target
        if own.label_noise == rate and own.score in scores and own.dataset in published_sets(study, _DATASETS)
    ]


def _panel(
    name: str, rows: list[Row], published: list[Row], order: list[str], scale: alt.Scale, series: list[str], *,
    labels: bool, width: int,
) -> style.Panel:  # fmt: skip
    x = alt.X("value:Q", scale=scale, title="AUROC", axis=alt.Axis(format=".1f", tickCount=4))
    lines = whiskers(
        _points(rows), published, x, order, width, labels=labels, series=series,
        colours=[style.BLACK, style.PUBLISHED, style.PUBLISHED][: len(series)], legend=len(series) > 1,
    )  # fmt: skip
    chance = alt.Chart(style.data([{"value": 0.5}])).mark_rule(color=style.GREY, strokeDash=[4, 3]).encode(x=x)
    heading = style.heading(width, *_heading(name, rows))
    return alt.layer(chance, *lines, *heading).properties(width=width, height=ROW * len(order))
