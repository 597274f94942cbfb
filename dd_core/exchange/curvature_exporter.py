"""Per-image curvature as the published analysis of incremental CIFAR-100 writes it: NumPy arrays by epoch.

Per trial and epoch ``<study>/<arm>/trial-000/epoch_0200/`` holds ``per_image_curvature.npy`` and
``per_image_directional_eig.npy`` (float32, mean over random signs of the norm of the gradient's change, and of the sign
vector times it), ``per_image_labels.npy`` (int64, given labels), ``metadata.json``, and what the published files lack:
``per_image_ids.npy`` (int64), the place of each image in the data set. Images ascend by that place. ``<study>/<arm>/
curvature/0200.json`` is the manifest.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.data.trials import trial_data
from dd_core.errors import UserError
from dd_core.exchange.staging import replace_if_changed, staging_folder
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store, write_atomically
from dd_core.study.curvature_names import columns_of_step
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import read_parquet

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Raise it when the same tables shall give other files.
EXPORTER_VERSION = "1"
# What a study has to say for these columns, and in the units of the published code.
HOW = (
    "curvature: {estimators: [top_directions, finite_difference], finite_difference: {steps: [0.001], normalisation: "
    "mean, mean_batch_size: 32}}"
)


@dataclass(frozen=True)
class CurvatureExport:
    """The files of one checkpoint.

    Attributes:
        files: how many there are, of all trials.
        rows: images, summed over trials.
        written: how many files are new or have changed.
        folder: of the arm.
    """

    files: int
    rows: int
    written: int
    folder: Path


def export_curvature(
    store: Store, study: Study, checkpoint: Checkpoint, curvature: Manifest, step: float | None = None
) -> CurvatureExport:
    """Write the arrays of one checkpoint, unless they are there.

    Args:
        store: where the table is and the files go.
        study: whose.
        checkpoint: which.
        curvature: the manifest of its per-image curvature.
        step: h of the finite difference; None: the smallest that was computed.

    Raises:
        StaleError: the table's file is damaged.
        StoreError: the files cannot be written.
        UserError: there is no finite difference, or none with this step.
    """
    step = _step(study, checkpoint, curvature, step)
    folder = store.exports_folder(study.name) / checkpoint.arm.key
    identity = {
        "kind": "curvature_export",
        "exporter_version": EXPORTER_VERSION,
        "study": study.name,
        "arm": checkpoint.arm.key,
        "epoch": checkpoint.epoch,
        "recipe": study.recipe_hash(checkpoint.arm),
        "step": step,
        "sources": {entry.path: entry.sha256 for entry in curvature.files.values()},
    }
    path = folder / "curvature" / f"{checkpoint.epoch:04d}.json"
    with store.lock("exports", study.name, checkpoint.arm.key):
        former = store.read_manifest(path) or Manifest({}, {})
        if {name: former.content.get(name) for name in identity} == identity and store.is_sound(former):
            return CurvatureExport(len(former.files), former.rows["table"], 0, folder)
        name = f"curvature.{study.name}.{checkpoint.arm.key}.{checkpoint.epoch:04d}"
        with staging_folder(store, name) as staging:
            files, rows = [], 0
            for trial, columns in _by_trial(store, curvature, step):
                own = f"trial-{trial:03d}/epoch_{checkpoint.epoch:04d}"
                metadata = _metadata(study, checkpoint, curvature, trial, step, columns)
                files += [f"{own}/{file}" for file in _stage(staging / own, columns, metadata)]
                rows += len(columns["per_image_ids"])
            remove(path)  # it must not vouch for what comes in their place
            written = sum(replace_if_changed(staging / file, folder / file) for file in files)
        store.write_manifest(path, {**identity, "rows": {"table": rows}}, {file: folder / file for file in files})
    return CurvatureExport(len(files), rows, written, folder)


def _step(study: Study, checkpoint: Checkpoint, curvature: Manifest, asked: float | None) -> float:
    """The step to be exported."""
    there = curvature.settings.get("finite_difference", {}).get("steps", [])
    where = f"{study.name}/{checkpoint.key}"
    if study.data.graphs is not None:
        raise UserError(f"{where}: what is exported is a finite difference in images, and there is none of graphs")
    if not there:
        raise UserError(
            f"{where} has no finite difference, which is what is exported; say in the study file {HOW}, and run: "
            "dagster asset materialize --select curvature"
        )
    if asked is not None and asked not in there:
        known = ", ".join(f"{step:g}" for step in there)
        raise UserError(f"{where} has finite differences with the steps {known}, and none with {asked:g}")
    return float(min(there) if asked is None else asked)


def _by_trial(store: Store, curvature: Manifest, step: float) -> Iterator[tuple[int, "dict[str, NDArray[Any]]"]]:
    """The arrays of each trial by the names of their files, images in the order of the data set."""
    table = read_parquet(store.verify(curvature.files["table"]))
    norm, _, directional, _ = columns_of_step(step)
    trials, ids = table["trial"].to_numpy(), table["image_id"].to_numpy()
    columns = {
        "per_image_curvature": table[norm].to_numpy().astype(np.float32),
        "per_image_directional_eig": table[directional].to_numpy().astype(np.float32),
        "per_image_labels": table["given_label"].to_numpy().astype(np.int64),
        "per_image_ids": ids.astype(np.int64),
    }
    for trial in np.unique(trials).tolist():
        own = np.flatnonzero(trials == trial)
        order = own[np.argsort(ids[own])]
        yield trial, {name: values[order] for name, values in columns.items()}


def _metadata(
    study: Study,
    checkpoint: Checkpoint,
    curvature: Manifest,
    trial: int,
    step: float,
    columns: "dict[str, NDArray[Any]]",
) -> dict[str, Any]:
    """The keys of the published metadata, then what they leave open."""
    values = columns["per_image_curvature"].astype(np.float64)
    data = trial_data(study, checkpoint.arm.variant, trial)
    classes = range(study.data.record.num_classes) if data.order is None else data.order.tolist()
    seen, active = study.seen_and_active(checkpoint.epoch)
    difference = {key: value for key, value in curvature.settings["finite_difference"].items() if key != "steps"}
    return {
        "epoch": checkpoint.epoch,
        "total_samples": len(values),
        "num_gpus": int(curvature.headline["gpu_seconds"] > 0),
        "compute_time_seconds": len(values) / curvature.headline["images_per_second"],
        "allowed_classes": list(classes[: study.num_classes_at(checkpoint.epoch)]),
        "curvature_stats": {name: float(getattr(values, name)()) for name in ("mean", "std", "min", "max")},
        "study": study.name,
        "arm": checkpoint.arm.key,
        "trial": trial,
        "recipe": study.recipe_hash(checkpoint.arm),
        "checkpoint_sha256": curvature.checkpoint_sha256,
        "num_seen_classes": seen,
        "num_active_classes": active,
        "step": step,
        "logits": "seen",
        **difference,
    }


def _stage(folder: Path, columns: "dict[str, NDArray[Any]]", metadata: dict[str, Any]) -> list[str]:
    """Write the files of one trial; returns their names."""
    for name, values in columns.items():
        write_atomically(folder / f"{name}.npy", partial(_save, values))
    write_atomically(folder / "metadata.json", lambda path: path.write_text(json.dumps(metadata, indent=2)))
    return [*(f"{name}.npy" for name in columns), "metadata.json"]


def _save(values: "NDArray[Any]", path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
