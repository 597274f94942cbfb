"""Tables as files: types as the schema says, nothing missing, nothing wrapped, equal bytes for equal content."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dd_core.study.curvature_names import columns_of_step
from dd_core.tables.files import TABLES, arrow_schema, read_parquet, to_arrow, write_parquet

ARROW = {
    "string": pa.dictionary(pa.int32(), pa.string()),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list<float64>": pa.list_(pa.float64()),
    "list<string>": pa.list_(pa.string()),
    **{name: getattr(pa, name)() for name in ("int16", "int32", "int64", "float32", "float64")},
}
VALUES: dict[str, Any] = {
    "string": "a",
    "bool": True,
    "timestamp": datetime.datetime.now(datetime.UTC),
    "list<float64>": [1.5, 2.5],
    "list<string>": ["a", "b"],
}


# Tables without lists: a list is one value for each row, never one value for all.
SCALAR = [name for name, table in TABLES.items() if not any(c.type.startswith("list") for c in table.columns)]


def content(table: str, rows: int | None) -> dict[str, Any]:
    """One value per column, repeated or not."""
    values = {column.name: VALUES.get(column.type, 1) for column in TABLES[table].file_columns}
    if rows is None:
        return values
    return {name: [value] * rows for name, value in values.items()}


@pytest.mark.parametrize("name", TABLES)
def test_every_column_has_a_type_and_a_description_with_its_unit(name: str) -> None:
    table, schema = TABLES[name], arrow_schema(TABLES[name])
    assert len({column.name for column in table.columns}) == len(table.columns)
    assert set(table.folder_columns) <= {"study", "arm"}
    assert table.columns[0].name == "study"
    for column in table.file_columns:
        field = schema.field(column.name)
        assert field.type == ARROW[column.type]
        assert field.metadata == {b"description": column.description.encode()}
        assert column.description
        if column.name.rpartition("_")[2] == "loss" and not column.name.startswith(("auroc", "cycle")):
            assert "nats" in column.description


@pytest.mark.parametrize(("name", "rows"), [*((name, 3) for name in TABLES), *((name, None) for name in SCALAR)])
def test_files_have_the_schema_of_their_table(name: str, rows: int | None, tmp_path: Path) -> None:
    table = to_arrow(name, content(name, rows), 3)
    assert table.num_rows == 3
    write_parquet(tmp_path / "part.parquet", table)
    read = read_parquet(tmp_path / "part.parquet")
    assert read.schema.equals(arrow_schema(TABLES[name]), check_metadata=False)
    assert read.schema.field(0).metadata[b"description"]
    assert read.to_pylist() == [content(name, None)] * 3


@pytest.mark.parametrize("many", [False, True])
def test_unknown_values_are_null_in_every_type(many: bool) -> None:
    nothing: dict[str, Any] = {name: [None] * 2 if many else None for name in content("runs", None)}
    table = to_arrow("runs", nothing, 2)
    assert table.schema.equals(arrow_schema(TABLES["runs"]))
    assert all(table[name].null_count == 2 for name in table.column_names)


@pytest.mark.parametrize("change", [{"trial": ...}, {"unknown": 1}, {"arm": "a"}], ids=str)
def test_missing_and_unknown_columns_are_named(change: dict[str, Any]) -> None:
    columns = {**content("images", None), **change}
    columns = {name: value for name, value in columns.items() if value is not ...}
    with pytest.raises(ValueError, match=next(iter(change))):
        to_arrow("images", columns, 1)


@pytest.mark.parametrize(
    "name",
    ["fd_norm_h0p001", "fd_norm_h0p001_standard_error", "fd_directional_h3", "fd_directional_h12p5_standard_error"],
)
def test_files_of_curvature_may_have_a_column_for_each_step(name: str, tmp_path: Path) -> None:
    columns = {**content("per_image_curvature", None), name: np.array([0.5, 1.5])}
    write_parquet(tmp_path / "part.parquet", to_arrow("per_image_curvature", columns, 2))
    read = read_parquet(tmp_path / "part.parquet")
    assert read.column_names == [*(c.name for c in TABLES["per_image_curvature"].file_columns), name]
    assert read[name].to_pylist() == [0.5, 1.5]
    assert read.schema.field(name).type == pa.float64()
    assert b"finite difference" in read.schema.field(name).metadata[b"description"]


@pytest.mark.parametrize(
    "name", ["fd_norm_h1", "fd_norm_h1e-3", "fd_norm_", "fd_norm_h1p", "xfd_norm_h1", "auroc_fd_norm_h1"]
)
def test_no_other_table_or_name_may_have_such_a_column(name: str) -> None:
    table = "curvature" if name == "fd_norm_h1" else "per_image_curvature"
    with pytest.raises(ValueError, match=f"unknown column {name}"):
        to_arrow(table, {**content(table, None), name: 1.0}, 2)


def test_the_names_of_steps_are_those_that_tables_take() -> None:
    for step in (1e-3, 1.0, 3, 0.1, 1e-7, 12.5, 1e20):
        for name in columns_of_step(step):
            assert TABLES["per_image_curvature"].optional_column(name) is not None
            summarised = TABLES["curvature"].optional_column(f"auroc_{name}")
            assert (summarised is None) == name.endswith("_standard_error")


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        to_arrow("images", {**content("images", None), "image_id": [1, 2]}, 3)


@pytest.mark.parametrize(("column", "value"), [("trial", 2**31), ("image_id", 2**31), ("image_id", "x")])
@pytest.mark.parametrize("many", [False, True])
def test_values_that_do_not_fit_are_refused_instead_of_wrapped(column: str, value: Any, many: bool) -> None:
    values = {**content("images", None), column: np.array([value, value]) if many else value}
    with pytest.raises((pa.ArrowInvalid, OverflowError, TypeError)):
        to_arrow("images", values, 2)


def test_numpy_values_keep_their_value() -> None:
    random = np.random.default_rng(0)
    losses = random.random(4)
    columns = {
        **content("training_batches", None),
        "train_loss": losses,
        "learning_rate": np.float64(0.1),
        "k": np.int64(3),
    }
    table = to_arrow("training_batches", columns, 4)
    np.testing.assert_array_equal(table["train_loss"].to_numpy(), losses)
    assert table["learning_rate"].to_pylist() == [0.1] * 4
    assert table["k"].to_pylist() == [3] * 4


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / name, to_arrow("images", content("images", 50), 50))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
