"""Exact resume: whatever ends a training, and wherever, running it again gives the bits of an undisturbed one."""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dd_core.data.datasets import load
from dd_core.errors import StaleError
from dd_core.events import Event
from dd_core.machine.memory import set_halvings
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store, sha256_of
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.recorder import METRIC_TABLES
from dd_core.training.session import Session
from dd_core.training.step import Stepper
from dd_core.training.train import train_arm

from .comparison import ARM, Killed, assert_same_results, killer, table

pytestmark = pytest.mark.slow

# Exact resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Study], Store]:
    """The results of one undisturbed training of a study's second arm to its end."""
    stores: dict[str, Store] = {}

    def of(study: Study) -> Store:
        key = study.model_dump_json()
        if key not in stores:
            stores[key] = Store(tmp_path_factory.mktemp("undisturbed"))
            train_arm(study, ARM, stores[key], study.epochs)
        return stores[key]

    return of


CONSTANT = {"schedule": {"name": "constant"}}

# What decides about a step, each with every monitor at short intervals.
MONITORS = {
    "validation": {"every": "1/4 epoch"},
    "norms": {"every": "1 step"},
    "hessian": {"every": "3 steps", "num_images": 16, "iterations": 2, "num_probes": 3},
    "noise": {"every": "1 epoch", "window": 128, "grad_var": "ema"},
}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
RECIPES: dict[str, dict[str, Any]] = {
    "adam cosine": {"schedule": {"name": "cosine"}},
    "sgd nesterov step clipped": {
        "optimizer": {**SGD, "nesterov": True, "clip_norm": 1.0, "weight_decay": 0.01, "decay_all": False},
        "schedule": {"name": "step", "milestones": (1, 3)},
    },
    "adamw warm-up inverse square root": {
        "optimizer": {"name": "adamw", "learning_rate": 0.002, "weight_decay": 0.1},
        "schedule": {"name": "inverse_sqrt", "period": 3, "warmup_epochs": 1.5},
    },
    "plateau": {"optimizer": SGD, "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.05}},
    "early stopping": {
        "optimizer": SGD,
        "schedule": {"name": "constant"},
        "early_stopping": {"patience": 1, "min_delta": 0.1},
    },
    "bfloat16": {"precision": "bfloat16"},
    "smoothed labels": {"loss": {"label_smoothing": 0.1}},
    "squared error": {"loss": {"name": "mean_squared_error"}, "optimizer": SGD},
    "a loss of somebody's own": {"loss": {"name": "tests.core.test_losses:Focal", "options": {"gamma": 1.0}}},
    "float16": {"precision": "float16", "optimizer": {**SGD, "clip_norm": 1.0}},
    "cnn5 with all augmentation": {
        "architecture": "cnn5",
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "augmentation": {"shift_x": 2, "shift_y": 1, "flip": True},
    },
}


def kill_before_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the middle of an epoch."""
    usual, count = Stepper.__call__, itertools.count(1)

    def call(stepper: Stepper, *arguments: Any) -> Any:
        if next(count) == step:
            raise Killed
        return usual(stepper, *arguments)

    monkeypatch.setattr(Stepper, "__call__", call)


@pytest.mark.usefixtures("fast_float16")
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_killed_at_random_steps_has_the_bits_of_an_undisturbed_one(
    recipe: str, make_study: Any, store: Store, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and tables, with a resume point after every epoch and thrice a kill at a step drawn at random."""
    study = make_study(
        RECIPES[recipe], monitors=MONITORS, data={"dataset": "digits", "num_train": 100, "num_validation": 40}
    )
    random = np.random.default_rng(list(RECIPES).index(recipe))
    for step in random.integers(1, 13, size=3):
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_before_step(int(step), patch)
            train_arm(study, ARM, store, 4, resume_seconds=0)
    train_arm(study, ARM, store, 4, resume_seconds=0)
    assert_same_results(store, undisturbed(study), study)
    ours, theirs = (
        {path.name: sha256_of(path) for path in s.best_folder(study.name, ARM.key).glob("*.safetensors")}
        for s in (store, undisturbed(study))
    )
    assert ours == theirs and ours


def test_training_survives_an_end_after_every_epoch(tiny_study: Study, store: Store, trained: Store) -> None:
    other = Store(store.root / "other")
    for stop in range(1, 5):
        with pytest.raises(Killed):
            train_arm(tiny_study, ARM, other, 4, resume_seconds=0, report=killer("progress", stop))
    train_arm(tiny_study, ARM, other, 4)
    assert_same_results(other, trained, tiny_study)


@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize("place", ["save_checkpoint", "save_resume_point"])
def test_an_end_between_the_files_of_a_checkpoint_costs_nothing_but_time(
    place: str, epoch: int, tiny_study: Study, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(trained.root / "other")
    usual = getattr(Session, place)

    def die(session: Session, *arguments: Any) -> None:
        if session.epoch == epoch:
            if place == "save_checkpoint":  # metrics and weights are written, their manifest is not
                monkeypatch.setattr(Store, "write_manifest", lambda *_: (_ for _ in ()).throw(Killed))
                usual(session, *arguments)
            raise Killed
        usual(session, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Session, place, die)
        train_arm(tiny_study, ARM, other, 4)
    monkeypatch.undo()
    with pytest.raises(StaleError):
        load_checkpoint(other, tiny_study, Checkpoint(ARM, epoch if place == "save_checkpoint" else epoch + 1))
    train_arm(tiny_study, ARM, other, 4)
    assert_same_results(other, trained, tiny_study)


def test_training_to_an_earlier_epoch_first_changes_nothing(tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    for until in (0, 2, 4):
        train_arm(tiny_study, ARM, other, until)
    assert_same_results(other, trained, tiny_study)


def test_the_order_in_which_arms_train_changes_nothing(tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    torch.manual_seed(99)
    train_arm(tiny_study, Arm("plain", 1), other, 4)
    assert_same_results(other, trained, tiny_study, Arm("plain", 1))


def test_what_is_trained_is_not_trained_again(tiny_study: Study, trained: Store) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.root.rglob("*") if path.suffix != ".lock"}
    for until in (4, 2):
        train_arm(tiny_study, ARM, trained, until, report=lambda news: pytest.fail(f"trained again: {news}"))
    after = {path: path.stat().st_mtime_ns for path in trained.root.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.suffix != ".lock"}.items() <= before.items()


def harm_checkpoint(store: Store, study: Study) -> Path:
    path = store.checkpoint_path(study.name, Checkpoint(ARM, 2))
    path.write_bytes(path.read_bytes()[:-8] + b"\x00" * 8)
    return path


def harm_metrics(store: Store, study: Study) -> Path:
    path = store.table_folder("training_batches", study.name, ARM.key) / "0002.parquet"
    path.unlink()
    return path


def harm_manifest(store: Store, study: Study) -> Path:
    path = store.checkpoint_manifest_path(study.name, Checkpoint(ARM, 0))
    path.write_text("{")
    return path


@pytest.mark.parametrize("harm", [harm_checkpoint, harm_metrics, harm_manifest])
def test_harmed_results_are_noticed_and_made_again_with_the_same_bits(
    harm: Any, tiny_study: Study, trained: Store, undisturbed: Any
) -> None:
    harm(trained, tiny_study)
    notes: list[str] = []
    train_arm(tiny_study, ARM, trained, 4, report=lambda news: notes.append(getattr(news, "text", "")))
    assert "from the beginning, because" in notes[0]
    assert_same_results(trained, undisturbed(tiny_study), tiny_study)


@pytest.mark.parametrize("harm", ["truncated", "altered", "absent"])
def test_a_harmed_resume_point_costs_nothing_but_time(harm: str, tiny_study: Study, trained: Store) -> None:
    other = Store(trained.root / "other")
    train_arm(tiny_study, ARM, other, 2)
    path = other.resume_path(tiny_study.name, ARM.key)
    content = path.read_bytes()
    if harm == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-100] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    seen: list[Event] = []
    train_arm(tiny_study, ARM, other, 4, report=seen.append)
    assert any(news.name == "note" for news in seen) == (harm != "absent")
    assert_same_results(other, trained, tiny_study)


# What decides about the last bits


def test_a_resumed_training_has_as_many_threads_as_it_began_with(tiny_study: Study, store: Store) -> None:
    """Sums are divided among threads; afterwards the process has again as many as it had."""
    seen: list[int] = []
    try:
        for threads, stop in ((1, 2), (2, 3), (3, 5)):
            end = killer("progress", stop)
            torch.set_num_threads(threads)
            with contextlib.suppress(Killed):
                report = lambda news, end=end: (seen.append(torch.get_num_threads()), end(news))  # noqa: E731
                train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=report)
            assert torch.get_num_threads() == threads
            assert set(seen) == {1}
        assert set(table(store, tiny_study, ARM, "runs").threads) == {1}
    finally:
        torch.set_num_threads(1)


def test_a_resumed_training_takes_as_many_images_at_a_time_as_before(
    tiny_study: Study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm sees the smaller batches, so a resumed training that took more would have other bits."""
    usual, sizes = Stepper._forward_backward, set()

    def forward_backward(stepper: Stepper, images: torch.Tensor, *arguments: Any) -> Any:
        sizes.add(len(images))
        return usual(stepper, images, *arguments)

    monkeypatch.setattr(Stepper, "_forward_backward", forward_backward)
    undisturbed = Store(store.root / "undisturbed")
    set_halvings(1)
    try:
        train_arm(tiny_study, ARM, undisturbed, 4)
        with pytest.raises(Killed):
            train_arm(tiny_study, ARM, store, 4, resume_seconds=0, report=killer("progress", 3))
    finally:
        set_halvings(0)
    assert sizes == {16, 4}
    train_arm(tiny_study, ARM, store, 4)
    assert sizes == {16, 4}
    assert_same_results(store, undisturbed, tiny_study)


# Studies that change


def test_another_checkpoint_epoch_is_trained_for_and_leaves_the_others_bits_alone(
    make_study: Any, trained: Store, undisturbed: Any
) -> None:
    study = make_study(checkpoints=(0, 1, 2, 3, 4))
    train_arm(study, ARM, trained, 4)
    assert_same_results(trained, undisturbed(study), study, epochs=range(5))


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    ("checkpoints", "harmed"),
    [((0, 1, 2, 3, 4), None), ((0, 3, 4), None), ((1, 4), None), ((0, 4), 0), ((2, 4), 4), ((4,), 4)],
    ids=str,
)
def test_changed_checkpoint_epochs_leave_every_step_once_even_if_training_is_interrupted(
    checkpoints: tuple[int, ...], harmed: int | None, stop: int, make_study: Any, trained: Store, undisturbed: Any
) -> None:
    study = make_study(checkpoints=checkpoints)
    if harmed is not None:  # so that it is trained again although no epoch is new
        trained.checkpoint_manifest_path("tiny", Checkpoint(ARM, harmed)).unlink()
    with pytest.raises(Killed):
        train_arm(study, ARM, trained, 4, resume_seconds=0, report=killer("progress", stop))
    train_arm(study, ARM, trained, 4)
    assert_same_results(trained, undisturbed(study), study, epochs=checkpoints)


def test_fewer_checkpoint_epochs_need_no_training(make_study: Any, trained: Store, undisturbed: Any) -> None:
    study = make_study(checkpoints=(0, 4))
    train_arm(study, ARM, trained, 4, report=lambda news: pytest.fail(f"trained again: {news}"))
    assert_same_results(trained, undisturbed(study), study, epochs=(0, 4))


def test_a_study_with_a_constant_rate_goes_on_where_it_ended(make_study: Any, store: Store, undisturbed: Any) -> None:
    short, long = make_study(CONSTANT), make_study(CONSTANT, epochs=6, checkpoints=(0, 2, 4, 6))
    train_arm(short, ARM, store, 4)
    seen: list[Event] = []
    train_arm(long, ARM, store, 6, report=seen.append)
    assert [news.epoch for news in seen if news.name == "progress"] == [5, 6]
    assert_same_results(store, undisturbed(long), long, epochs=(0, 2, 4, 6))


def test_a_changed_recipe_retires_what_the_old_one_made(make_study: Any, trained: Store) -> None:
    old, new = make_study(), make_study({"label_noise": 0.1})
    weights, _ = load_checkpoint(trained, old, Checkpoint(ARM, 4))
    with pytest.raises(StaleError, match="another recipe"):
        load_checkpoint(trained, new, Checkpoint(ARM, 4))
    notes: list[str] = []
    train_arm(new, ARM, trained, 2, report=lambda news: notes.append(getattr(news, "text", "")))
    retired = trained.root / "retired" / "tiny" / ARM.key / old.recipe_hash(ARM)
    assert str(retired) in notes[0]
    assert (retired / "checkpoints" / "tiny" / ARM.key / "0004.safetensors").is_file()
    for name in {*METRIC_TABLES, "runs"} - {"class_progress"}:
        rows = table(trained, new, ARM, name)
        assert set(rows.recipe) == {new.recipe_hash(ARM)}, name
    with pytest.raises(StaleError, match="not been trained"):
        load_checkpoint(trained, new, Checkpoint(ARM, 4))
    fresh, _ = load_checkpoint(trained, new, Checkpoint(ARM, 2))
    assert not torch.equal(fresh["linear.weight"], weights["linear.weight"])
    # The other arm is retired when it is its turn, not before.
    assert load_checkpoint(trained, old, Checkpoint(Arm("plain", 1), 4))


def test_a_changed_data_set_makes_checkpoints_stale(
    tiny_study: Study, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load("digits").__dict__, "sha256", "of other images")
    with pytest.raises(StaleError, match="another data_sha256"):
        load_checkpoint(trained, tiny_study, Checkpoint(ARM, 4))
