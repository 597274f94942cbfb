"""What was not measured is null in SQL: no table of this project has a NaN, whoever writes it."""

import contextlib
import math
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from dd_core.store.store import Store
from dd_core.tables.columns import Table
from dd_core.tables.files import TABLES, arrow_schema, read_parquet, to_arrow, without_nan, write_parquet
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm

_FLOATS = {"float32", "float64"}


def rows_with_nan(table: Table) -> dict[str, Any]:
    """Three rows: every number is 1, then NaN, then infinite; lists have one of each."""
    values: dict[str, Any] = {"string": "x", "bool": True, "timestamp": None, "list<string>": [["x"]] * 3}
    floats = np.array([1.0, math.nan, math.inf])
    values |= {"float64": floats, "float32": floats.astype(np.float32), "list<float64>": [floats.tolist()] * 3}
    return {column.name: values.get(column.type, 1) for column in table.file_columns}


@pytest.mark.parametrize("name", TABLES)
def test_nan_is_null_in_every_table_and_in_sql(name: str, store: Store) -> None:
    table = TABLES[name]
    folder = store.table_folder(name, "s", "a" if "arm" in table.folder_columns else None)
    path = folder / "rows.parquet"
    write_parquet(path, to_arrow(name, rows_with_nan(table), 3))
    schema = read_parquet(path).schema
    assert [(field.name, field.metadata) for field in schema] == [(f.name, f.metadata) for f in arrow_schema(table)]
    floats = [column.name for column in table.file_columns if column.type in _FLOATS]
    with contextlib.closing(duckdb.connect()) as connection:
        for column in floats:
            sql = f'SELECT avg("{column}"), count("{column}"), count(*) FILTER (isnan("{column}")) FROM read_parquet(?)'
            assert connection.execute(sql, [str(path)]).fetchone() == (math.inf, 2, 0), column
        for column in (c.name for c in table.file_columns if c.type == "list<float64>"):
            sql = f'SELECT "{column}" FROM read_parquet(?) LIMIT 1'
            assert connection.execute(sql, [str(path)]).fetchall() == [([1.0, None, math.inf],)], column
    assert floats or name in ("images", "class_schedule")


def test_a_table_without_nan_is_left_as_it_is() -> None:
    table = pa.table({"x": [1.0, None, math.inf], "y": [[1.0], None, []], "z": ["a", "b", "c"]})
    assert without_nan(table) is table


def test_averages_of_what_a_study_does_not_have_are_null(store: Store, make_study: Any) -> None:
    """Neither validation images nor wrong labels, and monitors without sampling errors."""
    study = make_study({"architecture": "cnn5", "label_noise": 0.0}, trials=1)
    train_arm(study, study.arms["plain.k001"], store, until=2)
    with contextlib.closing(connect(store)) as connection:
        absent = "avg(validation_error), avg(validation_loss), avg(train_error_noisy), avg(train_loss_noisy)"
        assert connection.execute(f"SELECT {absent} FROM training_evals").fetchone() == (None,) * 4
        there = "count(*) = count(test_error), count(*) = count(train_loss_clean), avg(train_error) >= 0"
        assert connection.execute(f"SELECT {there} FROM training_evals").fetchone() == (True,) * 3
        errors = "SELECT metric, avg(standard_error) FROM training_monitors GROUP BY metric"
        assert dict(connection.execute(errors).fetchall())["gradient_norm"] is None
        outcomes = "avg(last_validation_error), avg(best_validation_loss)"
        assert connection.execute(f"SELECT {outcomes} FROM runs").fetchone() == (None, None)
        for table in ("training_batches", "training_evals", "training_monitors", "image_progress", "runs"):
            floats = [column.name for column in TABLES[table].columns if column.type in _FLOATS]
            condition = " OR ".join(f"isnan({column})" for column in floats)
            assert connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone() == (0,), table
