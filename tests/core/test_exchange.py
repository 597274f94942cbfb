"""Metric files: every bit survives the way out and in; files of others are understood, or refused with a sentence."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.errors import StaleError, UserError
from dd_core.exchange import exporter
from dd_core.exchange.columns import EPOCH_FILE_KEYS, STEP_FILE_KEYS
from dd_core.exchange.exporter import export_arm
from dd_core.study.files import read_study
from dd_core.study.former_names import METRICS
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet

from .exchanged import (
    HARD,
    SEED_KEYS,
    batch,
    bits,
    csv_rows,
    evaluation,
    exported,
    json_rows,
    monitor,
    snapshot,
    write_rows,
    write_some,
)
from .import_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


# Export


def test_step_files_have_the_keys_of_the_seeds_and_those_of_the_user_and_standard_errors(
    bench: Bench, study: Study
) -> None:
    write_some(bench.store, study)
    for arm in study.arms.values():
        export_arm(bench.store, study, arm)
        header = exported(bench.store, study, arm).read_text().splitlines()[0]
        assert header.split(",") == [*SEED_KEYS, "sharpness", "hutch_trace_se"]
    assert list(STEP_FILE_KEYS) == SEED_KEYS


def test_a_line_has_what_was_measured_at_its_step_and_nothing_else(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k001"]
    export_arm(bench.store, study, arm)
    batch_keys = {*SEED_KEYS[:8]}
    for rows in (
        csv_rows(exported(bench.store, study, arm)),
        json_rows(exported(bench.store, study, arm, "metrics.jsonl")),
    ):
        assert [int(row["step"]) for row in rows] == list(range(1, 9))
        assert [set(row) - batch_keys for row in rows] == [
            *[set()] * 3, {"hutch_trace", "hutch_trace_se"},
            *[set()] * 3, {"hutch_trace", "hutch_trace_se", "sharpness"},
        ]  # fmt: skip
        assert rows[7]["sharpness"] == "-Infinity"
    assert json_rows(exported(bench.store, study, arm, "metrics.jsonl", 1))[7]["sharpness"] == "Infinity"


def test_other_programs_read_back_every_bit(bench: Bench, study: Study) -> None:
    arm = study.arms["plain.k001"]
    values = [*HARD, *(np.random.default_rng(0).normal(size=200) ** 9).tolist()]
    rows = [monitor(0, step, "gradient_variance", value) for step, value in enumerate(values, start=1)]
    write_rows(bench.store, study, arm, "training_monitors", rows)
    export_arm(bench.store, study, arm)
    path, objects = exported(bench.store, study, arm), exported(bench.store, study, arm, "metrics.jsonl")
    sql = "SELECT grad_var::DOUBLE FROM read_{}('{}'{}) ORDER BY step::INT"
    readings = {
        "csv": [row["grad_var"] for row in csv_rows(path)],
        "json": [row["grad_var"] for row in json_rows(objects)],
        "pandas": pd.read_csv(path)["grad_var"],
        "pyarrow": pyarrow.csv.read_csv(path)["grad_var"].to_numpy(),
        "duckdb": [row[0] for row in duckdb.sql(sql.format("csv", path, ", all_varchar = true")).fetchall()],
        "duckdb json": [row[0] for row in duckdb.sql(sql.format("json", objects, "")).fetchall()],
        "numpy": np.genfromtxt(path, delimiter=",", names=True)["grad_var"],
    }
    for name, found in readings.items():
        assert [bits(number) for number in found] == [bits(value) for value in values], name


def test_epoch_files_have_the_keys_of_the_seed_and_one_object_per_epoch_and_trial(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k002"]
    export_arm(bench.store, study, arm)
    rows = json_rows(bench.store.exports_folder("tiny") / "plain" / "metrics_k2.jsonl")
    assert [(row["epoch"], row["trial"]) for row in rows] == [(e, t) for e in (0, 1, 2) for t in (0, 1)]
    assert all(tuple(row) == EPOCH_FILE_KEYS for row in rows)
    assert {*EPOCH_FILE_KEYS} == {"epoch", "k", "train_error", "test_error", "train_loss", "test_loss", "trial"}
    assert rows[-1] == {
        "epoch": 2, "k": 2, "trial": 1, "train_error": 0.5, "test_error": 0.25, "train_loss": 1.5, "test_loss": 0.5
    }  # fmt: skip


def test_the_size_of_a_checkpoint_is_a_trials_share_in_megabytes(bench: Bench, study: Study) -> None:
    arm = study.arms["plain.k001"]
    write_some(bench.store, study)
    for epoch, size in ((0, 3_000), (2, 5_000)):
        checkpoint = Checkpoint(arm, epoch)
        weights = bench.store.checkpoint_path("tiny", checkpoint)
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(bytes(size))
        manifest = {"recipe": study.recipe_hash(arm), "epoch": epoch}
        bench.store.write_manifest(
            bench.store.checkpoint_manifest_path("tiny", checkpoint), manifest, {"weights": weights}
        )
    export_arm(bench.store, study, arm)
    rows = csv_rows(exported(bench.store, study, arm))
    sizes = {int(row["step"]): float(row["checkpoint_size_mb"]) for row in rows if "checkpoint_size_mb" in row}
    assert sizes == {0: 0.0015, 8: 0.0025}  # two trials share a file
    assert rows[0] == {"step": "0", "epoch": "0", "checkpoint_size_mb": "0.0015"}


@pytest.mark.parametrize("num_validation", [0, 20])
def test_validation_comes_from_the_monitor_and_else_from_evaluations(
    num_validation: int, bench: Bench, make_study: Callable[..., Study]
) -> None:
    study = make_study(data={"dataset": "digits", "num_train": 100, "num_validation": num_validation})
    arm = study.arms["plain.k001"]
    write_rows(bench.store, study, arm, "training_batches", [batch(0, step, 1.0) for step in range(1, 9)])
    write_rows(bench.store, study, arm, "training_monitors", [monitor(0, 4, "validation_loss", 2.0)])
    evals = [
        evaluation(0, epoch, 1.0, validation_loss=math.nan if epoch else 3.0, validation_error=0.5)
        for epoch in (0, 1, 2)
    ]
    write_rows(bench.store, study, arm, "training_evals", evals)
    export_arm(bench.store, study, arm)
    rows = csv_rows(exported(bench.store, study, arm))
    told = {int(row["step"]): row["loss_val_nats"] for row in rows if "loss_val_nats" in row}
    # NaN is nothing that was measured; without validation images no evaluation tells any.
    assert told == ({0: "3", 4: "2"} if num_validation else {4: "2"})


def test_evaluations_after_a_trial_stopped_early_add_no_lines(bench: Bench, make_study: Callable[..., Study]) -> None:
    study = make_study(data={"dataset": "digits", "num_train": 100, "num_validation": 20})
    arm = study.arms["plain.k001"]
    write_rows(bench.store, study, arm, "training_batches", [batch(0, step, 1.0) for step in range(1, 4)])
    evals = [
        evaluation(0, epoch, 1.0, step=4, validation_loss=float(epoch), validation_error=0.5) for epoch in (1, 2, 3, 4)
    ]
    write_rows(bench.store, study, arm, "training_evals", evals)
    export_arm(bench.store, study, arm)
    rows = csv_rows(exported(bench.store, study, arm))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[3]["loss_val_nats"] == "1"
    assert rows[3]["epoch"] == "1"


def test_only_rows_of_the_present_recipe_are_exported(bench: Bench, make_study: Callable[..., Study]) -> None:
    old, new = make_study(), make_study({"batch_size": 50})
    arm = old.arms["plain.k001"]
    write_rows(bench.store, old, arm, "training_batches", [batch(t, 1, 1.0) for t in (0, 1)], part="0002")
    write_rows(bench.store, old, arm, "training_monitors", [monitor(1, 2, "gradient_norm", 1.0)], part="0002")
    write_rows(bench.store, old, arm, "training_evals", [evaluation(1, 1, 1.0)], part="0002")
    assert export_arm(bench.store, new, arm) is None
    assert not exported(bench.store, new, arm).exists()
    write_rows(bench.store, new, arm, "training_batches", [batch(1, 1, 7.0)], part="0004")
    assert export_arm(bench.store, old, arm) is not None
    assert export_arm(bench.store, new, arm) is not None
    assert not exported(bench.store, new, arm, trial=0).exists()  # that of the old recipe is gone
    (row,) = csv_rows(exported(bench.store, new, arm, trial=1))
    assert row["loss_train_nats"] == "7"
    assert not (bench.store.exports_folder("tiny") / "plain" / "metrics_k1.jsonl").exists()


def test_a_second_export_changes_nothing_and_restores_what_is_damaged(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    first = [export_arm(bench.store, study, arm) for arm in study.arms.values()]
    before = snapshot(bench.store.exports_folder("tiny"))
    again = [export_arm(bench.store, study, arm) for arm in study.arms.values()]
    assert snapshot(bench.store.exports_folder("tiny")) == before
    assert [e.written for e in first if e] == [5, 5]  # two trials in two forms, and the evaluations
    assert [e.written for e in again if e] == [0, 0]
    assert [(e.files, e.rows, e.bytes) for e in first if e] == [(e.files, e.rows, e.bytes) for e in again if e]
    damaged = exported(bench.store, study, study.arms["plain.k001"], trial=1)
    damaged.write_text("step\n")
    restored = export_arm(bench.store, study, study.arms["plain.k001"])
    assert restored is not None and restored.written == 1
    assert {path: content for path, (_, _, content) in snapshot(bench.store.exports_folder("tiny")).items()} == {
        path: content for path, (_, _, content) in before.items()
    }


def test_new_rows_change_only_the_files_they_belong_to(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k001"]
    export_arm(bench.store, study, arm)
    write_rows(bench.store, study, arm, "training_batches", [batch(1, step, 2.0) for step in range(9, 13)], part="0008")
    export = export_arm(bench.store, study, arm)
    assert export is not None and export.written == 2
    assert len(csv_rows(exported(bench.store, study, arm, trial=0))) == 8
    assert len(csv_rows(exported(bench.store, study, arm, trial=1))) == 12


def test_what_an_export_counts_is_what_is_on_disk(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    export = export_arm(bench.store, study, study.arms["plain.k001"])
    assert export is not None
    assert all(path.is_file() for path in export.files)
    assert export.bytes == sum(path.stat().st_size for path in export.files)
    assert export.rows == sum(len(path.read_text().splitlines()) - (path.suffix == ".csv") for path in export.files)


def test_lines_are_the_same_however_many_are_written_at_a_time(
    bench: Bench, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k001"]
    export_arm(bench.store, study, arm)
    whole = snapshot(bench.store.exports_folder("tiny"))
    (bench.store.exports_folder("tiny") / arm.key / "export.json").unlink()
    monkeypatch.setattr(exporter, "_LINES_AT_A_TIME", 3)
    export = export_arm(bench.store, study, arm)
    assert export is not None and export.written == 0
    for path, (_, _, content) in whole.items():
        assert Path(path).read_bytes() == content


@pytest.mark.parametrize("metric", ["step", "lr", "wd", "trial", "test_error", "hutch_trace_se"])
def test_a_metric_whose_name_means_something_else_is_refused(metric: str, bench: Bench, study: Study) -> None:
    arm = study.arms["plain.k001"]
    rows = [monitor(0, 1, "hutch_trace", 1.0, 0.1), monitor(0, 1, metric, 1.0)]
    write_rows(bench.store, study, arm, "training_monitors", rows)
    with pytest.raises(UserError, match=f"the metric '{metric}' .* give it another name"):
        export_arm(bench.store, study, arm)


def test_a_damaged_table_is_named(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k001"]
    path = next(bench.store.table_folder("training_batches", "tiny", arm.key).glob("*"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StaleError, match=r"arm=plain\.k001/0004\.parquet is damaged .*tiny/checkpoints"):
        export_arm(bench.store, study, arm)
    assert not exported(bench.store, study, arm).exists()


# There and back


def any_float() -> st.SearchStrategy[float]:
    return st.one_of(st.floats(width=64), st.sampled_from(HARD))


def any_fraction() -> st.SearchStrategy[float]:
    return st.one_of(st.floats(0, 1), st.just(math.nan))


@st.composite
def any_rows(draw: st.DrawFn) -> dict[str, list[dict[str, Any]]]:
    """Batches at all or some steps, monitors at other ones, evaluations; of one or two trials."""
    rows: dict[str, list[dict[str, Any]]] = {"training_batches": [], "training_monitors": [], "training_evals": []}
    names = [METRICS[key].name if key in METRICS else key for key in SEED_KEYS[8:17]]
    metrics = st.sampled_from([*names, "sharpness", "loss/slope 5,15", 'a "quoted" näme'])
    for trial in draw(st.sampled_from([[0], [0, 1], [3]])):
        steps = draw(st.sets(st.integers(1, 40), max_size=6))
        rows["training_batches"] += [batch(trial, s, draw(any_float()), draw(any_fraction())) for s in sorted(steps)]
        for metric in draw(st.sets(metrics, max_size=4)):
            for step in draw(st.sets(st.integers(0, 40), min_size=1, max_size=4)):
                value = 1 - draw(any_fraction()) if metric == "validation_error" else draw(any_float())
                value = abs(value) if metric == "validation_loss" else value
                rows["training_monitors"].append(monitor(trial, step, metric, value, draw(any_float())))
        for epoch in draw(st.sets(st.integers(0, 9), min_size=1, max_size=3)):
            errors: dict[str, Any] = {"train_error": draw(any_fraction()), "test_error": draw(any_fraction())}
            rows["training_evals"].append(evaluation(trial, epoch, draw(any_float()), **errors))
    return rows


@settings(max_examples=12)
@given(rows=any_rows())
def test_export_then_import_under_another_name_then_export_gives_the_same_bytes(
    rows: dict[str, list[dict[str, Any]]], make_study: Callable[..., Study]
) -> None:
    study = make_study()
    arm = study.arms["plain.k002"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for table, content in rows.items():
            if content:
                write_rows(bench.store, study, arm, table, content)
        assert export_arm(bench.store, study, arm) is not None
        first = bench.store.exports_folder("tiny")
        bench.load(first)
        other = read_study(bench.studies / "other.yaml")
        assert export_arm(bench.store, other, other.arms[arm.key]) is not None
        second = bench.store.exports_folder("other")
        files = sorted(path.relative_to(first) for path in first.rglob("metrics*"))
        assert files == sorted(path.relative_to(second) for path in second.rglob("metrics*"))
        for name in files:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
        before = snapshot(bench.store.root / "tables", bench.studies)
        bench.load(first)
        assert snapshot(bench.store.root / "tables", bench.studies) == before


def test_all_bits_of_an_imported_table_are_those_of_the_original(bench: Bench, study: Study) -> None:
    arm = study.arms["plain.k001"]
    write_rows(bench.store, study, arm, "training_batches", [batch(0, s, v) for s, v in enumerate(HARD, start=1)])
    export_arm(bench.store, study, arm)
    bench.load(bench.store.exports_folder("tiny"))
    names = ("step", "epoch", "train_loss", "learning_rate", "weight_decay", "time", "train_error")
    expected = [tuple(batch(0, s, v)[name] for name in names) for s, v in enumerate(HARD, start=1)]
    path = bench.store.table_folder("training_batches", "other", arm.key) / "trial-000.parquet"
    found = read_parquet(path).select(names).to_pylist()
    assert [[bits(v) for v in row.values()] for row in found] == [[bits(v) for v in row] for row in expected]


def test_an_export_says_itself_how_it_was_trained(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    for arm in study.arms.values():
        export_arm(bench.store, study, arm)
    done = bench.load(bench.store.exports_folder("tiny"))
    other = read_study(bench.studies / "other.yaml")
    assert (other.variants, other.data) == (study.variants, study.data)
    assert (other.arms, other.trials, other.epochs, other.checkpoints) == (study.arms, 2, 2, (0, 1, 2))
    assert other.imported
    assert sorted(done.rows) == [(arm, trial) for arm in study.arms.values() for trial in (0, 1)]
    assert done.rows[Arm("plain", 1), 0] == {"training_batches": 8, "training_monitors": 3, "training_evals": 3}
    assert done.metrics == ["sharpness"]
    (left_out,) = done.left_out
    assert left_out.startswith("metrics.csv, as metrics.jsonl beside it says the same: ")
    assert left_out.endswith("plain.k001/trial-000/metrics.csv and 3 other files")


def test_csv_and_json_of_a_run_give_the_same_rows(bench: Bench, study: Study) -> None:
    write_some(bench.store, study)
    arm = study.arms["plain.k001"]
    export_arm(bench.store, study, arm)
    for form in ("csv", "jsonl"):
        bench.load(exported(bench.store, study, arm, f"metrics.{form}"), study=form)
    for table in ("training_batches", "training_monitors"):
        csv_part, json_part = (
            read_parquet(bench.store.table_folder(table, form, arm.key) / "trial-000.parquet")
            for form in ("csv", "jsonl")
        )
        np.testing.assert_equal(csv_part.to_pydict(), json_part.to_pydict())
