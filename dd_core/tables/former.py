"""Reading what earlier versions wrote: their names of columns and metrics (``dd_core.study.former_names``) as of now.

The views and ``read_parquet`` both ask here, so that files of before and of now stand in one table. A name that is a
value, of ``metric`` and ``best_by``, is translated row by row, and with it the ``value`` beside it.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from dd_core.study.former_names import METRICS, NOW, now

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that hold names of metrics.
_NAMES = ("metric", "best_by")
_FORMER: dict[str, list[str]] = {}
for _name, _now in NOW.items():
    _FORMER.setdefault(_now.name, []).append(_name)


def ways(column: str, present: Collection[str]) -> list[str]:
    """SQL of a column's values, in order of precedence: by its own name, and by those of before that files have."""
    found = [_sql(column, present)] * (column in present)
    for name in _FORMER.get(column, ()):
        if name in present:
            was = NOW[name]
            found.append(f'"{name}"' if was.is_same else f'{was.offset!r} + {was.factor!r} * "{name}"')
    return found


def _sql(column: str, present: Collection[str]) -> str:
    if column in _NAMES:
        cases = " ".join(f"WHEN '{name}' THEN '{was.name}'" for name, was in METRICS.items())
        return f'CASE "{column}" {cases} ELSE "{column}" END'
    if column == "value" and "metric" in present:
        cases = " ".join(
            f"WHEN '{name}' THEN {was.offset!r} + {was.factor!r} * value"
            for name, was in METRICS.items()
            if not was.is_same
        )
        return f"CASE metric {cases} ELSE value END"
    return f'"{column}"'


def as_now(table: "pa.Table") -> "pa.Table":
    """A file's rows with the names and values of now."""
    for name in _NAMES:
        if name in table.column_names:
            table = _names_as_now(table, name)
    taken = {name for name in table.column_names if now(name).name == name}
    for name in table.column_names:
        was, at = now(name), table.column_names.index(name)
        if was.name == name:
            continue
        if was.name in taken:  # told twice, in nats and in bits
            table = table.remove_column(at)
            continue
        taken.add(was.name)
        values = table.column(name) if was.is_same else _scaled(table.column(name), was.offset, was.factor)
        table = table.set_column(at, table.schema.field(name).with_name(was.name), values)
    return table


def _names_as_now(table: "pa.Table", column: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table[column].combine_chunks()
    if isinstance(names, pa.ChunkedArray):  # without rows
        return table
    if not pa.types.is_dictionary(names.type):
        names = names.dictionary_encode()
    told = names.dictionary.to_pylist()
    if not METRICS.keys() & set(told):
        return table
    if column == "metric" and "value" in table.column_names:
        for name, was in METRICS.items():
            if name in told and not was.is_same:
                values = table["value"]
                scaled = pc.if_else(
                    pc.equal(table[column].cast(pa.string()), name), _scaled(values, was.offset, was.factor), values
                )
                table = table.set_column(
                    table.column_names.index("value"), table.schema.field("value"), scaled.cast(values.type)
                )
    renamed = pa.array([METRICS[name].name if name in METRICS else name for name in told], pa.string())
    own = pa.DictionaryArray.from_arrays(names.indices, renamed).cast(table.schema.field(column).type)
    return table.set_column(table.column_names.index(column), table.schema.field(column), own)


def _scaled(values: "pa.ChunkedArray", offset: float, factor: float) -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    return pc.add(pc.multiply(values, factor), offset)
