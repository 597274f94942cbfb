"""What people see of a training while it runs, and that nothing depends on it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pytest

import dd_core
from dd_core.errors import StoreError
from dd_core.events import Event, Progress
from dd_core.store.retirement import retire
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables import live
from dd_core.tables.damage import damaged_files
from dd_core.tables.warehouse import connect, refresh
from dd_core.training import live_rows
from dd_core.training.train import train_arm
from dd_core.training.train_part import train_part

from .comparison import ARM, Killed, killer

MakeStudy = Callable[..., Study]
SEEN = "SELECT * EXCLUDE written_at FROM live_epochs ORDER BY trial, epoch"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell every epoch, though these take no two seconds."""
    monkeypatch.setattr(live_rows, "_LEAST", 0.0)
    monkeypatch.setattr(live_rows, "_MOST", 0.0)


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(checkpoints=(2, 4))


def asked(store: Store, query: str) -> pd.DataFrame:
    """Of the file that people open."""
    with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as connection:
        return connection.execute(query).df()


def evaluations(store: Store, *, live: bool = True) -> pd.DataFrame:
    with contextlib.closing(connect(store, live=live)) as connection:
        found = connection.execute("SELECT * FROM training_evals ORDER BY arm, trial, epoch").df()
    assert not found.duplicated(["arm", "trial", "epoch"]).any()
    return found


def told_rows(store: Store) -> pd.DataFrame:
    with contextlib.closing(connect(store, (), live=True)) as connection:
        return connection.execute("FROM live_epochs ORDER BY trial, epoch").to_arrow_table().to_pandas()


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.live_folder().glob("*/*/*") if path.stat().st_size)


def test_rows_are_in_sql_before_the_first_checkpoint(make_study: MakeStudy, store: Store, tmp_path: Path) -> None:
    """In a process of its own, killed as soon as they are seen."""
    study = make_study(epochs=2000, checkpoints=(2000,))
    refresh(store)
    (tmp_path / "study.json").write_text(study.model_dump_json())
    text = (
        "import sys, pathlib; from dd_core.store.store import Store; from dd_core.study.study import Study, Arm; "
        "from dd_core.training.train import train_arm; "
        "train_arm(Study.model_validate_json(pathlib.Path(sys.argv[1]).read_text()), Arm('plain', 1), "
        "Store(sys.argv[2]), 2000)"
    )
    training = subprocess.Popen([sys.executable, "-c", text, str(tmp_path / "study.json"), str(store.root)])
    try:
        seen = pd.DataFrame()
        while seen.empty:
            assert training.poll() is None
            time.sleep(0.2)
            seen = asked(store, "SELECT trial, epoch, train_loss, test_error FROM training_evals")
    finally:
        training.kill()
        training.wait()
    assert not list(store.root.glob("checkpoints/**/*.safetensors"))
    assert seen.notna().all(axis=None) and seen.trial.nunique() == 2
    assert evaluations(store, live=False).empty, "the platform's own questions are answered from checkpoints alone"


@pytest.mark.usefixtures("at_once")
def test_live_rows_are_those_that_the_checkpoint_brings(study: Study, store: Store) -> None:
    """Of a training that is killed and goes on: in between they stay, and then none is there twice."""
    refresh(store)
    seen = {}

    def look(event: Event) -> None:
        if isinstance(event, Progress):
            seen[event.epoch] = asked(store, "SELECT * FROM training_evals ORDER BY arm, trial, epoch")
            assert sorted(set(seen[event.epoch].epoch)) == list(range(event.epoch + 1))
            newest = asked(store, SEEN)
            assert (newest.until == 4).all() and newest.epoch.max() == event.epoch
            assert (newest.status == "training").all() and newest[newest.epoch > 0].batch_loss.notna().all()
            if event.epoch == 3:
                raise Killed

    with pytest.raises(Killed):
        train_arm(study, ARM, store, 4, report=look)
    assert left(store) == ["whole.jsonl"]
    assert set(dd_core.open(store.root).sql("FROM training_evals").df().epoch) == {0, 1, 2, 3}
    assert set(evaluations(store).epoch) == {0, 1, 2, 3} and set(evaluations(store, live=False).epoch) == {0, 1, 2}
    told: list[Event] = []
    train_arm(study, ARM, store, 4, report=told.append)
    assert left(store) == []
    done = evaluations(store, live=False)
    means = done.groupby("epoch")[["train_loss", "train_error", "test_error"]].mean()
    progress = [event for event in told if isinstance(event, Progress)]
    assert [event.epoch for event in progress] == [3, 4]
    for event in progress:
        values = [event.train_loss, event.train_error, event.test_error]
        assert values == pytest.approx(list(means.loc[event.epoch]))
    for epoch, rows in seen.items():
        pd.testing.assert_frame_equal(rows, done[done.epoch <= epoch].reset_index(drop=True), check_exact=True)


@pytest.mark.usefixtures("at_once")
def test_a_resume_point_brings_its_rows_back(study: Study, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train_arm(study, ARM, store, 4, report=killer("progress", 1), resume_seconds=0)
    before = told_rows(store).drop(columns="written_at")
    with pytest.raises(Killed):  # at once, before an epoch is trained
        monkeypatch.setattr(
            "dd_core.training.session.Session.train_epoch", lambda session: (_ for _ in ()).throw(Killed)
        )
        train_arm(study, ARM, store, 4)
    pd.testing.assert_frame_equal(told_rows(store).drop(columns="written_at"), before)
    assert len(before) == 4


@pytest.mark.usefixtures("at_once")
def test_parts_show_their_rows_until_the_arm_has_them(make_study: MakeStudy, store: Store) -> None:
    study = make_study({"precision": "float16", "architecture": "cnn5"}, checkpoints=(2, 4))
    first, second = range(1), range(1, 2)
    train_part(study, ARM, store, 4, first)
    alone = evaluations(store)
    assert evaluations(store, live=False).empty and list(alone.epoch) == [0, 1, 2, 3, 4] and set(alone.trial) == {0}
    with pytest.raises(Killed):  # between its checkpoints; those of the other part are there
        train_part(study, ARM, store, 4, second, report=killer("progress", 3))
    train_part(study, ARM, store, 4, first)
    assert len(evaluations(store, live=False)) == 6 and len(evaluations(store)) == 9
    train_part(study, ARM, store, 4, second)
    assert left(store) == []
    whole = evaluations(store)
    pd.testing.assert_frame_equal(
        alone.drop(columns="recipe"), whole[whole.trial == 0].drop(columns="recipe"), check_exact=True
    )
    assert set(alone.recipe) == set(whole.recipe) == {study.recipe_hash(ARM)}


@pytest.mark.usefixtures("at_once")
def test_a_trial_that_has_diverged_says_so_and_has_no_rows(make_study: MakeStudy, store: Store) -> None:
    study = make_study({"optimizer": {"name": "sgd", "learning_rate": 1e12}}, checkpoints=(4,), trials=1)
    told: list[Progress] = []
    with pytest.raises(Killed):
        train_arm(study, ARM, store, 4, report=lambda event: told.append(event) or killer("progress", 3)(event))
    last = [event for event in told if isinstance(event, Progress)][-1]
    assert (last.train_loss, last.train_error, last.test_error) == (None, None, None)
    rows = told_rows(store)
    assert set(rows.status) == {"diverged"} and list(rows[rows.train_loss.notna()].epoch) == [0]
    assert list(evaluations(store).epoch) == [0]


def killed_between(study: Study, store: Store) -> Path:
    with pytest.raises(Killed):
        train_arm(study, ARM, store, 4, report=killer("progress", 3))
    return live.live_path(store, study.name, ARM.key)


@pytest.mark.usefixtures("at_once")
def test_a_damaged_line_counts_for_nothing(study: Study, store: Store) -> None:
    refresh(store)
    path = killed_between(study, store)
    first, second, third, fourth = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, second, third.replace(b'"epoch": 3', b'"epoch": "x"'), b"\xff{", fourth[:-60]]))
    assert damaged_files(store) == [] and len(told_rows(store)) == 2
    assert set(evaluations(store).epoch) == {0, 1, 2} == set(asked(store, "FROM training_evals").epoch)
    path.write_bytes(os.urandom(1000))
    assert set(asked(store, "FROM training_evals").epoch) == {0, 1, 2}
    assert retire(store, study.name, ARM.key, "old") is not None
    assert not path.exists() and asked(store, "FROM training_evals").empty, "it goes with its arm"


@pytest.mark.usefixtures("at_once")
def test_where_they_cannot_be_written_training_goes_on(
    study: Study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(live_rows, "write_text", refuse)
    train_arm(study, ARM, store, 4)
    assert set(evaluations(store).epoch) == {0, 1, 2, 3, 4} and left(store) == []
