"""Arms that differ in rates alone, trained in one network: each is what it is apart, whatever ends a training."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dd_core.jobs.job import TrainTask, predicted_cost, training_job
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.resume_points import trained_epoch
from dd_core.store.store import Store, sha256_of
from dd_core.study.stacks import kind, together
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.attempts import arm_is_complete
from dd_core.tables.warehouse import connect
from dd_core.training.recorder import METRIC_TABLES
from dd_core.training.step import Stepper
from dd_core.training.train import train_arm, train_together
from tests.support import results

from .comparison import Killed, killer, table
from .test_kills import kept_before_each_moment

pytestmark = pytest.mark.slow

MONITORS = {
    "validation": {"every": "1/2 epoch"},
    "norms": {"every": "1 step"},
    "hessian": {"every": "3 steps", "num_images": 8, "iterations": 2, "num_probes": 2},
    "noise": {"every": "1 epoch", "window": 128, "grad_var": "ema"},
}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0}
ADAMW = {"name": "adamw", "learning_rate": 0.005, "weight_decay": 0.1, "decay_all": False}
# The last diverges in the first epoch.
RATES: dict[str, list[dict[str, Any]]] = {
    "sgd": [{}, {"learning_rate": 0.1, "momentum": 0.0}, {"weight_decay": 0.1}, {"learning_rate": 1e200}],
    "adamw": [{}, {"learning_rate": 0.02}, {"weight_decay": 0.0}, {"learning_rate": 1e200}],
}


def grid(optimizer: dict[str, Any], rates: list[dict[str, Any]], *, recipe: Any = None, **changes: Any) -> Study:
    """Variants ``v0``, ``v1``, ...: two trials of two epochs of two steps, of which the last has fewer images."""
    common = {
        "architecture": "preact_resnet10",
        "label_noise": 0.2,
        "batch_size": 32,
        "schedule": {"name": "cosine", "warmup_epochs": 1.0},
        "augmentation": {"shift_x": 1},
        **(recipe or {}),
    }
    content = {
        "name": "tiny",
        "description": "made for tests",
        "data": {"dataset": "digits", "num_train": 50, "num_validation": 20},
        "variants": {f"v{i}": {**common, "optimizer": {**optimizer, **own}} for i, own in enumerate(rates)},
        "widths": (1,),
        "trials": 2,
        "epochs": 4,
        "checkpoints": (0, 2, 4),
        "evaluation": {"every": 2},
        "monitors": MONITORS,
    }
    return Study.model_validate({**content, **changes})


def arms_of(study: Study) -> list[Arm]:
    return list(study.arms.values())


def assert_close(store: Store, other: Store, study: Study, arm: Arm, tolerance: float) -> None:
    """Weights and every column of every table, but times; what is undefined in one is so in the other."""
    for epoch in study.checkpoints:
        ours, _ = load_checkpoint(store, study, Checkpoint(arm, epoch))
        theirs, _ = load_checkpoint(other, study, Checkpoint(arm, epoch))
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance, equal_nan=True)
    for name in METRIC_TABLES:
        frames = [table(s, study, arm, name).drop(columns="time", errors="ignore") for s in (store, other)]
        pd.testing.assert_frame_equal(*frames, check_categorical=False, rtol=tolerance, atol=tolerance, obj=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_arms_together_are_what_each_is_apart(optimizer: str, store: Store) -> None:
    """In float64 to 1e-10: momentum, decay, clipping, BatchNorm, warm-up and cosine; one arm diverges."""
    study = grid({"sgd": SGD, "adamw": ADAMW}[optimizer], RATES[optimizer])
    apart = Store(store.root / "apart")
    for arm in arms_of(study):
        train_arm(study, arm, apart, 4, dtype=torch.float64)
    train_together(study, arms_of(study), store, 4, dtype=torch.float64)
    for arm in arms_of(study):
        assert_close(store, apart, study, arm, 1e-10)
    runs = pd.concat([table(store, study, arm, "runs") for arm in arms_of(study)])
    ended = runs[runs.status != "running"]
    assert list(ended.status) == ["finished"] * 6 + ["diverged"] * 2
    assert set(ended.arms_together) == {4}
    last = [load_checkpoint(store, study, Checkpoint(arm, 4))[0]["linear.weight"] for arm in arms_of(study)]
    assert all((a != b).any() for a, b in itertools.combinations(last, 2))


# Kills

SMALL = {"architecture": "cnn5", "batch_size": 15}
PLAIN_SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def small_grid(*rates: dict[str, Any], **changes: Any) -> Study:
    """Three arms of a trial in a moment, with a monitor that remembers all steps."""
    few = {"data": {"dataset": "digits", "num_train": 30, "num_validation": 20}, "trials": 1, "keep_best": 1}
    only = {"monitors": {"validation": None, "hessian": None, "noise": {"every": "1 epoch", "grad_var": "ema"}}}
    three = rates or ({}, {"learning_rate": 0.1}, {"momentum": 0.0, "weight_decay": 0.1})
    return grid(PLAIN_SGD, list(three), recipe=SMALL, **{**few, **only, **changes})


@pytest.fixture
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def everything(store: Store, study: Study) -> dict[str, str]:
    """All results, and the weights of the best checkpoints."""
    best = {
        f"{arm.key}/{path.name}": sha256_of(path)
        for arm in arms_of(study)
        for path in store.best_folder(study.name, arm.key).glob("*.safetensors")
    }
    return results(store.root) | best


@pytest.mark.usefixtures("_no_waiting_for_the_disk")
def test_a_kill_at_any_moment_leaves_what_is_made_whole_again(store: Store, tmp_path: Path) -> None:
    """Also between the resume points of two arms, which stand at different epochs then."""
    study = small_grid()
    store.root.mkdir()
    with kept_before_each_moment(store.root, tmp_path / "moments") as moments:
        train_together(study, arms_of(study), store, 4, resume_seconds=0)
    expected = everything(store, study)
    assert len(moments) > 80
    apart = 0
    for moment in moments[::-7]:
        other = Store(moment)
        epochs = {trained_epoch(other, study, arm) for arm in arms_of(study)}
        apart += len(epochs) > 1
        train_together(study, arms_of(study), other, 4, resume_seconds=0)
        assert everything(other, study) == expected, moment.name
        assert all(arm_is_complete(other, study, arm, 4) for arm in arms_of(study))
    assert apart, "at no moment did arms stand at different epochs"
