"""Metric files: every bit survives the way out and in; files of others are understood, or refused with a sentence."""

import csv
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.errors import StaleError, StoreError, UserError
from dd_core.exchange import exporter
from dd_core.exchange.columns import EPOCH_FILE_KEYS, STEP_FILE_KEYS
from dd_core.exchange.exporter import export_arm
from dd_core.exchange.places import Reading
from dd_core.exchange.staging import replace_if_changed
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_parquet

from .import_bench import TRAINED, Bench

SEED_KEYS = [
    *["step", "epoch", "time", "lr", "wd", "loss_train_nats", "loss_train_bits", "acc_train"],
    *["loss_val_nats", "acc_val", "grad_norm", "weight_norm", "lambda_max", "hutch_trace"],
    *["psd_tail", "grad_var", "resid_power", "checkpoint_size_mb"],
]
# Numbers at which writing or reading floats has gone wrong somewhere before.
HARD = [0.1, 1e-300, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -0.0, 0.0, 1e22, 1e23, 9007199254740993.0]
HARD += [1 / 3, -1e-5, 123456.0, 1e16, math.inf, -math.inf]


def bits(value: Any) -> bytes:
    """The eight bytes of a float64; all NaN are one."""
    number = float(value)
    return b"NaN" if math.isnan(number) else struct.pack("<d", number)


def write_rows(
    store: Store, study: Study, arm: Arm, table: str, rows: list[dict[str, Any]], part: str = "0004"
) -> None:
    """Rows of one arm, as the trainer writes them; what a row does not say is null."""
    common = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    names = [column.name for column in TABLES[table].file_columns]
    columns = {name: [{**common, **row}.get(name) for row in rows] for name in names}
    path = store.table_folder(table, study.name, arm.key) / f"{part}.parquet"
    write_parquet(path, to_arrow(table, columns, len(rows)))


def batch(trial: int, step: int, value: float, accuracy: float = 0.5, epoch: int | None = None) -> dict[str, Any]:
    """A row of training_batches in an epoch of four steps; a loss is never negative."""
    return {
        "trial": trial, "step": step, "epoch": epoch or 1 + (step - 1) // 4, "time": 1.7e9 + step / 7, "lr": value,
        "weight_decay": 1e-4, "loss_train_nats": abs(value), "loss_train_bits": abs(value) / 3, "acc_train": accuracy,
    }  # fmt: skip


def monitor(trial: int, step: int, metric: str, value: float, error: float = math.nan) -> dict[str, Any]:
    """A row of training_monitors."""
    epoch = 1 + (step - 1) // 4 if step else 0
    return {"trial": trial, "step": step, "epoch": epoch, "metric": metric, "value": value, "standard_error": error}


def evaluation(trial: int, epoch: int, value: float, step: int | None = None, **more: Any) -> dict[str, Any]:
    """A row of training_evals."""
    metrics = {"train_error": 0.5, "train_loss": abs(value), "test_error": 0.25, "test_loss": abs(value) / 3}
    return {"trial": trial, "epoch": epoch, "step": 4 * epoch if step is None else step, **metrics, **more}


def write_some(store: Store, study: Study) -> None:
    """Two epochs of both trials of every arm, with a monitor of the user's own and hard numbers."""
    for arm in study.arms.values():
        values = [arm.k + 1 / n for n in range(1, 9)]
        batches = [batch(trial, step, value) for trial in (0, 1) for step, value in enumerate(values, start=1)]
        readings = [monitor(t, s, "hutch_trace", v, abs(v) / 10) for t in (0, 1) for s, v in ((4, HARD[1]), (8, 3.0))]
        readings += [monitor(t, 8, "sharpness", number) for t, number in ((0, -math.inf), (1, math.inf))]
        write_rows(store, study, arm, "training_batches", batches)
        write_rows(store, study, arm, "training_monitors", readings)
        write_rows(store, study, arm, "training_evals", [evaluation(t, e, 1.5) for t in (0, 1) for e in (0, 1, 2)])


def csv_rows(path: Path) -> list[dict[str, str]]:
    """By Python's own reader, without what is not measured."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]


def json_rows(path: Path) -> list[dict[str, Any]]:
    """By Python's own reader, made as strict as RFC 8259."""

    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is not JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def snapshot(*folders: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file but locks: inode, time of change and bytes."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


def exported(store: Store, study: Study, arm: Arm, name: str = "metrics.csv", trial: int = 0) -> Path:
    return store.exports_folder(study.name) / arm.key / f"trial-{trial:03d}" / name


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
    rows = [monitor(0, step, "grad_var", value) for step, value in enumerate(values, start=1)]
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
    write_rows(bench.store, study, arm, "training_monitors", [monitor(0, 4, "loss_val_nats", 2.0)])
    evals = [evaluation(0, epoch, 1.0, loss_val_nats=math.nan if epoch else 3.0, acc_val=0.5) for epoch in (0, 1, 2)]
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
    evals = [evaluation(0, epoch, 1.0, step=4, loss_val_nats=float(epoch), acc_val=0.5) for epoch in (1, 2, 3, 4)]
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
    write_rows(bench.store, old, arm, "training_monitors", [monitor(1, 2, "grad_norm", 1.0)], part="0002")
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
    metrics = st.sampled_from([*SEED_KEYS[8:17], "sharpness", "loss/slope 5,15", 'a "quoted" näme'])
    for trial in draw(st.sampled_from([[0], [0, 1], [3]])):
        steps = draw(st.sets(st.integers(1, 40), max_size=6))
        rows["training_batches"] += [batch(trial, s, draw(any_float()), draw(any_fraction())) for s in sorted(steps)]
        for metric in draw(st.sets(metrics, max_size=4)):
            for step in draw(st.sets(st.integers(0, 40), min_size=1, max_size=4)):
                value = draw(any_fraction() if metric == "acc_val" else any_float())
                value = abs(value) if metric == "loss_val_nats" else value
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
    names = ("step", "epoch", "loss_train_nats", "loss_train_bits", "lr", "weight_decay", "time", "acc_train")
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


# Files of other systems


def test_the_double_descent_script_of_seed_004(bench: Bench) -> None:
    lines = [
        '{"epoch": 1, "k": 5, "train_error": 0.85, "test_error": 0.87, "train_loss": 2.31, "test_loss": 2.35}',
        '{"epoch": 2, "k": 5, "train_error": 0.82, "test_error": 0.84, "train_loss": 2.12, "test_loss": 2.18}',
    ]
    bench.write("output/metrics_k5.jsonl", "\n".join(lines) + "\n")
    bench.load(**TRAINED)
    sql = (
        "SELECT arm, k, trial, epoch, step, train_error, test_error, train_loss, test_loss, train_error_clean FROM rows"
    )
    assert bench.rows("training_evals", sql) == [
        ("imported.k005", 5, 0, 1, None, 0.85, 0.87, 2.31, 2.35, None),
        ("imported.k005", 5, 0, 2, None, 0.82, 0.84, 2.12, 2.18, None),
    ]


def test_the_loss_slope_campaign_of_seeds_000_and_001(bench: Bench) -> None:
    text = "step,epoch,time,lr,wd,loss_train_nats,loss_train_bits,acc_train,loss_val_nats,lambda_max,grad_norm,host\n"
    text += "1.0,0,1.5,0.05,0.001,2.3,3.318,0.1,,,,rtx1\n2.0,0,2.5,0.1,0.001,2.2,3.17,0.2,2.25,31.5,,rtx1\n"
    bench.write("s-core/job_3/metrics.csv", text)
    settings_ = {**TRAINED["settings"], "optimizer": {"name": "sgd"}}
    done = bench.load(
        variant="s-core", reading=Reading(k=64, trial=3, first_epoch=0), settings=settings_, data=TRAINED["data"]
    )
    assert bench.rows("training_batches", "SELECT variant, k, trial, epoch, step, lr, weight_decay FROM rows") == [
        ("s-core", 64, 3, 1, 1, 0.05, 0.001),
        ("s-core", 64, 3, 1, 2, 0.1, 0.001),
    ]
    assert bench.rows("training_monitors", "SELECT epoch, step, metric, value FROM rows") == [
        (1, 2, "lambda_max", 31.5),
        (1, 2, "loss_val_nats", 2.25),
    ]
    assert done.left_out == [f'host, which is no number: {bench.files}/s-core/job_3/metrics.csv:2 ("rtx1")']
    optimizer = read_study(bench.studies / "other.yaml").variants["s-core"].optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 0.001)  # the largest, and the only one


def test_the_graph_networks_of_seed_003(bench: Bench) -> None:
    rows = [{"epoch": e, "train_loss": 0.7, "val_loss": 0.69, "accuracy": 0.5902, "acc_class_0": 0.4} for e in (0, 1)]
    bench.write("causal/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = bench.load(reading=Reading(k=1, first_epoch=0), **TRAINED)
    assert bench.rows("training_evals", "SELECT epoch, train_loss, loss_val_nats, acc_val, test_error FROM rows") == [
        (1, 0.7, 0.69, 0.5902, None),
        (2, 0.7, 0.69, 0.5902, None),
    ]
    assert bench.rows("training_monitors", "SELECT epoch, step, metric, value FROM rows") == [
        (1, None, "acc_class_0", 0.4),
        (2, None, "acc_class_0", 0.4),
    ]
    assert done.metrics == ["acc_class_0"]


def test_accuracies_become_errors_and_percent_fractions(bench: Bench) -> None:
    bench.write("metrics_k4.jsonl", '{"epoch": 1, "train_acc": 75, "test_accuracy": 50, "test_loss": 1.5}\n')
    bench.load(reading=Reading(percent=True), **TRAINED)
    assert bench.rows("training_evals", "SELECT train_error, test_error, test_loss FROM rows") == [(0.25, 0.5, 1.5)]


def test_keys_can_be_renamed_and_left_out(bench: Bench) -> None:
    bench.write("run.csv", "it,ep,train_loss,junk\n1,1,2.5,x\n")
    renames = {"it": "step", "ep": "epoch", "train_loss": "loss_train_nats", "junk": ""}
    done = bench.load(bench.files / "run.csv", renames=renames, reading=Reading(k=2), **TRAINED)
    assert bench.rows("training_batches", "SELECT epoch, step, loss_train_nats, lr FROM rows") == [(1, 1, 2.5, None)]
    assert done.left_out == []


def test_a_logger_may_write_several_objects_at_a_step(bench: Bench) -> None:
    lines = [
        '{"step": 1, "epoch": 1, "loss_train_nats": 2.5}',
        '{"step": 1, "epoch": 1, "grad_norm": 3.5, "lr": null}',
        "",
    ]
    bench.write("k003/metrics.jsonl", "\ufeff" + "\n\n".join(lines))
    bench.load(**TRAINED)
    assert bench.rows("training_batches", "SELECT step, loss_train_nats, lr FROM rows") == [(1, 2.5, None)]
    assert bench.rows("training_monitors", "SELECT step, metric, value FROM rows") == [(1, "grad_norm", 3.5)]


def test_nan_of_python_is_taken_where_the_user_says_so(bench: Bench) -> None:
    bench.write("k003/metrics.jsonl", '{"step": 1, "epoch": 1, "loss_train_nats": NaN, "grad_norm": -Infinity}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: NaN is not JSON; .* --accept-nan"):
        bench.load(**TRAINED)
    bench.load(accept_nan=True, **TRAINED)
    assert bench.rows("training_monitors", "SELECT value FROM rows") == [(-math.inf,)]
    assert bench.rows("training_batches", "SELECT loss_train_nats FROM rows") == [(None,)]


STEP = '{"step": 1, "epoch": 1, "lr": 0.1}\n'
BAD_FILES: dict[str, list[tuple[str | bytes, str]]] = {
    "k1/metrics.csv": [
        ("", "is empty"),
        ("step,epoch,lr\n", "is empty"),
        ("\n\n", "is empty"),
        ("step,lr\n1,0.1\n", "has no epoch, only step, lr; say which it is with --rename NAME=epoch"),
        ("step,epoch,lr\n1,1,0.1\n,1,0.1\n", ":3: has no step"),
        ("step,epoch,lr\n1,1,0.1\n2,,0.1\n", ":3: has no epoch"),
        ("step,epoch,lr\n1,1,0.1\n2.5,1,0.1\n", ":3: step is 2.5, not a whole number from 0"),
        ("step,epoch,lr\n-1,1,0.1\n", ":2: step is -1, not a whole number from 0"),
        ("step,epoch,lr\nNaN,1,0.1\n", ":2: step is nan, not a whole number"),
        ("step,epoch,lr\n1,1,0.1\ntwo,1,0.1\n", ':3: step is "two", not a whole number'),
        ("step,epoch,lr\n1,99999,0.1\n", ":2: epoch is 99999, not a whole number from 0 to 9999"),
        ("step,epoch,lr\n5,1,0.1\n4,1,0.1\n", ":3: step goes back from 5 to 4"),
        ("step,epoch,lr\n5,2,0.1\n6,1,0.1\n", ":3: epoch goes back from 2 to 1"),
        ("step,epoch,lr\n5,1,0.1\n5,2,0.1\n", ":3: step 5 is in epoch 2 and in the one before it"),
        ("step,epoch,lr\n5,1,0.1\n5,1,0.1\n", ":3: lr is told twice for step 5, first in "),
        ("step,epoch,lr\n5,0,0.1\n", ":2: lr of a batch in epoch 0, .* pass --first-epoch 0"),
        ("step,epoch,lr\n1,1,fast\n", ':2: lr is "fast", not a number; --rename lr= leaves the key out'),
        ("step,epoch,lr\n1,1,1_000\n", ':2: lr is "1_000", not a number'),
        ("step,epoch,lr\n1,1,1e999\n", ":2: 1e999 is too large for a float64"),
        ("step,epoch,lr\n1,1\n", ":2: has 2 fields, but the first line names 3"),
        ("step,epoch,lr,lr\n1,1,1,1\n", ":1: two columns are called lr"),
        ("step,epoch,\n1,1,1\n", ":1: column 3 has no name"),
        (
            "step,epoch,wd,weight_decay\n1,1,0.1,0.1\n",
            "has two keys for weight_decay; --rename weight_decay= leaves one",
        ),
        ("step,epoch\n1,1\n", "has no metric, only step, epoch"),
        ('step,epoch,lr\n1,1,"0.1\n', ":2: not CSV"),
        ("step epoch lr\n1 1 0.1\n", "has no epoch, only step epoch lr"),
        ("step;epoch;lr\n1;1;0.1\n2;1;0,2\n", ":3: 0,2 has another decimal sign than 0.1 in line 2"),
        ("step,epoch,train_loss\n1,1,-0.1\n", ":2: train_loss is -0.1, but a cross-entropy is never negative"),
        (
            "epoch,lr,loss,train_acc\n1,0.1,2,0.5\n",
            "loss does not say of which images it is; pass --rename loss=train_l",
        ),
        ("epoch,lr,train_loss\n0,0.1,2\n", ":2: lr in epoch 0, which here is before training; pass --first-epoch 0"),
        ("epoch,eval_acc\n1,0.5\n", "eval_acc does not say of which images .* eval_acc=train_acc, val_acc or test_acc"),
        (
            "epoch,loss,acc,val_loss,val_acc\n1,2,0.5,2,0.5\n",
            "begins with epoch 1, but keras counts from 0; pass --first",
        ),
        ("step,epoch,acc_train\n1,1,0.5\n2,1,55\n", ":3: acc_train is 55, not a fraction; pass --percent"),
        ("step,epoch,hutch_trace,hutch_trace_se\n1,1,5,1\n2,1,,1\n", ":3: has hutch_trace_se, .* without hutch_trace"),
        ("step,epoch,test_error\n1,1,0.5\n2,1,0.5\n", ":3: test_error is told twice for epoch 1"),
        ("step,epoch,lr\n1,1,0.1\n".encode("utf-16"), ":1: not UTF-8 text"),
        ("step,epoch,lr,läuft\n".encode() + "1,1,0.1,läuft\n".encode("latin-1"), ":2: not UTF-8 text"),
    ],
    "k1/metrics.jsonl": [
        ("\n", "is empty"),
        (STEP + '{"step": 2, "epoch": 1, "lr"', r":2: not a JSON object in one line \(.*\); if it is the last line"),
        (STEP + "[1, 2]\n", ":2: not a JSON object, but"),
        (STEP + "[" * 100_000, ":2: not a JSON object in one line"),
        (STEP + '{"step": 2, "epoch": 1, "lr": Infinity}', ":2: Infinity is not JSON"),
        (STEP + '{"step": 2, "epoch": 1, "lr": 1e999}', ":2: 1e999 is too large"),
        (STEP + '{"step": 2, "epoch": 1, "lr": 1, "lr": 2}', ":2: a key comes twice in one object"),
        (STEP + '{"step": 2, "lr": 1}', ":2: has no epoch"),
        (STEP + '{"step": 2, "epoch": 1, "lr": true}', ":2: lr is true, not a number"),
        (STEP + '{"step": 2, "epoch": 1, "lr": {"group": 0.1}}', r':2: lr is \{"group": 0.1\}, not a number'),
        (STEP + '{"step": "2", "epoch": 1, "lr": 0.1}', ':2: step is "2", not a whole number'),
        (STEP + '{"step": 2, "epoch": 1, "k": 7, "lr": 0.1}', ":1: has no k"),
        ('{"step": 2, "epoch": 1, "k": 7, "lr": 0.1}', ":1: k is 7, but its path says 1"),
        (
            '{"step": 2, "epoch": 1, "trial": 2147483648, "lr": 0.1}',
            ":1: trial is 2147483648, not a whole number from 0 to",
        ),
        ('{"step": 2, "epoch": 1, "\\ud800": 0.1}', r":1: the key \\ud800 is not text"),
    ],
    "metrics_k1.jsonl": [
        ('{"epoch": 1, "k": 2, "test_error": 0.5}', ":1: k is 2, but its path says 1"),
        (
            '{"epoch": 1, "test_error": 0.5}\n{"epoch": 1, "test_error": 0.5}',
            ":2: test_error is told twice for epoch 1",
        ),
        ('{"epoch": 2, "test_error": 0.5}\n{"epoch": 1, "test_error": 0.5}', ":2: epoch goes back from 2 to 1"),
        ('{"epoch": 1, "test_error": 50}', ":1: test_error is 50, not a fraction"),
        ('{"epoch": 1, "val_accuracy": 0.5, "val_acc": 0.5}', "has two keys for acc_val"),
        (
            '{"epoch": 1, "accuracy": 0.5}',
            "accuracy does not say of which images it is; pass --rename accuracy=train_acc",
        ),
    ],
    "metrics.jsonl": [(STEP, "neither the file nor its path says which k")],
    "notes.txt": [("step", "there is no metrics.csv")],
}


@pytest.mark.parametrize(
    ("name", "text", "sentence"), [(name, *case) for name, cases in BAD_FILES.items() for case in cases]
)
def test_a_bad_file_is_refused_with_its_line_and_nothing_is_written(
    name: str, text: str | bytes, sentence: str, bench: Bench
) -> None:
    bench.write("k002/metrics.jsonl", STEP)  # a good file beside it
    bench.load(bench.files / "k002", **TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    path = bench.write(name, text)
    with pytest.raises(UserError, match=sentence) as caught:
        bench.load(
            *([bench.files / "k002", path.parent] if name != "notes.txt" else [bench.write("x/y.txt", "").parent])
        )
    assert "\n" not in str(caught.value)
    assert snapshot(bench.store.root, bench.studies) == before


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"settings": {}, "data": {}}, "study other is new, .* pass --dataset"),
        (
            {"settings": {}, "data": {"dataset": "cifar10"}},
            "pass --architecture, --label-noise, --batch-size, --optimizer$",  # the file has a learning rate
        ),
        ({"variant": "Base"}, r"study other: variants\.Base: a name is lower-case letters"),
        ({"study": "Bad-Name"}, "name: 'Bad-Name' must match"),
        ({"study": "tables"}, "not be one of the platform's own"),
        (
            {"settings": {**TRAINED["settings"], "batch_size": 0}},
            "variant imported: batch_size: .*greater than or equal to 1",
        ),
        ({"reading": Reading(k=65537)}, "k cannot be 65537; it is a width up to 65536"),
        ({"reading": Reading(k=0)}, "k cannot be 0; it is a width up to 65536"),
        ({"study": "a" * 300}, "aaa… is too long for a name; at most 100 characters"),
        ({"variant": "a" * 300}, "aaa… is too long for a name; at most 100 characters"),
        ({"paths": (Path("a" * 300),)}, r"aaa…: cannot be read \(File name too long\)"),
        ({"reading": Reading(trial=-1)}, "trial cannot be -1; it is a number from 0 to 2147483647"),
    ],
)
def test_an_impossible_request_is_refused_and_nothing_is_written(
    request_: dict[str, Any], sentence: str, bench: Bench
) -> None:
    bench.write("k002/metrics.jsonl", STEP)
    with pytest.raises(UserError, match=sentence):
        bench.load(*request_.get("paths", ()), **{**TRAINED, **{k: v for k, v in request_.items() if k != "paths"}})
    assert snapshot(bench.store.root, bench.studies) == {}


# The study of imported runs


def test_a_study_that_trains_is_never_imported_into(bench: Bench, study: Study) -> None:
    text = json.dumps(study.model_dump(mode="json", exclude={"name"}))
    (bench.studies / "tiny.yaml").write_text(text)
    bench.write("k002/metrics.jsonl", STEP)
    with pytest.raises(UserError, match="tiny is a study that is trained here; choose another name"):
        bench.load(study="tiny", **TRAINED)
    bench.store.arm_folder("gone", "plain.k001").mkdir(parents=True)
    with pytest.raises(UserError, match="a study called gone has been trained under"):
        bench.load(study="gone", **TRAINED)
    (bench.studies / "broken.yaml").write_text("description: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        bench.load(study="broken", **TRAINED)


def test_importing_again_changes_nothing(bench: Bench) -> None:
    for trial in (0, 1):
        bench.write(f"k002/trial-{trial}/metrics.jsonl", STEP)
        bench.write(f"k002/trial-{trial}/metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    first = bench.load(**TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    again = bench.load(**TRAINED)
    assert snapshot(bench.store.root, bench.studies) == before
    assert len(first.written) == 5  # two tables of two trials, and the study
    assert again.written == []
    assert again.rows == first.rows


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(bench: Bench) -> None:
    bench.write("k002/metrics.jsonl", STEP)
    would = bench.load(dry_run=True, **TRAINED)
    assert snapshot(bench.store.root, bench.studies) == {}
    assert bench.load(**TRAINED) == would


def test_runs_imported_later_join_the_study_and_leave_the_earlier_rows_current(bench: Bench) -> None:
    bench.load(bench.write("k002/trial-0/metrics_k2.jsonl", '{"epoch": 4, "test_error": 0.5}'), **TRAINED)
    path = bench.studies / "other.yaml"
    path.write_text("# by hand\n" + path.read_text())
    bench.load(bench.write("k008/trial-2/metrics_k8.jsonl", '{"epoch": 6, "test_error": 0.25}'))
    bench.load(bench.write("metrics_k8.jsonl", '{"epoch": 9, "test_error": 0.125}'), variant="wide", **TRAINED)
    sql = "SELECT arm, trial, epoch, test_error FROM rows"
    assert bench.rows("training_evals", sql) == [
        ("imported.k002", 0, 4, 0.5),
        ("imported.k008", 2, 6, 0.25),
        ("wide.k008", 0, 9, 0.125),
    ]
    study = read_study(path)
    assert (study.widths, study.trials, study.epochs, study.checkpoints) == ((2, 8), 2, 9, (4, 6, 9))
    assert list(study.variants) == ["imported", "wide"]
    assert path.read_text().startswith("# by hand\n")
    with pytest.raises(UserError, match="other has several; pass --variant with one of imported, wide, or a new one"):
        bench.load(bench.write("metrics_k1.jsonl", '{"epoch": 9, "test_error": 0.5}'))


@pytest.mark.parametrize(
    ("contradiction", "sentence"),
    [
        (
            {"settings": {"label_noise": 0.2}},
            r"variant imported: label_noise is \(0.15\) and cannot be \(0.2\) as well",
        ),
        (
            {"settings": {"optimizer": {"learning_rate": 1.0}}},
            "variant imported: optimizer is .* choose another --variant",
        ),
        ({"data": {"dataset": "digits"}}, r"data of other: dataset is \(cifar10\) and cannot be \(digits\) as well"),
    ],
)
def test_a_variant_is_trained_in_one_way(contradiction: dict[str, Any], sentence: str, bench: Bench) -> None:
    bench.load(bench.write("metrics_k2.jsonl", '{"epoch": 4, "test_error": 0.5}'), **TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    with pytest.raises(UserError, match=sentence):
        bench.load(bench.write("metrics_k4.jsonl", '{"epoch": 4, "test_error": 0.5}'), **contradiction)
    assert snapshot(bench.store.root, bench.studies) == before


def test_rows_of_other_files_give_way_only_where_the_user_says_so(bench: Bench) -> None:
    path = bench.write("metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    bench.load(**TRAINED)
    path.write_text('{"epoch": 1, "test_error": 0.5}\n{"epoch": 2, "test_error": 0.25}\n')
    before = snapshot(bench.store.root, bench.studies)
    with pytest.raises(UserError, match=r"other/imported\.k002, trial 0 has rows of other files already .* --replace"):
        bench.load()
    assert snapshot(bench.store.root, bench.studies) == before
    bench.load(replace=True)
    assert bench.rows("training_evals", "SELECT epoch, test_error FROM rows") == [(1, 0.5), (2, 0.25)]


def test_two_files_of_one_run_must_not_tell_the_same(bench: Bench) -> None:
    for job in ("job-1", "job-2"):
        bench.write(f"{job}/metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    with pytest.raises(
        UserError, match=r"job-2/metrics_k2\.jsonl:1: test_error is told twice for epoch 1, first in .*job-1"
    ):
        bench.load(**TRAINED)


def test_correcting_the_study_file_and_importing_again_makes_rows_current(bench: Bench) -> None:
    bench.write("metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    bench.load(**TRAINED)
    path = bench.studies / "other.yaml"
    path.write_text(path.read_text().replace("label_noise: 0.15", "label_noise: 0.1"))
    assert bench.rows("training_evals") == []
    bench.load()
    assert bench.rows("training_evals", "SELECT test_error FROM rows") == [(0.5,)]


def test_long_runs_keep_a_hundred_epochs_for_figures_and_the_last_of_each_arm(bench: Bench) -> None:
    for k, last in ((1, 4000), (2, 3777)):
        lines = (f'{{"epoch": {e}, "test_error": 0.5}}\n' for e in range(1, last + 1))
        bench.write(f"metrics_k{k}.jsonl", "".join(lines))
    bench.load(**TRAINED)
    study = read_study(bench.studies / "other.yaml")
    assert {1, 3777, 4000} <= set(study.checkpoints)
    assert len(study.checkpoints) <= 102
    assert bench.rows("training_evals", "SELECT count(*) FROM rows") == [(7777,)]


@pytest.mark.parametrize("moment", range(6))
def test_an_import_that_is_killed_is_completed_by_the_same_command(
    moment: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in (0, 1):
        bench.write(f"k002/trial-{trial}/metrics.jsonl", STEP)
    undisturbed = bench.files.parent / "undisturbed"
    undisturbed.mkdir()
    reference = Bench(undisturbed)
    reference.files = bench.files
    reference.load(**TRAINED)
    calls: Iterator[int] = iter(range(100))

    def killed_at(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == moment:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr("dd_core.exchange.importer.write_parquet", killed_at(write_parquet))
        patch.setattr("dd_core.exchange.importer.replace_if_changed", killed_at(replace_if_changed))
        patch.setattr(Store, "write_manifest", killed_at(Store.write_manifest))
        with pytest.raises(KeyboardInterrupt):
            bench.load(**TRAINED)
        if moment < 2:  # while it was still writing aside
            assert snapshot(bench.store.root, bench.studies) == {}
    bench.load(**TRAINED)
    for folder in ("root/tables", "studies"):
        bases = (bench.files.parent / folder, undisturbed / folder)
        contents = [
            {str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}
            for base in bases
        ]
        assert contents[0] == contents[1]


def test_where_the_disk_is_full_nothing_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write("k002/metrics.jsonl", STEP)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("dd_core.exchange.study_file.write_text", full)
    with pytest.raises(StoreError):
        bench.load(**TRAINED)
    assert snapshot(bench.store.root, bench.studies) == {}
