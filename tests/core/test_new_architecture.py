"""An architecture is one record and one module: a test adds one, and everything else takes it as it is."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dd_core.forecast.work import training_cost
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study import architectures
from dd_core.study.architectures import Architecture, Setting
from dd_core.study.study import Arm, Checkpoint
from dd_core.tables.files import read_parquet
from dd_core.training.train import train_arm

ARM, LAST = Arm("plain", 2), Checkpoint(Arm("plain", 2), 4)
MODULE = """
from torch import nn
from dd_core.models.stacking import Classifier, Convolution

class Net(nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x)).flatten(2).amax(2))

def make(k, shape, num_classes, trials, kernel):
    return Net(Convolution(shape[2], k, kernel, trials or 1), nn.ReLU(), Classifier(k, num_classes, trials))
"""
RECORD = Architecture(
    name="one_layer",
    label="one convolution",
    builder="new_architecture:make",
    flops=lambda k, shape, classes, kernel: 2 * k * (shape[0] * shape[1] * shape[2] * kernel**2 + classes),
    citation="this test",
    settings={"kernel": Setting(3, most=7)},
)


@pytest.fixture(autouse=True)
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new_architecture.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "new_architecture", raising=False)
    monkeypatch.setitem(architectures.ARCHITECTURES, "one_layer", RECORD)


def test_it_trains_stacked_resumes_and_has_an_exact_curvature(make_study: Any, tmp_path: Path) -> None:
    variant = {"architecture": "one_layer", "network": {"kernel": 5}}
    study = make_study(variant=variant, widths=(2,), data={"dataset": "digits", "num_train": 40})
    assert training_cost(study, ARM, 0, 4) > 0
    whole, halves = Store(tmp_path / "whole"), Store(tmp_path / "halves")
    train_arm(study, ARM, whole, 4)
    train_arm(study, ARM, halves, 2)
    train_arm(study, ARM, halves, 4)
    weights, _ = load_checkpoint(whole, study, LAST)
    assert weights["0.weight"].shape == (2, 2, 1, 5, 5)
    ends = [store.checkpoint_path("tiny", LAST).read_bytes() for store in (whole, halves)]
    assert ends[0] == ends[1]
    compute_curvature(study, LAST, whole)
    table = read_parquet(whole.result_path("per_image_curvature", "tiny", LAST))
    assert set(table["method"].to_pylist()) == {"exact"}
    assert np.isfinite(table["trace"].to_numpy()).all()


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        ({"architecture": "resnet18", "network": {"norm": "none"}}, "exact"),
        ({"architecture": "mlp", "network": {"layers": 2}}, "exact"),
        ({"architecture": "vit", "network": {"depth": 1}}, "double_backward"),
    ],
)
def test_those_of_the_registry_resume_to_the_bit_with_all_monitors(
    make_study: Any, tmp_path: Path, variant: dict[str, Any], method: str
) -> None:
    monitors = {"hessian": {"every": "2 epochs"}, "noise": {"every": "2 epochs"}}
    optimizer = {"optimizer": {"name": "sgd", "learning_rate": 0.01, "decay_all": False, "weight_decay": 0.1}}
    data = {"dataset": "digits", "num_train": 40}
    study = make_study(variant={**variant, **optimizer}, widths=(2,), data=data, monitors=monitors)
    whole, halves = Store(tmp_path / "whole"), Store(tmp_path / "halves")
    train_arm(study, ARM, whole, 4)
    train_arm(study, ARM, halves, 2)
    train_arm(study, ARM, halves, 4)
    ends = [store.checkpoint_path("tiny", LAST).read_bytes() for store in (whole, halves)]
    assert ends[0] == ends[1]
    compute_curvature(study, LAST, whole)
    assert set(read_parquet(whole.result_path("per_image_curvature", "tiny", LAST))["method"].to_pylist()) == {method}
