"""The rows a figure may show: those of the study's present recipe, and nothing else.

Every query of a figure goes through ``fetch``. Belongs here: which arms have data, and up to which epoch. Does not
belong here: what the numbers mean.
"""

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import duckdb

from dd_core.study.study import Study
from dd_core.tables.files import TABLES

# Of variants with panels of their own that one can still read: panels side by side, and lines below each other.
MOST_PANELS, MOST_LINES = 6, 4
_MOST_NAMED = 4  # variants in a sentence about what is left out

# Arms and their recipes arrive as two lists of equal length, so that no text of a study becomes part of the SQL.
# The conditions on study and arm alone are redundant; they let DuckDB skip the folders of all others.
_CURRENT = """
    SELECT * FROM {table}
    WHERE study = $study AND list_contains($arms, arm)
      AND (arm, recipe) IN (SELECT unnest($arms), unnest($recipes))
"""


def fetch(
    connection: duckdb.DuckDBPyConnection, study: Study, table: str, sql: str, **parameters: Any
) -> list[dict[str, Any]]:
    """Query the study's current rows of a table, for drawing.

    Args:
        connection: has the views.
        study: gives the arms and the recipe hash each must have.
        table: name of a table.
        sql: a SELECT over the relation ``rows``, a constant of this package; values go in as ``$name``.
        **parameters: the values of the query's parameters.

    Returns:
        One dictionary per row. Numbers that are not finite become None, which Vega-Lite leaves out and JSON can hold,
        others have six digits; without a view of that table there are no rows.
    """
    return [
        {name: tidy(value) for name, value in row.items()}
        for row in fetch_exact(connection, study, table, sql, **parameters)
    ]


def fetch_exact(
    connection: duckdb.DuckDBPyConnection, study: Study, table: str, sql: str, **parameters: Any
) -> list[dict[str, Any]]:
    """The same for computing: numbers as they are stored."""
    if not has_view(connection, table):
        return []
    arms = study.arms
    current = {"study": study.name, "arms": list(arms), "recipes": [study.recipe_hash(arm) for arm in arms.values()]}
    query = f"WITH rows AS ({_CURRENT.format(table=TABLES[table].name)}) {sql}"
    cursor = connection.execute(query, {**current, **parameters})
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# A stored digest says something only where the same version gives those of now.
HASHED_BY = {"hashed_by": f"DuckDB {duckdb.__version__}"}
# Columns are summed apart and without null, as views have columns that other studies' files brought with them.
_SUMS = """
    SELECT arm, recipe, count(*) AS num_rows,
        sum(hash(COLUMNS(* EXCLUDE (arm, recipe)))) FILTER (COLUMNS(* EXCLUDE (arm, recipe)) IS NOT NULL)
    FROM rows GROUP BY arm, recipe ORDER BY arm, recipe
"""


def digest_of_rows(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> str:
    """Tells the rows of the study's present recipe in a table from others: 16 hexadecimal digits.

    It changes with the recipe of any arm that has rows, with every row that comes or goes and with every value; so a
    figure that carries it can be told from one that was drawn from other results.
    """
    if not {"arm", "recipe"} <= {column.name for column in TABLES[table].columns}:
        return ""
    found = fetch_exact(connection, study, table, _SUMS)
    rows = [{name: value for name, value in sorted(row.items()) if value is not None} for row in found]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def has_view(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    """Whether the table has a view, that is any file."""
    found = connection.execute("SELECT count(*) FROM duckdb_views() WHERE view_name = $table", {"table": table})
    return bool((found.fetchone() or (0,))[0])


def column_names(connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    """The columns of a table's view, those included that only some files have; none without a view."""
    sql = (
        "SELECT column_name FROM duckdb_columns() WHERE table_name = $table AND database_name <> 'temp' "
        "ORDER BY column_index"
    )
    return [name for (name,) in connection.execute(sql, {"table": table}).fetchall()]


def tidy(value: Any) -> Any:
    """A number that can be drawn, or None if it is not finite; anything else as it is."""
    if isinstance(value, float):
        # Six digits are more than a screen can show and a third of the characters.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Selection:
    """What of a table can be drawn.

    Attributes:
        arms: keys of the arms with current rows, in the order of the study.
        epoch: the latest checkpoint epoch that all of them have.
        stale: arms that have rows of another recipe only.
        missing: arms that have no rows.
        diverged: arms of which every trial ended that way before that epoch.
        unfinished: arms that have current rows, but at no checkpoint epoch.
    """

    arms: tuple[str, ...]
    epoch: int
    stale: tuple[str, ...]
    missing: tuple[str, ...]
    diverged: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    def note(self, study: Study) -> str | None:
        """A sentence for the subtitle that says which arms are left out and why, or None."""
        reasons = {
            "diverged": self.diverged,
            "results of an earlier recipe": self.stale,
            "no results at a checkpoint": self.unfinished,
            "no results yet": self.missing,
        }
        parts = [f"{name_arms(study, arms)} ({reason})" for reason, arms in reasons.items() if arms]
        return f"Left out: {', '.join(parts)}" if parts else None


# Of an attempt there may be a row of its beginning, which the view leaves out, and one of its end.
_DIVERGED = """
    SELECT arm FROM (SELECT arm, trial, arg_max(status, attempt) AS status FROM rows GROUP BY arm, trial)
    GROUP BY arm HAVING bool_and(status = 'diverged')
"""


def _diverged(connection: duckdb.DuckDBPyConnection, study: Study) -> set[str]:
    """The arms of the present recipe of which every trial diverged at its last attempt."""
    return {row["arm"] for row in fetch(connection, study, "runs", _DIVERGED)}


def said_of_arms(connection: duckdb.DuckDBPyConnection, study: Study, tables: Collection[str]) -> dict[str, list[str]]:
    """What figures say of arms that have no rows of the present recipe: which have other rows, and which diverged."""
    said = {"diverged": sorted(_diverged(connection, study))}
    for table in tables:
        if "arm" in {column.name for column in TABLES[table].columns} and has_view(connection, table):
            said[table] = sorted(_stored(connection, study, table))
    return said


def _stored(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> set[str]:
    """The arms that have rows of any recipe."""
    sql = f"SELECT DISTINCT arm FROM {TABLES[table].name} WHERE study = $study"
    return {arm for (arm,) in connection.execute(sql, {"study": study.name}).fetchall()}


def select(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> Selection | None:
    """Find the arms with current rows and their latest common checkpoint epoch.

    Arms that diverged do not hold the others back: they are left out of what they have no part in.

    Args:
        connection: has the view of the table, and that of ``runs`` for what diverged.
        study: whose arms.
        table: has a column ``epoch``.

    Returns:
        None if there are no current rows, or no checkpoint epoch that all arms have.
    """
    found = fetch(
        connection,
        study,
        table,
        "SELECT arm, list(DISTINCT epoch) FILTER (list_contains($epochs, epoch)) AS epochs FROM rows GROUP BY arm",
        epochs=list(study.checkpoints),
    )
    epochs = {row["arm"]: set(row["epochs"] or ()) for row in found}
    ended = _diverged(connection, study)
    # What is trained today has no checkpoint yet, and what diverged at once never will.
    counting = [own for arm, own in epochs.items() if own and arm not in ended] or [
        own for own in epochs.values() if own
    ]
    common = set.intersection(*counting) if counting else set()
    if not common:
        return None
    epoch = max(common)
    stored = _stored(connection, study, table)
    absent = [arm for arm in study.arms if epoch not in epochs.get(arm, ())]
    return Selection(
        arms=tuple(arm for arm in study.arms if epoch in epochs.get(arm, ())),
        epoch=epoch,
        stale=tuple(arm for arm in absent if arm in stored - set(epochs) - ended),
        missing=tuple(arm for arm in absent if arm not in stored | ended),
        diverged=tuple(arm for arm in absent if arm in ended),
        unfinished=tuple(arm for arm in absent if arm in set(epochs) - ended),
    )


def name_arms(study: Study, keys: tuple[str, ...]) -> str:
    """Arms in words, by variant where there are several: ``k = 2, 4`` or ``s-core k = 2, 4; s-wide k = 8``.

    Of many variants only the first are named.
    """
    widths: dict[str, list[int]] = {}
    for key in keys:
        arm = study.arms[key]
        widths.setdefault(arm.variant, []).append(arm.k)
    several = len(study.variants) > 1
    words = [(f"{variant} " if several else "") + f"k = {', '.join(map(str, ks))}" for variant, ks in widths.items()]
    more = [f"{len(words) - _MOST_NAMED} variants more"] if len(words) > _MOST_NAMED + 1 else []
    return "; ".join([*words[:_MOST_NAMED], *more] if more else words)


def drawn_arms(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> tuple[tuple[str, ...], str | None]:
    """Keys of the arms with rows of the present recipe, in the order of the study.

    Returns:
        The keys, and a sentence for the subtitle about the others, if there are any.
    """
    if not has_view(connection, table):
        return (), None
    current = {row["arm"] for row in fetch(connection, study, table, "SELECT DISTINCT arm FROM rows")}
    stored = _stored(connection, study, table)
    arms = tuple(arm for arm in study.arms if arm in current)
    ended = _diverged(connection, study) - current
    stale = tuple(arm for arm in study.arms if arm in stored - current - ended)
    missing = tuple(arm for arm in study.arms if arm not in stored | ended)
    diverged = tuple(arm for arm in study.arms if arm in ended)
    return arms, Selection(arms, 0, stale, missing, diverged).note(study)


def shown_variants(study: Study, present: Collection[str], most: int = MOST_PANELS) -> tuple[list[str], str | None]:
    """The variants with panels of their own in a figure, and a sentence for the subtitle if these are not all.

    Of a grid's hundreds of variants these are the first of each family, as far as there is room.

    Args:
        study: has the variants.
        present: those that have data.
        most: panels that one can still read.
    """
    names = [variant for variant in study.variants if variant in present]
    if len(names) <= most:
        return names, None
    firsts = list({study.families[name]: name for name in reversed(names)}.values())[::-1]
    if len(firsts) == 1 or len(firsts) == len(names):
        return names[:most], f"Variants: the first {most} of {len(names)}"
    which = "the first of each family" if len(firsts) <= most else f"the first of {most} of {len(firsts)} families"
    return firsts[:most], f"Variants: {which}, {min(len(firsts), most)} of {len(names)}"
