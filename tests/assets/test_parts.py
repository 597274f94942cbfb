"""Arms in parts, from the orchestrator's side: what is predicted of them, and when their checkpoints are recorded."""

from pathlib import Path
from typing import Any

import pytest
from support import Lab

from dd_core.jobs.forecast import forecast
from dd_core.jobs.job import training_job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.training.train_part import train_part

CPU = Machine("cpu", num_gpus=0, num_cores=1)
VARIANT = {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "schedule": {"name": "plateau", "metric": "train_loss"}}
STUDY = """\
description: forty digits, three trials that share no network
data: {dataset: digits, num_train: 40}
variants:
  plain:
    architecture: cnn5
    batch_size: 20
    optimizer: {name: sgd, learning_rate: 0.05}
    schedule: {name: plateau, metric: train_loss}
widths: [1, 2]
trials: 3
epochs: 4
checkpoints: [0, 2, 4]
"""


@pytest.fixture
def study(make_study: Any) -> Study:
    return make_study({**VARIANT, "architecture": "cnn5"}, trials=3, widths=(1,), epochs=8, checkpoints=(0, 4, 8))


def test_a_part_takes_its_share_of_the_arms_time(study: Study, store: Store) -> None:
    """Two of three parts have been trained half way; the ledger knows how fast."""
    arm = Arm("plain", 1)
    job = training_job(store.root, study, list(study.iter_checkpoints()), 1, 1)
    nothing_known = forecast(store, study, job, CPU)
    assert (nothing_known.predictions, len(nothing_known.tasks)) == ({}, 3)
    for trial in (0, 1):
        train_part(study, arm, store, 4, range(trial, trial + 1))
    expected = forecast(store, study, job, CPU)
    seconds = [task.predicted_seconds for task in expected.tasks]
    assert None not in seconds
    assert seconds == pytest.approx([seconds[0], seconds[0], 2 * seconds[0]]), "epochs that are left"
    assert expected.predictions[arm].seconds == pytest.approx(4 * seconds[0])
    assert expected.predictions[arm].source == "earlier runs"
    assert expected.metadata(arm) == {"predicted_seconds": expected.predictions[arm].seconds}
    assert expected.seconds == pytest.approx(4 * seconds[0]), "one after the other"


def test_partitions_are_recorded_when_all_parts_have_reached_them(tmp_path: Path) -> None:
    lab = Lab(tmp_path, STUDY)
    every = ("--partition-range", "plain.k001|0000...plain.k002|0004")
    output = lab.forked_dagster("asset", "materialize", "--select", "tiny/checkpoints", *every).succeeded().output
    assert "2 arms of tiny wanted, 2 to train in 6 parts" in output
    assert len(lab.recorded("checkpoints")) == 6
    again = lab.forked_dagster("asset", "materialize", "--select", "tiny/checkpoints", *every).succeeded().output
    assert "2 arms of tiny wanted, 0 to train" in again
