"""The rows that figures of a study are drawn from, read once for all of them."""

from functools import cache

from dd_core.errors import StoreError
from dd_core.figures import FIGURES
from dd_core.figures.drawing.selection import digest_of_rows, has_view
from dd_core.store.files import below, is_object
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

# Of a study in a table that is read into memory, which makes each of the figures' many queries ten times as fast.
_MOST_ROWS = 300_000
_TABLES = tuple(sorted({"runs", *(table for figure in FIGURES for table in figure.tables)}))
_LATEST: dict[tuple[str, str], "Source"] = {}
_MOST_SOURCES = 4


class Source:
    """A connection to the tables of figures, as they are of one study while their files stay the same.

    Attributes:
        connection: has their views, and copies of small tables in their place.
        digest: ``digest_of_rows`` of a table, by its name.
    """

    def __init__(self, store: Store, study: Study):
        """Open the views; nothing is read yet."""
        self._study, self._files = study, _files(store, study)
        self.connection = connect(store, _TABLES, within=(study.name,))
        self._copied: set[str] = set()
        self.digest = cache(lambda table: digest_of_rows(self.connection, study, table))

    def copy(self, *tables: str) -> None:
        """Read tables into memory, where they are small."""
        for table in tables:
            if table in self._copied or not has_view(self.connection, table):
                continue
            self._copied.add(table)
            own = f"FROM main.{table} WHERE study = $study"
            found = self.connection.execute(f"SELECT count(*) {own}", {"study": self._study.name}).fetchone()
            if found is not None and found[0] <= _MOST_ROWS:  # DuckDB takes a temporary table before a view of its name
                self.connection.execute(
                    f"CREATE TEMPORARY TABLE {table} AS SELECT * {own}", {"study": self._study.name}
                )

    def is_latest(self, store: Store, study: Study) -> bool:
        """Whether it still shows what there is of the study."""
        return self._files is not None and study == self._study and _files(store, study) == self._files


def source_of(store: Store, study: Study) -> Source:
    """The rows of a study as they are now; opened anew where a file has changed since it was asked last."""
    key = (store.address, study.name)
    known = _LATEST.pop(key, None)
    if known is not None and not known.is_latest(store, study):
        known.connection.close()
        known = None
    while len(_LATEST) >= _MOST_SOURCES:
        _LATEST.pop(next(iter(_LATEST))).connection.close()
    _LATEST[key] = known or Source(store, study)
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
