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
from dd_core.store import Store, write_atomically
from dd_core.tables import TABLES, Table


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
        except duckdb.IOException as error:
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
            connection.execute(_view_sql(table, folder))
        except duckdb.InvalidInputException as error:
            reason = str(error).splitlines()[0]
            raise StaleError(
                f"a file of the table {table.name} is damaged ({reason}); remove it and materialise its asset again"
            ) from error
        connection.execute(f"COMMENT ON VIEW {table.name} IS {_quoted(table.description)}")
        for column in table.columns:
            comment = _quoted(column.description)
            connection.execute(f'COMMENT ON COLUMN {table.name}."{column.name}" IS {comment}')
        created.append(table.name)
    return created


def _view_sql(table: Table, folder: Path) -> str:
    """A view with the columns in the order of the schema; the only text in it from outside is the quoted root."""
    depth = "/*" * len(table.folder_columns)
    # What the root holds of wildcards stands for itself.
    root = re.sub(r"[*?[]", r"[\g<0>]", str(folder.absolute()))
    glob = _quoted(f"{root}{depth}/*.parquet")
    types = ", ".join(f"{name}: VARCHAR" for name in table.folder_columns)
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    return (
        f"CREATE VIEW {table.name} AS SELECT {columns} FROM read_parquet({glob}, union_by_name = true, "
        f"hive_partitioning = true, hive_types = {{{types}}})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
