"""A data root with thousands of checkpoints and their per-image curvature, made in a minute.

A study of 100 arms with so many checkpoints each: one is trained and curved, on 20 digits, and its files and manifests
are copied under the names of the others.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dd_assets.compute.local import run_job
from dd_core.jobs.job import result_job, training_job
from dd_core.store.manifests import Manifest, sealed
from dd_core.store.store import Store, sha256_of
from dd_core.study.study import Study

NUM_ARMS = 100


def study_of(num_partitions: int) -> Study:
    """100 variants that differ in name alone."""
    epochs = num_partitions // NUM_ARMS
    variant = {"architecture": "preact_resnet10", "label_noise": 0.2, "batch_size": 10}
    variant |= {"optimizer": {"name": "adam", "learning_rate": 2e-3}}
    content = {
        "name": "many",
        "description": "many partitions",
        "data": {"dataset": "digits", "num_train": 20},
        "variants": {f"v{number:03d}": variant for number in range(NUM_ARMS)},
        "widths": [1],
        "trials": 1,
        "epochs": epochs,
        "checkpoints": list(range(1, epochs + 1)),
        "evaluation": {"every": epochs},
        "monitors": {"validation": None, "norms": None, "hessian": None, "noise": None},
    }
    return Study.model_validate_json(json.dumps(content))


def lay_out(root: Path, study: Study) -> None:
    """Train and curve the last checkpoint of the first arm, and make all others of it."""
    store, checkpoints = Store(root), list(study.iter_checkpoints())
    model = next(c for c in checkpoints if c.epoch == 1)
    for job in (
        training_job(root, study, [model], 1, 1),
        result_job("per_image_curvature", root, {study.name: study}, [(study.name, model)], 1, 1),
    ):
        for event in run_job(job):
            if event.name == "failed":
                raise RuntimeError(event.error)
    weights, curvature = store.read_manifests(
        [
            store.checkpoint_manifest_path(study.name, model),
            store.manifest_path(store.result_path("per_image_curvature", study.name, model)),
        ]
    )
    assert weights is not None and curvature is not None
    table = pq.ParquetFile(store.result_path("per_image_curvature", study.name, model)).read()
    content = store.checkpoint_path(study.name, model).read_bytes()
    shutil.rmtree(root / "tables")
    shutil.rmtree(root / "manifests")
    for checkpoint in checkpoints:
        about = {"arm": checkpoint.arm.key, "recipe": study.recipe_hash(checkpoint.arm), "epoch": checkpoint.epoch}
        path = store.checkpoint_path(study.name, checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _write_manifest(store, path, "weights", weights, about)
        path = store.result_path("per_image_curvature", study.name, checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"variant": checkpoint.arm.variant, "recipe": about["recipe"], "epoch": checkpoint.epoch}
        for name, value in values.items():
            position = table.column_names.index(name)
            column = pa.array([value] * len(table), table.schema.field(name).type)
            table = table.set_column(position, table.schema.field(name), column)
        pq.write_table(table, path)
        _write_manifest(store, path, "table", curvature, about)


def _write_manifest(store: Store, path: Path, role: str, model: Manifest, about: dict[str, Any]) -> None:
    """As the store does, but without waiting for the disk."""
    entry = replace(model.files[role], path=str(path.relative_to(store.root)))
    if role == "table":
        entry = replace(entry, sha256=sha256_of(path), bytes=path.stat().st_size)
    where = store.manifest_path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    content = sealed(Manifest.of({**model.content, **about}, {role: entry}), str(where.relative_to(store.root)))
    where.write_text(json.dumps(content), encoding="utf-8")
