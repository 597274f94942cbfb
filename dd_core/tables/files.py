"""The tables by name, and how their parquet files are written; ``dd_core.tables`` has the columns.

A table is a folder of parquet files with one schema; folder name = asset name = DuckDB view name. ``study`` and ``arm``
come from the folders (hive partitioning), everything else is in the files.

All files of a table have the same columns, so that pandas, Arrow and Polars find one schema in its folder.
Optional columns whose names settings decide are therefore packed into two lists, ``further_names`` and
``further_values``; ``read_parquet`` here and the views of ``dd_core.tables.warehouse`` unpack them. Files of earlier
versions have them as columns. So have all files those of ``image_progress``, in whose many rows lists would be slow:
they are the same in all files of a study whose settings were not changed half-way.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd_core.errors import StaleError
from dd_core.store.files import local_copy, remove, write_atomically
from dd_core.store.store import Store
from dd_core.study.former_names import now
from dd_core.tables.columns import Table
from dd_core.tables.curvature import CURVATURE_TABLES
from dd_core.tables.former import as_now
from dd_core.tables.graphs import GRAPH_TABLES
from dd_core.tables.kinds import KINDS
from dd_core.tables.loss_slopes import LOSS_SLOPE_FITS, LOSS_SLOPES
from dd_core.tables.memorization import MEMORIZATION_TABLES
from dd_core.tables.training import TRAINING_TABLES

if TYPE_CHECKING:
    import pyarrow as pa

FURTHER_NAMES, FURTHER_VALUES = "further_names", "further_values"
# In a file's metadata: the optional columns, in JSON; of files of tables that may have any.
OPTIONAL_KEY = b"optional_columns"

_ALL = (
    *TRAINING_TABLES,
    *CURVATURE_TABLES,
    *(kind.table for kind in KINDS.values()),
    LOSS_SLOPES,
    LOSS_SLOPE_FITS,
    *MEMORIZATION_TABLES,
    *GRAPH_TABLES,
)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}


def arrow_schema(table: Table, optional: Iterable[str] = ()) -> "pa.Schema":
    """The schema of the table's files (without the folder columns), descriptions as field metadata.

    Raises:
        ValueError: the table cannot have one of the optional columns named.
    """
    import pyarrow as pa

    types = {
        "string": pa.dictionary(pa.int32(), pa.string()),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "bool": pa.bool_(),
        "list<float64>": pa.list_(pa.float64()),
        "list<string>": pa.list_(pa.string()),
        **{name: getattr(pa, name)() for name in ("int16", "int32", "int64", "float32", "float64")},
    }
    columns = list(table.file_columns)
    optional = list(optional)
    for name in optional:
        column = table.optional_column(name)
        if column is None:
            raise ValueError(f"{table.name}: unknown column {name}")
        columns.append(column)
    fields = [pa.field(c.name, types[c.type], metadata={"description": c.description}) for c in columns]
    return pa.schema(fields, {OPTIONAL_KEY: json.dumps(optional)} if table.optional else None)


def to_arrow(table: str | Table, columns: dict[str, Any], num_rows: int) -> "pa.Table":
    """A typed Arrow table from arrays and constants.

    Args:
        table: or its key in ``TABLES``.
        columns: for every file column an array of ``num_rows`` values, or one value repeated for all rows; optional
            columns may follow.
        num_rows: number of rows.

    Raises:
        ValueError: a column is missing, unknown or of the wrong length.
    """
    import pyarrow as pa

    table = TABLES[table] if isinstance(table, str) else table
    fixed = [c.name for c in table.file_columns]
    missing = sorted(set(fixed) - set(columns))
    if missing:
        raise ValueError(f"{table.name}: missing columns {missing}")
    schema = arrow_schema(table, [name for name in columns if name not in fixed])
    return pa.table([_array(columns[field.name], field.type, num_rows) for field in schema], schema=schema)


def _array(values: Any, type_: "pa.DataType", num_rows: int) -> "pa.Array":
    """Values, or one value for every row, as an array of that type."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(type_) and values is not None:
        return pa.array(values, type_)
    if np.ndim(values) == 0:
        scalar_type = type_.value_type if pa.types.is_dictionary(type_) else type_
        scalar = values.item() if isinstance(values, np.generic) else values
        array = pa.repeat(pa.scalar(scalar, scalar_type), num_rows)
    else:
        array = pa.array(values)
        if pa.types.is_null(array.type):
            array = array.cast(pa.string() if pa.types.is_dictionary(type_) else type_)
    return array.dictionary_encode().cast(type_) if pa.types.is_dictionary(type_) else array.cast(type_)


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write one parquet file atomically; equal tables give equal bytes.

    NaN becomes null, here and so in every table: it stands for what was not measured or is not defined, and one NaN
    makes NaN of an average. A loss that is no number any more leaves no row; ``runs`` says at which step it ceased to
    be one. Infinity is a measurement and stays.
    """
    import pyarrow.parquet as pq

    packed = _packed(without_nan(table))
    write_atomically(path, lambda temporary: pq.write_table(packed, temporary, compression="zstd"))


def write_result(store: Store, path: Path, table: "pa.Table", **facts: str) -> None:
    """Write a file of a table that no checkpoint vouches for, and a manifest of its own, which says these facts too."""
    manifest = store.manifest_path(path)
    remove(manifest)  # it must not vouch for what is written in its place
    write_parquet(path, table)
    store.write_manifest(manifest, {"kind": "table", "rows": {"table": table.num_rows}, **facts}, {"table": path})


def without_nan(table: "pa.Table") -> "pa.Table":
    """The table with null for every NaN of its columns of floats, and in lists of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for position, field in enumerate(table.schema):
        column = table.column(position)
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            if pc.any(pc.is_nan(pc.list_flatten(column))).as_py():
                lists = [None if one is None else [_number(value) for value in one] for one in column.to_pylist()]
                table = table.set_column(position, field, pa.array(lists, field.type))
        elif pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
            table = table.set_column(
                position, field, pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
            )
    return table


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value


def read_parquet(path: Path) -> "pa.Table":
    """Read one file of a table, without the folder columns; of an earlier version under the names of now.

    Raises:
        FileNotFoundError: there is none.
        StaleError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return as_now(_unpacked(pq.ParquetFile(local_copy(path)).read()))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # of a damaged head Thrift says so by an OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StaleError(f"{path} is damaged ({reason})") from error


def _packed(table: "pa.Table") -> "pa.Table":
    """With the optional columns as two lists in each row."""
    import numpy as np
    import pyarrow as pa

    metadata = table.schema.metadata or {}
    if OPTIONAL_KEY not in metadata:
        return table
    names = [name for name in json.loads(metadata[OPTIONAL_KEY]) if name in table.column_names]
    count, num_rows = len(names), table.num_rows
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * count)
    by_column = pa.concat_arrays([pa.array([], pa.float64()), *(table[name].combine_chunks() for name in names)])
    order = pa.array(np.arange(num_rows * count).reshape(count, num_rows).T.reshape(-1))
    lists = {
        FURTHER_NAMES: pa.ListArray.from_arrays(offsets, pa.array(names * num_rows, pa.string())),
        FURTHER_VALUES: pa.ListArray.from_arrays(offsets, by_column.take(order)),
    }
    packed = table.drop_columns(names)
    for name, values in lists.items():
        packed = packed.append_column(pa.field(name, values.type, metadata={"description": _PACKED[name]}), values)
    return packed.replace_schema_metadata({**metadata, OPTIONAL_KEY: json.dumps(names)})


_PACKED = {
    FURTHER_NAMES: "names of the optional columns, the same in every row of a file",
    FURTHER_VALUES: "their values",
}


def _unpacked(table: "pa.Table") -> "pa.Table":
    """The reverse of ``_packed``."""
    import numpy as np
    import pyarrow as pa

    if FURTHER_NAMES not in table.column_names:
        return table
    names = json.loads(table.schema.metadata[OPTIONAL_KEY])
    values = table[FURTHER_VALUES].combine_chunks().flatten()
    table = table.drop_columns([FURTHER_NAMES, FURTHER_VALUES])
    for number, name in enumerate(names):
        own = values.take(np.arange(table.num_rows) * len(names) + number)
        columns = (kind.optional_column(now(name).name) for kind in TABLES.values())
        description = next((column.description for column in columns if column is not None), "")
        table = table.append_column(pa.field(name, own.type, metadata={"description": description}), own)
    return table
