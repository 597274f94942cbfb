"""Files of earlier versions, with their names of columns and metrics, stand in one table with those of now."""

import contextlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.store.store import Store
from dd_core.study.former_names import METRICS, NOW, Now, as_now, metric_now, now
from dd_core.study.study import Study
from dd_core.tables.files import OPTIONAL_KEY, TABLES, read_parquet, to_arrow, write_parquet
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import connect, refresh
from dd_core.training.train import train_arm

from .comparison import ARM

FRACTION = st.floats(0, 1)
ROWS = st.lists(st.tuples(FRACTION, st.floats(0, 9), FRACTION), min_size=1, max_size=4)
PLACE = {"variant": "plain", "k": 1, "trial": 0, "recipe": "r", "epoch": 1}


def write_before(store: Store, table: str, columns: dict[str, Any]) -> Path:
    """A file as an earlier version wrote it."""
    path = store.table_folder(table, "s", "plain.k001") / "0001.parquet"
    size = len(next(iter(columns.values())))
    arrays = {name: pa.array([value] * size) for name, value in PLACE.items()}
    arrays |= {name: pa.array(values) for name, values in columns.items()}
    for name in ("metric", "best_by"):
        if name in arrays:
            arrays[name] = arrays[name].dictionary_encode()
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(arrays), path)
    return path


def write_now(store: Store, table: str, columns: dict[str, Any]) -> None:
    size = len(next(iter(columns.values())))
    nothing: dict[str, Any] = {column.name: None for column in TABLES[table].file_columns}
    path = store.table_folder(table, "s", "plain.k001") / "0002.parquet"
    write_parquet(path, to_arrow(table, nothing | PLACE | {"epoch": 2} | columns, size))


def rows_of(store: Store, sql: str, *tables: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(store, tables)) as connection:
        return connection.execute(sql).fetchall()


def in_the_file(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query to the file of views, as people ask it."""
    with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as connection:
        return connection.execute(sql).fetchall()


@settings(max_examples=10)
@given(old=ROWS, new=ROWS)
def test_batches_of_before_and_of_now_are_in_one_view(old: list[Any], new: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        rights, losses, rates = (list(column) for column in zip(*old, strict=True))
        bits = [loss / math.log(2) for loss in losses]
        before = {"loss_train_nats": losses, "loss_train_bits": bits, "acc_train": rights, "lr": rates}
        path = write_before(store, "training_batches", before | {"step": list(range(len(old)))})
        errors, new_losses, new_rates = (list(column) for column in zip(*new, strict=True))
        after = {"train_loss": new_losses, "train_error": errors, "learning_rate": new_rates}
        write_now(store, "training_batches", after | {"step": list(range(len(new)))})
        expected = [(loss, 1 - right, rate) for right, loss, rate in old]
        told = read_parquet(path).select(["train_loss", "train_error", "learning_rate"]).to_pylist()
        assert [tuple(row.values()) for row in told] == expected
        sql = "SELECT train_loss, train_error, learning_rate FROM training_batches ORDER BY epoch, step"
        rows = rows_of(store, sql, "training_batches")
        assert rows == [*expected, *((loss, error, rate) for error, loss, rate in new)]


def test_metrics_of_before_have_their_names_and_values_of_now(store: Store) -> None:
    before = {"step": [1, 1, 1, 2], "metric": ["acc_val", "lambda_max", "own", "acc_val"], "value": [0.75, 3, 5, None]}
    path = write_before(store, "training_monitors", before)
    write_now(store, "training_monitors", {"step": [3], "metric": ["validation_error"], "value": [0.125]})
    rows = [
        (1, "largest_eigenvalue", 3.0),
        (1, "own", 5.0),
        (1, "validation_error", 0.25),
        (2, "validation_error", None),
    ]
    told = read_parquet(path).select(["step", "metric", "value"]).to_pylist()
    assert sorted(tuple(row.values()) for row in told) == rows
    sql = "SELECT step, metric, value FROM training_monitors ORDER BY step, metric"
    assert rows_of(store, sql, "training_monitors") == [*rows, (3, "validation_error", 0.125)]
    refresh(store)
    assert in_the_file(store, sql) == [*rows, (3, "validation_error", 0.125)]


def test_runs_and_spectra_and_finite_differences_of_before(store: Store) -> None:
    write_before(
        store,
        "runs",
        {
            "attempt": [1],
            "status": ["finished"],
            "best_by": ["loss_val_nats"],
            "best_acc_val": [0.9],
            "last_acc_val": [0.8],
        },
    )
    write_before(store, "hessian_spectra", {"lambda_max": [4.0], "lambda_min": [-1.0]})
    packed = {"further_names": [["fd_norm_h1", "fd_norm_h1_se"]], "further_values": [[2.0, 0.5]]}
    path = write_before(store, "per_image_curvature", {"image_id": [3], **packed})
    names = {OPTIONAL_KEY: '["fd_norm_h1", "fd_norm_h1_se"]'}
    pq.write_table(pq.read_table(path).replace_schema_metadata(names), path)
    tables = ("runs", "hessian_spectra", "per_image_curvature")
    sql = f"""SELECT best_by, best_validation_error, last_validation_error, h.largest_eigenvalue, smallest_eigenvalue,
        fd_norm_h1, fd_norm_h1_standard_error FROM {tables[0]}, {tables[1]} h, {tables[2]}"""
    errors = pytest.approx(0.1), pytest.approx(0.2)
    assert rows_of(store, sql, *tables) == [("validation_loss", *errors, 4.0, -1.0, 2.0, 0.5)]
    assert read_parquet(path)["fd_norm_h1_standard_error"].to_pylist() == [0.5]


def test_a_file_of_views_of_before_shows_rows_that_come_later(store: Store) -> None:
    """People ask while a root of before is trained on."""
    write_before(store, "training_evals", {"step": [4], "acc_val": [0.75]})
    refresh(store)
    write_now(store, "training_evals", {"step": [8], "validation_error": [0.5]})
    sql = "SELECT validation_error FROM training_evals ORDER BY step"
    assert in_the_file(store, sql) == [(0.25,), (0.5,)]


@given(value=st.floats(-1e6, 1e6))
def test_values_become_those_of_now_and_back(value: float) -> None:
    for was in NOW.values():
        assert was.former(was.value(value)) == pytest.approx(value, abs=1e-9)
    assert as_now({"acc_val": np.array([0.25]), "test_loss": 1.0, "lr": None}) == {
        "validation_error": np.array([0.75]), "test_loss": 1.0, "learning_rate": None
    }  # fmt: skip


def test_no_column_has_a_former_name_and_every_former_name_has_a_column() -> None:
    columns = {column.name for table in TABLES.values() for column in table.columns}
    assert not columns & NOW.keys()
    metrics = {"gradient_norm", "gradient_variance", "hessian_trace", "spectral_density_tail", "residual_power"}
    assert {was.name for was in NOW.values()} <= columns | metrics
    assert now("test_loss").is_same and {METRICS[name].name for name in METRICS} <= columns | metrics


def test_metrics_of_a_monitor_of_ones_own_keep_names_and_values(store: Store) -> None:
    names = ["acc_train", "loss_train_bits", "best_acc_val"]
    assert all(metric_now(name) == Now(name) for name in names) and metric_now("acc_val").name == "validation_error"
    path = write_before(store, "training_monitors", {"metric": names, "value": [0.75, 2.0, 0.5], "step": [1, 1, 1]})
    assert read_parquet(path)["metric"].to_pylist() == names
    rows = rows_of(store, "SELECT metric, value FROM training_monitors ORDER BY ALL", "training_monitors")
    assert rows == [("acc_train", 0.75), ("best_acc_val", 0.5), ("loss_train_bits", 2.0)]


def test_every_row_of_an_image_has_one_row_of_images(store: Store, make_study: Callable[..., Study]) -> None:
    study = make_study(checkpoints=(0, 1))
    train_arm(study, ARM, store, 1)
    write_images(store, study)
    sql = "SELECT count(*) FROM image_progress p {} JOIN images i USING (study, variant, trial, image_id) WHERE {}"
    with contextlib.closing(connect(store, ("images", "image_progress"))) as connection:
        (joined,) = connection.execute(sql.format("", "p.split = i.split")).fetchone() or ()
        assert (joined,) == connection.execute("SELECT count(*) FROM image_progress").fetchone() and joined
        assert connection.execute(sql.format("LEFT", "i.true_label IS NULL")).fetchone() == (0,)
