"""Which arms of a study have rows in a table, whatever its epochs mean there, and why others are left out."""

import duckdb

from dd_assets.figures.selection import Selection, fetch, has_view
from dd_core.studies import Study
from dd_core.tables import TABLES


def drawn_arms(connection: duckdb.DuckDBPyConnection, study: Study, table: str) -> tuple[tuple[str, ...], str | None]:
    """Keys of the arms with rows of the present recipe, in the order of the study.

    Returns:
        The keys, and a sentence for the subtitle about the others, if there are any.
    """
    if not has_view(connection, table):
        return (), None
    current = {row["arm"] for row in fetch(connection, study, table, "SELECT DISTINCT arm FROM rows")}
    sql = f"SELECT DISTINCT arm FROM {TABLES[table].name} WHERE study = $study"
    stored = {arm for (arm,) in connection.execute(sql, {"study": study.name}).fetchall()}
    arms = tuple(arm for arm in study.arms if arm in current)
    stale = tuple(arm for arm in study.arms if arm in stored - current)
    missing = tuple(arm for arm in study.arms if arm not in stored)
    return arms, Selection(arms, 0, stale, missing).note(study)
