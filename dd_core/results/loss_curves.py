"""What the tables of training say of each run of an arm, as ``dd_core.analysis.loss_slopes`` wants it.

A run is a trial of an arm. There is one as soon as an attempt to train it has begun, or any metric of it is there; how
it ended, and whether there is anything to fit, is for the analysis to say.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.analysis.loss_slopes.run import Run
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.study import Arm, Study
from dd_core.tables.files import read_parquet

# The tables that an analysis is made from.
SOURCES = ("training_batches", "training_evals", "training_monitors", "runs")
_COLUMNS = {
    "training_batches": ("trial", "recipe", "epoch", "step", "train_loss"),
    "training_evals": ("trial", "recipe", "epoch", "step", "validation_loss", "test_loss"),
    "training_monitors": ("trial", "recipe", "step", "metric", "value"),
    "runs": ("trial", "recipe", "attempt", "status"),
}
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LossCurve:
    """A run and what of it is no array.

    Attributes:
        trial: number.
        run: what is analysed.
        validation_is_test: whether its validation losses are of test images, as there are no validation images.
    """

    trial: int
    run: Run
    validation_is_test: bool


def settings_of(study: Study, arm: Arm) -> dict[str, Any]:
    """What was set for an arm: the columns of ``loss_slopes`` that are the same for all its trials but the recipe."""
    variant = study.variants[arm.variant]
    known = ARCHITECTURES.get(variant.architecture)
    network = known.complete(variant.network) if known else variant.network
    optimizer = variant.optimizer
    return {
        "variant": arm.variant,
        "k": arm.k,
        "recipe": study.recipe_hash(arm),
        "family": study.families[arm.variant],
        "architecture": variant.architecture,
        "norm": network.get("norm"),
        "optimizer": optimizer.name,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "momentum": optimizer.momentum,
        "batch_size": variant.batch_size,
        "label_noise": variant.label_noise,
    }


def curves_of(study: Study, arm: Arm, files: Mapping[str, Collection[Path]]) -> list[LossCurve]:
    """The runs of an arm in its present recipe, in the order of their trials.

    Args:
        study: says which recipe that is, and how long an epoch.
        arm: one of its arms.
        files: the unharmed files of the arm by table, in the order of their rows.

    Raises:
        StaleError: a file is damaged after all.
    """
    recipe = study.recipe_hash(arm)
    tables = {table: _rows(files.get(table, ()), table, recipe) for table in SOURCES}
    statuses = {} if study.imported else _statuses(tables["runs"])
    trials = sorted({*statuses, *(int(trial) for rows in tables.values() for trial in np.unique(rows["trial"]))})
    per_epoch = _steps_per_epoch(study, arm, tables["training_batches"])
    unknown = "imported" if study.imported else "unknown"
    return [_curve(study, trial, statuses.get(trial, unknown), per_epoch, _of(tables, trial)) for trial in trials]


def _rows(paths: Collection[Path], table: str, recipe: str) -> dict[str, np.ndarray]:
    """The columns that are needed of a table's rows of a recipe; numbers that are null are NaN."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS[table]}
    for path in paths:
        content = read_parquet(path)
        columns = {
            name: np.asarray(content[name].to_numpy() if name in content.column_names else [None] * len(content))
            for name in parts
        }
        is_own = columns["recipe"] == recipe
        for name, values in columns.items():
            parts[name].append(values[is_own])
    return {
        name: np.concatenate([np.array([], dtype=object if name in ("recipe", "metric", "status") else float), *values])
        for name, values in parts.items()
    }


def _of(tables: Mapping[str, Rows], trial: int) -> dict[str, Rows]:
    """The rows of one trial."""
    found: dict[str, Rows] = {}
    for name, rows in tables.items():
        is_own = rows["trial"] == trial
        found[name] = {column: values[is_own] for column, values in rows.items()}
    return found


def _statuses(runs: Rows) -> dict[int, str]:
    """How the last attempt at each trial ended, by trial; an attempt's end counts for more than its beginning."""
    order = np.lexsort((runs["status"] != "running", runs["attempt"]))
    return {int(runs["trial"][row]): str(runs["status"][row]) for row in order}


def _curve(study: Study, trial: int, status: str, per_epoch: float, tables: Mapping[str, Rows]) -> LossCurve:
    batches, evals, monitors = (tables[name] for name in ("training_batches", "training_evals", "training_monitors"))
    first = float(len(batches["step"]) > 0 and batches["step"][0] == 0)  # others count steps from 0
    eval_steps = np.where(np.isnan(evals["step"]), evals["epoch"] * per_epoch, evals["step"] + first)

    def monitored(metric: str) -> tuple[np.ndarray, np.ndarray]:
        is_it = monitors["metric"] == metric
        return _finite(monitors["step"][is_it] + first, monitors["value"][is_it])

    by_monitor, by_evaluation = monitored("validation_loss"), _finite(eval_steps, evals["validation_loss"])
    steps, losses = (np.concatenate(both) for both in zip(by_evaluation, by_monitor, strict=True))
    validation_is_test = not len(steps) and (study.imported or not study.data.num_validation)
    if validation_is_test:
        steps, losses = _finite(eval_steps, evals["test_loss"])
    # Of a step that is there twice the last counts, as of batches.
    steps, places = np.unique(steps[::-1], return_index=True)
    lambda_step, largest_eigenvalue = monitored("largest_eigenvalue")
    run = Run(
        step=batches["step"] + first,
        loss=batches["train_loss"],
        steps_per_epoch=per_epoch,
        val_step=steps,
        val_loss=losses[::-1][places],
        lambda_step=lambda_step,
        largest_eigenvalue=largest_eigenvalue,
        status=status,
    )
    return LossCurve(trial, run, bool(validation_is_test))


def _finite(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_there = ~np.isnan(values) & ~np.isnan(steps)
    return steps[is_there], values[is_there]


def _steps_per_epoch(study: Study, arm: Arm, batches: Rows) -> float:
    """Optimiser steps of an epoch: by the calendar, the mean where they grow; of imported runs by what they have.

    Others may log every tenth step: then the last steps that two epochs have are still an epoch's steps apart, in the
    middle of all epochs. Where no run has two epochs the size of the data set must do, and without that the last step.
    """
    if study.imported:
        order = np.lexsort((-batches["step"], batches["epoch"]))
        epochs, places = np.unique(batches["epoch"][order], return_index=True)
        last = batches["step"][order][places]
        apart = float(np.median(np.diff(last) / np.diff(epochs))) if len(epochs) > 1 else 0.0
        if apart > 0:
            return apart
        if not study.data.is_known:
            return float(max(1.0, *last)) if len(last) else 1.0
    return study.calendar(arm.variant).steps_after(study.epochs) / study.epochs
