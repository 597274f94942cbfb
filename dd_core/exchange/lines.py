"""Columns of numbers as lines of CSV and JSON, exact: each float64 in the fewest digits that give it back."""

import csv
import io
import json
import math

import pyarrow as pa
import pyarrow.compute as pc

from dd_core.exchange.columns import NOT_FINITE


def csv_header(names: list[str]) -> str:
    """The first line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(names)
    return text.getvalue()


def csv_lines(columns: list[pa.Array]) -> str:
    """Lines of CSV; null is an empty field.

    Args:
        columns: integers or float64, all of the same length.
    """
    fields = [pc.fill_null(_digits(column, quote=""), "") for column in columns]
    return _joined(pc.binary_join_element_wise(*fields, ","))


def json_lines(names: list[str], columns: list[pa.Array]) -> str:
    """Lines of JSON, one object each; null is an absent key.

    Args:
        names: keys of the columns.
        columns: integers or float64, all of the same length.
    """
    pairs = [
        pc.binary_join_element_wise(f"{json.dumps(name)}: ", _digits(column, quote='"'), "")
        for name, column in zip(names, columns, strict=True)
    ]
    objects = pc.binary_join_element_wise(*pairs, ", ", null_handling="skip")
    return _joined(pc.binary_join_element_wise("{", objects, "}", ""))


def _digits(column: pa.Array, quote: str) -> pa.Array:
    """Numbers as text, null where they are; ``quote`` stands around what is not finite."""
    text = pc.cast(column, pa.string())
    if not pa.types.is_floating(column.type):
        return text
    # Python and others read "-0" as the integer, which has no sign.
    text = pc.if_else(pc.equal(text, "-0"), "-0.0", text)
    for word, value in NOT_FINITE.items():
        found = pc.is_nan(column) if math.isnan(value) else pc.equal(column, value)
        text = pc.if_else(found, f"{quote}{word}{quote}", text)
    return text


def _joined(lines: pa.Array) -> str:
    return "".join(f"{line}\n" for line in lines.to_pylist())
