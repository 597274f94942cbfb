"""The rows that figures of a study are drawn from, read once for all of them."""

import json
from collections.abc import Collection
from functools import cache

import duckdb

from dd_core.errors import StoreError
from dd_core.figures import FIGURES
from dd_core.figures.drawing.selection import digest_of_rows, has_view, said_of_arms
from dd_core.store.files import below, is_object
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

# Of a study in a table that is read into memory, which makes each of the figures' many queries ten times as fast.
_MOST_ROWS = 300_000
_TABLES = tuple(sorted({"runs", *(table for figure in FIGURES for table in figure.tables)}))
_LATEST: dict[tuple[str, str], "Source"] = {}
# What was found out of the rows is kept of every study, connections and copies of tables of these few.
_MOST_OPEN = 4


class Source:
    """The rows of one study as they are while their files stay the same."""

    def __init__(self, store: Store, study: Study, tables: Collection[str] = _TABLES):
        """Nothing is opened yet."""
        self._store, self._study, self._tables, self._files = store, study, tables, _files(store, study)
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._copied: set[str] = set()
        self.digest = cache(self._digest)
        self.said_of_arms = cache(self._said_of_arms)

    @property
    def is_open(self) -> bool:
        """Whether it holds a connection."""
        return self._connection is not None

    def connection(self, *tables: str) -> duckdb.DuckDBPyConnection:
        """Views of all tables; those that are named are in memory, where they are small."""
        if self._connection is None:
            self._connection = connect(self._store, self._tables, within=(self._study.name,))
        for table in tables:
            if table not in self._copied and has_view(self._connection, table):
                self._copied.add(table)
                self._copy(self._connection, table)
        return self._connection

    def _copy(self, connection: duckdb.DuckDBPyConnection, table: str) -> None:
        own, parameters = f"FROM main.{table} WHERE study = $study", {"study": self._study.name}
        found = connection.execute(f"SELECT count(*) {own}", parameters).fetchone()
        if found is not None and found[0] <= _MOST_ROWS:  # DuckDB takes a temporary table before a view of its name
            connection.execute(f"CREATE TEMPORARY TABLE {table} AS SELECT * {own}", parameters)

    def close(self) -> None:
        """Close the connection; the next who asks for it opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._copied = None, set()

    def _digest(self, table: str) -> str:
        """``digest_of_rows`` of a table."""
        return digest_of_rows(self.connection(table), self._study, table)

    def _said_of_arms(self, *tables: str) -> str:
        """``said_of_arms`` as JSON."""
        return json.dumps(said_of_arms(self.connection(*tables, "runs"), self._study, tables))

    def is_latest(self, store: Store, study: Study) -> bool:
        """Whether it still shows what there is of the study."""
        return self._files is not None and study == self._study and _files(store, study) == self._files


def source_of(store: Store, study: Study, tables: Collection[str] = _TABLES) -> Source:
    """The rows of a study as they are now; read anew where a file has changed since it was asked last.

    Args:
        store: the data root.
        study: whose rows.
        tables: all that will be asked for: on an object store, where nothing is kept, only these are opened.
    """
    key = (store.address, study.name)
    known = _LATEST.pop(key, None)
    if known is not None and not known.is_latest(store, study):
        known.close()
        known = None
    are_open = [source for source in _LATEST.values() if source.is_open]
    for source in are_open[: max(0, len(are_open) + 1 - _MOST_OPEN)]:
        source.close()
    _LATEST[key] = known or Source(store, study, tables if is_object(store.root) else _TABLES)
    return _LATEST[key]


def _files(store: Store, study: Study) -> set[tuple[str, int, int]] | None:
    """Names, sizes and times of the files; None where asking an object store for them takes as long as reading."""
    if is_object(store.root):
        return None
    found = set()
    try:
        for table in _TABLES:
            for path in below(store.table_folder(table, study.name), "*.parquet"):
                about = path.stat()
                found.add((str(path), about.st_size, about.st_mtime_ns))
    except FileNotFoundError:
        return None  # one has gone just now
    except OSError as error:
        raise StoreError(f"cannot read {error.filename}: {error.strerror}; check the data root (DD_ROOT)") from error
    return found
