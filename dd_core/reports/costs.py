"""What training a study took and cost."""

from typing import Any

import duckdb

from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.figures.drawing.selection import has_view
from dd_core.reports.parts import NOTHING, Grid, lasting, shown
from dd_core.study.study import Study
from dd_core.words import counted

_BY_ARM = f"SELECT * FROM costs WHERE {CURRENT}"
_MACHINES = f"SELECT DISTINCT device, torch_version FROM runs WHERE {CURRENT} AND device IS NOT NULL ORDER BY ALL"


def costs(study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[Grid, Grid] | None:
    """Totals, and a row for each arm; None: no attempt to train the present recipe is known.

    Args:
        study: whose.
        connection: has the view of ``runs``.
    """
    if not has_view(connection, "runs"):
        return None
    found = {row["arm"]: row for row in query(connection, study, _BY_ARM)}
    rows = [found[arm] for arm in study.arms if arm in found]
    if not rows:
        return None
    saved = _sum(rows, "seconds_saved")
    totals = {
        "attempts": f"{sum(row['num_attempts'] for row in rows):,} for {counted(len(rows), 'arm')}",
        "time of workers": lasting(_sum(rows, "seconds")),
        "predicted": lasting(_sum(rows, "predicted_seconds")),
        "cost, in the currency of the price": shown(_sum(rows, "cost"), "{:.2f}"),
        "saved by early stopping": lasting(saved) if saved else "",
    }
    columns = {
        "arm": [row["arm"] for row in rows],
        "attempts": [str(row["num_attempts"]) for row in rows],
        "took": [lasting(row["seconds"]) for row in rows],
        "predicted": [lasting(row["predicted_seconds"]) for row in rows],
        "cost": [shown(row["cost"], "{:.2f}") for row in rows],
    }
    told = {name: column for name, column in columns.items() if set(column) != {NOTHING}}
    table = Grid(list(told), list(zip(*told.values(), strict=True)), frozenset(range(1, len(told))))
    known = {name: text for name, text in totals.items() if text != NOTHING}
    return Grid.of_facts(known), table


def machines(study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], list[str]]:
    """The devices that the present recipe was trained on, and the versions of PyTorch."""
    if not has_view(connection, "runs"):
        return [], []
    found = query(connection, study, _MACHINES)
    devices = dict.fromkeys(row["device"] for row in found)
    return list(devices), list(dict.fromkeys(row["torch_version"] for row in found if row["torch_version"]))


def _sum(rows: list[dict[str, Any]], name: str) -> float | None:
    """None: it is not known of every arm."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values)
