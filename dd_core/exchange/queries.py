"""The tables of one arm, and what of them goes into its metric files: SQL, and nothing that writes."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset

from dd_core.errors import StaleError, UserError
from dd_core.exchange.columns import (
    EPOCH_FILE_KEYS,
    EPOCH_FILE_METRICS,
    METRIC_KEYS,
    STANDARD_ERROR,
    STEP_FILE_KEYS,
    VALIDATION_KEYS,
    is_reserved,
)
from dd_core.store.files import is_object
from dd_core.store.store import Store
from dd_core.study.former_names import METRICS, NOW, Now
from dd_core.study.study import Arm, Study
from dd_core.tables.files import TABLES, arrow_schema

EXPORTED_TABLES = ("training_batches", "training_evals", "training_monitors")
_NUM_BATCH_KEYS = STEP_FILE_KEYS.index("acc_train") + 1
_FROM_EVALUATION = {
    **{name: f"evaluation.{name}" for name in VALIDATION_KEYS},
    "checkpoint_size_mb": "evaluation.megabytes",
}

# One row per step at which something was measured. The names of metrics come in as values, never as SQL, so columns of
# monitors are numbered. An evaluation is also where a checkpoint may be; a trial that stopped early is evaluated again
# and again after its last step, of which the first time is told.
_STEPS = """
    WITH batch AS (
        SELECT step, epoch, time, lr, weight_decay AS wd, loss_train_nats, loss_train_bits, acc_train
        FROM training_batches WHERE trial = $trial AND recipe = $recipe
    ), monitor AS (
        SELECT step, any_value(epoch) AS epoch{measured}
        FROM training_monitors WHERE trial = $trial AND recipe = $recipe AND step IS NOT NULL AND value IS NOT NULL
        GROUP BY step
    ), checkpoint AS (
        SELECT unnest($epochs::SMALLINT[]) AS epoch, unnest($megabytes::DOUBLE[]) AS megabytes
    ), evaluation AS (
        SELECT step, min(epoch) AS epoch, arg_min(megabytes, epoch) AS megabytes,
               arg_min(CASE WHEN $has_validation THEN loss_val_nats END, epoch) AS loss_val_nats,
               arg_min(CASE WHEN $has_validation THEN acc_val END, epoch) AS acc_val
        FROM training_evals LEFT JOIN checkpoint USING (epoch)
        WHERE trial = $trial AND recipe = $recipe AND step IS NOT NULL
          AND ($has_validation AND coalesce(loss_val_nats, acc_val) IS NOT NULL OR megabytes IS NOT NULL)
        GROUP BY step
    )
    SELECT step, coalesce(batch.epoch, monitor.epoch, evaluation.epoch) AS epoch,
           time, lr, wd, loss_train_nats, loss_train_bits, acc_train{shown}
    FROM batch FULL JOIN monitor USING (step) FULL JOIN evaluation USING (step) ORDER BY step
"""
_METRICS = """
    SELECT metric, bool_or(standard_error IS NOT NULL AND NOT isnan(standard_error)) FROM training_monitors
    WHERE recipe = $recipe AND step IS NOT NULL AND value IS NOT NULL GROUP BY metric ORDER BY metric
"""
TRIALS = """
    SELECT DISTINCT trial FROM (
        SELECT trial, recipe, step FROM training_batches UNION ALL SELECT trial, recipe, step FROM training_evals
        UNION ALL SELECT trial, recipe, step FROM training_monitors WHERE value IS NOT NULL
    ) WHERE recipe = $recipe AND step IS NOT NULL ORDER BY trial
"""
EPOCHS = f"""
    SELECT {", ".join(EPOCH_FILE_KEYS)} FROM training_evals
    WHERE recipe = $recipe AND coalesce({", ".join(EPOCH_FILE_METRICS)}) IS NOT NULL ORDER BY epoch, trial
"""


def table_files(store: Store, table: str, study: Study, arm: Arm) -> list[Path]:
    """The parquet files of an arm in a table."""
    return sorted(store.table_folder(table, study.name, arm.key).glob("*.parquet"))


@contextlib.contextmanager
def connection_to(store: Store, study: Study, arm: Arm) -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables of one arm alone under the keys of step files: the warehouse's views would open all other files too.

    Raises:
        StaleError: a file is damaged, as is found when it is read.
    """
    with contextlib.closing(duckdb.connect()) as connection:
        for name in EXPORTED_TABLES:
            types = {field.name: field.type for field in arrow_schema(TABLES[name])}
            types = {column: pa.string() if pa.types.is_dictionary(type_) else type_ for column, type_ in types.items()}
            former = {key: was for key, was in NOW.items() if was.name in types}
            fields = [*types.items(), *((key, types[was.name]) for key, was in former.items())]
            found = table_files(store, name, study, arm)
            # An object's path without its scheme, as its file system wants it.
            files, system = [str(path) for path in found], None
            if is_object(store.root):
                files, system = [path.path for path in found], store.root.fs  # type: ignore[attr-defined]
            schema = pa.schema(fields)
            # By the table's own schema and its former names, so that a column that a file does not have is null.
            connection.register(f"files_of_{name}", pyarrow.dataset.dataset(files, schema, "parquet", system))
            connection.execute(f"CREATE VIEW {name} AS SELECT {_by_keys(types, former)} FROM files_of_{name}")
        try:
            yield connection
        except (pa.ArrowInvalid, duckdb.Error) as error:
            reason = str(error).splitlines()[0]
            raise StaleError(
                f"a file of {study.name}/{arm.key} in the tables is damaged ({reason}); remove it and train again"
            ) from error


def _by_keys(columns: Collection[str], former: Mapping[str, Now]) -> str:
    """SQL of a table's columns under the keys of step files, which files of earlier versions have themselves."""
    chosen = [f'"{column}"' for column in columns if column not in ("metric", "value")]
    chosen += [
        f'coalesce("{key}", {_former(was, chr(34) + was.name + chr(34))}) AS "{key}"' for key, was in former.items()
    ]
    if "metric" in columns:
        cases = " ".join(f"WHEN '{name}' THEN '{key}'" for name, key in METRIC_KEYS.items())
        values = " ".join(
            f"WHEN '{name}' THEN {_former(METRICS[key], 'value')}"
            for name, key in METRIC_KEYS.items()
            if not METRICS[key].is_same
        )
        chosen += [f"CASE metric {cases} ELSE metric END AS metric", f"CASE metric {values} ELSE value END AS value"]
    return ", ".join(chosen)


def _former(was: Now, value: str) -> str:
    """SQL of a value as it was before; of one minus it the shortest decimal number that gives it."""
    if was.is_same:
        return value
    former = f"({value} - {was.offset!r}) / {was.factor!r}"
    short = f"round({former}, 15)"
    return former if was.factor > 0 else f"CASE WHEN 1 - {short} = {value} THEN {short} ELSE {former} END"


def metrics_of(connection: duckdb.DuckDBPyConnection, study: Study, arm: Arm, recipe: str) -> dict[str, bool]:
    """The metrics of the arm's monitors, and whether any value of each has a standard error.

    Raises:
        UserError: one has a name that means something else in an exported file.
    """
    found: dict[str, bool] = dict(connection.execute(_METRICS, {"recipe": recipe}).fetchall())
    for metric in found:
        if is_reserved(metric) or metric.removesuffix(STANDARD_ERROR) in set(found) - {metric}:
            raise UserError(
                f"the metric {metric!r} that a monitor of {study.name}/{arm.key} recorded means something else in an "
                "exported file; give it another name in the monitor"
            )
    return found


def step_rows(
    connection: duckdb.DuckDBPyConnection, metrics: dict[str, bool], parameters: dict[str, Any]
) -> tuple[list[str], duckdb.DuckDBPyConnection]:
    """Keys and rows of a trial's step file, in the order of steps.

    Args:
        connection: as ``connection_to`` makes it.
        metrics: as ``metrics_of`` finds them.
        parameters: trial, recipe, has_validation, and epochs and megabytes of checkpoints.
    """
    number = {name: i for i, name in enumerate(metrics)}
    errors = [name for name, has_error in metrics.items() if has_error]
    values = [*STEP_FILE_KEYS[_NUM_BATCH_KEYS:], *(name for name in metrics if name not in STEP_FILE_KEYS)]
    measured = [f"any_value(value) FILTER (metric = $m{i}) AS v{i}" for i in number.values()]
    measured += [
        f"any_value(standard_error) FILTER (metric = $m{number[name]} AND NOT isnan(standard_error)) AS e{number[name]}"
        for name in errors
    ]
    shown = []
    for name in values:
        by_monitor = f"v{number[name]}" if name in number else "NULL::DOUBLE"
        shown.append(f"coalesce({by_monitor}, {_FROM_EVALUATION.get(name, 'NULL')})")
    shown += [f"e{number[name]}" for name in errors]
    sql = _STEPS.format(measured="".join(f", {m}" for m in measured), shown="".join(f", {s}" for s in shown))
    given = {**parameters, **{f"m{i}": name for name, i in number.items()}}
    names = [*STEP_FILE_KEYS[:_NUM_BATCH_KEYS], *values, *(f"{name}{STANDARD_ERROR}" for name in errors)]
    return names, connection.execute(sql, given)
