"""The table of runs: every attempt with what it cost, how it ended, and its last and best results."""

import contextlib
import os
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect
from dd_core.training.ledger import RunRecord
from dd_core.training.session import Session
from dd_core.training.train import train_arm

from .comparison import ARM, Killed, killer, table

CPU = torch.device("cpu")


def runs_of(store: Store) -> pd.DataFrame:
    """The table as its view shows it, by attempt and trial."""
    with contextlib.closing(connect(store, ("runs",))) as connection:
        return connection.sql("SELECT * FROM runs ORDER BY attempt, trial").to_arrow_table().to_pandas()


def test_no_file_of_runs_is_ever_written_again(tiny_study: Study, store: Store) -> None:
    """Whoever reads the table while an attempt ends must not find a file changed under them."""
    with pytest.raises(Killed):
        train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=killer("progress", 3))
    folder = store.table_folder("runs", tiny_study.name, ARM.key)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert set(before) == {"attempt-0001.start.parquet", "attempt-0001.end.parquet"}
    train_arm(tiny_study, ARM, store, 4)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 4


def test_an_attempt_killed_before_its_end_was_written_is_ended_although_nothing_is_left_to_train(
    tiny_study: Study, store: Store
) -> None:
    train_arm(tiny_study, ARM, store, 4)
    end = store.table_folder("runs", tiny_study.name, ARM.key) / "attempt-0001.end.parquet"
    for path in (end, store.manifest_path(end)):
        path.unlink()
    assert set(runs_of(store).status) == {"running"}
    train_arm(tiny_study, ARM, store, 4)
    runs = runs_of(store)
    assert runs.status.tolist() == ["interrupted", "interrupted", "finished", "finished"]
    evals = table(store, tiny_study, ARM, "training_evals").query("epoch == 4").sort_values("trial")
    assert runs.last_test_loss.tolist()[2:] == evals.test_loss.tolist()
    assert runs.first_epoch.tolist()[2:] == runs.last_epoch.tolist()[2:] == [4, 4]


def test_every_attempt_is_a_row_per_trial_that_says_how_it_ended(tiny_study: Study, store: Store) -> None:
    with pytest.raises(Killed):
        train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=killer("progress", 3))
    train_arm(tiny_study, ARM, store, 4)
    runs = runs_of(store)
    assert runs.attempt.tolist() == [1, 1, 2, 2]
    assert runs.trial.tolist() == [0, 1, 0, 1]
    assert runs.status.tolist() == ["failed", "failed", "finished", "finished"]
    assert runs.reason.tolist()[0].startswith("Killed")
    assert runs.reason.isna().tolist() == [False, False, True, True]
    assert runs.first_epoch.tolist() == [0, 0, 3, 3]
    assert runs.last_epoch.tolist() == [3, 3, 4, 4]
    assert set(runs.num_parameters) == {sum(p.numel() for p in build("preact_resnet10", 2, 1, 10).parameters())}
    images = (runs.last_epoch - runs.first_epoch) * 200
    np.testing.assert_allclose(runs.samples_per_second * runs.seconds, images, rtol=1e-9)
    assert (runs.ended_at >= runs.started_at.dt.floor("ms")).all()
    evals = table(store, tiny_study, ARM, "training_evals").sort_values(["trial", "epoch"])
    last = runs[runs.attempt == 2]
    for name in ("train_error", "train_loss", "test_error", "test_loss"):
        np.testing.assert_array_equal(last[f"last_{name}"], evals[evals.epoch == 4][name])
    lowest = evals.loc[evals.groupby("trial").test_loss.idxmin()]
    assert set(last.best_by) == {"test_loss"}
    np.testing.assert_array_equal(last.best_epoch, lowest.epoch)
    np.testing.assert_array_equal(last.best_test_error, lowest.test_error)
    assert (last.gpu_seconds == 0).all() and last.cost.isna().all() and (last.peak_memory_bytes > 1e6).all()


def test_an_attempt_that_vanished_without_a_word_is_marked_by_the_next(tiny_study: Study, store: Store) -> None:
    RunRecord(store, tiny_study, ARM, CPU).open(Session(tiny_study, ARM, store, CPU))
    running = runs_of(store)
    assert set(running.status) == {"running"}
    assert running[["ended_at", "seconds", "reason"]].isna().all().all()
    train_arm(tiny_study, ARM, store, 0)
    runs = runs_of(store)
    assert runs.status.tolist() == ["interrupted", "interrupted", "finished", "finished"]
    assert runs.attempt.tolist() == [1, 1, 2, 2]
    assert runs.started_at.tolist()[:2] == running.started_at.tolist()
    assert runs.ended_at.isna().tolist() == [True, True, False, False]


def test_a_killed_attempt_is_charged_until_its_last_sign_of_life(tiny_study: Study, store: Store) -> None:
    """What was lost to a kill is the hours that count most."""
    train_arm(tiny_study, ARM, store, 2)
    priced = tiny_study.model_copy(update={"price_per_gpu_hour": 3.0})
    record = RunRecord(store, priced, ARM, CPU)
    record.open(Session(tiny_study, ARM, store, CPU))
    started = runs_of(store).started_at.max().timestamp()
    os.utime(store.resume_path(tiny_study.name, ARM.key), (started + 90, started + 90))
    train_arm(tiny_study, ARM, store, 4)
    runs = runs_of(store).query("attempt == 2")
    assert runs.status.tolist() == ["interrupted", "interrupted"]
    np.testing.assert_allclose(runs.seconds, 90, atol=1e-3)
    assert runs.cost.tolist() == [0, 0]  # at the price of that time, on a CPU; the next attempt knows none
    assert (runs.ended_at - runs.started_at).dt.total_seconds().round().tolist() == [90, 90]


def test_an_attempt_on_a_share_of_a_gpu_is_charged_that_share(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(price_per_gpu_hour=3.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    for name in ("reset_peak_memory", "peak_memory"):
        monkeypatch.setattr(f"dd_core.training.ledger.{name}", lambda device: 7)
    session = Session(study, ARM, store, CPU)
    record = RunRecord(store, study, ARM, torch.device("cuda"), gpu_share=0.25, predicted_seconds=12.0)
    record.open(session)
    record.close(session, "finished", None)
    runs = runs_of(store)
    assert set(runs.device) == {"a GPU"} and set(runs.predicted_seconds) == {12.0}
    assert set(runs.price_per_gpu_hour) == {3.0}
    np.testing.assert_allclose(runs.gpu_seconds, runs.seconds / 4, rtol=1e-12)
    np.testing.assert_allclose(runs.cost, runs.gpu_seconds / 3600 * 3, rtol=1e-12)


@pytest.mark.parametrize("text", ["cheap", "-1", "inf", "nan"])
def test_a_price_that_is_none_is_refused_before_anything_is_trained(
    text: str, tiny_study: Study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DD_PRICE_PER_GPU_HOUR", text)
    with pytest.raises(UserError, match=f"DD_PRICE_PER_GPU_HOUR must be a price, such as 2.5, not '{text}'"):
        train_arm(tiny_study, ARM, store, 4)
