"""The table ``images``: which images each trial sees, and the labels it was given."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.trials import trial_data
from dd_core.errors import StaleError
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet, to_arrow, write_result

if TYPE_CHECKING:
    import pyarrow as pa


def write_images(store: Store, study: Study) -> int:
    """Write the table's part of a study, one file per variant (label noise belongs to the variant).

    Returns:
        Number of rows.
    """
    total = 0
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
        }
        path = store.table_folder("images", study.name) / f"{variant}.parquet"
        table = to_arrow("images", columns, len(true))
        # What is there and the same stays, so that nobody who reads it meets a change.
        if not _holds(path, table) or store.read_manifest(store.manifest_path(path)) is None:
            write_result(store, path, table)
        total += len(true)
    return total


def _holds(path: Path, table: "pa.Table") -> bool:
    """Whether a file is there, unharmed, with just these rows."""
    try:
        return read_parquet(path).equals(table)
    except (FileNotFoundError, StaleError):
        return False
