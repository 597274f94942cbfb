"""SQL over the tables: DuckDB views over parquet, in memory for this process or in one file for people.

The file holds views and nothing else. It is rebuilt beside the old one and swapped in, so nobody who reads it is
disturbed and nobody who holds it open read-only keeps others from writing. Paths in it are absolute.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

import duckdb
from filelock import FileLock

from dd_core.errors import StaleError
from dd_core.schema.columns import Column, Table
from dd_core.store import Store, write_atomically
from dd_core.tables import TABLES

_SQL_TYPES = {
    "string": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "bool": "BOOLEAN",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "list<float64>": "DOUBLE[]",
    "list<string>": "VARCHAR[]",
}


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view for every table that has files; close it after use."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    _create_views(connection, store)
    return connection


def refresh(store: Store) -> list[str]:
    """Rebuild the warehouse file; returns the names of its views."""
    path = store.warehouse_path
    views: list[str] = []

    def build(temporary: Path) -> None:
        temporary.unlink()  # DuckDB wants to create the file itself
        try:
            with contextlib.closing(duckdb.connect(str(temporary))) as connection:
                views.extend(_create_views(connection, store))
        except duckdb.Error as error:  # of several kinds, as the disk is full when it writes or when it commits
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    store.check_writable()
    lock = store.lock_path("warehouse")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        write_atomically(path, build)
    return views


def _create_views(connection: duckdb.DuckDBPyConnection, store: Store) -> list[str]:
    created = []
    for table in TABLES.values():
        folder = store.table_folder(table.name)
        if next(folder.glob("**/*.parquet"), None) is None:
            continue  # DuckDB refuses a view over no file at all
        try:
            columns = _columns(connection, table, folder)
            expressions = ", ".join(columns.values())
            rows = f"FROM {_files(table, folder)}"
            if table.newest:
                rows += f" QUALIFY row_number() OVER ({table.newest}) = 1"
            connection.execute(f"CREATE VIEW {table.name} AS SELECT {expressions} {rows}")
        except duckdb.InvalidInputException as error:
            reason = str(error).splitlines()[0]
            raise StaleError(
                f"a file of the table {table.name} is damaged ({reason}); remove it and materialise its asset again"
            ) from error
        connection.execute(f"COMMENT ON VIEW {table.name} IS {_quoted(table.description)}")
        for column in columns:
            comment = _quoted(column.description)
            connection.execute(f'COMMENT ON COLUMN {table.name}."{column.name}" IS {comment}')
        created.append(table.name)
    return created


def _columns(connection: duckdb.DuckDBPyConnection, table: Table, folder: Path) -> dict[Column, str]:
    """The columns of the schema in its order, then the optional ones that any file has, with their SQL.

    A column that no file has, because an earlier version wrote them all, is null.
    """
    present = [name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {_files(table, folder)}").fetchall()]
    optional = [column for name in present if (column := table.optional_column(name)) is not None]
    return {
        column: f'"{column.name}"' if column.name in present else f'NULL::{_SQL_TYPES[column.type]} AS "{column.name}"'
        for column in (*table.columns, *optional)
    }


def _files(table: Table, folder: Path) -> str:
    """All files of a table as a relation; the only text in it from outside is the quoted root."""
    depth = "/*" * len(table.folder_columns)
    # What the root holds of wildcards stands for itself.
    root = re.sub(r"[*?[]", r"[\g<0>]", str(folder.absolute()))
    glob = _quoted(f"{root}{depth}/*.parquet")
    types = ", ".join(f"{name}: VARCHAR" for name in table.folder_columns)
    return f"read_parquet({glob}, union_by_name = true, hive_partitioning = true, hive_types = {{{types}}})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
