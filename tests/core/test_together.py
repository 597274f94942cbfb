"""Arms that differ in rates alone, trained in one network: each is what it is apart, whatever ends a training."""

import contextlib
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from dd_core.forecast import speed
from dd_core.forecast.speed import Known
from dd_core.jobs import worker
from dd_core.jobs.forecast import forecast
from dd_core.jobs.job import TrainTask, predicted_cost, training_job
from dd_core.machine.devices import Machine
from dd_core.store import companions
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.resume_points import resume_metadata, trained_epoch
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
ONLY_NOISE = {"validation": None, "hessian": None, "noise": {"every": "1 epoch", "grad_var": "ema"}}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0}
ADAMW = {"name": "adamw", "learning_rate": 0.005, "weight_decay": 0.1, "decay_all": False}
# The last diverges in the first epoch.
RATES: dict[str, list[dict[str, Any]]] = {
    "sgd": [{}, {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.1}, {"learning_rate": 1e200}],
    "adamw": [{}, {"learning_rate": 0.02, "weight_decay": 0.0}, {"learning_rate": 1e200}],
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
    assert list(ended.status) == ["finished"] * 4 + ["diverged"] * 2
    assert set(ended.arms_together) == {3}
    last = [load_checkpoint(store, study, Checkpoint(arm, 4))[0]["linear.weight"] for arm in arms_of(study)]
    assert all((a != b).any() for a, b in itertools.combinations(last, 2))


# Kills

SMALL = {"architecture": "cnn5", "batch_size": 15}
PLAIN_SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def small_grid(*rates: dict[str, Any], recipe: Any = None, **changes: Any) -> Study:
    """Three arms of a trial in a moment, with a monitor that remembers all steps."""
    few = {"data": {"dataset": "digits", "num_train": 30, "num_validation": 20}, "trials": 1, "keep_best": 1}
    three = rates or ({}, {"learning_rate": 0.1}, {"momentum": 0.0, "weight_decay": 0.1})
    return grid(PLAIN_SGD, list(three), recipe=recipe or SMALL, **{"monitors": ONLY_NOISE, **few, **changes})


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
    for moment in moments[::-13]:
        other = Store(moment)
        epochs = {trained_epoch(other, study, arm) for arm in arms_of(study)}
        apart += len(epochs) > 1
        train_together(study, arms_of(study), other, 4, resume_seconds=0)
        assert everything(other, study) == expected, moment.name
        assert all(arm_is_complete(other, study, arm, 4) for arm in arms_of(study))
    assert apart, "at no moment did arms stand at different epochs"


def begin(store: Store, study: Study, epoch: int, arms: list[Arm] | None = None) -> None:
    """Train all arms, or some, in one network, and die after an epoch."""
    with pytest.raises(Killed):
        train_together(study, arms or arms_of(study), store, 4, resume_seconds=0, report=killer("progress", epoch))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """The small grid, trained together."""
    study, store = small_grid(), Store(tmp_path_factory.mktemp("together"))
    train_together(study, arms_of(study), store, 4)
    return study, store


def test_arms_that_began_together_may_go_on_one_after_the_other(small: tuple[Study, Store], store: Store) -> None:
    """Places of arms that are not asked for, or harmed, are computed in vain: the bits stay what they are."""
    study, undisturbed = small
    first, second, third = arms_of(study)
    begin(store, study, 3)
    (task,) = tasks(store, study, [third, first])
    assert (task.arms, task.places) == ((third, first), ("v0", "v1", "v2"))
    train_together(study, task.arms, store, 4, places=task.places)
    path = store.checkpoint_path(study.name, Checkpoint(first, 2))
    path.write_bytes(path.read_bytes()[:-1])
    (task,) = tasks(store, study, [first, second])
    notes: list[str] = []
    report = lambda news: notes.append(getattr(news, "text", ""))  # noqa: E731
    train_together(study, task.arms, store, 4, places=task.places, report=report)
    assert [note for note in notes if "v0.k001: training from the beginning" in note]
    assert everything(store, study) == everything(undisturbed, study)


def test_another_recipe_of_one_arm_or_its_end_concerns_no_other(small: tuple[Study, Store], store: Store) -> None:
    """Its place is computed with whatever is there."""
    study, undisturbed = small
    begin(store, study, 3)
    (first, *others), changed = arms_of(study), dict(study.variants)
    changed["v0"] = changed["v0"].model_copy(update={"batch_size": 10})
    without = {name: variant for name, variant in study.variants.items() if name != "v0"}
    for variants in (changed, without):
        now = study.model_copy(update={"variants": variants})
        now.__dict__.pop("arms", None)
        copy = Store(store.root.parent / f"{len(variants)}")
        shutil.copytree(store.root, copy.root)
        *own, rest = sorted(tasks(copy, now, arms_of(now)), key=lambda task: task.variant)
        assert [(task.arms, task.places) for task in own] == [((first,), ())] * (len(variants) - 2)
        assert (rest.arms, rest.places) == (tuple(others), ("v0", "v1", "v2"))
        train_together(now, rest.arms, copy, 4, places=rest.places)
        ours, theirs = (
            {path: text for path, text in everything(s, study).items() if "v0" not in path} for s in (copy, undisturbed)
        )
        assert ours == theirs


def test_arms_may_leave_a_network_and_join_one(store: Store) -> None:
    """What each has reached is slices of the same states: in float64 nobody can tell, and a note warns of last bits."""
    study = grid(ADAMW, [{}, {"learning_rate": 0.02}], trials=1, monitors=ONLY_NOISE)
    apart, left, joined = (Store(store.root / name) for name in ("apart", "left", "joined"))
    notes: list[str] = []
    options: dict[str, Any] = {"dtype": torch.float64, "report": lambda news: notes.append(getattr(news, "text", ""))}
    for arm in arms_of(study):
        train_arm(study, arm, apart, 4, **options)
        train_arm(study, arm, joined, 2, **options)
    train_together(study, arms_of(study), left, 2, **options)
    assert not any(notes)
    for arm in arms_of(study):
        train_arm(study, arm, left, 4, **options)
    train_together(study, arms_of(study), joined, 4, **options)
    said = "going on at epoch 2 in a network shared with other arms than before; the last bits may differ"
    assert [note for note in notes if note] == [f"{arm.key}: {said}" for arm in arms_of(study)] * 2
    for arm in arms_of(study):
        assert_close(left, apart, study, arm, 1e-10)
        assert_close(joined, apart, study, arm, 1e-10)


def test_an_arm_that_has_stopped_early_is_carried_along(store: Store) -> None:
    """To the bit after a kill, and as apart: also its weights, which stay as they were when it stopped."""
    stopping = {"early_stopping": {"metric": "train_loss", "patience": 1, "min_delta": 0.001}}
    recipe = {**SMALL, **stopping, "schedule": {"name": "constant"}}
    study = small_grid({"learning_rate": 1e-9}, {}, recipe=recipe, evaluation={"every": 1})
    killed, apart = Store(store.root / "killed"), Store(store.root / "apart")
    train_together(study, arms_of(study), store, 4, dtype=torch.float64)
    for epoch in (2, 3):
        with pytest.raises(Killed):
            report = killer("progress", epoch)
            train_together(study, arms_of(study), killed, 4, dtype=torch.float64, resume_seconds=0, report=report)
    train_together(study, arms_of(study), killed, 4, dtype=torch.float64)
    assert everything(killed, study) == everything(store, study)
    for arm in arms_of(study):
        train_arm(study, arm, apart, 4, dtype=torch.float64)
        assert_close(store, apart, study, arm, 1e-10)
    endings = [table(store, study, arm, "runs").end_epoch.dropna().tolist() for arm in arms_of(study)]
    assert endings == [[2], []]


def test_out_of_memory_halves_the_images_of_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last resume points on, once; each arm says so in its ledger."""
    study = small_grid(recipe={**SMALL, "batch_size": 32}, data={"dataset": "digits", "num_train": 32})
    usual, calls = Stepper._forward_backward, itertools.count(1)

    def short(stepper: Stepper, *arguments: Any) -> Any:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("no memory is left")
        return usual(stepper, *arguments)

    monkeypatch.setattr(Stepper, "_forward_backward", short)
    notes: list[str] = []
    report = lambda news: notes.append(getattr(news, "text", ""))  # noqa: E731
    train_together(study, arms_of(study), store, 4, resume_seconds=0, report=report)
    (note,) = [note for note in notes if note]
    assert note.startswith("v0.k001 and v1.k001 and v2.k001: out of memory with 32 images at a time; going on from")
    for arm in arms_of(study):
        ended = table(store, study, arm, "runs").query("status != 'running'")
        assert list(zip(ended.status, ended.micro_batch_size, ended.last_epoch, strict=True)) == [
            ("failed", 32, 2),
            ("finished", 16, 4),
        ]


# Jobs


def tasks(store: Store, study: Study, arms: list[Arm], num_workers: int = 1, until: int = 4) -> list[TrainTask]:
    wanted = [Checkpoint(arm, epoch) for arm in arms for epoch in study.checkpoints if epoch <= until]
    job = training_job(store.root, study, wanted, num_workers, 1)
    return [task for task in job.tasks if isinstance(task, TrainTask)]


def test_only_arms_that_differ_in_rates_are_of_one_kind(make_study: Any) -> None:
    study = small_grid({}, {"learning_rate": 0.1}, {"weight_decay": 0.1, "momentum": 0.0}, {"clip_norm": 1.0})
    same = [kind(study, arm) for arm in arms_of(study)]
    assert same[0] == same[1] == same[2] != same[3]
    assert all(same)

    def of(recipe: dict[str, Any] | None = None, **changes: Any) -> set[str]:
        changed = make_study({**SMALL, **(recipe or {})}, **{"widths": (2,), **changes})
        return {kind(changed, arm) for arm in arms_of(changed)}

    own = {"custom": {"own": {"use": "my:Monitor", "every": "1 epoch"}}}
    plateau = {"schedule": {"name": "plateau", "metric": "train_loss"}}
    apart = [of(widths=(17,)), of(trials=7), of(monitors=own), of(plateau), of({"precision": "float16"})]
    apart += [of(widths=(9,)), of(widths=(4,), trials=3, data={"dataset": "cifar10"})]
    assert apart == [{""}] * len(apart)
    assert of(widths=(16,), trials=1) != {""} != of(widths=(2,), trials=3, data={"dataset": "cifar10"})
    assert len(of(widths=(1, 2))) == 2


def test_networks_are_even_and_leave_none_of_the_workers_idle() -> None:
    study = grid(PLAIN_SGD, [{"learning_rate": 0.01 * i} for i in range(1, 10)], recipe=SMALL, trials=3)

    def sizes(num_networks: int) -> list[int]:
        return [len(arms) for arms in together(study, arms_of(study), num_networks)]

    assert sizes(1) == [3, 3, 3], "twelve trials at most"
    assert sizes(4) == [2, 2, 2, 3]
    assert sizes(24) == [1] * 9
    assert [*itertools.chain(*together(study, arms_of(study), 2))] == arms_of(study)


def test_jobs_put_arms_together_and_keep_those_apart_that_began_so(small: tuple[Study, Store], store: Store) -> None:
    study, trained = small
    first, second, third = arms_of(study)
    (task,) = tasks(store, study, [first, second, third])
    assert (task.arms, task.places) == ((first, second, third), ("v0", "v1", "v2"))
    assert task.name == "tiny/v0.k001 and 2 other arms"
    assert predicted_cost(study, task) == 3 * predicted_cost(study, task.model_copy(update={"also": ()}))
    assert len(tasks(store, study, arms_of(study), num_workers=3)) == 3, "no worker is idle"
    train_arm(study, second, store, 2)
    alone, pair = sorted(tasks(store, study, arms_of(study)), key=lambda task: len(task.arms))
    assert (alone.arms, alone.places, pair.arms) == ((second,), (), (first, third))
    assert not {"also", "places"} & alone.model_dump().keys(), "job files of arms alone stay as they were"
    (task,) = tasks(trained, study, [second])
    assert (task.arms, task.places) == ((second,), ("v0", "v1", "v2")), "as it was trained"


def test_an_arm_killed_before_its_first_resume_point_finds_its_place(store: Store) -> None:
    """The first arm's was written, the others' not yet."""
    study = small_grid()
    begin(store, study, 1)
    for arm in arms_of(study)[1:]:
        store.resume_path(study.name, arm.key).unlink()
    for arms in (arms_of(study), arms_of(study)[1:]):
        (task,) = tasks(store, study, arms)
        assert (task.arms, task.places) == (tuple(arms), ("v0", "v1", "v2"))


def test_the_last_arm_of_a_kind_in_the_study_keeps_the_place_it_had(store: Store) -> None:
    study = small_grid()
    begin(store, study, 1)
    last = study.model_copy(update={"variants": {"v1": study.variants["v1"]}})
    (task,) = tasks(store, Study.model_validate(last.model_dump(exclude_unset=True)), [Arm("v1", 1)])
    assert (task.arms, task.places) == ((Arm("v1", 1),), ("v0", "v1", "v2"))


def test_of_an_arm_that_says_how_it_began_no_other_is_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_grid()
    begin(store, study, 1)
    asked: list[Arm] = []
    monkeypatch.setattr(
        companions, "resume_metadata", lambda store, study, arm: asked.append(arm) or resume_metadata(store, study, arm)
    )
    tasks(store, study, [Arm("v1", 1)])
    assert asked == [Arm("v1", 1)]


def test_what_a_job_trains_is_looked_up_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, small: tuple[Study, Store]
) -> None:
    """For its own networks once a task, and for those of all tasks once a worker."""
    asked: list[Arm] = []
    monkeypatch.setattr(worker, "networks_of", lambda study, arm, places: asked.append(arm) or {arm})
    monkeypatch.setattr(worker, "require_sound", lambda wanted, others, threads: None)
    monkeypatch.setattr(worker, "prepare_process", lambda threads: None)
    monkeypatch.setattr(worker, "device_of", lambda gpu: torch.device("cpu"))
    monkeypatch.setattr(worker, "_train", lambda *_: None)
    job = training_job(store.root, small[0], list(small[0].iter_checkpoints()), 3, 1)
    events = SimpleNamespace(emit=lambda event: None)
    assert worker.run(job, [(number, 0) for number in range(3)], 0, events) == 0  # type: ignore[arg-type]
    assert len(asked) == 3 + 3


def test_a_probe_that_holds_for_many_arms_is_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    study, sizes = small_grid(), []
    probed = SimpleNamespace(seconds_per_image=lambda num_workers: 1.0)
    first, second, third = arms_of(study)
    known = Known(study, Machine("cpu", 0, 1), {first: probed, second: probed})  # type: ignore[dict-item]
    monkeypatch.setattr(speed, "scaled", lambda measured, flops: sizes.append(len(measured)) or 1.0)
    assert known.predict(third, (0, 4), 1) is not None
    assert sizes == [1]


def test_time_is_divided_among_the_arms_and_predicted_from_such_runs_alone(small: tuple[Study, Store]) -> None:
    study, store = small
    with contextlib.closing(connect(store, ("runs",))) as connection:
        runs = connection.sql(
            """SELECT seconds, samples_per_second, epoch(ended_at) - epoch(started_at) AS span
            FROM runs WHERE status = 'finished'"""
        ).df()
    assert len(runs) == 3
    assert runs.seconds.sum() == pytest.approx(runs.span.max(), rel=0.2)
    steps = study.num_train_images * study.epochs
    assert (runs.samples_per_second * runs.seconds).tolist() == pytest.approx([steps] * 3)
    known = Known.read(store, study, Machine("cpu", num_gpus=0, num_cores=1))
    arm = arms_of(study)[0]
    assert known.predict(arm, (0, 4), 1) is None, "nobody knows how long it takes alone"
    prediction = known.predict(arm, (0, 4), 1, 3)
    assert prediction is not None
    assert prediction.seconds == pytest.approx(runs.seconds.mean())
    job = training_job(store.root, study, list(study.iter_checkpoints()), 1, 1)
    expected = forecast(store, study, job, known.machine)
    assert expected.tasks[0].predicted_seconds == pytest.approx(0, abs=1e-9), "nothing is left"
