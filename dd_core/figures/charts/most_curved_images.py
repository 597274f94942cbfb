"""The training images at which the loss is most curved in input space, and for contrast those at which it is least."""

from collections import defaultdict
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.data.datasets import load
from dd_core.data.duplicates import images_of
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError, UserError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import errors_by_width, key_arm
from dd_core.figures.drawing.pixels import data_uri
from dd_core.figures.drawing.render import passing
from dd_core.figures.drawing.selection import Selection, fetch, select
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study

COLUMNS, ROWS = 8, 4
_IMAGE, _CELL, _LINE, _TEXT = 56, 84, 81, 11
_MOST_TRIALS = 10
_LONGEST_NAME = 13  # characters of a class that fit

# Ranks from both ends, ties by image_id so that equal data give an equal figure.
_EXTREMES = """
    SELECT trial, image_id, true_label, given_label, is_noisy, trace, from_top, from_bottom FROM (
        SELECT *, row_number() OVER (PARTITION BY trial ORDER BY trace DESC, image_id) - 1 AS from_top,
               row_number() OVER (PARTITION BY trial ORDER BY trace, image_id) - 1 AS from_bottom
        FROM rows WHERE arm = $arm AND epoch = $epoch AND trial < $trials AND isfinite(trace)
    ) WHERE from_top < $most OR from_bottom < $least ORDER BY trial, from_top
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the gallery for one arm, a trial at a time.

    Raises:
        DataMissingError: the images are not on this machine, or the study has graphs.
    """
    selection = select(connection, study, "curvature")
    if selection is None:
        return None
    if study.data.graphs is not None:
        raise DataMissingError("there are no images to show, since the study has graphs")
    checkpoint = choose(connection, study, selection)
    found = fetch(
        connection, study, "per_image_curvature", _EXTREMES,
        arm=checkpoint.arm.key, epoch=checkpoint.epoch, most=COLUMNS * ROWS, least=COLUMNS, trials=_MOST_TRIALS,
    )  # fmt: skip
    if not found:
        return None
    why_not = _predict(study, checkpoint, store, found)
    images = load(study.data.dataset).images
    for row in found:
        copies = trial_data(study, checkpoint.arm.variant, row["trial"]).copies
        row["url"] = data_uri(images_of(images, copies, np.array([row["image_id"]]))[0], study.data.record, _IMAGE)
        row["label"] = caption(study, row)
    most = [{**row, "rank": row["from_top"]} for row in found if row["from_top"] < COLUMNS * ROWS]
    least = [{**row, "rank": row["from_bottom"]} for row in found if row["from_bottom"] < COLUMNS]
    for cells in (most, least):
        for row, size in zip(cells, style.alike([row["trace"] for row in cells]), strict=True):
            row["size"] = size
    trials = sorted({row["trial"] for row in found})
    noise = study.variants[checkpoint.arm.variant].label_noise
    gallery = alt.vconcat(_gallery(most, "Most curved"), _gallery(least, "Least curved"), spacing=10)
    num_trials = fetch(
        connection, study, "per_image_curvature",
        "SELECT count(DISTINCT trial) AS trials FROM rows WHERE arm = $arm AND epoch = $epoch",
        arm=checkpoint.arm.key, epoch=checkpoint.epoch,
    )[0]["trials"]  # fmt: skip
    options = alt.binding_select(options=trials, name="trial: ") if len(trials) > 1 else alt.Undefined
    drawn = style.finish(
        gallery.add_params(alt.param(name="trial", value=trials[0], bind=options)),
        headline(checkpoint, most, noise),
        [
            style.describe(study, [checkpoint.arm.variant])[0],
            f"{checkpoint.arm.key} \u00b7 epoch {checkpoint.epoch} of {study.epochs} \u00b7 "
            + which_trials(trials, num_trials),
            ("Coloured frame: wrong label. " if noise else "") + f"Number: {' '.join(style.TRACE)}",
            why_not,
            selection.note(study),
        ],
        characters=90,
    )
    return passing(drawn) if why_not else drawn


def which_trials(trials: list[int], num_trials: int) -> str:
    """Which trials there are to choose from, true of the page and of pictures."""
    if len(trials) == 1:
        return f"trial {trials[0]}"
    count = f"{num_trials} trials" if len(trials) == num_trials else f"the first {len(trials)} of {num_trials} trials"
    return f"{count}: choose one below; pictures and print show trial {trials[0]}"


def headline(checkpoint: Checkpoint, most: list[dict[str, Any]], noise: float) -> str:
    """How many of the most curved images carry a wrong label; of several trials the fewest and the most."""
    name = f"most curved training images at k = {checkpoint.arm.k}"
    if not noise:
        return f"The {name}"
    trials = {row["trial"] for row in most}
    wrong = [sum(row["is_noisy"] for row in most if row["trial"] == trial) for trial in trials]
    size = max(sum(row["trial"] == trial for row in most) for trial in trials)
    counts = " to ".join(dict.fromkeys(map(str, (min(wrong), max(wrong)))))
    by_trial = ", by trial," if min(wrong) < max(wrong) else ""
    return f"{counts} of the {size} {name}{by_trial} carry a wrong label ({style.percent(noise)} of all do)"


def _predict(study: Study, checkpoint: Checkpoint, store: Store, rows: list[dict[str, Any]]) -> str | None:
    """Add what the network itself says to rows, or say why it cannot be asked."""
    from dd_core.curvature.trained import predicted_classes

    ids: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        ids[row["trial"]].append(row["image_id"])
    try:
        found = predicted_classes(study, checkpoint, store, {trial: np.array(own) for trial, own in ids.items()})
    except UserError as error:
        return f"Predictions are not shown: {error}"
    for row in rows:
        place = ids[row["trial"]].index(row["image_id"])
        row["predicted"] = int(found[row["trial"]][place])
    return None


def choose(connection: duckdb.DuckDBPyConnection, study: Study, selection: Selection) -> Checkpoint:
    """The last checkpoint with curvature of the arm at the threshold, in the first variant with wrong labels."""
    arm = key_arm(study, selection.arms, errors_by_width(connection, study, selection))
    last = fetch(
        connection,
        study,
        "curvature",
        "SELECT max(epoch) AS epoch FROM rows WHERE arm = $arm AND list_contains($epochs, epoch)",
        arm=arm.key,
        epochs=list(study.checkpoints),
    )
    return Checkpoint(arm, last[0]["epoch"])


def caption(study: Study, row: dict[str, Any]) -> str:
    """What the image was called, what it is and what the network says, on more lines where classes have long names."""
    names = study.data.record.class_names
    words = {"given": row["given_label"], "true": row["true_label"]}
    if "predicted" in row:
        words["predicted"] = row["predicted"]
    if names:
        return "\n".join(f"{word} {names[label][:_LONGEST_NAME]}" for word, label in words.items())
    first, *rest = [" \u00b7 ".join(f"{word} {words[word]}" for word in ("given", "true")), *list(words)[2:]]
    return "\n".join([first, *(f"{word} {words[word]}" for word in rest)])


def _gallery(cells: list[dict[str, Any]], name: str) -> style.Panel:
    rows = [{**cell, "column": cell["rank"] % COLUMNS, "row": cell["rank"] // COLUMNS} for cell in cells]
    num_rows, num_lines = 1 + max(row["row"] for row in rows), 1 + max(row["label"].count("\n") for row in rows)
    base = (
        alt.Chart(style.data(rows))
        .transform_filter("datum.trial == trial")
        .encode(
            x=alt.X("column:O", axis=None, scale=alt.Scale(domain=list(range(COLUMNS)))),
            y=alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(num_rows)))),
        )
    )
    colour = alt.condition("datum.is_noisy", alt.value(style.WRONG_LABEL), alt.value(style.GREY))
    frame = base.mark_square(filled=False, size=(_IMAGE + 4) ** 2, opacity=1, yOffset=-12).encode(
        stroke=alt.condition("datum.is_noisy", alt.value(style.WRONG_LABEL), alt.value("#DDDDDD")),
        strokeWidth=alt.condition("datum.is_noisy", alt.value(3), alt.value(1)),
    )
    picture = base.mark_image(width=_IMAGE, height=_IMAGE, yOffset=-12).encode(
        url="url:N",
        tooltip=["image_id:Q", "label:N", *style.numbers(trace="trace")],
    )
    label = base.mark_text(dy=_IMAGE // 2 - 6, baseline="top", fontSize=10, lineBreak="\n", lineHeight=_TEXT)
    value = base.mark_text(dy=_IMAGE // 2 - 5 + _TEXT * num_lines, baseline="top", fontSize=9, color=style.GREY)
    return (
        alt.layer(frame, picture, label.encode(text="label:N", color=colour), value.encode(text="size:N"))
        .properties(width=COLUMNS * _CELL, height=num_rows * (_LINE + _TEXT * num_lines))
        .properties(title=alt.TitleParams(name, fontSize=12, offset=4))
    )
