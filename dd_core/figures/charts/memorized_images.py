"""The images of each class that are most memorised, most often forgotten, and most atypical, with their scores."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.memorization.sentences import words_of
from dd_core.data.datasets import load
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.pixels import data_uri
from dd_core.figures.panels.image_means import TRUTH, ImageMeans, looked_at, read_means
from dd_core.figures.panels.memorization import class_ages_line
from dd_core.store.store import Store
from dd_core.study.study import Study

_EACH, _MOST_CLASSES = 4, 10
_IMAGE, _CELL, _LINE, _SPACE = 44, 58, 78, 0.35
_LONGEST_NAME = 9  # characters of a class that fit below its image
_NAMES = 84  # pixels left of the images
# What stands for each kind of image, the best first.
_MEMORISED = (TRUTH, "csl", "loss_sensitivity", "trace_sum")
_FORGOTTEN = ("forgetting_events", "last_learned_epoch")
_ATYPICAL = ("area_under_margin", "confidence", "trace_sum", "finite_difference_sum")
_TIES = "csl"
_UNITS = {TRUTH: "difference of probabilities", "csl": "nats", "forgetting_events": "times"}

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the gallery for one arm, scores averaged over the trials that trained on an image.

    Raises:
        DataMissingError: the images are not on this machine, or the study has graphs.
    """
    arm = looked_at(connection, study)
    if arm is None:
        return None
    if study.data.graphs is not None:
        raise DataMissingError("there are no images to show, since the study has graphs")
    means = read_means(connection, study, arm)
    kinds = kinds_of(means)
    if not kinds:
        return None
    labels = shown_classes(means, next(iter(kinds.values())))
    cells = [
        cell | {"column": _column(place, i), "row": row}
        for place, (kind, score) in enumerate(kinds.items())
        for row, label in enumerate(labels)
        for i, cell in enumerate(most(means, score, label, right_only=kind == "atypical"))
    ]
    images = load(study.data.dataset).images
    for cell in cells:
        source = cell["image_id"] if cell["copy_of"] is None else cell["copy_of"]
        cell["url"] = data_uri(images[source], study.data.record, _IMAGE)
        cell["label"] = _caption(study, cell) if cell["is_noisy"] else ""
    for score in kinds.values():
        own = [cell for cell in cells if cell["by"] == score]
        for cell, size in zip(own, style.alike([cell["value"] for cell in own]), strict=True):
            cell["size"] = "never right" if cell["never_right"] and score == "forgetting_events" else size
    count = study.data.record.num_classes
    noise = study.variants[study.arms[arm].variant].label_noise
    titles = {
        "memorised": "most memorised",
        "forgotten": "most often forgotten",
        "atypical": "most atypical, right label" if noise else "most atypical",
    }
    return style.finish(
        _gallery(study, cells, labels, {titles[kind]: score for kind, score in kinds.items()}),
        headline(study, means, kinds, arm),
        [
            "A row for each given label; below an image its score"
            + (", and where the label is wrong (coloured frame) what it is" if noise else ""),
            f"{arm} \u00b7 {len(means.rows):,} images \u00b7 scores are means over the trials that trained on an image",
            ties_sentence(means, next(iter(kinds.values()))),
            None if len(labels) == count else f"Classes: the {len(labels)} of {count} whose images score highest",
            *style.describe(study, [study.arms[arm].variant]),
            class_ages_line(study),
        ],
        characters=96,
    )  # fmt: skip


def kinds_of(means: ImageMeans) -> dict[str, str]:
    """By kind of image the score that stands for it, no score twice."""
    present = [*([TRUTH] if means.source else []), *means.scores]
    kinds: dict[str, str] = {}
    for kind, candidates in (("memorised", _MEMORISED), ("forgotten", _FORGOTTEN), ("atypical", _ATYPICAL)):
        score = next((name for name in candidates if name in present and name not in kinds.values()), None)
        if score is not None:
            kinds[kind] = score
    return kinds


def most(means: ImageMeans, score: str, label: int, *, right_only: bool = False) -> list[Row]:
    """The images given a label that are highest in a score; those with the score alone.

    Memorisation itself is 1 for many. Ties go by the cumulative loss, then by image_id.
    """
    pairs = zip(means.oriented(score).tolist(), np.nan_to_num(means.oriented(_TIES), nan=-np.inf).tolist(), strict=True)
    own = [
        {**row, "value": row[score], "oriented": value, "tie": tie, "score": _name(score), "by": score}
        for row, (value, tie) in zip(means.rows, pairs, strict=True)
        if row["given_label"] == label and math.isfinite(value) and not (right_only and row["is_noisy"])
    ]
    return sorted(own, key=lambda row: (-row["oriented"], -row["tie"], row["image_id"]))[:_EACH]


def ties_sentence(means: ImageMeans, score: str) -> str | None:
    """How many images share the highest value, where they are more than have room for each label."""
    oriented = means.oriented(score)
    if not np.isfinite(oriented).any():
        return None
    at_top = oriented == np.nanmax(oriented)
    counts = Counter(row["given_label"] for row, is_tied in zip(means.rows, at_top.tolist(), strict=True) if is_tied)
    if not counts or max(counts.values()) <= _EACH:
        return None
    row = means.rows[int(np.flatnonzero(at_top)[0])]
    value, name = _written(row[score]), _name(score)
    tied = f"{at_top.sum():,} images share the highest value, {value}, of {name}"
    return f"{tied}: shown are those with the largest {words_of(_TIES)}"


def shown_classes(means: ImageMeans, score: str) -> list[int]:
    """All labels, or of many those with the highest images."""
    labels = sorted({row["given_label"] for row in means.rows})
    if len(labels) <= _MOST_CLASSES:
        return labels
    highest = {
        label: float(np.mean([row["oriented"] for row in found]))
        for label in labels
        if (found := most(means, score, label))
    }
    return sorted(sorted(highest, key=lambda label: -highest[label])[:_MOST_CLASSES])


def headline(study: Study, means: ImageMeans, kinds: dict[str, str], arm: str) -> str:
    """How many of the most memorised images of all classes carry wrong labels; without such, which is on top."""
    kind, score = next(iter(kinds.items()))
    noise = study.variants[study.arms[arm].variant].label_noise
    words = {"memorised": f"most memorised images (by {_name(score)})", "forgotten": "most often forgotten images"}
    labels = sorted({row["given_label"] for row in means.rows})
    top = [row for label in labels for row in most(means, score, label)]
    which = words.get(kind, f"most atypical images (by {_name(score)})")
    if noise:
        wrong = sum(row["is_noisy"] for row in top)
        return (
            f"{wrong} of the {len(top)} {which}, {_EACH} of each label, carry a wrong label "
            f"({style.percent(noise)} of all do)"
        )
    first = max(top, key=lambda row: row["oriented"])
    return f"The {which} of each class; on top image {first['image_id']}, {_word(study, first['given_label'])}"


def _gallery(study: Study, cells: list[Row], labels: list[int], kinds: dict[str, str]) -> style.Panel:
    columns = len(kinds) * _EACH + (len(kinds) - 1) * _SPACE
    names = (
        "image_id",
        "given_label",
        "true_label",
        "is_noisy",
        "value",
        "score",
        "row",
        "column",
        "url",
        "label",
        "size",
    )
    rows = [{name: cell[name] for name in names} for cell in cells]
    width = round(_CELL * columns)
    x = alt.X("column:Q", axis=None, scale=alt.Scale(domain=[0, columns], nice=False, zero=False))
    y = alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(labels))), paddingInner=0, paddingOuter=0))
    base = alt.Chart(style.data(rows)).encode(x=x, y=y)
    wrong = alt.condition("datum.is_noisy", alt.value(style.WRONG_LABEL), alt.value("#DDDDDD"))
    frame = base.mark_square(filled=False, size=(_IMAGE + 4) ** 2, opacity=1, yOffset=-12).encode(
        stroke=wrong, strokeWidth=alt.condition("datum.is_noisy", alt.value(3), alt.value(1))
    )
    tooltip = ["image_id:Q", "given_label:N", "true_label:N", "score:N", alt.Tooltip("value:Q", format=".4g")]
    picture = base.mark_image(width=_IMAGE, height=_IMAGE, yOffset=-12).encode(url="url:N", tooltip=tooltip)
    value = base.mark_text(dy=_IMAGE // 2 - 7, baseline="top", fontSize=9, color=style.GREY)
    caption = base.mark_text(dy=_IMAGE // 2 + 4, baseline="top", fontSize=9, color=style.WRONG_LABEL)
    sides = alt.Chart(style.data([{"row": i, "name": _word(study, label)} for i, label in enumerate(labels)]))
    side = sides.mark_text(align="right", fontSize=11, fontWeight="bold", dy=-12).encode(
        x=alt.value(-8), y=y, text="name:N"
    )
    tops = [
        {"column": _column(i, 0) - 0.5, "title": title, "by": f"by {_name(score)}" + _unit(score)}
        for i, (title, score) in enumerate(kinds.items())
    ]
    top = alt.Chart(style.data(tops)).encode(x=x)
    headings = [
        top.mark_text(align="left", fontSize=12, fontWeight="bold").encode(y=alt.value(-26), text="title:N"),
        top.mark_text(align="left", fontSize=10, color=style.GREY).encode(y=alt.value(-12), text="by:N"),
    ]
    layers = [frame, picture, caption.encode(text="label:N"), value.encode(text="size:N"), side, *headings]
    return alt.layer(*layers).properties(width=width, height=_LINE * len(labels))


def _column(kind: int, place: int) -> float:
    return kind * (_EACH + _SPACE) + place + 0.5


def _name(score: str) -> str:
    return "memorisation itself" if score == TRUTH else words_of(score)


def _unit(score: str) -> str:
    return f", {_UNITS[score]}" if score in _UNITS and score != TRUTH else ""


def _written(value: float) -> str:
    return style.number(value, 3).replace("-", "\u2212")


def _word(study: Study, label: int) -> str:
    names: Sequence[str] = study.data.record.class_names or ()
    return names[label] if names else f"class {label}"


def _caption(study: Study, row: Row) -> str:
    names: Sequence[str] = study.data.record.class_names or ()
    return f"is {names[row['true_label']][:_LONGEST_NAME] if names else row['true_label']}"
