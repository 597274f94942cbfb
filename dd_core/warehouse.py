"""SQL over the tables: DuckDB views over parquet, in memory for this process or in one file for people.

The file holds views and nothing else. It is rebuilt beside the old one and swapped in, so nobody who reads it is
disturbed and nobody who holds it open read-only keeps others from writing. Paths in it are absolute.

With the data root on an object store the file is an object beside the tables, built on this machine, and its views have
addresses (``s3://...``). It holds no credentials, so whoever opens it brings the extension httpfs and a secret. From
Python ``connect`` does both; in DuckDB's own shell::

    INSTALL httpfs; LOAD httpfs;        -- or LOAD the file that dd_core.storage.sql.httpfs() names, without network
    CREATE SECRET (TYPE s3, KEY_ID '...', SECRET '...', REGION '...');
    ATTACH 's3://bucket/prefix/warehouse.duckdb' AS lab (READ_ONLY);
    SELECT * FROM lab.curvature;
"""

import contextlib
import errno
import os
import re
from pathlib import Path

import duckdb

from dd_core.errors import StaleError, StoreError
from dd_core.schema.columns import Column, Table
from dd_core.storage.files import is_object, write_atomically
from dd_core.storage.sql import give_access, quoted
from dd_core.store import Store
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
    try:
        connection.execute("SET TimeZone = 'UTC'")
        give_access(connection, store.root)
        _create_views(connection, store)
    except BaseException:
        connection.close()
        raise
    return connection


def refresh(store: Store) -> list[str]:
    """Rebuild the warehouse file; returns the names of its views."""
    path = store.warehouse_path
    views: list[str] = []

    def build(temporary: Path) -> None:
        temporary.unlink()  # DuckDB wants to create the file itself
        try:
            with contextlib.closing(duckdb.connect(str(temporary))) as connection:
                give_access(connection, store.root)
                views.extend(_create_views(connection, store))
        except duckdb.Error as error:  # of several kinds, as the disk is full when it writes or when it commits
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    store.check_writable()
    with store.lock("warehouse"):
        store.clean_temporaries(path.parent, path.name)
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
        except duckdb.IOException as error:
            if not is_object(folder):
                raise
            reason = str(error).splitlines()[0]
            raise StoreError(f"DuckDB cannot read the table {table.name} under {folder}: {reason}") from error
        connection.execute(f"COMMENT ON VIEW {table.name} IS {quoted(table.description)}")
        for column in columns:
            comment = quoted(column.description)
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
    glob = quoted(f"{root}{depth}/*.parquet")
    types = ", ".join(f"{name}: VARCHAR" for name in table.folder_columns)
    return f"read_parquet({glob}, union_by_name = true, hive_partitioning = true, hive_types = {{{types}}})"
