"""The metrics of an arm as event files, which ``tensorboard --logdir data/exports/tensorboard`` draws.

Per trial ``tensorboard/<study>/<arm>/trial-000/events.out.tfevents.0.lab``, per arm ``export.json``, the manifest, as
in ``dd_core.exchange.exporter``. Tags are ``evaluations/``, ``batches/`` and ``monitors/`` with the names of columns
and metrics; a step is an optimiser step, a time that of the batch before. Values are float32, as the format has them.
Equal tables give equal bytes. Needs the package ``tensorboard``, which is an extra of this one.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from dd_core.errors import StaleError, UserError
from dd_core.exchange.queries import EXPORTED_TABLES, TRIALS, table_files
from dd_core.exchange.staging import replace_if_changed, staging_folder
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store, sha256_of, write_atomically
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import damaged_files
from dd_core.tables.files import TABLES
from dd_core.tables.warehouse import connect

# Raise it when the same tables shall give other files.
_VERSION = "1"
# Of a trial's batches, evenly spaced: TensorBoard itself keeps a sample of 1000.
MOST_BATCHES = 10_000
_ROWS_AT_A_TIME = 10_000


def _measured(table: str) -> list[str]:
    return [column.name for column in TABLES[table].file_columns if column.type == "float64" and column.name != "time"]


def _lists(prefix: str, names: list[str]) -> str:
    tags = ", ".join(f"'{prefix}/{name}'" for name in names)
    return f"[{tags}] AS tags, [{', '.join(names)}] AS measured"


# A trial that stopped early is evaluated again and again after its last step, of which the first time is told.
_EVENTS = f"""
    WITH of_trial AS (SELECT * FROM training_batches WHERE trial = $trial AND recipe = $recipe), batch AS (
        SELECT step, time, {_lists("batches", _measured("training_batches"))} FROM of_trial
        WHERE step % (SELECT ceil(greatest(count(*), 1) / $most)::BIGINT FROM of_trial) = 0
    ), evaluation AS (
        SELECT step, NULL::DOUBLE AS time, {_lists("evaluations", _measured("training_evals"))} FROM training_evals
        WHERE trial = $trial AND recipe = $recipe AND step IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY step ORDER BY epoch) = 1
    ), monitor AS (
        SELECT step, NULL::DOUBLE AS time, list('monitors/' || metric ORDER BY metric) AS tags,
               list(value ORDER BY metric) AS measured
        FROM training_monitors WHERE trial = $trial AND recipe = $recipe AND step IS NOT NULL GROUP BY step
    )
    SELECT step, coalesce(max(time) OVER (ORDER BY step), min(time) OVER (), 0) AS time, tags, measured
    FROM (FROM evaluation UNION ALL FROM batch UNION ALL FROM monitor) ORDER BY step, tags
"""


@dataclass(frozen=True)
class EventFiles:
    """The files of one arm.

    Attributes:
        files: how many, one for each trial.
        rows: values in them.
        written: how many files are new or have changed.
    """

    files: int
    rows: int
    written: int


def export_events(store: Store, study: Study, arm: Arm) -> EventFiles | None:
    """Write the event files of an arm's present recipe, unless they are there.

    Returns:
        What there is now, or None if the tables have no rows of the present recipe.

    Raises:
        StaleError: a file of the tables is damaged.
        StoreError: the files cannot be written.
        UserError: the package tensorboard is not installed.
    """
    _require()
    folder = store.exports_folder("tensorboard") / study.name / arm.key
    with store.lock("exports", "tensorboard", study.name, arm.key):
        for harm in damaged_files(store, EXPORTED_TABLES, study.name, arm.key):
            raise StaleError(str(harm))
        files = [path for name in EXPORTED_TABLES for path in table_files(store, name, study, arm)]
        identity = {
            "kind": "tensorboard_export",
            "exporter_version": _VERSION,
            "study": study.name,
            "arm": arm.key,
            "recipe": study.recipe_hash(arm),
            "sources": {str(path.relative_to(store.root)): sha256_of(path) for path in files},
        }
        manifest = folder / "export.json"
        former = store.read_manifest(manifest) or Manifest({}, {})
        if {name: former.content.get(name) for name in identity} == identity and store.is_sound(former):
            return EventFiles(len(former.files), sum(former.rows.values()), 0)
        if not files:
            return None
        with staging_folder(store, f"tensorboard.{study.name}.{arm.key}") as staging:
            with contextlib.closing(connect(store, EXPORTED_TABLES, within=(study.name, arm.key))) as connection:
                rows = _stage(connection, study.recipe_hash(arm), staging)
            if not rows:
                return None
            remove(manifest)  # it must not vouch for what comes in their place
            written = sum(replace_if_changed(staging / name, folder / name) for name in rows)
        remove(*(store.root / e.path for role, e in former.files.items() if role not in rows))
        store.write_manifest(manifest, {**identity, "rows": rows}, {name: folder / name for name in rows})
    return EventFiles(len(rows), sum(rows.values()), written)


def _require() -> None:
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise UserError(
            "event files need the package tensorboard, which is not installed: pip install "
            "'double-descent-lab[tensorboard]'"
        ) from error


def _stage(connection: duckdb.DuckDBPyConnection, recipe: str, staging: Path) -> dict[str, int]:
    """Write the files of all trials; returns how many values each has, by its path below the arm."""
    rows = {}
    for (trial,) in connection.execute(TRIALS, {"recipe": recipe}).fetchall():
        name = f"trial-{trial:03d}/events.out.tfevents.0.lab"
        found = connection.execute(_EVENTS, {"trial": trial, "recipe": recipe, "most": MOST_BATCHES})
        rows[name] = _write(staging / name, _fetched(found))
    return rows


def _fetched(found: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, float, list[str], list[float | None]]]:
    while rows := found.fetchmany(_ROWS_AT_A_TIME):
        yield from rows


def _write(path: Path, rows: Iterator[tuple[int, float, list[str], list[float | None]]]) -> int:
    """Write one file: steps ascending, a record for each; returns the number of values."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    count = 0

    def fill(temporary: Path) -> None:
        nonlocal count
        with temporary.open("wb") as file:
            writer = RecordWriter(file)
            writer.write(Event(file_version="brain.Event:2").SerializeToString())
            for step, time, tags, measured in rows:
                pairs: list[tuple[str, Any]] = [
                    (tag, value)
                    for tag, value in zip(tags, measured, strict=True)
                    if value is not None and not math.isnan(value)
                ]
                values = [Summary.Value(tag=tag, simple_value=value) for tag, value in pairs]
                if values:
                    event = Event(step=step, wall_time=time, summary=Summary(value=values))
                    writer.write(event.SerializeToString(deterministic=True))
                    count += len(values)

    write_atomically(path, fill)
    return count
