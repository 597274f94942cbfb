"""One metric file, CSV or JSON lines, packed or not, as columns of float64 with the line each value is from.

Only what any reader of such files must know: text, separators, numbers, lines. ``formats`` says what the keys mean.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import NOT_FINITE

Record = tuple[int, list[tuple[str, Any]]]  # line number, keys and raw values

TABLE_SUFFIXES = (".csv", ".tsv")
OBJECT_SUFFIXES = (".jsonl", ".ndjson")
PACKED = ".gz"
# Fields that say that nothing was measured, in any case.
_MISSING = {"", "na", "n/a", "<na>", "null", "none", "-"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
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
    """

    path: Path
    keys: tuple[str, ...]
    lines: np.ndarray
    series: dict[str, Series]
    texts: dict[str, tuple[int, str]]
    left_out: tuple[str, ...] = ()

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

    def add(self, key: str, line: int, value: Any) -> None:
        if type(value) is not float:
            shown = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
            self.texts.setdefault(key, (line, shown if len(shown) <= 40 else f"{shown[:40]}…"))
            return
        if key not in self.values:
            self.rows[key], self.values[key] = array("q"), array("d")
        self.rows[key].append(len(self.lines) - 1)
        self.values[key].append(value)


def form_of(path: Path) -> str | None:
    """``table`` or ``objects``, as the file's name ends, or None if such files are not read."""
    suffix = (path.with_suffix("") if path.suffix.lower() == PACKED else path).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return "table"
    return "objects" if suffix in OBJECT_SUFFIXES else None


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
    records = _table(path, columns) if form_of(path) == "table" else _objects(path, accept_nan)
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
    file = MetricFile(path, tuple(columns.keys), _numpy(columns.lines), series, columns.texts, tuple(columns.left_out))
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
    return MetricFile(file.path, file.keys, file.lines, series, file.texts, tuple(left_out))


def _numpy(values: array) -> np.ndarray:
    return np.frombuffer(values, dtype=values.typecode)


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 text ({error.reason} at byte {error.start} of the line); save the "
                        "whole file as UTF-8"
                    ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is no whole gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _opened(path: Path) -> IO[bytes]:
    return io.BufferedReader(gzip.open(path)) if path.suffix.lower() == PACKED else path.open("rb")


def _table(path: Path, columns: _Columns) -> Iterator[Record]:
    """The rows of a CSV file; what is left out of it is noted in ``columns``."""
    lines = _text_lines(path)
    first = next(lines, "")
    separator = max(",;\t", key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
    number = _Numbers(path, may_have_commas=separator != ",")
    reader = csv.reader((line for part in ([first], lines) for line in part), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for position, name in enumerate(header):
            if name and name in header[:position]:
                raise UserError(f"{path}:1: two columns are called {name}")
        columns.keys |= dict.fromkeys(header)
        for fields in reader:
            line = reader.line_num
            if len(fields) != len(header) and fields:  # no fields: an empty line
                raise UserError(f"{path}:{line}: has {len(fields)} fields, but the first line names {len(header)}")
            if fields and [name.strip() for name in fields] == header:
                columns.left_out.append(f"the header again, as a resumed run writes it: {path}:{line}")
                continue
            told = [
                (name, number.of(text, line))
                for name, text in zip(header, fields, strict=False)
                if text.strip().lower() not in _MISSING
            ]
            if told:
                yield line, told
            elif any(fields):
                columns.left_out.append(f"a row without any value: {path}:{line}")
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error


class _Numbers:
    """Reads the numbers of a table. Where commas do not separate fields, they may be the decimal sign, or points."""

    def __init__(self, path: Path, *, may_have_commas: bool):
        self._path, self._may_have_commas = path, may_have_commas
        self._first: dict[str, tuple[str, int]] = {}  # by decimal sign, the first number with it and its line

    def of(self, text: str, line: int) -> float | str:
        """The number, or the text if it is none."""
        has_comma = self._may_have_commas and _DECIMAL_COMMA.fullmatch(text.strip()) is not None
        try:
            value = float(text.replace(",", ".") if has_comma else text)
        except ValueError:
            return text
        if math.isinf(value) and "n" not in text.lower():
            raise UserError(f"{self._path}:{line}: {text.strip()} is too large for a float64")
        if self._may_have_commas and (has_comma or "." in text):
            self._first.setdefault("," if has_comma else ".", (text.strip(), line))
            if len(self._first) == 2:
                (one, first), (other, second) = sorted(self._first.values(), key=lambda told: told[1])
                raise UserError(
                    f"{self._path}:{second}: {other} has another decimal sign than {one} in line {first}; write both "
                    "with a point"
                )
        return text if "_" in text else value  # Python's own way to write 1_000


class _Refused(Exception):
    """What is wrong with a line, raised from within the JSON decoder."""


def _objects(path: Path, accept_nan: bool) -> Iterator[Record]:
    def number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise _Refused(f"{text[:40]} is too large for a float64")
        return value

    def constant(token: str) -> float:
        if not accept_nan:
            raise _Refused(
                f'{token} is not JSON; write it as a string, "{token}", or pass --accept-nan if Python wrote the file'
            )
        return NOT_FINITE[token]

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _Refused("a key comes twice in one object")
        return dict(pairs)

    # Integers become floats too, as "-0" would lose its sign.
    decoder = json.JSONDecoder(parse_float=number, parse_int=number, parse_constant=constant, object_pairs_hook=mapping)
    for line, text in enumerate(_text_lines(path), start=1):
        if not text.strip():
            continue
        try:
            content = decoder.decode(text)
        except _Refused as error:
            raise UserError(f"{path}:{line}: {error}") from None
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise UserError(
                f"{path}:{line}: not a JSON object in one line ({reason}); if it is the last line of a run that was "
                "killed, remove it"
            ) from None
        if not isinstance(content, dict):
            raise UserError(f"{path}:{line}: not a JSON object, but {text.strip()[:40]}")
        yield line, [(name, _json_value(value)) for name, value in content.items() if value is not None]


def _json_value(value: Any) -> Any:
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value
