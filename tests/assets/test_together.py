"""A grid whose arms share networks, from the orchestrator's side: every arm is recorded, or blamed, as its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
from support import Lab, attempts

from dd_assets.assets.training import _blame_each_arm
from dd_assets.steps import versions
from dd_assets.steps.follow import Outcome
from dd_assets.steps.recording import PartitionRecorder
from dd_core.events import CheckpointWritten
from dd_core.jobs.job import TrainTask
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study

STUDY = """\
description: forty digits, two rates
data: {dataset: digits, num_train: 40}
variants:
  plain:
    architecture: cnn5
    batch_size: 20
    optimizer: {name: sgd, learning_rate: 0.05}
    grid: {learning_rate: [0.05, 0.1]}
widths: [1]
trials: 1
epochs: 4
checkpoints: [0, 2, 4]
"""
SLOW, FAST = Arm("plain-lr0-05", 1), Arm("plain-lr0-1", 1)


def test_partitions_of_all_arms_of_a_network_are_recorded(tmp_path: Path) -> None:
    """On one core, where none could be trained beside another."""
    lab = Lab(tmp_path, STUDY)
    assert list(lab.study.arms.values()) == [SLOW, FAST]
    select = ("asset", "materialize", "--select", "tiny/checkpoints")
    every = (*select, "--partition-range", f"{SLOW.key}|0000...{FAST.key}|0004")
    output = lab.forked_dagster(*every).succeeded().output
    assert "2 arms of tiny wanted, 2 to train in one network, as arms that differ in rates alone share one" in output
    assert lab.recorded("checkpoints") == {f"{arm.key}|{epoch:04d}" for arm in (SLOW, FAST) for epoch in (0, 2, 4)}
    assert [attempts(lab.store, arm.key) for arm in (SLOW, FAST)] == [["finished"]] * 2


def test_each_arm_of_a_network_that_fails_is_blamed(tmp_path: Path) -> None:
    study = Lab(tmp_path, STUDY).study
    both = TrainTask(study="tiny", variant=SLOW.variant, k=1, until=4, also=(FAST.variant,))
    other = TrainTask(study="tiny", variant="another", k=1, until=4)
    for incomplete, blamed in (({FAST}, {FAST}), ({SLOW, FAST}, {SLOW, FAST}), (set(), {SLOW, FAST})):
        outcome = Outcome({both.name: "a full disk", other.name: "a kill"})
        _blame_each_arm(outcome, study, [both, other], incomplete)
        assert outcome.failed == {"tiny/another.k001": "a kill", **{f"tiny/{a.key}": "a full disk" for a in blamed}}


def test_a_step_records_each_checkpoint_once_and_looks_up_each_recipe_once(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[object] = []
    counted = versions.digest_of_content
    monkeypatch.setattr(versions, "digest_of_content", lambda content: digested.append(content) or counted(content))
    logged: list[dg.AssetMaterialization] = []
    context = cast(dg.AssetExecutionContext, SimpleNamespace(log_event=logged.append))
    recorder = PartitionRecorder(context, trained, tiny_study, list(tiny_study.iter_checkpoints()))
    for _ in range(2):
        recorder.on_event(CheckpointWritten(task="tiny/plain.k002", number=0, epoch=2))
    assert [event.partition for event in logged] == ["plain.k002|0002"]
    recorder.record_rest()
    assert sorted(str(event.partition) for event in logged) == sorted(c.key for c in tiny_study.iter_checkpoints())
    assert len(digested) == len(tiny_study.variants)
    (recipe,) = versions.recipes(tiny_study)
    tag = f"dagster/input_data_version/{recipe.key.to_user_string()}"
    assert all(event.tags[tag] == recipe.key.path[-1] for event in logged)
