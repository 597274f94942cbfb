"""The table ``images``: which images each trial sees, and the labels it was given; and ``class_schedule``: when."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import StaleError
from dd_core.store.files import remove
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet, to_arrow, write_result

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def write_images(store: Store, study: Study) -> int:
    """Write the tables' part of a study, of ``images`` one file per variant (label noise belongs to the variant).

    Returns:
        Number of rows of ``images``.
    """
    total = 0
    _write_class_schedule(store, study)
    for variant in study.variants:
        parts = [trial_data(study, variant, trial) for trial in range(study.trials)]
        num_images = len(parts[0].image_ids)
        true = np.concatenate([d.true_labels for d in parts])
        given = np.concatenate([d.given_labels for d in parts])
        columns = {
            "variant": variant,
            "trial": np.repeat(np.arange(study.trials), num_images),
            "image_id": np.concatenate([d.image_ids for d in parts]),
            "split": np.concatenate([d.splits for d in parts]),
            "true_label": true,
            "given_label": given,
            "is_noisy": true != given,
            "class_rank": None if parts[0].ranks is None else np.concatenate([_class_ranks(d) for d in parts]),
            **_duplicates(parts),
        }
        path = store.table_folder("images", study.name) / f"{variant}.parquet"
        table = to_arrow("images", columns, len(true))
        _write(store, path, table)
        total += len(true)
    return total


def _class_ranks(data: TrialData) -> "NDArray[np.int64]":
    assert data.ranks is not None
    return data.ranks[data.true_labels]


def _write_class_schedule(store: Store, study: Study) -> None:
    """A row per checkpoint epoch; no file where all classes are there from the beginning."""
    path, classes = store.table_folder("class_schedule", study.name) / "epochs.parquet", study.data.classes
    if classes is None:
        remove(store.manifest_path(path), path)
        return
    count = study.data.record.num_classes
    columns = {
        "epoch": list(study.checkpoints),
        "task": [classes.task_of(epoch, count) for epoch in study.checkpoints],
        "num_seen_classes": [classes.seen(epoch, count) for epoch in study.checkpoints],
        "num_active_classes": [classes.active(epoch, count) for epoch in study.checkpoints],
    }
    _write(store, path, to_arrow("class_schedule", columns, len(study.checkpoints)))


def _write(store: Store, path: Path, table: "pa.Table") -> None:
    """What is there and the same stays, so that nobody who reads it meets a change."""
    if not _holds(path, table) or store.read_manifest(store.manifest_path(path)) is None:
        write_result(store, path, table)


def _duplicates(trials: list[TrialData]) -> dict[str, Any]:
    """The columns that say which images are copies, and of which they are."""
    if trials[0].copies is None:
        return {"copy_of": None, "duplicate": None}
    sources = np.concatenate([d.copies.source_of(d.image_ids) for d in trials if d.copies is not None])
    kinds = np.concatenate([d.copies.kind_of(d.image_ids) for d in trials if d.copies is not None])
    names = np.array(["exact", "near", None], dtype=object)
    return {"copy_of": [None if one < 0 else one for one in sources.tolist()], "duplicate": names[kinds]}


def _holds(path: Path, table: "pa.Table") -> bool:
    """Whether a file is there, unharmed, with just these rows."""
    try:
        return read_parquet(path).equals(table)
    except (FileNotFoundError, StaleError):
        return False
