"""SQL over the tables: DuckDB views over parquet, in memory for this process or in one file for people.

The file holds views and nothing else. It is rebuilt beside the old one and swapped in, so nobody who reads it is
disturbed, and a process that holds it open read-only keeps no other from writing. Damaged files are left out of the
views (``dd_core.tables.damage`` says which and what to run). Every table has a view, with no rows where it has no
files: an empty file with all columns lies in each table's folder.

The file finds the tables beside itself, wherever the data root is copied or moved to: DuckDB's setting
``temp_directory`` is by default the path of the file that is open, and a view may use a setting in the path it reads.
Where it says nothing, because the file is attached to another database or someone has set it, the path is that of the
root where the file was made, and the view refuses to answer from any other.

With the data root on an object store the file is an object beside the tables, built on this machine, and its views have
addresses (``s3://...``). It holds no credentials: open it with the extension httpfs and a secret. From
Python ``connect`` does both; in DuckDB's own shell::

    INSTALL httpfs; LOAD httpfs;        -- or LOAD the file that dd_core.tables.access.httpfs() names, without network
    CREATE SECRET (TYPE s3, KEY_ID '...', SECRET '...', REGION '...');
    ATTACH 's3://bucket/prefix/warehouse.duckdb' AS lab (READ_ONLY);
    SELECT * FROM lab.curvature;
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from dd_core.errors import StoreError
from dd_core.store.files import below, is_object, write_atomically
from dd_core.store.store import Store
from dd_core.study.former_names import now
from dd_core.tables import former, live
from dd_core.tables.access import give_access, quoted
from dd_core.tables.columns import Column, Table
from dd_core.tables.files import FURTHER_NAMES, FURTHER_VALUES, OPTIONAL_KEY, TABLES, arrow_schema, write_result
from dd_core.tables.findings import Finding, findings
from dd_core.tables.grids import as_name, create_view, joined
from dd_core.tables.kinds import KINDS
from dd_core.tables.views import create_views

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


# In the names of the folders of empty files. Not Hive's word for null, which pandas cannot put beside other names.
_NOBODY = "none"
# Where the file of views lies, as it says itself; nothing if it does not know.
_OWN_FILE = r"regexp_extract(current_setting('temp_directory'), '^((.*/)?warehouse\.duckdb)\.tmp$', 1)"


# The types of the lists of optional columns.
_PACKED = {FURTHER_NAMES: "VARCHAR[]", FURTHER_VALUES: "DOUBLE[]"}
# Tables with a file for each checkpoint, whose name is the epoch.
_BY_CHECKPOINT = {kind.table.name for kind in KINDS.values()}
_EPOCH = r"TRY_CAST(regexp_extract(filename, '(\d+)\.parquet$', 1) AS SMALLINT)"


def connect(
    store: Store,
    tables: Collection[str] = tuple(TABLES),
    *,
    live: bool = False,
    within: tuple[str, ...] = (),
    epochs: Collection[int] | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view for each of some tables, without damaged files; close it after use.

    Args:
        store: where they are.
        tables: their names.
        live: show evaluations that no checkpoint vouches for yet, and what grids varied, as the warehouse file does
            for people, with the comments of columns; and the view ``live_epochs``.
        within: a study, or a study and an arm, the rows of which are enough; no file of others is opened then.
        epochs: of checkpoints, the rows of which are enough; of files named after checkpoints no other is opened then.

    Raises:
        StoreError: the object store does not let DuckDB read.
    """
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET parquet_metadata_cache = true")  # figures and findings ask several times
        give_access(connection, store.root)
        _create_views(connection, store, tables, is_portable=False, is_live=live, within=within, epochs=epochs)
    except BaseException:
        connection.close()
        raise
    return connection


def refresh(store: Store) -> list[str]:
    """Rebuild the warehouse file; returns the names of the tables that have files."""
    path = store.warehouse_path
    tables: list[str] = []

    def build(temporary: Path) -> None:
        temporary.unlink()  # DuckDB wants to create the file itself
        try:
            with contextlib.closing(duckdb.connect(str(temporary))) as connection:
                give_access(connection, store.root)
                is_portable = not is_object(store.root)
                connection.begin()  # each of a thousand comments would be flushed to disk
                tables.extend(_create_views(connection, store, TABLES, is_portable=is_portable, is_live=True))
                connection.commit()
        except duckdb.Error as error:  # of several kinds, as the disk is full when it writes or when it commits
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    store.check_writable()
    with store.lock("warehouse"):
        store.clean_temporaries(path.parent, path.name)
        for table in TABLES.values():
            _write_empty(store, table)
        live.tidy(store)
        write_atomically(path, build)
    return tables


def _empty_file(store: Store, table: Table) -> Path:
    folder = store.table_folder(table.name)
    for name in table.folder_columns:
        folder /= f"{name}={_NOBODY}"
    return folder / "empty.parquet"


def _write_empty(store: Store, table: Table) -> None:
    """So that a view never is over no file, which DuckDB refuses, and knows the columns of files to come."""
    path, schema = _empty_file(store, table), arrow_schema(table)
    manifest = store.read_manifest(store.manifest_path(path))
    columns = " ".join(schema.names)
    if manifest is None or manifest.content.get("columns") != columns or not store.is_sound(manifest):
        write_result(store, path, schema.empty_table(), columns=columns)


def _create_views(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    tables: Collection[str],
    *,
    is_portable: bool,
    is_live: bool,
    within: tuple[str, ...] = (),
    epochs: Collection[int] | None = None,
) -> list[str]:
    """Create the views; returns the names of the tables that have files."""
    known = _Known.of(store, tables, within)
    news = _live_rows(store, is_portable) if is_live else None
    filled = []
    varied: list[Column] = []
    for table in sorted((TABLES[name] for name in tables), key=lambda table: table.name != "runs"):
        folder = _folder(store, table, within)
        files = _files(folder, known.damaged, max(len(table.folder_columns) - len(within), 0), epochs)
        if files is not None:
            filled += [table.name] * _has_rows(store, table)
        try:
            present, packed = known.names(connection, table, files)
            columns = _columns(table, present, packed)
            rows = "WHERE false"
            if files is not None:
                source = _own_root(store, files) if is_portable else _texts(files)
                rows = f"FROM {_parquet(table, present, source)}" + f" WHERE {_guard(store)}" * is_portable
                if table.newest:
                    rows += f" QUALIFY row_number() OVER ({table.newest}) = 1"
            names = {column.name for column in columns}
            query = f"SELECT {', '.join(columns.values())} {rows}"
            if news is not None and table.name == "training_evals":
                query = live.with_live(query, [column.name for column in columns], news)
            query, added = joined(table, query, names, varied)
            connection.execute(f"CREATE VIEW {table.name} AS {query}")
            is_varied = is_live and table.name == "runs" and '"grid"' in columns.values()
            if is_varied and files is not None:
                varied = create_view(connection, _parquet(table, present, _texts(files)))
        except duckdb.IOException as error:
            if not is_object(folder):
                raise
            reason = str(error).splitlines()[0]
            raise StoreError(f"DuckDB cannot read the table {table.name} under {folder}: {reason}") from error
        if is_live:
            _comment(connection, table, [*columns, *added])
    if news is not None:
        shown = ", ".join(column.name for column in live.LIVE.columns)
        connection.execute(f"CREATE VIEW {live.LIVE.name} AS SELECT {shown} FROM {news}")
        _comment(connection, live.LIVE, live.LIVE.columns)
    create_views(connection, tables, is_commented=is_live)
    return [name for name in tables if name in filled]


def _comment(connection: duckdb.DuckDBPyConnection, table: Table, columns: Iterable[Column]) -> None:
    connection.execute(f"COMMENT ON VIEW {table.name} IS {quoted(table.description)}")
    for column in columns:
        comment = quoted(column.description)
        connection.execute(f"COMMENT ON COLUMN {table.name}.{as_name(column.name)} IS {comment}")


def _live_rows(store: Store, is_portable: bool) -> str:
    """Rows of what trains just now as a relation; of the file of views those of the root where it lies."""
    table, folder = live.LIVE, store.live_folder()
    if next(folder.glob("*/*/*.jsonl"), None) is None:
        nothing = ", ".join(f"NULL::{_SQL_TYPES[column.type]} AS {column.name}" for column in table.columns)
        return f"(SELECT {nothing} WHERE false)"
    files = [f"{_literal(str(folder.absolute()))}/*/*/*.jsonl"]
    types = ", ".join(f"{column.name}: '{_SQL_TYPES[column.type]}'" for column in table.file_columns)
    keys, is_whole = ", ".join(live.KEY), " AND ".join(f"{name} IS NOT NULL" for name in live.KEY)
    folders = ", ".join(f"{name}: VARCHAR" for name in table.folder_columns)
    return (
        f"(SELECT * FROM read_json({_own_root(store, files) if is_portable else _texts(files)}, columns = {{{types}}}, "
        f"format = 'newline_delimited', ignore_errors = true, hive_partitioning = true, hive_types = {{{folders}}}) "
        f"WHERE {is_whole}{f' AND {_guard(store)}' * is_portable} "
        f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY written_at DESC) = 1)"
    )


def _folder(store: Store, table: Table, within: tuple[str, ...]) -> Path:
    """That of a table's files of a study, or of an arm of it, or of all."""
    return store.table_folder(table.name, *within[: len(table.folder_columns)])


def _has_rows(store: Store, table: Table) -> bool:
    files = below(store.table_folder(table.name), "*.parquet")
    return any(path != _empty_file(store, table) for path in files)


@dataclass(frozen=True)
class _Known:
    """What is known of the files of some tables, if they lie in a folder.

    Attributes:
        findings: by table, of an object store nothing.
        damaged: the files that do not count.
    """

    findings: Mapping[str, Collection[Finding]]
    damaged: Collection[Path]

    @classmethod
    def of(cls, store: Store, tables: Collection[str], within: tuple[str, ...]) -> "_Known":
        """Look at them, or remember."""
        by_table, damaged = dict[str, dict[int, Finding]](), set()
        for name in () if is_object(store.root) else tables:
            by_table[name] = {}
        found = findings(store, [_folder(store, TABLES[name], within) for name in by_table]) if by_table else {}
        for folder, files in found.items():
            own = by_table[folder.relative_to(store.root).parts[1]]
            own |= {id(finding): finding for finding in files.values()}  # many files share one
            damaged |= {folder / name for name, finding in files.items() if finding.harm}
        return cls({name: own.values() for name, own in by_table.items()}, damaged)

    def names(
        self, connection: duckdb.DuckDBPyConnection, table: Table, files: list[str] | None
    ) -> tuple[list[str], list[str]]:
        """The names of all columns of a table's files, and of those that are packed into lists."""
        if table.name not in self.findings:
            return _names_of_objects(connection, files)
        kinds = dict.fromkeys(self.findings[table.name])
        present = dict.fromkeys(name for kind in kinds for name in kind.columns)
        optional = dict.fromkeys(name for names in sorted({kind.optional for kind in kinds}) for name in names)
        return [*table.folder_columns * bool(present), *present], list(optional)


def _names_of_objects(connection: duckdb.DuckDBPyConnection, files: list[str] | None) -> tuple[list[str], list[str]]:
    """The same of files of an object store."""
    if files is None:
        return [], []
    all_names = "DESCRIBE SELECT * FROM read_parquet($files, union_by_name = true, hive_partitioning = true)"
    present = [name for name, *_ in connection.execute(all_names, {"files": files}).fetchall()]
    if FURTHER_NAMES not in present:
        return present, []
    told = connection.execute(
        "SELECT DISTINCT decode(value) FROM parquet_kv_metadata($files) WHERE key = $key",
        {"files": files, "key": OPTIONAL_KEY},
    ).fetchall()
    return present, list(dict.fromkeys(name for (names,) in sorted(told) for name in json.loads(names)))


def _columns(table: Table, present: list[str], packed: list[str]) -> dict[Column, str]:
    """The columns of the schema in its order, then the optional ones that any file has, with their SQL.

    A column that no file has, because an earlier version wrote them all, is null. Optional columns are in two lists, or
    in files of earlier versions columns as well.
    """
    expressions = {column: _sql(column, former.ways(column.name, present)) for column in table.columns}
    for name in dict.fromkeys([*present, *packed]):
        column = table.optional_column(now(name).name)
        if column is not None and column not in expressions:
            alike = [other for other in dict.fromkeys([*present, *packed]) if now(other).name == column.name]
            ways = [f'"{other}"' for other in alike if other in present]
            ways += [
                f"list_extract({FURTHER_VALUES}, list_position({FURTHER_NAMES}, {quoted(other)}))"
                for other in alike
                if other in packed
            ]
            expressions[column] = _sql(column, ways)
    return expressions


def _sql(column: Column, ways: list[str]) -> str:
    """A column of a view by the ways to know it, the first that is not null."""
    if not ways:
        return f'NULL::{_SQL_TYPES[column.type]} AS "{column.name}"'
    return f'"{column.name}"' if ways == [f'"{column.name}"'] else f'coalesce({", ".join(ways)}) AS "{column.name}"'


def _files(folder: Path, damaged: Collection[Path], depth: int, epochs: Collection[int] | None) -> list[str] | None:
    """The files of a table, or of an arm's part of it, with wildcards where all are wanted; None: there are none."""
    if epochs is None and not any(path.is_relative_to(folder) for path in damaged):
        if next(below(folder, "*.parquet"), None) is None:
            return None
        return [f"{_literal(str(folder.absolute()))}{'/*' * depth}/*.parquet"]
    sound = [path for path in sorted(below(folder, "*.parquet")) if path not in damaged]
    if epochs is not None:
        sound = [path for path in sound if not path.stem.isdecimal() or int(path.stem) in epochs]
    return [_literal(str(path.absolute())) for path in sound] or None


def _literal(path: str) -> str:
    """What a path holds of wildcards stands for itself."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _texts(files: list[str]) -> str:
    return f"[{', '.join(map(quoted, files))}]"


def _own_root(store: Store, files: list[str]) -> str:
    """The paths as the file of views shall know them: beside itself, or where it knows nothing, in this root."""
    home = f"{_literal(str(store.root.absolute()))}/"
    beside = rf"regexp_replace(regexp_replace({_OWN_FILE}, 'warehouse\.duckdb$', ''), '[*?[]', '[\0]', 'g')"
    root = f"CASE WHEN {_OWN_FILE} = '' THEN {quoted(home)} ELSE {beside} END"
    return f"[{', '.join(f'{root} || {quoted(file.removeprefix(home))}' for file in files)}]"


def _guard(store: Store) -> str:
    """True, or an error: whether the rows are those of the root in which the file with this view lies.

    ``temp_directory`` is about the database that was opened, and others may be attached to it.
    """
    home = str(store.warehouse_path.absolute())
    elsewhere = quoted(
        f" is not {home}, where these views were made: open it alone and under its name "
        "(duckdb -readonly .../warehouse.duckdb), or run any command of the platform with DD_ROOT set to its folder"
    )
    return rf"""(
        SELECT CASE WHEN (count(*) = 1 AND {_OWN_FILE} <> '') OR bool_and(path = {quoted(home)}) THEN true
            ELSE error(coalesce(string_agg(path, ' or '), 'the file that is open') || {elsewhere}) END
        FROM duckdb_databases() WHERE regexp_matches(path, '(^|/)warehouse\.duckdb$')
    )"""


def _parquet(table: Table, present: Collection[str], files: str) -> str:
    """Files of a table as a relation; the only text in it from outside is the quoted root.

    The schema is said, so that no file is opened to make or to bind a view. What comes from folders and names of files
    is computed of those names, and a condition on it chooses the files to open.
    """
    types = {column.name: column.type for column in table.file_columns}
    types |= {name: known.type for name in present if (known := _column(table, now(name).name))}
    sql = {name: _SQL_TYPES[type_] for name, type_ in types.items() if name not in table.folder_columns}
    sql |= {name: type_ for name, type_ in _PACKED.items() if name in present}
    schema = ", ".join(
        f"{quoted(name)}: {{name: {quoted(name)}, type: {quoted(type_)}, default_value: NULL}}"
        for name, type_ in sql.items()
    )
    depth = len(table.folder_columns)
    of_folders = [
        f"split_part(filename, '/', {place - depth - 1})[{len(name) + 2}:] AS {name}"
        for place, name in enumerate(table.folder_columns)
    ]
    epoch = f" REPLACE ({_EPOCH} AS epoch)" if table.name in _BY_CHECKPOINT else ""
    rows = f"read_parquet({files}, schema = MAP {{{schema}}}, filename = true)"
    return f"(SELECT {', '.join([*of_folders, f'* EXCLUDE (filename){epoch}'])} FROM {rows})"


def _column(table: Table, name: str) -> Column | None:
    return next((column for column in table.columns if column.name == name), None) or table.optional_column(name)
