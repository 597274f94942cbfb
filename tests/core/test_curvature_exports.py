"""Curvature in the published form: the arrays read back are the table, and metadata say what they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from dd_core.errors import UserError
from dd_core.exchange.curvature_exporter import CurvatureExport, export_curvature
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

from .test_seen_classes import ARM, incremental, rows_of, store_networks

DIFFERENCE = {"steps": (0.001, 0.1), "num_probes": 2, "normalisation": "mean", "mean_batch_size": 5}


def exported(store: Store, study: Study, epoch: int, step: float | None = None) -> CurvatureExport:
    checkpoint = Checkpoint(ARM, epoch)
    manifest = PER_IMAGE_CURVATURE.manifest(store, study, checkpoint)
    assert manifest is not None
    return export_curvature(store, study, checkpoint, manifest, step)


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def test_arrays_read_back_are_the_table_in_the_order_of_the_data_set(store: Store) -> None:
    study = incremental(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": DIFFERENCE})
    store_networks(store, study)
    for epoch in (3, 4):
        compute_curvature(study, Checkpoint(ARM, epoch), store)
    for epoch, seen, active in ((3, 2, 4), (4, 4, 4)):
        done = exported(store, study, epoch, 0.1)
        assert (done.files, done.rows, done.written) == (10, 2 * 8 * seen, 10)
        rows = rows_of(store, study, epoch)
        for trial in range(2):
            own = rows[rows.trial == trial].sort_values("image_id")
            folder = store.root / f"exports/growing/plain.k004/trial-{trial:03d}/epoch_{epoch:04d}"
            for name, column, dtype in (
                ("curvature", "fd_norm_h0p1", np.float32),
                ("directional_eig", "fd_directional_h0p1", np.float32),
                ("labels", "given_label", np.int64),
                ("ids", "image_id", np.int64),
            ):
                array = np.load(folder / f"per_image_{name}.npy")
                assert array.dtype == dtype
                np.testing.assert_array_equal(array, own[column].to_numpy().astype(dtype))
            metadata = json.loads((folder / "metadata.json").read_text())
            published = ("epoch", "total_samples", "num_gpus", "compute_time_seconds", "allowed_classes")
            assert tuple(metadata)[:6] == (*published, "curvature_stats")
            assert (metadata["epoch"], metadata["total_samples"], metadata["num_gpus"]) == (epoch, 8 * seen, 0)
            assert set(metadata["allowed_classes"]) == set(own.true_label)
            statistics = {name: getattr(own.fd_norm_h0p1, name)() for name in ("mean", "min", "max")}
            statistics["std"] = own.fd_norm_h0p1.std(ddof=0)
            assert metadata["curvature_stats"] == pytest.approx(statistics, rel=1e-6)
            assert (metadata["num_seen_classes"], metadata["num_active_classes"]) == (seen, active)
            assert (metadata["normalisation"], metadata["mean_batch_size"], metadata["step"]) == ("mean", 5, 0.1)
    before = stamps(store.root / "exports")
    assert exported(store, study, 4, 0.1).written == 0
    assert stamps(store.root / "exports") == before
    assert exported(store, study, 4).written == 6  # another step: two arrays and the metadata of both trials


def test_what_cannot_be_exported_is_said_in_a_sentence(store: Store) -> None:
    study = incremental()
    store_networks(store, study)
    compute_curvature(study, Checkpoint(ARM, 3), store)
    with pytest.raises(UserError, match=r"growing/plain.k004\|0003 has no finite difference, .* say in the study file"):
        exported(store, study, 3)
    study = incremental(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": DIFFERENCE})
    compute_curvature(study, Checkpoint(ARM, 3), store)
    with pytest.raises(UserError, match=r"with the steps 0.001, 0.1, and none with 0.5"):
        exported(store, study, 3, 0.5)
