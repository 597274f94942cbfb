"""Rows to write, and files to read back, for the tests of export and import."""

import csv
import json
import math
import struct
from pathlib import Path
from typing import Any

from dd_core.results.image_curves import VALUES
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet

SEED_KEYS = [
    *["step", "epoch", "time", "lr", "wd", "loss_train_nats", "loss_train_bits", "acc_train"],
    *["loss_val_nats", "acc_val", "grad_norm", "weight_norm", "lambda_max", "hutch_trace"],
    *["psd_tail", "grad_var", "resid_power", "checkpoint_size_mb"],
]
# Numbers at which writing or reading floats has gone wrong somewhere before.
HARD = [0.1, 1e-300, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -0.0, 0.0, 1e22, 1e23, 9007199254740993.0]
HARD += [1 / 3, -1e-5, 123456.0, 1e16, math.inf, -math.inf]
STEP = '{"step": 1, "epoch": 1, "lr": 0.1}\n'


def bits(value: Any) -> bytes:
    """The eight bytes of a float64; all NaN are one."""
    number = float(value)
    return b"NaN" if math.isnan(number) else struct.pack("<d", number)


def write_rows(
    store: Store, study: Study, arm: Arm, table: str, rows: list[dict[str, Any]], part: str = "0004"
) -> None:
    """Rows of one arm, as the trainer writes them; what a row does not say is null."""
    common = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    names = [column.name for column in TABLES[table].file_columns]
    if table == "image_progress" and rows:  # which may have more columns
        names += [name for name in VALUES if name in rows[0] and name not in names]
    columns = {name: [{**common, **row}.get(name) for row in rows] for name in names}
    path = store.table_folder(table, study.name, arm.key) / f"{part}.parquet"
    write_parquet(path, to_arrow(table, columns, len(rows)))


def batch(trial: int, step: int, value: float, accuracy: float = 0.5, epoch: int | None = None) -> dict[str, Any]:
    """A row of training_batches in an epoch of four steps; a loss is never negative."""
    return {
        "trial": trial, "step": step, "epoch": epoch or 1 + (step - 1) // 4, "time": 1.7e9 + step / 7,
        "learning_rate": value, "weight_decay": 1e-4, "train_loss": abs(value), "train_error": 1 - accuracy,
    }  # fmt: skip


def monitor(trial: int, step: int, metric: str, value: float, error: float = math.nan) -> dict[str, Any]:
    """A row of training_monitors."""
    epoch = 1 + (step - 1) // 4 if step else 0
    return {"trial": trial, "step": step, "epoch": epoch, "metric": metric, "value": value, "standard_error": error}


def evaluation(trial: int, epoch: int, value: float, step: int | None = None, **more: Any) -> dict[str, Any]:
    """A row of training_evals."""
    metrics = {"train_error": 0.5, "train_loss": abs(value), "test_error": 0.25, "test_loss": abs(value) / 3}
    return {"trial": trial, "epoch": epoch, "step": 4 * epoch if step is None else step, **metrics, **more}


def write_some(store: Store, study: Study) -> None:
    """Two epochs of both trials of every arm, with a monitor of the user's own and hard numbers."""
    for arm in study.arms.values():
        values = [arm.k + 1 / n for n in range(1, 9)]
        batches = [batch(trial, step, value) for trial in (0, 1) for step, value in enumerate(values, start=1)]
        readings = [monitor(t, s, "hessian_trace", v, abs(v) / 10) for t in (0, 1) for s, v in ((4, HARD[1]), (8, 3.0))]
        readings += [monitor(t, 8, "sharpness", number) for t, number in ((0, -math.inf), (1, math.inf))]
        write_rows(store, study, arm, "training_batches", batches)
        write_rows(store, study, arm, "training_monitors", readings)
        write_rows(store, study, arm, "training_evals", [evaluation(t, e, 1.5) for t in (0, 1) for e in (0, 1, 2)])


def csv_rows(path: Path) -> list[dict[str, str]]:
    """By Python's own reader, without what is not measured."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]


def json_rows(path: Path) -> list[dict[str, Any]]:
    """By Python's own reader, made as strict as RFC 8259."""

    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is not JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def snapshot(*folders: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file but locks: inode, time of change and bytes."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def exported(store: Store, study: Study, arm: Arm, name: str = "metrics.csv", trial: int = 0) -> Path:
    return store.exports_folder(study.name) / arm.key / f"trial-{trial:03d}" / name
