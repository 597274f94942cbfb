"""Reduced precision where it saves no time: float32 is used instead, which is said, recorded, and kept to."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from dd_core.events import Event, Note, parse
from dd_core.jobs import worker
from dd_core.jobs.job import CheckpointTask, Job
from dd_core.machine import arithmetic
from dd_core.machine.arithmetic import objection, slowdown, usable
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.train import train_arm

from .comparison import ARM, table

CPU = torch.device("cpu")
SetSlowdown = Callable[[float], None]


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> SetSlowdown:
    """Says how many times as long as float32 a reduced precision takes."""
    return lambda times: monkeypatch.setattr(arithmetic, "slowdown", lambda precision, device: times)


def test_what_was_measured_is_kept_for_each_setting_and_measured_again_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = slowdown.__wrapped__("bfloat16", CPU)
    (path,) = tmp_path.rglob("*.bfloat16.json")
    assert found > 0 and json.loads(path.read_text())["slowdown"] == found
    path.write_text('{"slowdown": 7.5}')
    assert slowdown.__wrapped__("bfloat16", CPU) == 7.5
    monkeypatch.setattr(arithmetic, "_measured", lambda precision, device: 2.5)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")
    assert slowdown.__wrapped__("bfloat16", CPU) == 2.5
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    path.write_text('{"slowd')
    assert [slowdown.__wrapped__("bfloat16", CPU) for _ in range(2)] == [2.5, 2.5]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # not writable, also for root
    assert slowdown.__wrapped__("bfloat16", CPU) == 2.5


def test_float32_is_used_for_what_saves_no_time(takes: SetSlowdown) -> None:
    takes(0.9)
    assert [usable(name, CPU) for name in ("bfloat16", "float16", "float64")] == ["bfloat16", "float16", "float64"]
    assert usable("tf32", CPU) == "float32", "there is none on a CPU"
    assert [objection(name, CPU) for name in ("bfloat16", "tf32")] == ["", ""]
    takes(11.6)
    assert [usable(name, CPU) for name in ("bfloat16", "float16", "float64")] == ["float32", "float32", "float64"]
    sentence = objection("bfloat16", CPU)
    assert sentence.startswith("precision: bfloat16 takes 12 times as long as float32 on this machine (")
    assert sentence.endswith("), so what begins here is computed in float32") and "\n" not in sentence


def test_an_arm_goes_on_in_the_precision_in_which_it_began(
    takes: SetSlowdown, make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, in_float32 = (make_study({"precision": name}, trials=1) for name in ("float16", "float32"))
    here, elsewhere, expected = (Store(tmp_path / name) for name in ("here", "elsewhere", "expected"))
    said: list[Event] = []
    takes(3.0)
    train_arm(study, ARM, here, 2, report=said.append)
    shutil.copytree(here.root, elsewhere.root)
    takes(0.5)  # as measured again, while the machine does other things
    train_arm(study, ARM, here, 4, report=said.append)
    train_arm(in_float32, ARM, expected, 4)
    found, right = (load_checkpoint(*own, Checkpoint(ARM, 4))[0] for own in ((here, study), (expected, in_float32)))
    for name, tensor in found.items():
        assert torch.equal(tensor, right[name]), name
    assert set(table(here, study, ARM, "runs").precision) == {"float32"}
    assert not [event for event in said if isinstance(event, Note)]

    monkeypatch.setattr(arithmetic, "processor", lambda: ("another processor", ""))
    train_arm(study, ARM, elsewhere, 4, report=said.append)
    (note,) = [event for event in said if isinstance(event, Note)]
    assert note.text == f"{ARM.key}: going on at epoch 2 in float16 instead of float32; the last bits may differ"
    assert sorted(set(table(elsewhere, study, ARM, "runs").precision)) == ["float16", "float32"]


def test_curvature_says_once_in_what_it_was_computed_and_is_current(
    takes: SetSlowdown, make_study: Callable[..., Study], trained: Store
) -> None:
    takes(3.0)
    study = make_study(curvature={"precision": "bfloat16"})
    of = [Checkpoint(ARM, epoch) for epoch in (2, 4)]
    where = [{"study": study.name, "variant": ARM.variant, "k": ARM.k, "epoch": checkpoint.epoch} for checkpoint in of]
    tasks = tuple(CheckpointTask(kind=PER_IMAGE_CURVATURE.name, **place) for place in where)
    job = Job(root=trained.root, studies={study.name: study}, tasks=tasks, num_workers=1, threads=1)
    events = worker.Events.__new__(worker.Events)
    events._out, events._noted, events._last_progress = io.StringIO(), set(), 0.0
    for task in tasks:
        assert worker._perform(task, job, set, trained, CPU, events)
    notes = [line for line in events._out.getvalue().splitlines() if isinstance(parse(line), Note)]
    assert len(notes) == 1 and "bfloat16 takes 3.0 times as long as float32" in notes[0]
    found = [PER_IMAGE_CURVATURE.manifest(trained, study, checkpoint) for checkpoint in of]
    assert [manifest and manifest.precision for manifest in found] == ["float32", "float32"]
    assert not set(of) & set(PER_IMAGE_CURVATURE.missing(trained, study))
    values = read_parquet(PER_IMAGE_CURVATURE.path(trained, study, of[1])).to_pandas()
    assert compute_curvature(make_study(), of[1], trained), "what is asked for now is another precision"
    pd.testing.assert_frame_equal(values, read_parquet(PER_IMAGE_CURVATURE.path(trained, study, of[1])).to_pandas())
