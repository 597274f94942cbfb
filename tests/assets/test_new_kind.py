"""A kind of result that the platform does not have: one file and one entry of the registry, and everything follows."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from support import REPOSITORY, Lab, Result, work

from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.models.build import build
from dd_core.models.stacking import load_state
from dd_core.store.checkpoints import load_checkpoint

FILE = """\
\"\"\"How sure the networks of a checkpoint are of the training images.\"\"\"

from dd_core.results.by_trial import TrainedTrial, by_trial
from dd_core.tables.kinds import KINDS


def compute(study, checkpoint, store, *, device=None):
    return by_trial(KINDS["confidence"], study, checkpoint, store, _row, device=device)


def _row(of: TrainedTrial):
    model = of.model.to(of.device)
    return {"confidence": model(of.images()).softmax(1).amax(1).mean().item()}
"""
ENTRY = """(PER_IMAGE_CURVATURE, HESSIAN, Kind(
    name="confidence", what="confidence", version="1", compute="dd_core.results.confidence:compute",
    description="Mean probability of the likeliest class over the training images.",
    table=Table("confidences", "Confidence by trial.", (*ARM, EPOCH, Column("confidence", "float64", "mean, 0 to 1"))),
))"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with the new file and the new entry."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("dd_core", "dd_assets"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dd_core" / "results" / "confidence.py").write_text(FILE, encoding="utf-8")
    registry = folder / "dd_core" / "tables" / "kinds.py"
    text = registry.read_text(encoding="utf-8")
    assert text.count("(PER_IMAGE_CURVATURE, HESSIAN)") == 1
    text = text.replace("(PER_IMAGE_CURVATURE, HESSIAN)", ENTRY)
    text = text.replace("columns import Table", "columns import ARM, EPOCH, Column, Table")
    registry.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab") / "lab")
    work(lab, lab.training_job("k001"))
    return lab


def materialize(lab: Lab, extended: Path, *arguments: str) -> Result:
    """The command ``dagster asset materialize`` of the extended packages."""
    module = {"DAGSTER_MODULE_NAME": "dd_assets.definitions", "PYTHONPATH": str(extended)}
    lab.home.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "dd_assets" / "dagster.yaml", lab.home)
    command = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize", *arguments]
    done = subprocess.run(
        command,
        cwd=extended,
        env=lab.environment(**module, PYTHONWARNINGS="ignore:Function `asset_materialize_command`"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout)


def confidences(lab: Lab) -> dict[tuple[int, int], float]:
    """By epoch and trial, asked in SQL."""
    with contextlib.closing(duckdb.connect(str(lab.store.warehouse_path), read_only=True)) as connection:
        rows = connection.sql("SELECT epoch, trial, confidence FROM confidences WHERE study = 'tiny'").fetchall()
    return {(epoch, trial): value for epoch, trial, value in rows}


def expected(lab: Lab, epoch: int, trial: int) -> float:
    """The same in plain torch, from the weights of the checkpoint."""
    study = lab.study
    checkpoint = study.checkpoint(f"plain.k001|{epoch:04d}")
    weights, _ = load_checkpoint(lab.store, study, checkpoint)
    model = build(study.variants["plain"].architecture, 1, 1, 10)
    load_state(model, {name: tensor[trial] for name, tensor in weights.items()})
    data = trial_data(study, "plain", trial)
    pixels = torch.from_numpy(load("digits").images[data.train_ids].astype(np.float32)).permute(0, 3, 1, 2)
    mean = torch.as_tensor(data.mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.as_tensor(data.std, dtype=torch.float32).view(1, -1, 1, 1)
    images = (pixels - mean) / std
    with torch.no_grad():
        return float(torch.softmax(model.eval()(images), 1).max(1).values.mean())


def test_one_partition_then_damage_then_the_driver(lab: Lab, extended: Path) -> None:
    one = materialize(lab, extended, "--select", "tiny/confidence", "--partition", "plain.k001|0024")
    assert one.code == 0, one.output
    assert set(confidences(lab)) == {(24, 0), (24, 1)}
    path = lab.store.result_path("confidences", "tiny", lab.study.checkpoint("plain.k001|0024"))
    path.write_bytes(path.read_bytes()[:-1])
    config = {"ops": {"confidences": {"config": {"epochs": [0, 24]}}}}
    driven = materialize(lab, extended, "--select", "confidences", "--config-json", json.dumps(config))
    assert driven.code == 0, driven.output
    assert "2 trained checkpoints, 2 without a current result: confidence" in driven.output, "the damaged one too"
    assert lab.recorded("confidence") == {"plain.k001|0000", "plain.k001|0024"}
    found = confidences(lab)
    assert len(found) == 4
    for (epoch, trial), value in found.items():
        assert value == pytest.approx(expected(lab, epoch, trial), rel=1e-5)
