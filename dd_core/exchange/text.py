"""The text of metric files: packed or not, tables or JSON lines, as records of keys and raw values with their lines."""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dd_core.errors import UserError
from dd_core.exchange.columns import NOT_FINITE

Record = tuple[int, list[tuple[str, Any]]]  # line number, keys and raw values

TABLE_SUFFIXES = (".csv", ".tsv")
OBJECT_SUFFIXES = (".jsonl", ".ndjson")
PACKED = ".gz"
# Fields that say that nothing was measured, in any case.
_MISSING = {"", "na", "n/a", "<na>", "null", "none", "-"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def form_of(path: Path) -> str | None:
    """``table`` or ``objects``, as the file's name ends, or None if such files are not read."""
    suffix = (path.with_suffix("") if path.suffix.lower() == PACKED else path).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return "table"
    return "objects" if suffix in OBJECT_SUFFIXES else None


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


def table_records(path: Path, keys: dict[str, None], left_out: list[str]) -> Iterator[Record]:
    """The rows of a CSV file.

    Args:
        path: of the file.
        keys: takes the header.
        left_out: takes sentences about what is no row.

    Raises:
        UserError: it is no such file.
    """
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
        keys |= dict.fromkeys(header)
        for fields in reader:
            line = reader.line_num
            if len(fields) != len(header) and fields:  # no fields: an empty line
                raise UserError(f"{path}:{line}: has {len(fields)} fields, but the first line names {len(header)}")
            if fields and [name.strip() for name in fields] == header:
                left_out.append(f"the header again, as a resumed run writes it: {path}:{line}")
                continue
            told = [
                (name, number.of(text, line))
                for name, text in zip(header, fields, strict=False)
                if text.strip().lower() not in _MISSING
            ]
            if told:
                yield line, told
            elif any(fields):
                left_out.append(f"a row without any value: {path}:{line}")
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


def object_records(path: Path, accept_nan: bool) -> Iterator[Record]:
    """The objects of a file of JSON lines.

    Raises:
        UserError: it is no such file.
    """

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
