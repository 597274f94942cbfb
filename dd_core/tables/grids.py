"""What the grids of studies varied, as columns of the views: ``SELECT learning_rate, test_error FROM training_evals``.

``runs`` knows the values of every arm. They become a view ``grids`` with a row per arm, and each view of a table that
has an arm is joined with it. Where no study has a grid nothing is joined.
"""

import json

import duckdb

from dd_core.tables.access import quoted
from dd_core.tables.columns import Column, Table

_FAMILY = Column("family", "string", "the variant of the study file whose grid this arm comes from; null: no grid")


def create_view(connection: duckdb.DuckDBPyConnection, files: str) -> list[Column]:
    """Create the view ``grids`` of the view ``runs``, if any arm comes from a grid; returns its further columns.

    ``files``: the relation of the files of ``runs``; the view itself may work elsewhere alone.
    """
    found = connection.execute(f"SELECT DISTINCT grid FROM {files} WHERE grid IS NOT NULL").fetchall()
    values = [json.loads(text) for (text,) in found]
    names = sorted({name for each in values for name in each})
    if not names:
        return []
    columns = [Column(name, _type([each[name] for each in values if name in each]), _describe(name)) for name in names]
    sql = ", ".join(f"{_value(column)} AS {as_name(column.name)}" for column in columns)
    connection.execute(
        f"CREATE VIEW grids AS SELECT study, arm, any_value(family) AS family, {sql} FROM runs WHERE grid IS NOT NULL "
        "GROUP BY study, arm"
    )
    connection.execute("COMMENT ON VIEW grids IS 'Every arm of a grid, with what the grid varied.'")
    return [_FAMILY, *columns]


def joined(table: Table, select: str, present: set[str], columns: list[Column]) -> tuple[str, list[Column]]:
    """The query of a view with the columns of ``grids`` that it lacks; as it is for tables without an arm.

    Args:
        table: of the view.
        select: its query.
        present: names of its columns.
        columns: those of ``grids`` beside study and arm.

    Returns:
        The query, and the columns that were added.
    """
    added = [column for column in columns if column.name not in present]
    if not added or "arm" not in table.folder_columns:
        return select, []
    names = ", ".join(f"grids.{as_name(column.name)}" for column in added)
    return f"SELECT own.*, {names} FROM ({select}) own LEFT JOIN grids USING (study, arm)", added


def _type(values: list[object]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    return "float64" if kinds <= {int, float} else "string"


def _value(column: Column) -> str:
    sql = {"bool": "BOOLEAN", "float64": "DOUBLE", "string": "VARCHAR"}[column.type]
    pointer = "/" + column.name.replace("~", "~0").replace("/", "~1")
    return f"any_value(CAST(json_extract_string(grid, {quoted(pointer)}) AS {sql}))"


def _describe(name: str) -> str:
    return f"{name.replace('_', ' ')} of the recipe, varied by a grid; null: not varied there"


def as_name(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
