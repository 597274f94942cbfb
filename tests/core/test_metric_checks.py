"""Complete metrics raise no alarm, whatever trials did; whatever is missing, doubled or impossible is named exactly."""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.checks.expected import Course, Expectations
from dd_core.checks.integrity import largest_batch_loss, metric_gaps
from dd_core.checks.sentences import Gap, sentences, where
from dd_core.data.trials import trial_data
from dd_core.store.store import Store
from dd_core.study.calendar import Calendar
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm

ARM = Arm("plain", 1)
TABLES = ("training_batches", "training_monitors", "training_evals", "image_progress")
Harm = Callable[[pa.Table], pa.Table]


def problems(store: Store, study: Study) -> list[str]:
    with contextlib.closing(connect(store)) as connection:
        found, _ = metric_gaps(store, study, connection)
    return found


def part(store: Store, table: str, epoch: int = 2) -> Path:
    return store.table_folder(table, "tiny", ARM.key) / f"{epoch:04d}.parquet"


def harm(store: Store, table: str, change: Harm, epoch: int = 2) -> None:
    """As a wrong trainer would write it: with a manifest that vouches for the file."""
    path = part(store, table, epoch)
    write_parquet(path, change(read_parquet(path)))
    manifest_path = store.checkpoint_manifest_path("tiny", Checkpoint(ARM, epoch))
    manifest = store.read_manifest(manifest_path)
    assert manifest is not None
    files = {role: store.root / entry.path for role, entry in manifest.files.items()}
    store.write_manifest(manifest_path, manifest.content, files)


def without(**values: Any) -> Harm:
    """Rows that differ from these in some column; a tuple stands for several values."""

    def change(table: pa.Table) -> pa.Table:
        chosen = np.ones(len(table), dtype=bool)
        for name, wanted in values.items():
            column = np.array(table[name].to_pylist())
            chosen &= np.isin(column, wanted if isinstance(wanted, tuple) else (wanted,))
        assert chosen.any()
        return table.filter(pa.array(~chosen))

    return change


def changed(column: str, value: float | None, rows: int = 1) -> Harm:
    """Another value in the first rows."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[:rows] = [value] * rows
        field = table.schema.field(column)
        return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))

    return change


@pytest.fixture(scope="module")
def watched_study(make_study: Any) -> Study:
    """One arm, 4 steps an epoch, 16 in all; the Hessian after every second step."""
    hessian = {"every": "2 steps", "num_images": 4, "iterations": 2, "num_probes": 2}
    data = {"dataset": "digits", "num_train": 100, "num_validation": 50}
    return make_study(data=data, widths=(1,), monitors={"hessian": hessian, "noise": {"every": "2 epochs"}})


@pytest.fixture(scope="module")
def _watched_root(watched_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watched") / "root"
    train_arm(watched_study, ARM, Store(root), 4)
    return root


@pytest.fixture
def watched(_watched_root: Path, store: Store) -> Store:
    shutil.copytree(_watched_root, store.root)
    return store


# Nothing is wrong


def test_complete_metrics_raise_no_alarm(watched: Store, watched_study: Study) -> None:
    with contextlib.closing(connect(watched)) as connection:
        assert metric_gaps(watched, watched_study, connection) == ([], 2)


def test_nothing_trained_is_no_problem(store: Store, tiny_study: Study) -> None:
    assert problems(store, tiny_study) == []


def test_an_arm_trained_in_part_is_asked_for_that_part(store: Store, tiny_study: Study) -> None:
    for until in (0, 2):
        train_arm(tiny_study, ARM, store, until)
        assert problems(store, tiny_study) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"every": 2, "image_progress": "evaluations"}},
        {"evaluation": {"every": 4, "image_progress": "checkpoints"}},
        {"checkpoints": (0, 4)},
        {"checkpoints": (0, 2)},
        {"monitors": {"norms": None}},
        {"monitors": {"norms": {"every": "2 steps"}}},
        {"epochs": 9, "variant": {"schedule": {"name": "constant"}}},
    ],
    ids=str,
)
def test_more_than_the_study_asks_for_now_is_no_problem(changes: Any, trained: Store, make_study: Any) -> None:
    assert problems(trained, make_study(**changes)) == []


# What is missing


def test_a_gap_is_named_by_metric_arm_trial_and_steps(watched: Store, watched_study: Study) -> None:
    """The Hessian is due after steps 2, 4, 6 and 8 of the first part, 10 to 16 of the second."""
    harm(watched, "training_monitors", without(metric="largest_eigenvalue", trial=1, step=(2, 6)))
    assert problems(watched, watched_study) == [
        "plain.k001 trial 1: largest_eigenvalue is missing after steps 2 and 6 (2 of 8)",
    ]


def test_metrics_and_trials_with_the_same_gap_share_a_sentence(watched: Store, watched_study: Study) -> None:
    harm(watched, "training_monitors", without(metric=("largest_eigenvalue", "hessian_trace"), step=(4, 6, 8)))
    harm(watched, "training_monitors", without(metric="validation_error", trial=0), epoch=4)
    assert problems(watched, watched_study) == [
        "plain.k001 trial 0: validation_error is missing after steps 9 to 16 (8 of 16)",
        "plain.k001 trials 0 and 1: largest_eigenvalue and hessian_trace are missing after steps 4 to 8 (3 of 8)",
    ]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("training_batches", "every metric of training_batches is missing at steps 9 to 16 (8 of 16)"),
        ("training_evals", "every metric of training_evals is missing at epochs 3 and 4 (2 of 5)"),
        ("image_progress", "image_progress is missing at epochs 3 and 4 (2 of 5)"),
    ],
)
def test_a_missing_part_is_named(table: str, told: str, watched: Store, watched_study: Study) -> None:
    part(watched, table, 4).unlink()
    assert problems(watched, watched_study) == [f"plain.k001 trials 0 and 1: {told}"]


def test_every_metric_of_a_missing_part_of_the_monitors_is_named(watched: Store, watched_study: Study) -> None:
    part(watched, "training_monitors", 2).unlink()
    found = problems(watched, watched_study)
    assert found == [
        "plain.k001 trials 0 and 1: validation_loss, validation_error, gradient_norm and weight_norm are missing "
        "after steps 1 to 8 (8 of 16)",
        "plain.k001 trials 0 and 1: largest_eigenvalue, largest_eigenvalue_residual and hessian_trace are missing "
        "after steps 2 to 8 (4 of 8)",
        "plain.k001 trials 0 and 1: gradient_variance is missing after step 8 (1 of 2)",
    ]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_any_file_is_found(table: str, trained: Store, tiny_study: Study) -> None:
    for path in trained.table_folder(table).rglob("*.parquet"):
        path.unlink()
    found = problems(trained, tiny_study)
    assert {problem.split(":")[0] for problem in found} == {f"plain.k00{k} trials 0 and 1" for k in (1, 2)}
    assert all("is missing" in problem or "are missing" in problem for problem in found)


def test_a_monitor_asked_for_only_after_training_is_a_gap_and_said_so(store: Store, make_study: Any) -> None:
    train_arm(make_study(monitors={"norms": None, "noise": None}), ARM, store, 4)
    assert problems(store, make_study(monitors={"noise": None})) == [
        "plain.k001 trials 0 and 1: gradient_norm and weight_norm are missing after steps 1 to 16 (16 of 16), as if "
        "asked for only after training"
    ]


def test_evaluations_asked_for_only_after_training_are_a_gap(store: Store, make_study: Any) -> None:
    train_arm(make_study(evaluation={"every": 2}), ARM, store, 4)
    assert problems(store, make_study(evaluation={"every": 2})) == []
    assert problems(store, make_study()) == [
        "plain.k001 trials 0 and 1: every metric of training_evals and image_progress are missing at epochs 1 and 3 "
        "(2 of 5)"
    ]


def test_a_missing_image_is_found(watched: Store, watched_study: Study) -> None:
    first = read_parquet(part(watched, "image_progress"))["image_id"][0].as_py()
    harm(watched, "image_progress", without(trial=1, epoch=2, image_id=first))
    assert problems(watched, watched_study) == [
        "plain.k001 trial 1: image_progress is of another number of images than 1,797 at epoch 2 (1 of 5)"
    ]


# What should not be there


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("training_batches", "every metric of training_batches is there more than once at steps 5 to 8 (4 of 16)"),
        ("training_evals", "every metric of training_evals is there more than once at epoch 2 (1 of 5)"),
        ("training_monitors", "largest_eigenvalue is there more than once after steps 6 and 8 (2 of 8)"),
        ("image_progress", "image_progress is of another number of images than 1,797 at epoch 2 (1 of 5)"),
    ],
)
def test_doubled_rows_are_named(table: str, told: str, watched: Store, watched_study: Study) -> None:
    def double(rows: pa.Table) -> pa.Table:
        chosen = pc.and_(pc.equal(rows["epoch"], 2), pc.equal(rows["trial"], 0))
        if table == "training_monitors":
            chosen = pc.and_(chosen, pc.equal(rows["metric"].cast("string"), "largest_eigenvalue"))
        return pa.concat_tables([rows, rows.filter(chosen)])

    harm(watched, table, double)
    assert problems(watched, watched_study) == [f"plain.k001 trial 0: {told}"]


def test_as_many_rows_as_there_must_be_are_not_enough(watched: Store, watched_study: Study) -> None:
    """A row missing and another doubled."""
    harm(watched, "training_batches", lambda rows: pa.concat_tables([rows.slice(1), rows.slice(1, 1)]))
    assert problems(watched, watched_study) == [
        "plain.k001 trial 0: every metric of training_batches is missing at step 1 (1 of 16)",
        "plain.k001 trial 0: every metric of training_batches is there more than once at step 2 (1 of 15)",
    ]


@pytest.mark.parametrize(
    ("table", "column", "value", "told"),
    [
        ("training_batches", "epoch", 2, "every metric of training_batches is {} at step 1 (1 of 16)"),
        ("training_evals", "step", 5, "every metric of training_evals is {} at epoch 1 (1 of 5)"),
        ("training_monitors", "epoch", 2, "gradient_norm is {} after step 1 (1 of 16)"),
    ],
)
def test_epoch_and_step_must_belong_together(
    table: str, column: str, value: int, told: str, watched: Store, watched_study: Study
) -> None:
    harm(watched, table, changed(column, value))
    told = told.format("recorded under an epoch and a step that do not belong together")
    assert problems(watched, watched_study) == [f"plain.k001 trial 0: {told}"]


BATCH_METRICS = ("train_loss", "train_error", "learning_rate", "weight_decay", "time")
EVAL_METRICS = (
    *("train_error", "train_loss", "train_error_clean", "train_loss_clean", "train_error_noisy", "train_loss_noisy"),
    *("validation_loss", "validation_error", "test_error", "test_loss"),
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, None], ids=str)
@pytest.mark.parametrize(
    ("table", "metric"),
    [
        *(("training_batches", metric) for metric in BATCH_METRICS),
        *(("training_evals", metric) for metric in EVAL_METRICS),
    ],
)
def test_values_that_cannot_be_are_named(
    table: str, metric: str, value: float | None, watched: Store, watched_study: Study
) -> None:
    harm(watched, table, changed(metric, value))
    at = "step 1 (1 of 16)" if table == "training_batches" else "epoch 1 (1 of 5)"
    assert problems(watched, watched_study) == [f"plain.k001 trial 0: {metric} is not finite or out of range at {at}"]


@pytest.mark.parametrize(
    "metric", ["train_error", "train_error_clean", "train_error_noisy", "validation_error", "test_error"]
)
def test_fractions_are_at_most_1(metric: str, watched: Store, watched_study: Study) -> None:
    harm(watched, "training_evals", changed(metric, 1.5))
    assert [problem.split()[3] for problem in problems(watched, watched_study)] == [metric]


def of_metric(metric: str, column: str, value: float) -> Harm:
    """Another value in the first row of a metric."""

    def change(table: pa.Table) -> pa.Table:
        first = table["metric"].to_pylist().index(metric)
        values = table[column].to_numpy().copy()
        values[first] = value
        return table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(values))

    return change


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        *(
            (metric, math.inf)
            for metric in ("validation_loss", "largest_eigenvalue", "hessian_trace", "gradient_variance")
        ),
        *((metric, math.nan) for metric in ("validation_error", "gradient_norm", "largest_eigenvalue")),
        *(
            (metric, -1.0)
            for metric in ("validation_loss", "validation_error", "gradient_norm", "weight_norm", "gradient_variance")
        ),
        ("largest_eigenvalue_residual", -1.0),
        ("validation_error", 1.5),
    ],
)
def test_values_of_monitors_that_cannot_be_are_named(
    metric: str, value: float, watched: Store, watched_study: Study
) -> None:
    harm(watched, "training_monitors", of_metric(metric, "value", value))
    (told,) = problems(watched, watched_study)
    assert told.startswith(f"plain.k001 trial 0: {metric} is not finite or out of range after step ")


def test_a_hessian_may_have_negative_eigenvalues_and_trace(watched: Store, watched_study: Study) -> None:
    for metric in ("largest_eigenvalue", "hessian_trace"):
        harm(watched, "training_monitors", of_metric(metric, "value", -1.0))
    assert problems(watched, watched_study) == []


@pytest.mark.parametrize("value", [-1.0, math.inf])
def test_standard_errors_are_checked(value: float, watched: Store, watched_study: Study) -> None:
    harm(watched, "training_monitors", of_metric("hessian_trace", "standard_error", value))
    assert problems(watched, watched_study) == [
        "plain.k001 trial 0: standard_error of hessian_trace is not finite or out of range after step 2 (1 of 8)"
    ]


@pytest.mark.parametrize(
    ("variant", "data", "absent"),
    [
        ({"label_noise": 0.0}, {"num_train": 100}, {"train_error_noisy", "train_loss_noisy"}),
        ({"label_noise": 0.999}, {"num_train": 100}, {"train_error_clean", "train_loss_clean"}),
        ({}, {"num_train": 1747, "num_validation": 50}, {"test_error", "test_loss"}),
    ],
    ids=["no wrong labels", "no right labels", "no test images"],
)
def test_metrics_of_images_that_do_not_exist_may_be_nan(
    variant: Any, data: Any, absent: set[str], store: Store, make_study: Any
) -> None:
    study = make_study(variant={"architecture": "cnn5", **variant}, data={"dataset": "digits", **data}, trials=1)
    train_arm(study, ARM, store, 0)
    absent = absent | (set() if "num_validation" in data else {"validation_loss", "validation_error"})
    (row,) = read_parquet(part(store, "training_evals", 0)).to_pylist()
    assert {name for name in EVAL_METRICS if row[name] is None} == absent
    assert problems(store, study) == []


def test_the_number_of_test_images_is_that_of_the_trials(make_study: Any) -> None:
    for data in ({"num_train": 100}, {"num_train": 100, "num_validation": 30}, {"num_train": None}):
        study = make_study(data={"dataset": "digits", **data}, variant={"batch_size": 100})
        assert study.num_test_images == len(trial_data(study, "plain", 0).test_ids)
    assert make_study(data={"dataset": "cifar10"}).num_test_images == 10_000


# Trials that end before their arm


@pytest.fixture
def stopped(store: Store, make_study: Any) -> tuple[Store, Study]:
    """Both trials stop at the end of epoch 2, after step 8; the last checkpoint is at epoch 4."""
    stopping = {"metric": "train_loss", "patience": 1, "min_delta": 1e6}
    study = make_study(variant={"early_stopping": stopping}, widths=(1,))
    train_arm(study, ARM, store, 4)
    return store, study


@pytest.fixture(params=[1e3, 1e7, 1e25], ids=str)
def diverged(request: pytest.FixtureRequest, store: Store, make_study: Any) -> tuple[Store, Study]:
    """Learning rates at which the loss is soon not finite, and what monitors measure even sooner."""
    study = make_study(
        variant={"optimizer": {"name": "sgd", "learning_rate": request.param}},
        data={"dataset": "digits", "num_train": 100, "num_validation": 50},
        monitors={"hessian": {"every": "1 step", "num_images": 4, "iterations": 2, "num_probes": 2}},
        widths=(1,),
    )
    train_arm(study, ARM, store, 4)
    return store, study


def ends(store: Store) -> dict[int, tuple[str, int]]:
    """How each trial ended, as the table ``runs`` says."""
    (path,) = store.table_folder("runs", "tiny", ARM.key).glob("*.end.parquet")
    return {row["trial"]: (row["status"], row["end_step"]) for row in read_parquet(path).to_pylist()}


def test_trials_that_stopped_early_are_complete_up_to_there(stopped: tuple[Store, Study]) -> None:
    assert ends(stopped[0]) == dict.fromkeys((0, 1), ("stopped early", 8))
    assert problems(*stopped) == []


def test_trials_that_diverged_are_complete_up_to_there(diverged: tuple[Store, Study]) -> None:
    assert {status for status, _ in ends(diverged[0]).values()} == {"diverged"}
    assert problems(*diverged) == []


def test_gaps_before_an_early_stop_and_evaluations_after_it_are_asked_for(stopped: tuple[Store, Study]) -> None:
    store, study = stopped
    harm(store, "training_batches", without(trial=1, step=8))
    harm(store, "training_monitors", without(trial=1, metric="gradient_norm", step=8))
    harm(store, "training_evals", without(trial=0, epoch=3), epoch=4)
    assert problems(store, study) == [
        "plain.k001 trial 1: every metric of training_batches is missing at step 8 (1 of 8)",
        "plain.k001 trial 1: gradient_norm is missing after step 8 (1 of 8)",
        "plain.k001 trial 0: every metric of training_evals is missing at epoch 3 (1 of 5)",
    ]


def test_rows_after_an_early_stop_are_told(stopped: tuple[Store, Study]) -> None:
    store, study = stopped

    def later(rows: pa.Table) -> pa.Table:
        first = rows.slice(0, 1)
        for name, value in (("step", 9), ("epoch", 3)):
            index, field = first.column_names.index(name), first.schema.field(name)
            first = first.set_column(index, field, pa.array([value], field.type))
        return pa.concat_tables([rows, first])

    harm(store, "training_batches", later)
    assert problems(store, study) == [
        "plain.k001 trial 0: every metric of training_batches is there although the trial had stopped early, at step 9 "
        "(1 of 9)"
    ]


def test_gaps_before_a_divergence_are_told(diverged: tuple[Store, Study]) -> None:
    store, study = diverged
    step = ends(store)[0][1]
    harm(store, "training_batches", without(trial=0, step=1))
    assert problems(store, study) == [
        f"plain.k001 trial 0: every metric of training_batches is missing at step 1 (1 of {step - 1})"
    ]


def test_what_a_course_must_have(make_study: Any) -> None:
    """4 steps an epoch: stopped after step 8 of 16; diverged at step 9, maybe found by the evaluation after step 8."""
    study = make_study(monitors={"hessian": {"every": "2 steps"}, "noise": None}, checkpoints=(0, 4))
    whole = Course(Calendar(4, 1), 4, 16)
    stopped = Course(Calendar(4, 1), 4, 8, "stopped early")
    diverged = Course(Calendar(4, 1), 4, 8, "diverged")
    expected = Expectations(study, [whole, stopped, diverged])
    assert expected.batches(whole).tolist() == list(range(1, 17))
    assert expected.batches(stopped).tolist() == expected.batches(diverged).tolist() == list(range(1, 9))
    assert expected.monitors(whole)["largest_eigenvalue"].tolist() == [2, 4, 6, 8, 10, 12, 14, 16]
    assert expected.monitors(stopped)["largest_eigenvalue"].tolist() == [2, 4, 6, 8]
    assert expected.monitors(diverged)["largest_eigenvalue"].tolist() == [2, 4]
    assert expected.evaluations(whole).tolist() == expected.evaluations(stopped).tolist() == [0, 1, 2, 3, 4]
    assert expected.evaluations(diverged).tolist() == [0, 1]
    assert stopped.steps_at(np.arange(5)).tolist() == [0, 4, 8, 8, 8]


# Monitors of the user's own

CUSTOM = """
import torch
from dd_core.training.monitors import Monitor


class Late(Monitor):
    metrics = ("number_of_steps",)

    def measure(self, moment):
        if moment.step < 5:
            return {}
        return {"number_of_steps": torch.full((len(self.stack.trials),), float(moment.step))}
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_study: Any) -> Iterator[Study]:
    (tmp_path / "late_monitor.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    yield make_study(monitors={"custom": {"late": {"use": "late_monitor:Late", "every": "1 step"}}}, widths=(1,))


def test_a_monitor_of_the_users_own_is_complete_from_its_first_value_on(custom: Study, store: Store) -> None:
    train_arm(custom, ARM, store, 4)
    assert problems(store, custom) == []
    harm(store, "training_monitors", without(metric="number_of_steps", trial=0, step=7))
    assert problems(store, custom) == ["plain.k001 trial 0: number_of_steps is missing after step 7 (1 of 12)"]


def test_a_monitor_that_cannot_be_imported_is_told(trained: Store, make_study: Any) -> None:
    study = make_study(monitors={"custom": {"late": {"use": "no_such_module:Late", "every": "1 step"}}})
    (told,) = problems(trained, study)
    assert told.startswith("monitors.late: no_such_module:Late cannot be imported")
    assert told.endswith("its metrics were not checked")


# Words


@given(st.sets(st.integers(1, 60), min_size=1), st.data())
def test_ranges_name_just_the_positions(among: set[int], data: st.DataObject) -> None:
    """Reading the ranges back gives the positions, unless there are too many to list."""
    positions = data.draw(st.sets(st.sampled_from(sorted(among)), min_size=1))
    text = where("step", np.array(sorted(positions)), np.array(sorted(among)))
    words, _, count = text.partition(" (")
    assert count == f"{len(positions)} of {len(among)})"
    assert words.startswith("step " if len(positions) == 1 else "steps ")
    if "more ranges" in words:
        return
    named: set[int] = set()
    for piece in words.split(" ", 1)[1].replace(" and ", ", ").split(", "):
        first, _, last = piece.partition(" to ")
        named |= {position for position in among if int(first) <= position <= int(last or first)}
    assert named == positions


def test_many_ranges_are_cut_short() -> None:
    odd = np.arange(1, 100, 2)
    text = where("step", odd, np.arange(1, 101))
    assert text == "steps 1, 3, 5, 7, 9 and 45 more ranges up to 99 (50 of 100)"


def test_sentences_keep_different_problems_apart() -> None:
    gaps = [Gap("a", 0, "x", "bad"), Gap("a", 0, "y", "bad"), Gap("a", 1, "x", "bad"), Gap("b", 0, "x", "bad")]
    assert sentences(gaps) == ["a trial 0: x and y are bad", "a trial 1: x is bad", "b trial 0: x is bad"]


# The largest loss


def test_the_largest_loss_and_its_place(trained: Store, tiny_study: Study) -> None:
    rows = [
        (row["train_loss"], f"{path.parent.name.removeprefix('arm=')} trial {row['trial']}, step {row['step']}")
        for path in trained.table_folder("training_batches").rglob("*.parquet")
        for row in read_parquet(path).to_pylist()
    ]
    with contextlib.closing(connect(trained)) as connection:
        assert largest_batch_loss(tiny_study, connection) == max(rows)


def test_without_batches_there_is_no_largest_loss(store: Store, tiny_study: Study) -> None:
    with contextlib.closing(connect(store)) as connection:
        assert largest_batch_loss(tiny_study, connection) is None
