"""An arm in parts: trained apart, anywhere, killed at any moment, and put together it is what one training makes."""

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dd_core.checks.integrity import damaged_checkpoints
from dd_core.errors import StaleError, StudyError
from dd_core.events import Event, Progress
from dd_core.jobs.job import Job, TrainTask, predicted_cost, training_job
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.best_checkpoints import load_best
from dd_core.store.checkpoints import identity, load_checkpoint, save_tensors
from dd_core.store.files import below
from dd_core.store.parts import all_parts, division
from dd_core.store.store import Store, sha256_of
from dd_core.study import stacks
from dd_core.study.files import read_study
from dd_core.study.stacks import stacking
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.warehouse import connect
from dd_core.training import train_part as parts_module
from dd_core.training.session import Session
from dd_core.training.step import Stepper
from dd_core.training.train import train_arm
from dd_core.training.train_part import put_together, train_part
from dd_core.training.trial_stack import TrialStack
from tests.support import Death, Lab, Worker, results

from .comparison import Killed

pytestmark = pytest.mark.slow

ARM = Arm("plain", 2)
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
# Each trial needs a rate of its own, so that none shares its network; the data has everything that is drawn at random.
PLATEAU = {"optimizer": SGD, "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.05}}
DATA = {"dataset": "digits", "num_train": 50, "num_validation": 20}
MONITORS = {
    "validation": {"every": "1/2 epoch"},
    "norms": {"every": "1 step"},
    "hessian": {"every": "3 steps", "num_images": 8, "iterations": 2, "num_probes": 2},
    "noise": {"every": "1 epoch", "window": 128, "grad_var": "ema"},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plateau": PLATEAU,
    "float16, stopping early": {
        "precision": "float16",
        "optimizer": {**SGD, "clip_norm": 1.0},
        "schedule": {"name": "constant"},
        "early_stopping": {"patience": 1, "min_delta": 0.1},
    },
}
MakeStudy = Callable[..., Study]


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Processes end here, not machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def parted(make_study: MakeStudy) -> MakeStudy:
    """Three trials in three parts."""

    def make(variant: dict[str, Any] | None = None, **changes: Any) -> Study:
        small = {"architecture": "cnn5", "batch_size": 20, **(variant or PLATEAU)}
        return make_study(small, **{"trials": 3, "data": DATA, **changes})

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """The results of one training of the whole arm to its end."""
    stores: dict[str, Store] = {}

    def of(study: Study, arm: Arm = ARM) -> Store:
        key = f"{arm.key} {study.model_dump_json()}"
        if key not in stores:
            stores[key] = Store(tmp_path_factory.mktemp("undisturbed"))
            train_arm(study, arm, stores[key], study.epochs)
        return stores[key]

    return of


def trials_of(study: Study, arm: Arm = ARM) -> list[range]:
    return [range(stack[0], stack[-1] + 1) for stack in stacking(study, arm)]


def train_parts(
    study: Study, store: Store, until: int, arm: Arm = ARM, order: Iterable[int] | None = None, **options: Any
) -> None:
    """Every part, one after the other."""
    parts = trials_of(study, arm)
    for number in order or range(len(parts)):
        train_part(study, arm, store, until, parts[number], **options)


def manifests(store: Store, study: Study, arm: Arm) -> dict[str, Any]:
    """What the arm's manifests say, but for times, the digests of files that hold times, and where weights lie."""
    found = {}
    for path in sorted(store.arm_folder(study.name, arm.key).rglob("*.json")):
        content = json.loads(path.read_text())
        content.pop("written_at")
        content.pop("manifest")  # its own digest
        content["files"].pop("training_batches", None)
        content["files"] = {role: file for role, file in content["files"].items() if not role.startswith("weights")}
        found[path.name] = repr(content)  # NaN is NaN
    return found


def assert_same(store: Store, other: Store, study: Study, arm: Arm = ARM) -> None:
    """Every file but the ledger and the resume point, the rows in the same order; and nothing is left over."""
    assert results(store.root) == results(other.root)
    assert manifests(store, study, arm) == manifests(other, study, arm)
    ours, theirs = (
        {path.name: sha256_of(path) for path in s.best_folder(study.name, arm.key).glob("*.safetensors")}
        for s in (store, other)
    )
    assert ours == theirs
    assert bool(ours) == bool(study.data.num_validation)
    paths = store.arm_folder(study.name, arm.key).glob("[0-9]*.json")
    entries = [entry for path in paths for entry in json.loads(path.read_text())["files"].values()]
    named = {store.root / entry["path"] for entry in entries}
    assert all(path.is_file() for path in named)
    parts = {path for path in store.parts_folder(study.name, arm.key).rglob("*") if path.is_file()}
    assert {path for path in parts - named if path.name != "resume.safetensors"} == set(), "of what is all there"
    assert [path for path in store.root.rglob(".*.tmp") if ".writable" not in path.name] == []


# The same as one training


@pytest.mark.usefixtures("fast_float16")
@pytest.mark.parametrize(("recipe", "order"), list(zip(RECIPES, [(2, 0, 1), (1, 2, 0)], strict=True)), ids=str)
def test_parts_have_the_bits_of_one_training(
    recipe: str, order: tuple[int, ...], parted: MakeStudy, store: Store, undisturbed: Any
) -> None:
    study = parted(RECIPES[recipe], monitors=MONITORS)
    train_parts(study, store, 4, order=order)
    other = undisturbed(study)
    assert_same(store, other, study)
    endings = json.loads(store.checkpoint_manifest_path("tiny", Checkpoint(ARM, 4)).read_text())["ended"]
    assert bool(endings) == ("early" in recipe)
    with connect(store) as ours, connect(other) as theirs:
        for view in ("training_batches", "training_evals", "training_monitors", "image_progress"):
            query = f"SELECT * EXCLUDE ({'time' if view == 'training_batches' else 'k'}) FROM {view} ORDER BY ALL"
            assert repr(ours.sql(query).fetchall()) == repr(theirs.sql(query).fetchall())
    for trial in range(3):
        assert load_best(store, study, ARM, trial)[1].epoch == load_best(other, study, ARM, trial)[1].epoch


def test_trials_that_share_a_network_on_a_gpu_go_on_together_anywhere(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, arm = make_study(trials=2, epochs=2, checkpoints=(1, 2), widths=(17,)), Arm("plain", 17)
    assert stacking(study, arm) == [[0], [1]]
    assert stacking(study, arm, on_gpu=True) == [[0, 1]]
    undisturbed, killed, apart = (Store(tmp_path / name) for name in ("undisturbed", "killed", "apart"))
    assert division(killed, study, arm, on_gpu=True) == [range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(stacks, "_WIDEST_STACK", 32)  # as a GPU does it
        train_arm(study, arm, undisturbed, 2)
        train_arm(study, arm, killed, 1)
    assert division(killed, study, arm) == [range(2)]
    train_arm(study, arm, killed, 2)  # as a CPU goes on
    assert results(killed.root) == results(undisturbed.root)
    train_part(study, arm, apart, 1, range(1))
    assert division(apart, study, arm, on_gpu=True) == [range(1), range(1, 2)], "one of them has begun"


def test_a_resume_point_that_does_not_say_which_trials_shared_a_network_is_of_before_small_stacks(
    make_study: MakeStudy, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(trials=3, epochs=2, checkpoints=(1, 2))
    assert stacking(study, ARM) == [[0, 1, 2]]
    monkeypatch.setattr(stacks, "_MOST_VALUES_OF_STACK", 2 * 2 * 8 * 8)
    assert stacking(study, ARM) == [[0, 1], [2]]
    sizes = {}
    for said in ({}, {"epoch": "1"}, {"epoch": "1", "stacks": "[1, 2]"}):
        monkeypatch.setattr("dd_core.training.session.resume_metadata", lambda *_, said=said: said)
        session = Session(study, ARM, store, torch.device("cpu"))
        sizes[len(said)] = [len(stack.trials) for stack in session.stacks]
    assert sizes == {0: [2, 1], 1: [3], 2: [1, 2]}


@pytest.mark.parametrize(("k", "trials"), [(1, 9), (17, 2)])
def test_parts_are_stacks(k: int, trials: int, make_study: MakeStudy, store: Store, undisturbed: Any) -> None:
    study = make_study(trials=trials, epochs=2, checkpoints=(1, 2), widths=(k,), monitors=MONITORS)
    arm = Arm("plain", k)
    assert trials_of(study, arm) == ([range(8), range(8, 9)] if trials == 9 else [range(1), range(1, 2)])
    train_parts(study, store, 2, arm)
    assert_same(store, undisturbed(study, arm), study, arm)


@pytest.mark.parametrize("poisoned", [(1,), (0, 1, 2)])
def test_a_trial_that_diverges_leaves_the_same_as_in_one_training(
    poisoned: tuple[int, ...], parted: MakeStudy, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = TrialStack.train_epoch

    def train_epoch(stack: TrialStack, epoch: int, ended: Any = ()) -> Any:
        if epoch == 3 and stack.trials[0] in poisoned:
            with torch.no_grad():
                next(stack.model.parameters()).fill_(torch.nan)
        return usual(stack, epoch, ended)

    monkeypatch.setattr(TrialStack, "train_epoch", train_epoch)
    study, other = parted(), Store(store.root / "other")
    train_arm(study, ARM, other, 4)
    notes: list[str] = []
    train_parts(study, store, 4, report=lambda news: notes.append(getattr(news, "text", "")))
    shutil.move(other.root, store.root.parent / "other")
    assert_same(store, Store(store.root.parent / "other"), study)
    for trial in range(3):
        assert any(f"trial {trial} diverged in epoch 3" in note for note in notes) == (trial in poisoned)


def test_a_trial_stays_the_same_in_another_part_of_another_study(make_study: MakeStudy) -> None:
    """What is random of a trial depends on its number; the recipe of a part tells where it begins."""
    study = make_study(trials=5)
    part = study.part(range(2, 4))
    assert (list(part.trial_numbers), part.trials, part.first_trial, part.whole) == ([2, 3], 2, 2, study)
    recipes = {study.part(range(first, first + 2)).recipe_hash(ARM) for first in range(4)}
    assert len(recipes | {study.recipe_hash(ARM)}) == 5
    assert study.part(range(5)).recipe(ARM) == study.recipe(ARM)


@pytest.mark.parametrize("key", ["first_trial", "_first_trial", "_whole", "whole"])
def test_no_study_file_can_say_that_it_is_a_part(key: str, tmp_path: Path, parted: MakeStudy) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps({**json.loads(parted().model_dump_json()), key: 1}))
    with pytest.raises(StudyError, match=key):
        read_study(path)


def test_results_of_parts_are_those_of_one_training(parted: MakeStudy, store: Store) -> None:
    """What reads weights finds those of every trial, in whichever file."""
    hessian = {"quantities": ("exact_trace",), "num_images": 20, "epochs": (4,)}
    study, other = parted(hessian=hessian), Store(store.root / "other")
    train_parts(study, store, 4)
    train_arm(study, ARM, other, 4)
    checkpoint = Checkpoint(ARM, 4)
    for each in (store, other):
        compute_curvature(study, checkpoint, each)
        hessian_of_checkpoint(study, checkpoint, each)
        assert damaged_checkpoints(each, study) == ([], 3)
    shutil.move(other.root, store.root.parent / "other")
    assert results(store.root) == results(store.root.parent / "other")
    assert missing(store, study) == missing(Store(store.root.parent / "other"), study) == 2
    harm_weights(store, epoch=4)
    with pytest.raises(StaleError, match=r"trials-001/0004\.safetensors is damaged"):
        compute_curvature(study, checkpoint, store)
    problems, _ = damaged_checkpoints(store, study)
    assert len(problems) == 1 and "trials-001/0004.safetensors is damaged" in problems[0]


def missing(store: Store, study: Study) -> int:
    """How many of the arm's checkpoints have no current curvature."""
    return len(PER_IMAGE_CURVATURE.missing(store, study))


# Interruptions


def kill_before_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the middle of an epoch."""
    usual, count = Stepper.__call__, itertools.count(1)

    def call(stepper: Stepper, *arguments: Any) -> Any:
        if next(count) == step:
            raise Killed
        return usual(stepper, *arguments)

    monkeypatch.setattr(Stepper, "__call__", call)


@pytest.mark.parametrize("seed", range(2))
def test_parts_killed_at_random_steps_in_any_order_have_the_same_bits(
    seed: int, parted: MakeStudy, store: Store, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = parted(monitors=MONITORS)
    random = np.random.default_rng(seed)
    for _ in range(6):
        until, step = int(random.choice([2, 4])), int(random.integers(1, 10))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_before_step(step, patch)
            train_part(study, ARM, store, until, trials_of(study)[random.integers(3)], resume_seconds=0)
    train_parts(study, store, 4, order=random.permutation(3).tolist())
    assert_same(store, undisturbed(study), study)


@pytest.fixture(scope="module")
def apart(parted: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All parts trained to the end, and nothing put together."""
    store = Store(tmp_path_factory.mktemp("apart") / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "put_together", lambda *_, **__: [])
        train_parts(parted(), store, 4)
    assert list(store.arm_folder("tiny", ARM.key).glob("[0-9]*")) == []
    return store


@contextlib.contextmanager
def killed_at_operation(number: int) -> Iterator[None]:
    """The process ends before the so-manieth file gets its name or is removed."""
    replace, unlink, count = Path.replace, Path.unlink, itertools.count(1)

    def die_in_time(path: Path) -> None:
        if not path.name.endswith((".tmp", ".lock")) and next(count) == number:
            raise Killed

    def replace_or_die(path: Path, target: Path) -> Path:
        die_in_time(target)
        return replace(path, target)

    def unlink_or_die(path: Path, missing_ok: bool = False) -> None:
        die_in_time(path)
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        patch.setattr(Path, "unlink", unlink_or_die)
        with contextlib.suppress(Killed):
            yield


def test_an_end_between_any_two_files_of_what_is_put_together_costs_nothing(
    apart: Store, parted: MakeStudy, tmp_path: Path, undisturbed: Any
) -> None:
    study, written = parted(), None
    for number in itertools.count(1, step=7):
        store = Store(tmp_path / str(number))
        shutil.copytree(apart.root, store.root)
        with killed_at_operation(number):
            written = put_together(store, study, ARM)
        if written is None:
            train_part(study, ARM, store, 4, range(1, 2), report=no_training)
        assert_same(store, undisturbed(study), study)
        shutil.rmtree(store.root)
        if written is not None:
            break
    assert written == [0, 2, 4]
    assert number > 40


def no_training(news: Event) -> None:
    assert news.name == "checkpoint", f"trained again: {news}"


STUDY = """\
description: forty digits, three trials that share no network
data: {dataset: digits, num_train: 40, num_validation: 20}
variants:
  plain:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 20
    optimizer: {name: sgd, learning_rate: 0.05}
    schedule: {name: plateau, patience: 0}
    augmentation: {shift_x: 1}
widths: [1]
trials: 3
epochs: 24
checkpoints: [0, 8, 16, 24]
evaluation: {every: 4}
"""


def test_processes_at_the_same_time_killed_at_random_moments_give_the_same_bits(
    tmp_path: Path, undisturbed: Any
) -> None:
    """Real processes and SIGKILL: before a file gets its name, or right after an event; twice, then undisturbed."""
    lab, random = Lab(tmp_path, STUDY), np.random.default_rng(7)
    arm = Arm("plain", 1)
    tasks = [TrainTask(study="tiny", variant="plain", k=1, until=24, trials=(t, t + 1)) for t in range(3)]
    jobs = [
        Job(root=str(lab.root), studies={"tiny": lab.study}, tasks=(task,), num_workers=1, threads=1) for task in tasks
    ]
    for _ in range(2):
        deaths = [Death(file=int(random.integers(2, 40))) for _ in jobs]
        deaths[random.integers(3)] = Death("progress")
        workers = [Worker(lab, job, death) for job, death in zip(jobs, deaths, strict=True)]
        assert [worker.end() for worker in workers].count(-9) >= 1
    workers = [Worker(lab, job) for job in jobs]
    assert [worker.end() for worker in workers] == [0, 0, 0]
    for worker in workers:
        assert [news.name for news in worker.log].count("finished") == 1
        assert not [news for news in worker.log if news.name == "failed"]
    assert_same(lab.store, undisturbed(lab.study, arm), lab.study, arm)


# Going on, and studies that change


def test_parts_go_on_to_a_later_epoch_and_to_epochs_added_to_the_study(
    parted: MakeStudy, store: Store, undisturbed: Any
) -> None:
    study, longer = parted(), parted(epochs=6, checkpoints=(0, 2, 4, 6))
    seen: list[Any] = []

    def report(news: Event) -> None:
        seen.append((news.name, news.epoch))

    for until in (0, 2, 4):
        train_parts(study, store, until, report=report)
    assert_same(store, undisturbed(study), study)
    assert sorted(seen) == sorted([("progress", e) for e in (1, 2, 3, 4)] * 3 + [("checkpoint", e) for e in (0, 2, 4)])
    seen.clear()
    train_parts(longer, store, 6, report=report)
    assert sorted(set(seen)) == [("checkpoint", 6), ("progress", 5), ("progress", 6)]
    assert_same(store, undisturbed(longer), longer)


def test_what_is_trained_is_not_trained_again(parted: MakeStudy, store: Store) -> None:
    study = parted()
    train_parts(study, store, 4)

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"}

    before = files()
    for until in (4, 2):
        train_parts(study, store, until, report=lambda news: pytest.fail(f"trained again: {news}"))
    assert files() == before


def test_a_part_that_is_ahead_waits_for_the_others(parted: MakeStudy, store: Store, undisturbed: Any) -> None:
    study = parted()
    seen: list[tuple[int, int]] = []
    for trial, until in ((0, 4), (1, 2), (2, 4), (1, 4)):

        def report(news: Event, trial: int = trial) -> None:
            seen.extend([(trial, news.epoch)] if news.name == "checkpoint" else [])

        train_part(study, ARM, store, until, range(trial, trial + 1), report=report)
    assert seen == [(2, 0), (2, 2), (1, 4)]
    assert_same(store, undisturbed(study), study)


@pytest.mark.parametrize(
    ("stop", "checkpoints", "harmed"),
    [
        (4, (0, 1, 2, 3, 4), None),
        (2, (0, 3, 4), None),
        (4, (1, 4), None),
        (2, (1, 4), None),
        (4, (0, 4), 0),
        (2, (0, 4), None),
        (4, (2, 4), 4),
        (2, (4,), None),
    ],
    ids=str,
)
def test_changed_checkpoint_epochs_leave_every_step_once(
    stop: int, checkpoints: tuple[int, ...], harmed: int | None, parted: MakeStudy, tmp_path: Path, undisturbed: Any
) -> None:
    """After a training to its end, or to epoch 2 with a part that is ahead."""
    old, new, store = parted(), parted(checkpoints=checkpoints), Store(tmp_path / "root")
    train_parts(old, store, stop)
    train_part(old, ARM, store, 4, range(1, 2))
    if harmed is not None:
        store.checkpoint_manifest_path("tiny", Checkpoint(ARM, harmed)).unlink(missing_ok=True)
    train_parts(new, store, 4, order=(1, 2, 0))
    other = undisturbed(new)
    for epoch in checkpoints:
        ours, theirs = (load_checkpoint(s, new, Checkpoint(ARM, epoch))[0] for s in (store, other))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with connect(store) as ours, connect(other) as theirs:
        for view in ("training_batches", "training_evals", "training_monitors", "image_progress"):
            # Evaluations due to a checkpoint alone are there if the study names it, or named it.
            query = f"SELECT * EXCLUDE ({'time' if view == 'training_batches' else 'k'}) FROM {view} ORDER BY ALL"
            assert repr(ours.sql(query).fetchall()) == repr(theirs.sql(query).fetchall()), view


def harm_weights(store: Store, epoch: int = 2) -> None:
    (path,) = store.parts_folder("tiny", ARM.key).glob(f"trials-001/{epoch:04d}.safetensors")
    path.write_bytes(path.read_bytes()[:-8] + b"\x00" * 8)


def harm_metrics(store: Store) -> None:
    (store.table_folder("training_batches", "tiny", ARM.key) / "0002.parquet").unlink()


def harm_manifest(store: Store) -> None:
    store.checkpoint_manifest_path("tiny", Checkpoint(ARM, 0)).write_text("{")


@pytest.mark.parametrize("harm", [harm_weights, harm_metrics, harm_manifest])
def test_harmed_results_are_noticed_and_made_again(
    harm: Callable[[Store], None], parted: MakeStudy, store: Store, undisturbed: Any
) -> None:
    study = parted()
    train_parts(study, store, 4)
    harm(store)
    notes: list[str] = []
    train_parts(study, store, 4, order=(2, 1, 0), report=lambda news: notes.append(getattr(news, "text", "")))
    assert sum("from the beginning, because" in note for note in notes) == 3
    assert_same(store, undisturbed(study), study)


def test_a_harmed_resume_point_costs_nothing_but_time(parted: MakeStudy, store: Store, undisturbed: Any) -> None:
    study = parted()
    train_parts(study, store, 2)
    all_parts(store, study, ARM)[1].store.resume_path("tiny", ARM.key).write_bytes(b"harmed")
    train_parts(study, store, 4)
    assert_same(store, undisturbed(study), study)


def test_a_changed_recipe_retires_what_the_old_one_made(parted: MakeStudy, store: Store, undisturbed: Any) -> None:
    old, new = parted(), parted({**PLATEAU, "label_noise": 0.1})
    train_parts(old, store, 2)
    train_part(old, ARM, store, 4, range(2, 3))
    notes: list[str] = []
    train_parts(new, store, 4, report=lambda news: notes.append(getattr(news, "text", "")))
    assert_same(store, undisturbed(new), new)
    retired = store.root / "retired" / "tiny" / ARM.key
    assert load_checkpoint(Store(retired / old.recipe_hash(ARM)), old, Checkpoint(ARM, 2))
    assert len(list(retired.glob(f"*/parts/tiny/{ARM.key}/trials-*"))) == 3
    assert [note for note in notes if str(retired / old.recipe_hash(ARM)) in note]
    for path in store.table_folder("runs", "tiny", ARM.key).glob("*.parquet"):
        assert set(read_parquet(path)["recipe"].to_pylist()) == {new.recipe_hash(ARM)}


def test_another_recipe_waits_until_nobody_trains_a_part_with_the_one_before(
    parted: MakeStudy, store: Store, undisturbed: Any
) -> None:
    """What is moved aside would otherwise be written to."""
    old, new = parted(), parted({**PLATEAU, "label_noise": 0.1})
    train_parts(old, store, 2)
    newcomer = threading.Thread(target=train_part, args=(new, ARM, store, 4, range(2, 3)))

    def report(news: Event) -> None:
        if isinstance(news, Progress) and news.epoch == 3:
            newcomer.start()
            newcomer.join(1)
            assert newcomer.is_alive()
            assert load_checkpoint(store, old, Checkpoint(ARM, 2)), "still in its place"

    train_part(old, ARM, store, 4, range(1), report=report)
    newcomer.join()
    train_parts(new, store, 4)
    assert_same(store, undisturbed(new), new)
    train_parts(old, store, 4)
    assert_same(store, undisturbed(old), old)


def test_another_number_of_trials_leaves_no_part_behind(parted: MakeStudy, store: Store, undisturbed: Any) -> None:
    more, fewer = parted(), parted(trials=2)
    train_part(more, ARM, store, 2, range(2, 3))
    train_parts(fewer, store, 4)
    assert_same(store, undisturbed(fewer), fewer)
    assert {path.name for path in store.parts_folder("tiny", ARM.key).iterdir()} == {"trials-000", "trials-001"}
    train_parts(more, store, 4)
    assert_same(store, undisturbed(more), more)


def test_an_arm_begun_as_a_whole_goes_on_so_unless_its_parts_are_further(
    parted: MakeStudy, make_study: MakeStudy, store: Store, undisturbed: Any
) -> None:
    study = parted()
    single = [range(1), range(1, 2), range(2, 3)]
    assert division(store, make_study(), ARM) == [range(2)]
    assert division(store, study, ARM) == single
    train_part(study, ARM, store, 4, single[0])
    assert division(store, study, ARM) == single
    train_arm(study, ARM, store, 2)
    assert division(store, study, ARM) == [range(3)], "a part has not begun"
    assert division(store, parted(seed=1), ARM) == single, "of another recipe"
    train_part(study, ARM, store, 4, single[1])
    train_part(study, ARM, store, 2, single[2])
    assert division(store, study, ARM) == [range(3)]
    train_part(study, ARM, store, 4, single[2])
    assert division(store, study, ARM) == single
    assert results(store.root) == results(undisturbed(study).root)


def as_an_earlier_version(store: Store, study: Study) -> None:
    """Everything in the arm's own files, and manifests of parts that vouch for these; best checkpoints of one apart."""
    for epoch in study.checkpoints:
        checkpoint = Checkpoint(ARM, epoch)
        path = store.checkpoint_manifest_path("tiny", checkpoint)
        weights, manifest = load_checkpoint(store, study, checkpoint)
        save_tensors(store.checkpoint_path("tiny", checkpoint), weights, {"checkpoint": f"tiny/{checkpoint.key}"})
        files = {role: store.root / entry.path for role, entry in manifest.files.items()}
        apart = [files.pop(role) for role in list(files) if role.startswith("weights.")]
        files["weights"] = store.checkpoint_path("tiny", checkpoint)
        store.write_manifest(path, manifest.content, files)
        for part, own in zip(all_parts(store, study, ARM), apart, strict=True):
            own.unlink()
            about = {**manifest.content, **asdict(identity(part.study, ARM))}
            store.write_manifest(own.with_suffix(".json"), about, {**files, "whole": path})
    part = all_parts(store, study, ARM)[1]
    for path in store.best_folder("tiny", ARM.key).glob("trial-001.*.safetensors"):
        best = store.read_manifest(path.with_suffix(".json"))
        assert best is not None
        there = part.store.folder / "best" / path.name.replace("trial-001", "trial-000")
        there.parent.mkdir(exist_ok=True)
        path.rename(there)
        path.with_suffix(".json").unlink()
        about = {**best.content, **asdict(identity(part.study, ARM)), "trial": 0}
        store.write_manifest(there.with_suffix(".json"), about, {"weights": there})


def test_what_an_earlier_version_has_put_together_is_not_trained_again_and_goes_on(
    parted: MakeStudy, store: Store, undisturbed: Any
) -> None:
    study, longer = parted(), parted(epochs=6, checkpoints=(0, 2, 4, 6))
    train_parts(study, store, 4)
    as_an_earlier_version(store, study)
    assert load_checkpoint(store, study, Checkpoint(ARM, 2))
    for until in (4, 2):
        train_parts(study, store, until, report=no_training)
    seen: list[Any] = []
    train_parts(longer, store, 6, report=lambda news: seen.append((news.name, getattr(news, "epoch", None))))
    assert sorted(set(seen)) == [("checkpoint", 6), ("progress", 5), ("progress", 6)]
    assert_same(store, undisturbed(longer), longer)


# The ledger


def test_every_attempt_of_every_part_is_in_the_table_while_it_runs(parted: MakeStudy, store: Store) -> None:
    study = parted()
    statuses = []

    def look(news: Event) -> None:
        if isinstance(news, Progress) and news.epoch == 3:
            with connect(store) as connection:
                rows = connection.sql("SELECT attempt, trial, status FROM runs ORDER BY ALL").fetchall()
            statuses.append(rows)
            if len(statuses) == 1:
                raise Killed

    with pytest.raises(Killed):
        train_part(study, ARM, store, 4, range(1, 2), report=look)
    path = next(store.table_folder("runs", "tiny", ARM.key).glob("attempt-0001.trials-001.end.parquet"))
    for written in (path, store.manifest_path(path)):
        written.unlink()  # what a process leaves that is really killed
    train_part(study, ARM, store, 4, range(1), report=look)
    train_part(study, ARM, store, 4, range(1, 2), report=look)
    train_part(study, ARM, store, 4, range(2, 3))
    assert statuses[0] == [(1, 1, "running")]
    assert statuses[1] == [(1, 1, "running"), (2, 0, "running")], "nobody but a part itself says that it was killed"
    assert statuses[2] == [(1, 1, "interrupted"), (2, 0, "finished"), (3, 1, "running")]
    with connect(store) as connection:
        rows = connection.sql("SELECT attempt, trial, status, recipe, settings FROM runs ORDER BY ALL").fetchall()
    assert [row[:3] for row in rows] == [
        (1, 1, "interrupted"), (2, 0, "finished"), (3, 1, "finished"), (4, 2, "finished")
    ]  # fmt: skip
    assert {row[3] for row in rows} == {study.recipe_hash(ARM)}
    assert {row[4] for row in rows} == {json.dumps(study.recipe(ARM), sort_keys=True)}


# Jobs


def test_a_job_of_training_has_a_task_for_every_part(parted: MakeStudy, make_study: MakeStudy, store: Store) -> None:
    study = parted()
    job = training_job(store.root, study, list(study.iter_checkpoints()), 1, 1)
    assert [task.name for task in job.tasks] == [f"tiny/plain.k00{k} trial {t}" for k in (2, 1) for t in range(3)]
    assert job == Job.model_validate_json(job.model_dump_json())
    of_arm = TrainTask(study="tiny", variant="plain", k=2, until=4)
    assert sum(predicted_cost(study, task) for task in job.tasks[:3]) == pytest.approx(predicted_cost(study, of_arm))
    nine = make_study(trials=9)
    tasks = training_job(store.root, nine, list(nine.iter_checkpoints()), 1, 1).tasks
    assert [task.name for task in tasks if "k001" in task.name] == [
        "tiny/plain.k001 trials 0-7",
        "tiny/plain.k001 trial 8",
    ]
    train_arm(study, ARM, store, 2)
    job = training_job(store.root, study, list(study.iter_checkpoints()), 1, 1)
    assert [task.name for task in job.tasks] == [of_arm.name, *(f"tiny/plain.k001 trial {t}" for t in range(3))]


def test_files_are_found_while_folders_of_writers_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tables" / "runs").mkdir(parents=True)
    wanted = {tmp_path / "0024.json", tmp_path / "tables" / "runs" / "0024.parquet"}
    for path in (*wanted, tmp_path / "resume.safetensors"):
        path.touch()
    for folder in (tmp_path, tmp_path / "tables"):
        (folder / ".0024.json.a1b2.tmp").mkdir()
        (folder / ".0024.json.a1b2.tmp" / "0025.json").touch()
    scan = os.scandir

    def meanwhile_gone(path: Any = ".") -> Any:
        if str(path).endswith(".tmp"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", meanwhile_gone)
    assert set(below(tmp_path, "[0-9]*.*")) == wanted
