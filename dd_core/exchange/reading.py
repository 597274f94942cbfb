"""One metric file, CSV or JSON lines, as columns of float64 with the line each value is from.

Only what any reader of such files must know: text, numbers, lines. What the keys mean is said in ``columns``.
"""

import csv
import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import NOT_FINITE

Record = tuple[int, list[tuple[str, Any]]]  # line number, keys and raw values


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
        lines: of each record, int64, from 1.
        series: numbers by key, in the order in which the keys first come.
        texts: keys with a value that is no number: the first such line and value.
    """

    path: Path
    lines: np.ndarray
    series: dict[str, Series]
    texts: dict[str, tuple[int, str]]

    def where(self, row: int) -> str:
        """File and line of a record."""
        return f"{self.path}:{self.lines[row]}"


@dataclass
class _Columns:
    """Grows value by value; 16 bytes each."""

    lines: array = field(default_factory=lambda: array("q"))
    rows: dict[str, array] = field(default_factory=dict)
    values: dict[str, array] = field(default_factory=dict)
    texts: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, key: str, line: int, value: Any) -> None:
        if type(value) is not float:
            shown = json.dumps(value, ensure_ascii=False)
            self.texts.setdefault(key, (line, shown if len(shown) <= 40 else f"{shown[:40]}…"))
            return
        if key not in self.values:
            self.rows[key], self.values[key] = array("q"), array("d")
        self.rows[key].append(len(self.lines) - 1)
        self.values[key].append(value)


def read_metrics(path: Path, renames: dict[str, str] | None = None, *, accept_nan: bool = False) -> MetricFile:
    """Read a file; its name ends in .csv, .jsonl or .ndjson.

    An empty field, an absent key and null mean that nothing was measured. In JSON, "NaN", "Infinity" and "-Infinity"
    are numbers, as exported files have them.

    Args:
        path: the file, UTF-8.
        renames: keys to be read under another name; those with an empty name are left out.
        accept_nan: take the bare tokens NaN, Infinity and -Infinity, which Python writes and JSON does not have.

    Raises:
        UserError: the file cannot be read or understood; it names the line.
    """
    renames = renames or {}
    columns = _Columns()
    records = _csv_records(path) if path.suffix.lower() == ".csv" else _json_records(path, accept_nan)
    for line, pairs in records:
        columns.lines.append(line)
        for key, value in pairs:
            name = renames.get(key, key)
            if name:
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
    return MetricFile(path, _numpy(columns.lines), series, columns.texts)


def _numpy(values: array) -> np.ndarray:
    return np.frombuffer(values, dtype=values.typecode)


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 text ({error.reason} at byte {error.start} of the line); save the "
                        "whole file as UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _csv_records(path: Path) -> Iterator[Record]:
    reader = csv.reader(_text_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for position, name in enumerate(header):
            if not name:
                raise UserError(f"{path}:1: column {position + 1} has no name")
            if name in header[:position]:
                raise UserError(f"{path}:1: two columns are called {name}")
        for fields in reader:
            line = reader.line_num
            if len(fields) != len(header) and fields:  # no fields: an empty line
                raise UserError(f"{path}:{line}: has {len(fields)} fields, but the first line names {len(header)}")
            told = [(name, _csv_number(text, path, line)) for name, text in zip(header, fields, strict=False) if text]
            if told:
                yield line, told
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _csv_number(text: str, path: Path, line: int) -> float | str:
    """The number, or the text if it is none."""
    try:
        value = float(text)
    except ValueError:
        return text
    if math.isinf(value) and "n" not in text.lower():
        raise UserError(f"{path}:{line}: {text.strip()} is too large for a float64")
    return text if "_" in text else value  # Python's own way to write 1_000


class _Refused(Exception):
    """What is wrong with a line, raised from within the JSON decoder."""


def _json_records(path: Path, accept_nan: bool) -> Iterator[Record]:
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
