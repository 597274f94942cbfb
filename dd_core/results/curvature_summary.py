"""The table ``curvature``: per-image curvature summarised per checkpoint and trial. Rebuilt from files alone."""

from collections import Counter
from typing import Any

import numpy as np

from dd_core.analysis.auroc import auroc
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.columns import SEEN
from dd_core.tables.files import read_parquet, to_arrow, write_result
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

_QUANTILES = {"trace_p05": 0.05, "trace_p25": 0.25, "trace_p50": 0.5, "trace_p75": 0.75, "trace_p95": 0.95}
_MEANS = (
    "trace",
    "trace_standard_error",
    "frobenius_norm",
    "largest_eigenvalue",
    "gradient_norm",
    "gradient_curvature",
    "loss",
)
_SCORES = ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_curvature", "gradient_norm", "loss")


def summarise(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Summary rows of one trial at one checkpoint.

    Args:
        columns: per image ``is_noisy``, the values of ``_MEANS`` and any finite differences (fd_...), of one length.

    Returns:
        One row for the subset all, and where labels are noisy one for clean and one for noisy. The AUROC columns (the
        probability that a noisy image scores higher than a clean one, ties half) are NaN without noisy labels, which
        the table has as null.
    """
    noisy = columns["is_noisy"].astype(bool)
    subsets = {"all": np.ones_like(noisy)}
    if noisy.any():
        subsets |= {"clean": ~noisy, "noisy": noisy}
    differences = [name for name in columns if name.startswith("fd_") and not name.endswith("_standard_error")]
    scores = [*_SCORES, *differences]
    aurocs = {f"auroc_{score}": auroc(columns[score], noisy) for score in scores}
    rows = []
    for name, mask in subsets.items():
        if not mask.any():
            continue  # every label is wrong
        row: dict[str, Any] = {"subset": name, "num_images": int(mask.sum())}
        row |= {f"mean_{value}": float(columns[value][mask].mean()) for value in (*_MEANS, *differences)}
        quantiles = np.quantile(columns["trace"][mask], list(_QUANTILES.values()))
        row |= dict(zip(_QUANTILES, map(float, quantiles), strict=True))
        row |= aurocs
        rows.append(row)
    return rows


def rebuild(store: Store, study: Study) -> int:
    """Write the study's part of the table, reusing the rows of files that have not changed.

    A damaged file is left out; ``dd_core.tables.damage`` says which it is.

    Returns:
        Number of rows; with none, the study's part is removed.
    """
    known = _known_rows(store, study)
    num_known = Counter(row["arm"] for rows_of_file in known.values() for row in rows_of_file)
    rows: list[dict[str, Any]] = []
    changed: set[str] = set()
    trained = trained_checkpoints(store, study)
    present = PER_IMAGE_CURVATURE.manifests(store, study, trained)
    for checkpoint, weights in trained.items():
        manifest = present[checkpoint]
        if manifest is not None and PER_IMAGE_CURVATURE.describes(manifest, weights) and store.is_sound(manifest):
            known_rows = known.get((checkpoint.arm.key, checkpoint.epoch, manifest.files["table"].sha256))
            if known_rows is None:
                changed.add(checkpoint.arm.key)
            rows += known_rows or _summarise_file(store, study, checkpoint, manifest)
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row.pop("arm"), []).append(row)
    for arm, arm_rows in by_arm.items():
        if arm not in changed and len(arm_rows) == num_known[arm]:
            continue  # a file that stays as it is disturbs nobody who reads it
        # Another estimator at some epochs gives columns that others lack; known rows of an older file lack new ones.
        names = dict.fromkeys(name for row in arm_rows for name in row)
        columns = {name: [row.get(name) for row in arm_rows] for name in names}
        path = store.table_folder("curvature", study.name, arm) / "summary.parquet"
        write_result(store, path, to_arrow("curvature", columns, len(arm_rows)))
    for path in store.table_folder("curvature", study.name).glob("arm=*/summary.parquet"):
        if path.parent.name.removeprefix("arm=") not in by_arm:
            remove(store.manifest_path(path))
            remove(path)
    return len(rows)


def _known_rows(store: Store, study: Study) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
    """The rows of summaries that are vouched for and unharmed; all others are made again."""
    known: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for path in store.table_folder("curvature", study.name).glob("arm=*/summary.parquet"):
        arm = path.parent.name.removeprefix("arm=")
        manifest = store.read_manifest(store.manifest_path(path))
        if manifest is not None and store.is_sound(manifest):
            for row in read_parquet(path).to_pylist():
                known.setdefault((arm, row["epoch"], row["source_sha256"]), []).append({"arm": arm, **row})
    return known


def _summarise_file(store: Store, study: Study, checkpoint: Checkpoint, manifest: Manifest) -> list[dict[str, Any]]:
    table = read_parquet(store.verify(manifest.files["table"]))
    names = ["trial", "is_noisy", *_MEANS, *(name for name in table.column_names if name.startswith("fd_"))]
    columns = {name: table[name].to_numpy() for name in names}
    rows = []
    for trial in np.unique(columns["trial"]).tolist():
        mask = columns["trial"] == trial
        for row in summarise({name: values[mask] for name, values in columns.items()}):
            rows.append(
                {
                    "arm": checkpoint.arm.key,
                    "variant": checkpoint.arm.variant,
                    "k": checkpoint.arm.k,
                    "trial": trial,
                    "recipe": study.recipe_hash(checkpoint.arm),
                    "epoch": checkpoint.epoch,
                    **dict(zip((c.name for c in SEEN), study.seen_and_active(checkpoint.epoch), strict=True)),
                    "source_sha256": manifest.files["table"].sha256,
                    **row,
                }
            )
    return rows
