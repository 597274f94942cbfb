"""A kill before any file gets its name or is removed: run again, everything is as after an undisturbed training.

One training is watched, and what lies on disk before each of these moments is kept; a kill at that moment would have
left just that. ``tests/faults`` kills real processes at some of them.
"""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dd_core.errors import StoreError
from dd_core.store.parts import all_parts
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store, sha256_of
from dd_core.study.study import Study
from dd_core.tables.attempts import arm_is_complete
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm
from dd_core.training.train_part import train_part
from tests.support import results

from .comparison import ARM

pytestmark = pytest.mark.slow

MakeStudy = Callable[..., Study]
SMALL = {"architecture": "cnn5", "batch_size": 30, "optimizer": {"name": "sgd", "learning_rate": 0.05}}
KINDS = {"whole": {**SMALL, "schedule": {"name": "constant"}}, "in parts": {**SMALL, "precision": "float16"}}
RESULTS = ["train_error", "train_loss", "validation_loss", "validation_error", "test_error", "test_loss"]


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Processes end here, not machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def train(study: Study, store: Store) -> None:
    """To the end, each part of it if there are several, with a resume point after every epoch."""
    parts = all_parts(store, study, ARM)
    if len(parts) == 1:
        train_arm(study, ARM, store, 4, resume_seconds=0)
    for part in parts if len(parts) > 1 else []:
        numbers = part.study.trial_numbers
        train_part(study, ARM, store, 4, range(numbers[0], numbers[-1] + 1), resume_seconds=0)


@contextlib.contextmanager
def kept_before_each_moment(root: Path, folder: Path) -> Iterator[list[Path]]:
    """Copies of a root; files are never written again, so links will do."""
    moments: list[Path] = []

    def keep() -> None:
        moments.append(folder / f"{len(moments):03d}")
        shutil.copytree(root, moments[-1], copy_function=os.link)

    replace, unlink = Path.replace, Path.unlink

    def replaced(path: Path, target: Path) -> Path:
        keep()
        return replace(path, target)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            keep()
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)
        yield moments


def best(store: Store) -> dict[str, Any]:
    """Every best checkpoint: its bytes, and what its manifest says but for the time."""
    found: dict[str, Any] = {}
    for path in sorted(store.best_folder("tiny", ARM.key).iterdir()):
        found[path.name] = sha256_of(path)
        if path.suffix == ".json":
            content = store.read_manifest(path)  # without the seal, which holds a digest of the time as well
            assert content is not None, path
            found[path.name] = (content.files, {**content.content, "written_at": None})
    return found


def last_attempts(store: Store) -> pd.DataFrame:
    """How the last attempt at each trial ended, and with which results."""
    columns = [f"{which}_{name}" for which in ("last", "best") for name in RESULTS]
    with contextlib.closing(connect(store, ("runs",))) as connection:
        return connection.sql(
            f"""SELECT trial, status, reason, end_epoch, end_step, last_epoch, best_epoch, best_by, {", ".join(columns)}
            FROM runs QUALIFY row_number() OVER (PARTITION BY trial ORDER BY attempt DESC) = 1 ORDER BY trial"""
        ).df()


@pytest.mark.parametrize(("kind", "every"), [("whole", 1), ("in parts", 5)])
def test_a_kill_at_any_moment_leaves_what_is_made_whole_again(
    kind: str, every: int, make_study: MakeStudy, store: Store, tmp_path: Path
) -> None:
    data = {"dataset": "digits", "num_train": 60, "num_validation": 30}
    study = make_study(KINDS[kind], data=data, keep_best=1)
    store.root.mkdir()
    with kept_before_each_moment(store.root, tmp_path / "moments") as moments:
        train(study, store)
    expected, attempts = (results(store.root), best(store)), last_attempts(store)
    names = {path.name for moment in moments for path in moment.glob("**/best/*.safetensors")}
    assert len(names) > len(expected[1]) // 2, "some have given way"
    assert len(moments) > (35 if kind == "whole" else 80)
    unsettled = 0
    for moment in moments[::-every]:
        other = Store(moment)
        unsettled += not arm_is_complete(other, study, ARM, 4) and all(
            other.checkpoint_manifest_path("tiny", checkpoint).exists()
            for checkpoint in study.iter_checkpoints()
            if checkpoint.arm == ARM
        )
        train(study, other)
        assert (results(other.root), best(other)) == expected, moment.name
        pd.testing.assert_frame_equal(last_attempts(other), attempts)
        assert arm_is_complete(other, study, ARM, 4)
        left = [str(path) for path in other.root.rglob("*") if ".tmp" in path.name and "locks" not in path.parts]
        assert left == [], moment.name
    assert unsettled, "no moment lay between the last manifest and the end"


def full_from(number: int) -> Callable[[int], None]:
    """A disk that has no room from the so-manieth flush on."""
    calls = itertools.count(1)

    def fsync(handle: int) -> None:
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


def test_a_disk_that_is_full_from_any_write_on_costs_nothing_but_time(
    make_study: MakeStudy, store: Store, tmp_path: Path
) -> None:
    """Also after the last manifest, where every checkpoint is there and the attempt has failed all the same."""
    data = {"dataset": "digits", "num_train": 60, "num_validation": 30}
    study = make_study(KINDS["whole"], data=data, keep_best=1)
    flushes = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: next(flushes))
        train(study, store)
    total = next(flushes)
    expected, attempts = (results(store.root), best(store)), last_attempts(store)
    for number in [*range(1, total - 6, 9), *range(total - 6, total + 1)]:
        other = Store(tmp_path / f"{number}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError, match="the disk is full: ") as caught:
            patch.setattr(os, "fsync", full_from(number))
            train(study, other)
        assert "\n" not in str(caught.value)
        for checkpoint, manifest in trained_checkpoints(other, study, {ARM}).items():
            for entry in manifest.files.values():
                assert other.verify(entry), checkpoint
        assert [path for path in other.root.rglob("*") if ".tmp" in path.name] == []
        train(study, other)
        assert (results(other.root), best(other)) == expected, number
        pd.testing.assert_frame_equal(last_attempts(other), attempts)
        shutil.rmtree(other.root)
