"""One metric file, CSV or JSON lines, packed or not, as columns of float64 with the line each value is from.

Only what any reader of such files must know: text, separators, numbers, lines. ``formats`` says what the keys mean.
"""

import json
import re
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import plain
from dd_core.exchange.text import form_of, object_records, table_records

# The step of what is told of an epoch.
NO_STEP = -1
# Keys whose values are words, which say of what kind a run is.
WORDS = ("variant", "optimizer", "architecture")
# Column names that pandas gives, or leaves out, where it writes the numbers of rows.
_INDEX = re.compile(r"(Unnamed: \d+)?")


@dataclass(frozen=True)
class Series:
    """The values of one key.

    Attributes:
        rows: numbers of the records that have it, int64, ascending.
        values: float64, as many.
    """

    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class MetricFile:
    """What a file says.

    Attributes:
        path: where it lies.
        keys: as the file has them, before any renaming.
        lines: of each record, int64, from 1.
        series: numbers by key, in the order in which the keys first come.
        texts: keys with a value that is no number: the first such line and value.
        left_out: sentences about what of the file is not taken, such as the numbers of rows.
        words: of ``WORDS``, by the plain name of the key, the first two different texts.
    """

    path: Path
    keys: tuple[str, ...]
    lines: np.ndarray
    series: dict[str, Series]
    texts: dict[str, tuple[int, str]]
    left_out: tuple[str, ...] = ()
    words: dict[str, list[str]] = field(default_factory=dict)

    def where(self, row: int) -> str:
        """File and line of a record."""
        return f"{self.path}:{self.lines[row]}"


@dataclass
class _Columns:
    """Grows value by value; 16 bytes each."""

    keys: dict[str, None] = field(default_factory=dict)
    lines: array = field(default_factory=lambda: array("q"))
    rows: dict[str, array] = field(default_factory=dict)
    values: dict[str, array] = field(default_factory=dict)
    texts: dict[str, tuple[int, str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)

    def add(self, key: str, line: int, value: Any) -> None:
        if type(value) is str and (name := plain(key)) in WORDS:
            known = self.words.setdefault(name, [])
            if value not in known and len(known) < 2:
                known.append(value)
            return
        if type(value) is not float:
            shown = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
            self.texts.setdefault(key, (line, shown if len(shown) <= 40 else f"{shown[:40]}…"))
            return
        if key not in self.values:
            self.rows[key], self.values[key] = array("q"), array("d")
        self.rows[key].append(len(self.lines) - 1)
        self.values[key].append(value)


def read_metrics(path: Path, renames: dict[str, str] | None = None, *, accept_nan: bool = False) -> MetricFile:
    """Read a file; its name says whether it is a table or JSON lines (``form_of``).

    An empty field, an absent key and null mean that nothing was measured. In JSON, "NaN", "Infinity" and "-Infinity"
    are numbers, as exported files have them. Fields are separated by what the first line has most of, of comma,
    semicolon and tab; a header that comes again, as resumed runs write it, is left out.

    Args:
        path: the file, UTF-8.
        renames: keys to be read under another name; those with an empty name are left out.
        accept_nan: take the bare tokens NaN, Infinity and -Infinity, which Python writes and JSON does not have.

    Raises:
        UserError: the file cannot be read or understood; it names the line.
    """
    renames = renames or {}
    columns = _Columns()
    records = (
        table_records(path, columns.keys, columns.left_out)
        if form_of(path) == "table"
        else object_records(path, accept_nan)
    )
    for line, pairs in records:
        columns.lines.append(line)
        for key, value in pairs:
            if key not in columns.keys:
                columns.keys[_sound(key, path, line)] = None
            name = renames.get(key, key)
            if name or not key:
                columns.add(name, line, value)
    if not columns.lines:
        raise UserError(f"{path}: is empty: it has no row of values")
    for new in filter(None, renames.values()):
        if np.any(np.diff(columns.rows.get(new, ())) == 0):
            raise UserError(f"{path}: has two keys for {new}, one of them by --rename")
    everywhere = np.arange(len(columns.lines))  # shared, as most columns of large files have a value in every record
    series = {}
    for key, values in columns.values.items():
        rows = everywhere if len(values) == len(everywhere) else _numpy(columns.rows[key])
        series[key] = Series(rows, _numpy(values))
    lines, left_out = _numpy(columns.lines), tuple(columns.left_out)
    file = MetricFile(path, tuple(columns.keys), lines, series, columns.texts, left_out, columns.words)
    return _without_row_numbers(file)


def _sound(key: str, path: Path, line: int) -> str:
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = key.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{path}:{line}: the key {shown[:40]} is not text (half a surrogate pair)") from None
    return key


def _without_row_numbers(file: MetricFile) -> MetricFile:
    """Without columns that have no name: the numbers of rows, as pandas writes them, or nothing at all."""
    left_out, series = [*file.left_out], dict(file.series)
    for position, key in enumerate(file.keys):
        if not _INDEX.fullmatch(key) or (key and key not in series):
            continue
        if key not in series and key not in file.texts:
            continue  # each line ends with a separator
        told = series.pop(key, None)
        counts = told is not None and (told.values % 1 == 0).all() and (told.values >= 0).all()
        if key in file.texts or not counts or position:
            raise UserError(f"{file.path}:1: column {position + 1} has no name, and does not count rows")
        left_out.append(f"the first column, which has no name and counts rows: {file.path}")
    return replace(file, series=series, left_out=tuple(left_out))


def _numpy(values: array) -> np.ndarray:
    return np.frombuffer(values, dtype=values.typecode)
