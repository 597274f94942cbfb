"""Metrics between two checkpoints: kept in memory and in the resume point, written to the tables at a checkpoint.

Within these arrays NaN stands for "there is no such row": a trial that has ended has no more batches, one that has
diverged no more evaluations.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd_core.data.trials import TrialData
from dd_core.store.store import Store
from dd_core.study.former_names import as_now, metric_now
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import to_arrow, write_parquet
from dd_core.tables.training import METRIC_TABLES
from dd_core.training.monitors.timetable import Readings
from dd_core.training.trial_stack import BatchMetrics, Evaluation

__all__ = ["EVAL_METRICS", "METRIC_TABLES", "Recorder"]

EVAL_METRICS = (
    "train_error",
    "train_loss",
    "train_error_clean",
    "train_loss_clean",
    "train_error_noisy",
    "train_loss_noisy",
    "loss_val_nats",
    "acc_val",
    "test_error",
    "test_loss",
)


@dataclass
class Recorder:
    """Metrics of all trials of an arm since the last checkpoint.

    Attributes:
        batches: per epoch a float64 array (steps, 3 + 3 T): epoch, step, time, T losses, T accuracies, T rates.
        readings: per metric float64 arrays (measurements, 2 + 2 T): epoch, step, T values, T standard errors.
        evals: per evaluation a float64 array (T, 2 + 10): epoch, step, then ``EVAL_METRICS``.
        image_epochs, image_losses, image_correct: per kept evaluation its epoch and per-image values (T, N).
        image_values: the same of what else the study asks for, by name.
        classes: per evaluation, where classes come one group after the other, float64 (T, 3, classes, 2): loss and
            accuracy by split and rank of the class.
    """

    study: Study
    arm: Arm
    data: list[TrialData]
    batches: list[np.ndarray] = field(default_factory=list)
    readings: dict[str, list[np.ndarray]] = field(default_factory=dict)
    evals: list[np.ndarray] = field(default_factory=list)
    image_epochs: list[int] = field(default_factory=list)
    image_losses: list[np.ndarray] = field(default_factory=list)
    image_correct: list[np.ndarray] = field(default_factory=list)
    image_values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    classes: list[np.ndarray] = field(default_factory=list)

    def add_batches(self, epoch: int, first_step: int, metrics: list[BatchMetrics]) -> None:
        """Record one epoch of every stack; ``first_step`` is the number of the epoch's first step, from 1."""
        steps = len(metrics[0].lr)
        columns = [np.full(steps, epoch), first_step + np.arange(steps), metrics[0].time]
        columns += [column for m in metrics for column in m.loss.T]
        columns += [column for m in metrics for column in m.accuracy.T]
        columns += [column for m in metrics for column in m.lr.T]
        self.batches.append(np.stack(columns, axis=1))
        self._add_readings([m.readings for m in metrics], [m.loss.shape[1] for m in metrics])

    def _add_readings(self, stacks: list[Readings], sizes: list[int]) -> None:
        """Put the readings of several stacks side by side; a stack without a metric has NaN."""
        for metric in sorted({name for readings in stacks for name in readings}):
            where = next(readings[metric][:, :2] for readings in stacks if metric in readings)
            missing = [np.full((len(where), 2 + 2 * size), np.nan) for size in sizes]
            parts = [readings.get(metric, none) for readings, none in zip(stacks, missing, strict=True)]
            values = [part[:, 2 : 2 + size] for part, size in zip(parts, sizes, strict=True)]
            errors = [part[:, 2 + size :] for part, size in zip(parts, sizes, strict=True)]
            self.readings.setdefault(metric, []).append(np.concatenate([where, *values, *errors], axis=1))

    def add_evaluation(self, epoch: int, steps: list[int], results: list[Evaluation], keep_images: bool) -> np.ndarray:
        """Record an evaluation of every stack and return its metrics, float64 (T, 10) in the order of EVAL_METRICS.

        ``steps``: optimiser steps that each trial has behind it.
        """
        losses = np.concatenate([r.loss for r in results])
        correct = np.concatenate([r.correct for r in results])
        each, number = list(zip(self.data, losses, correct, strict=True)), self.study.num_classes_at(epoch)
        rows = np.array([_summarise(d, loss, hit, number) for d, loss, hit in each])
        where = np.array([[epoch, step] for step in steps])
        self.evals.append(np.concatenate([where, rows], axis=1))
        if self.study.data.classes is not None:
            self.classes.append(np.stack([by_class(d, loss, hit) for d, loss, hit in each]))
        if keep_images:
            self.image_epochs.append(epoch)
            self.image_losses.append(losses)
            self.image_correct.append(correct)
            for name in self.study.image_values:
                values = np.concatenate([r.values[name] for r in results])
                self.image_values.setdefault(name, []).append(values)
        return rows

    def forget(self, trial: int, step: int) -> None:
        """Remove what the last epoch says of a trial from a step on."""
        trials = len(self.data)
        batches = self.batches[-1]
        batches[batches[:, 1] >= step, 3 + trial] = np.nan
        for arrays in self.readings.values():
            last = arrays[-1]
            last[last[:, 1] >= step, 2 + trial] = np.nan
            last[last[:, 1] >= step, 2 + trials + trial] = np.nan

    def forget_evaluation(self, trial: int) -> None:
        """Remove what the last evaluation says of a trial."""
        self.evals[-1][trial, 2:] = np.nan
        if self.classes:
            self.classes[-1][trial] = np.nan
        if self.image_epochs and self.image_epochs[-1] == self.evals[-1][trial, 0]:
            self.image_losses[-1][trial] = np.nan

    def state(self) -> dict[str, Tensor]:
        """Everything recorded since the last checkpoint, as tensors."""
        arrays = {
            "batches": np.concatenate(self.batches) if self.batches else None,
            "evals": np.stack(self.evals) if self.evals else None,
            "classes": np.stack(self.classes) if self.classes else None,
            "image_epochs": np.array(self.image_epochs) if self.image_epochs else None,
            "image_losses": np.stack(self.image_losses) if self.image_losses else None,
            "image_correct": np.stack(self.image_correct) if self.image_correct else None,
            **{f"image_values.{name}": np.stack(values) for name, values in self.image_values.items() if values},
            **{f"readings.{metric}": np.concatenate(parts) for metric, parts in self.readings.items()},
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.batches = [arrays["batches"]] if "batches" in arrays else []
        self.evals = list(arrays.get("evals", []))
        self.classes = list(arrays.get("classes", []))
        self.image_epochs = [int(epoch) for epoch in arrays.get("image_epochs", [])]
        self.image_losses = list(arrays.get("image_losses", []))
        self.image_correct = list(arrays.get("image_correct", []))
        # Of what the study did not ask for when the resume point was written there is nothing.
        nothing = [np.full_like(losses, np.nan) for losses in self.image_losses]
        self.image_values = {
            name: list(arrays.get(f"image_values.{name}", nothing)) for name in self.study.image_values
        }
        prefix = "readings."
        self.readings = {n.removeprefix(prefix): [array] for n, array in arrays.items() if n.startswith(prefix)}

    def flush(self, store: Store, checkpoint: Checkpoint) -> dict[str, tuple[Path, int]]:
        """Write what was recorded to one file per table, named after the checkpoint, and forget it.

        Returns:
            For every table written, its file and number of rows.
        """
        tables = {
            "training_batches": self._batch_columns(),
            "training_evals": _evaluated(self.eval_columns(self.evals)),
            "training_monitors": self._reading_columns(),
            "image_progress": self._image_columns(),
            "class_progress": self._class_columns(),
        }
        written = {}
        for name, columns in tables.items():
            num_rows = len(columns.get("trial", ()))
            path = store.table_folder(name, self.study.name, self.arm.key) / f"{checkpoint.epoch:04d}.parquet"
            if num_rows:
                common = {
                    "variant": self.arm.variant,
                    "k": self.arm.k,
                    "recipe": self.study.recipe_hash(self.arm),
                }
                write_parquet(path, to_arrow(name, {**common, **columns}, num_rows))
                written[name] = (path, num_rows)
            else:
                path.unlink(missing_ok=True)  # of an earlier training with other monitors
        self.load_state({})
        return written

    def _batch_columns(self) -> dict[str, Any]:
        if not self.batches:
            return {}
        rows, trials = np.concatenate(self.batches), len(self.data)
        steps = len(rows)
        losses, accuracies, rates = (rows[:, 3 + i * trials : 3 + (i + 1) * trials].T.reshape(-1) for i in range(3))
        columns = {
            "trial": np.repeat(np.arange(trials), steps),
            "epoch": np.tile(rows[:, 0].astype(int), trials),
            "step": np.tile(rows[:, 1].astype(int), trials),
            "train_loss": losses,
            "train_error": 1 - accuracies,
            "learning_rate": rates,
            "time": np.tile(rows[:, 2], trials),
        }
        decay = self.study.variants[self.arm.variant].optimizer.weight_decay
        return {**_rows(columns, ~np.isnan(losses)), "weight_decay": decay}

    @staticmethod
    def eval_columns(evals: list[np.ndarray]) -> dict[str, Any]:
        """Columns of ``training_evals``, trial by trial, from arrays like ``evals``, NaN included."""
        if not evals:
            return {}
        rows = np.stack(evals, axis=1)  # (T, evaluations, 2 + metrics)
        trials, count = rows.shape[:2]
        flat = rows.reshape(trials * count, -1)
        columns: dict[str, Any] = {
            "trial": np.repeat(np.arange(trials), count),
            "epoch": flat[:, 0].astype(int),
            "step": flat[:, 1].astype(int),
        }
        return columns | as_now({name: flat[:, 2 + i] for i, name in enumerate(EVAL_METRICS)})

    def _reading_columns(self) -> dict[str, Any]:
        if not self.readings:
            return {}
        trials, parts = len(self.data), []
        for metric, arrays in sorted(self.readings.items(), key=lambda item: metric_now(item[0]).name):
            rows = np.concatenate(arrays)
            values = rows[:, 2 : 2 + trials].T.reshape(-1)
            columns = {
                "trial": np.repeat(np.arange(trials), len(rows)),
                "epoch": np.tile(rows[:, 0].astype(int), trials),
                "step": np.tile(rows[:, 1].astype(int), trials),
                "metric": np.full(trials * len(rows), metric_now(metric).name),
                "value": metric_now(metric).value(values),
                "standard_error": rows[:, 2 + trials :].T.reshape(-1),
            }
            parts.append(_rows(columns, ~np.isnan(values)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _image_columns(self) -> dict[str, Any]:
        if not self.image_epochs:
            return {}
        losses = np.stack(self.image_losses, axis=1)  # (T, evaluations, N)
        trials, count, images = losses.shape
        ids = np.stack([d.image_ids for d in self.data])
        columns = {
            "trial": np.repeat(np.arange(trials), count * images),
            "epoch": np.tile(np.repeat(self.image_epochs, images), trials),
            "image_id": np.repeat(ids[:, None], count, axis=1).reshape(-1),
            "split": np.tile(self.data[0].splits, trials * count),
            "loss": losses.reshape(-1),
            "correct": np.stack(self.image_correct, axis=1).reshape(-1),
        }
        columns |= {name: np.stack(values, axis=1).reshape(-1) for name, values in self.image_values.items() if values}
        return _rows(columns, ~np.isnan(columns["loss"]))

    def _class_columns(self) -> dict[str, Any]:
        schedule = self.study.data.classes
        if not self.classes or schedule is None:
            return {}
        values, evals = np.stack(self.classes, axis=1), np.stack(self.evals, axis=1)  # (T, evaluations, ...)
        shape = values.shape[:4]
        trials, classes = shape[0], shape[3]
        sizes = [len(ids) // classes for ids in (self.data[0].train_ids, self.data[0].validation_ids)]
        sizes.append(len(self.data[0].test_ids) // classes)
        orders = [data.order for data in self.data if data.order is not None]

        def spread(array: Any, *axes: int) -> np.ndarray:
            """What depends on some of the axes alone, for every row."""
            own = np.asarray(array)
            return np.broadcast_to(np.expand_dims(own, [a for a in range(4) if a not in axes]), shape).reshape(-1)

        columns: dict[str, Any] = {
            "trial": spread(np.arange(trials), 0),
            "epoch": spread(evals[..., 0].astype(int), 0, 1),
            "step": spread(evals[..., 1].astype(int), 0, 1),
            "split": spread(["train", "validation", "test"], 2),
            "class_label": spread(np.stack(orders), 0, 3),
            "class_rank": spread(np.arange(classes), 3),
            "task": spread([schedule.task_with(rank) for rank in range(classes)], 3),
            "num_images": spread(sizes, 2),
            "loss": values[..., 0].reshape(-1),
            "accuracy": values[..., 1].reshape(-1),
        }
        return _rows(columns, ~np.isnan(columns["loss"]))


def _evaluated(columns: dict[str, Any]) -> dict[str, Any]:
    return _rows(columns, ~np.isnan(columns["train_loss"])) if columns else {}


def _rows(columns: dict[str, np.ndarray], there: np.ndarray) -> dict[str, np.ndarray]:
    """The rows that are there."""
    return columns if there.all() else {name: column[there] for name, column in columns.items()}


def by_class(data: TrialData, loss: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Mean loss and accuracy of every class, float64 (3, classes, 2): by split, and rank of the class.

    NaN for classes that were not evaluated and splits without images. Every class has equally many images.
    """
    assert data.order is not None
    values = np.stack([loss, np.where(np.isnan(loss), np.nan, correct)], axis=1, dtype=np.float64)
    ends = np.cumsum([len(data.train_ids), len(data.validation_ids)])
    parts = [part.reshape(len(data.order), -1, 2) for part in np.split(values, ends)]
    return np.stack([np.full((len(part), 2), np.nan) if not part.size else part.mean(1) for part in parts])


def _summarise(data: TrialData, loss: np.ndarray, correct: np.ndarray, num_classes: int) -> list[float]:
    """The metrics of one trial's evaluation in the order of EVAL_METRICS; NaN where there is no such image.

    ``num_classes``: where they come one group after the other, those that were evaluated.
    """
    if data.order is not None:
        is_seen = data.is_of_first_classes(num_classes)
        data, loss, correct = data.first_classes(num_classes), loss[is_seen], correct[is_seen]
    splits = data.splits
    train = splits == "train"
    noisy = np.zeros_like(train)
    noisy[: len(data.train_ids)] = data.is_noisy

    def error_and_loss(subset: np.ndarray) -> list[float]:
        if not subset.any():
            return [math.nan, math.nan]
        return [1 - float(correct[subset].mean()), float(loss[subset].mean(dtype=np.float64))]

    error_val, loss_val = error_and_loss(splits == "validation")
    return [
        *error_and_loss(train),
        *error_and_loss(train & ~noisy),
        *error_and_loss(noisy),
        loss_val,
        1 - error_val,
        *error_and_loss(splits == "test"),
    ]
