"""Weights that were imported go the way of trained ones: checks, curvature, exports; training is refused in words."""

from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import torch
from support import Lab

from dd_assets import import_checkpoints
from dd_core.models.build import build
from dd_core.store.files import remove
from dd_core.store.store import Store

HOW = ["--dataset", "digits", "--num-train", "40", "--k", "1", "--classes", "2,2,3"]
SELECT = ("asset", "materialize", "--select")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path / "lab")
    folder = tmp_path / "files/class_order"
    folder.mkdir(parents=True)
    np.save(folder / "index-0.npy", np.arange(10)[::-1])
    for epoch in (0, 3):
        torch.manual_seed(epoch)
        torch.save(build("incremental_resnet18", 1, 1, 10).state_dict(), folder / f"../index-0_epoch-{epoch}.pt")
    return lab


def test_imported_weights_go_the_way_of_trained_ones(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DD_ROOT", str(lab.root))
    monkeypatch.setenv("DD_STUDIES", str(lab.studies))
    assert import_checkpoints.main(["other", str(tmp_path / "files"), *HOW]) == 0
    assert "--select curvature" in capsys.readouterr().out
    lab.forked_dagster(*SELECT, "curvature").succeeded()
    lab.forked_dagster(*SELECT, "curvature_exports").succeeded()
    labels = np.load(lab.root / "exports/other/imported.k001/trial-000/epoch_0003/per_image_labels.npy")
    assert sorted(labels.tolist()) == [8] * 4 + [9] * 4  # the first two classes of the order, and not four
    with lab.instance() as instance:
        key = dg.AssetKey(["other", "checkpoints"])
        assert instance.get_materialized_partitions(key) == {"imported.k001|0000", "imported.k001|0003"}
        (record,) = instance.fetch_materializations(key, limit=1).records
        assert record.asset_materialization is not None
        assert "imported_from" in record.asset_materialization.metadata
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(dg.AssetKey(["other", "per_image_curvature"]), "only_seen_classes")]
        )
        (check,) = checks.values()
        assert check.event is not None and check.event.dagster_event is not None
        evaluation = check.event.dagster_event.event_specific_data
        assert isinstance(evaluation, dg.AssetCheckEvaluation)
        assert evaluation.passed
        assert "| 3 | 2 | 4 | 8 | 8 |" in str(evaluation.metadata["classes"].value)
    # What is not there cannot be made here.
    store = Store(lab.root)
    (manifest,) = store.root.glob("checkpoints/other/*/0003.json")
    remove(manifest)
    whole = ("--partition-range", "imported.k001|0000...imported.k001|0003")
    lab.forked_dagster(*SELECT, "other/checkpoints", *whole).refused(
        "other/imported.k001|0003: is not imported yet; run: python -m dd_assets.import_checkpoints other FOLDER"
    )
