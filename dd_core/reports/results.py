"""The table of results: what every arm reached at the last epoch that all have, and the SQL that gives the same."""

from dataclasses import dataclass
from typing import Any

import duckdb

from dd_core.analysis.graph_report import at_best_or_last, name_of, results_of
from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.figures.drawing.selection import Selection, has_view, select
from dd_core.reports.parts import NOTHING, Grid, percent, shown
from dd_core.study.study import Study
from dd_core.tables.access import quoted

_TRACES = "(SELECT * FROM curvature WHERE subset = 'all')"
# Of each arm; what is compared with another recipe's rows is added where there are any.
_SQL = """\
SELECT variant, k, count(*) AS trials,
    avg(train_error) AS train_error, avg(test_error) AS test_error, stddev_samp(test_error) AS test_error_deviation,
    avg(train_loss) AS train_loss, avg(test_loss) AS test_loss{trace}
FROM training_evals{join}
WHERE study = {study} AND epoch = {epoch}{recipes}
GROUP BY variant, k ORDER BY variant, k"""
_COLUMNS = ("train error", "test error", "sd", "train loss", "test loss", "mean curvature")


@dataclass(frozen=True)
class Results:
    """What was reached.

    Attributes:
        epoch: at which; 0 where no checkpoint epoch is there of all arms.
        table: a row for each arm.
        note: a sentence about arms that are left out, if any are.
        sql: gives the numbers of the table.
        graphs: of graph studies accuracies beside baseline and ceiling.
    """

    epoch: int
    table: Grid
    note: str | None
    sql: str
    graphs: Grid | None


def results(study: Study, connection: duckdb.DuckDBPyConnection) -> Results | None:
    """The results of the study's present recipe, or None if no arm has been evaluated at a checkpoint.

    Args:
        study: whose.
        connection: has the views of ``training_evals``, ``runs``, ``curvature`` and ``nsm_results``.
    """
    selection = select(connection, study, "training_evals")
    if selection is None:
        return None
    sql = _sql(study, selection, connection)
    found = {(row["variant"], row["k"]): row for row in _rows(connection, sql)}
    arms = [study.arms[key] for key in selection.arms]
    has_trace = any(row.get("mean_curvature") is not None for row in found.values())
    several = len(study.variants) > 1
    rows = []
    for arm in arms:
        row = found[arm.variant, arm.k]
        losses = [shown(row[name], "{:.3f}") for name in ("train_loss", "test_loss")]
        numbers = [percent(row["train_error"]), percent(row["test_error"]), percent(row["test_error_deviation"])]
        traces = [shown(row["mean_curvature"], "{:#.3g}")] if has_trace else []
        rows.append([*([arm.variant] if several else []), str(arm.k), str(row["trials"]), *numbers, *losses, *traces])
    head = [*(["variant"] if several else []), "k", "trials", *_COLUMNS[: None if has_trace else -1]]
    numeric = frozenset(range(int(several), len(head)))
    graphs = _graphs(study, connection)
    return Results(selection.epoch, Grid(head, rows, numeric), selection.note(study), sql, graphs)


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    cursor = connection.execute(sql)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _sql(study: Study, selection: Selection, connection: duckdb.DuckDBPyConnection) -> str:
    """Text that a reader can run as it is, so values are literals; each is quoted."""
    recipes = sorted({study.recipe_hash(study.arms[arm]) for arm in selection.arms})
    others = (
        "SELECT 1 FROM training_evals WHERE study = $study AND epoch = $epoch AND recipe NOT IN (SELECT unnest($r))"
    )
    is_mixed = connection.execute(others, {"study": study.name, "epoch": selection.epoch, "r": recipes}).fetchone()
    traces = has_view(connection, "curvature") and query(
        connection, study, f"SELECT 1 FROM curvature WHERE {CURRENT} AND epoch = $epoch LIMIT 1", epoch=selection.epoch
    )
    return _SQL.format(
        study=quoted(study.name),
        epoch=selection.epoch,
        trace=",\n    avg(mean_trace) AS mean_curvature" if traces else "",
        join=f"\n    LEFT JOIN {_TRACES} USING (study, arm, variant, k, trial, recipe, epoch)" if traces else "",
        recipes=f"\n    AND recipe IN ({', '.join(map(quoted, recipes))})" if is_mixed else "",
    )


def _graphs(study: Study, connection: duckdb.DuckDBPyConnection) -> Grid | None:
    if study.data.graphs is None or not has_view(connection, "nsm_results"):
        return None
    at, found = at_best_or_last(study, results_of(study, connection))
    if not found:
        return None
    rows = [
        [
            name_of(study, arm),
            percent(own.accuracy.mean),
            f"{percent(own.accuracy.low)} to {percent(own.accuracy.high)}",
            percent(own.baseline),
            percent(own.ceiling),
            ", ".join(f"{number} {grade}" for grade, number in own.collapsed.items()) or NOTHING,
        ]
        for arm, own in found.items()
    ]
    split = next(iter(found.values())).split
    head = [f"at the {at} epoch", f"{split} accuracy", "95 % interval", "majority baseline", "ceiling", "collapsed"]
    return Grid(head, rows, frozenset(range(1, 5)))
