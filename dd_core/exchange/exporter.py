"""The metrics of an arm as files for other systems, streamed so that memory does not grow with the study.

Per trial ``<study>/<arm>/trial-000/metrics.csv`` and ``metrics.jsonl`` (one line per step), per arm
``<study>/<variant>/metrics_k{k}.jsonl`` (one object per epoch and trial) and ``<study>/<arm>/export.json``, the
manifest: recipe, sources, and the SHA-256 of each file. Equal tables give equal bytes, and files that would not change
are not written.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from dd_core.errors import StaleError
from dd_core.exchange.columns import EPOCH_FILE_KEYS
from dd_core.exchange.lines import csv_header, csv_lines, json_lines
from dd_core.exchange.queries import (
    EPOCHS,
    EXPORTED_TABLES,
    TRIALS,
    connection_to,
    metrics_of,
    step_rows,
    table_files,
)
from dd_core.exchange.staging import replace_if_changed, staging_folder
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store, sha256_of, write_atomically
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import damaged_files

MANIFEST = "export.json"
# Raise it when the same tables shall give other files.
EXPORTER_VERSION = "1"
_LINES_AT_A_TIME = 50_000


@dataclass(frozen=True)
class ArmExport:
    """The files of one arm.

    Attributes:
        files: all of them, whether or not they had to be written.
        rows: lines with values, of all files.
        bytes: size of all files.
        written: how many files are new or have changed.
    """

    files: tuple[Path, ...]
    rows: int
    bytes: int
    written: int


def export_arm(store: Store, study: Study, arm: Arm) -> ArmExport | None:
    """Write the metric files of an arm's present recipe.

    ``checkpoint_size_mb`` is a trial's share of the weights file, in 10^6 bytes. ``loss_val_nats`` and ``acc_val`` are
    the monitor's; where it did not measure, those of the evaluation. What another system measured by epochs alone is
    not told but for the four metrics of ``metrics_k{k}.jsonl``.

    Returns:
        What there is now, or None if the tables have no rows of the present recipe.

    Raises:
        StaleError: a file of the tables is damaged.
        StoreError: the files cannot be written.
        UserError: a metric has a name that means something else in these files.
    """
    folder = store.exports_folder(study.name)
    with store.lock("exports", study.name, arm.key):
        for harm in damaged_files(store, EXPORTED_TABLES, study.name, arm.key):
            raise StaleError(str(harm))
        megabytes = _megabytes(store, study, arm)
        identity = {
            "kind": "metric_export",
            "exporter_version": EXPORTER_VERSION,
            "study": study.name,
            "arm": arm.key,
            "recipe": study.recipe_hash(arm),
            "settings": study.recipe(arm),
            "checkpoint_megabytes": {str(epoch): value for epoch, value in megabytes.items()},
            "sources": _sources(store, study, arm),
        }
        manifest_path = folder / arm.key / MANIFEST
        former = store.read_manifest(manifest_path) or Manifest({}, {})
        if {name: former.content.get(name) for name in identity} == identity and store.is_sound(former):
            return _summary(store, former, written=0)
        if not identity["sources"]:
            return None
        with staging_folder(store, f"export.{study.name}.{arm.key}") as staging:
            with connection_to(store, study, arm) as connection:
                rows = _stage(connection, study, arm, megabytes, staging)
            remove(manifest_path)  # it must not vouch for what comes in their place
            written = sum(replace_if_changed(staging / name, folder / name) for name in rows)
        if not rows:
            return None
        for entry in former.files.values():
            path = store.root / entry.path
            if str(path.relative_to(folder)) not in rows:  # a trial that the present recipe does not have
                path.unlink(missing_ok=True)
        store.write_manifest(manifest_path, {**identity, "rows": rows}, {name: folder / name for name in rows})
        manifest = store.read_manifest(manifest_path)
        assert manifest is not None
        return _summary(store, manifest, written)


def _summary(store: Store, manifest: Manifest, written: int) -> ArmExport:
    entries = manifest.files.values()
    files = tuple(store.root / entry.path for entry in entries)
    return ArmExport(files, sum(manifest.rows.values()), sum(entry.bytes for entry in entries), written)


def _sources(store: Store, study: Study, arm: Arm) -> dict[str, str]:
    """SHA-256 of every file of the tables that the export is made from."""
    files = [path for name in EXPORTED_TABLES for path in table_files(store, name, study, arm)]
    return {str(path.relative_to(store.root)): sha256_of(path) for path in files}


def _megabytes(store: Store, study: Study, arm: Arm) -> dict[int, float]:
    """By epoch, the size of one trial's checkpoint; trials that train together share a file."""
    found = trained_checkpoints(store, study, {arm})
    sizes = {c.epoch: sum(entry.bytes for entry in m.weights) for c, m in found.items()}
    return {epoch: size / study.trials / 1e6 for epoch, size in sizes.items()}


def _stage(
    connection: duckdb.DuckDBPyConnection, study: Study, arm: Arm, megabytes: dict[int, float], staging: Path
) -> dict[str, int]:
    """Write all files of the arm below ``staging``; returns the rows of each by its final path below the study."""
    rows: dict[str, int] = {}
    recipe = study.recipe_hash(arm)
    metrics = metrics_of(connection, study, arm, recipe)
    for (trial,) in connection.execute(TRIALS, {"recipe": recipe}).fetchall():
        name = f"{arm.key}/trial-{trial:03d}/metrics"
        parameters = {
            "trial": trial,
            "recipe": recipe,
            "epochs": list(megabytes),
            "megabytes": list(megabytes.values()),
            "has_validation": study.data.num_validation > 0,
        }
        names, found = step_rows(connection, metrics, parameters)
        count = _write(
            found.to_arrow_reader(_LINES_AT_A_TIME), names, staging / f"{name}.jsonl", staging / f"{name}.csv"
        )
        if count:
            rows |= {f"{name}.csv": count, f"{name}.jsonl": count}
    name = f"{arm.variant}/metrics_k{arm.k}.jsonl"
    reader = connection.execute(EPOCHS, {"recipe": recipe}).to_arrow_reader(_LINES_AT_A_TIME)
    count = _write(reader, list(EPOCH_FILE_KEYS), staging / name)
    return {**rows, name: count} if count else rows


def _write(reader: pa.RecordBatchReader, names: list[str], json_path: Path, csv_path: Path | None = None) -> int:
    """Write rows as JSON lines and, if wanted, as CSV too; returns how many there were."""
    count = 0

    def fill(json_file: Path, csv_file: Path | None) -> None:
        nonlocal count
        with contextlib.ExitStack() as stack:
            objects = stack.enter_context(json_file.open("w", encoding="utf-8", newline=""))
            table = stack.enter_context(csv_file.open("w", encoding="utf-8", newline="")) if csv_file else None
            if table:
                table.write(csv_header(names))
            for batch in reader:
                count += batch.num_rows
                objects.write(json_lines(names, batch.columns))
                if table:
                    table.write(csv_lines(batch.columns))

    if csv_path is None:
        write_atomically(json_path, lambda temporary: fill(temporary, None))
    else:
        write_atomically(json_path, lambda first: write_atomically(csv_path, lambda second: fill(first, second)))
    return count
