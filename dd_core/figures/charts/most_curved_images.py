"""The training images at which the loss is most curved in input space, and for contrast those at which it is least."""

from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.data.datasets import load
from dd_core.data.duplicates import images_of
from dd_core.data.trials import trial_data
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import errors_by_width, key_arm
from dd_core.figures.drawing.pixels import data_uri
from dd_core.figures.drawing.selection import Selection, fetch, select
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study

COLUMNS, ROWS = 8, 4
_IMAGE, _CELL, _LINE = 56, 84, 92
_LONGEST_NAME = 13  # characters of a class that fit

# Ranks from both ends, ties by image_id so that equal data give an equal figure.
_EXTREMES = """
    SELECT image_id, true_label, given_label, is_noisy, trace, from_top, from_bottom FROM (
        SELECT *, row_number() OVER (ORDER BY trace DESC, image_id) - 1 AS from_top,
               row_number() OVER (ORDER BY trace, image_id) - 1 AS from_bottom
        FROM rows WHERE arm = $arm AND epoch = $epoch AND trial = 0 AND isfinite(trace)
    ) WHERE from_top < $most OR from_bottom < $least ORDER BY from_top
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the gallery for trial 0 of one arm.

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
        arm=checkpoint.arm.key, epoch=checkpoint.epoch, most=COLUMNS * ROWS, least=COLUMNS,
    )  # fmt: skip
    if not found:
        return None
    ids = np.array([row["image_id"] for row in found])
    images = images_of(load(study.data.dataset).images, trial_data(study, checkpoint.arm.variant, trial=0).copies, ids)
    cells = [
        {
            **row,
            "url": data_uri(image, study.data.record, _IMAGE),
            "label": caption(study, row),
            "size": style.number(row["trace"], digits=3),
        }
        for row, image in zip(found, images, strict=True)
    ]
    most = [{**row, "rank": row["from_top"]} for row in cells if row["from_top"] < COLUMNS * ROWS]
    least = [{**row, "rank": row["from_bottom"]} for row in cells if row["from_bottom"] < COLUMNS]
    arm = checkpoint.arm
    title = f"The most curved training images at k = {arm.k}"
    noise = study.variants[arm.variant].label_noise
    if noise:
        title = f"{sum(row['is_noisy'] for row in most)} of the {len(most)} most curved training images at k = {arm.k} "
        title += f"carry a wrong label ({style.percent(noise)} of all do)"
    return style.finish(
        alt.vconcat(_gallery(most, "Most curved"), _gallery(least, "Least curved"), spacing=10),
        title,
        [
            style.describe(study, [arm.variant])[0],
            f"{arm.key} · trial 0 · epoch {checkpoint.epoch} of {study.epochs}",
            ("Coloured frame: wrong label. " if noise else "") + f"Number: {' '.join(style.TRACE)}",
            selection.note(study),
        ],
        characters=90,
    )


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
    """What the image was called and what it is, on two lines where the classes have long names."""
    given, true = row["given_label"], row["true_label"]
    if names := study.data.record.class_names:
        return f"given {names[given][:_LONGEST_NAME]}\ntrue {names[true][:_LONGEST_NAME]}"
    return f"given {given} · true {true}"


def _gallery(cells: list[dict[str, Any]], name: str) -> style.Panel:
    rows = [{**cell, "column": cell["rank"] % COLUMNS, "row": cell["rank"] // COLUMNS} for cell in cells]
    num_rows = 1 + max(row["row"] for row in rows)
    base = alt.Chart(style.data(rows)).encode(
        x=alt.X("column:O", axis=None, scale=alt.Scale(domain=list(range(COLUMNS)))),
        y=alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(num_rows)))),
    )
    colour = alt.condition("datum.is_noisy", alt.value(style.WRONG_LABEL), alt.value(style.GREY))
    frame = base.mark_square(filled=False, size=(_IMAGE + 4) ** 2, opacity=1, yOffset=-12).encode(
        stroke=alt.condition("datum.is_noisy", alt.value(style.WRONG_LABEL), alt.value("#DDDDDD")),
        strokeWidth=alt.condition("datum.is_noisy", alt.value(3), alt.value(1)),
    )
    picture = base.mark_image(width=_IMAGE, height=_IMAGE, yOffset=-12).encode(
        url="url:N", tooltip=["image_id:Q", "given_label:N", "true_label:N", alt.Tooltip("trace:Q", format=".4g")]
    )
    label = base.mark_text(dy=_IMAGE // 2 - 6, baseline="top", fontSize=10, lineBreak="\n", lineHeight=11)
    value = base.mark_text(
        dy=_IMAGE // 2 + (17 if "\n" in rows[0]["label"] else 6), baseline="top", fontSize=9, color=style.GREY
    )
    return (
        alt.layer(frame, picture, label.encode(text="label:N", color=colour), value.encode(text="size:N"))
        .properties(width=COLUMNS * _CELL, height=num_rows * (_LINE + 11 * ("\n" in rows[0]["label"])))
        .properties(title=alt.TitleParams(name, fontSize=12, offset=4))
    )
