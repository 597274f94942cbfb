"""Metrics between two checkpoints: kept in memory and in the resume point, written to the tables at a checkpoint."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd_core.data.trials import TrialData
from dd_core.store import Store
from dd_core.studies import Arm, Checkpoint, Study
from dd_core.tables import to_arrow, write_parquet
from dd_core.training.stack import BatchMetrics, Evaluation

EVAL_METRICS = (
    "train_error",
    "train_loss",
    "train_error_clean",
    "train_loss_clean",
    "train_error_noisy",
    "train_loss_noisy",
    "test_error",
    "test_loss",
)


@dataclass
class Recorder:
    """Metrics of all trials of an arm since the last checkpoint.

    Attributes:
        batches: per epoch a float64 array (steps, 4 + 2 T): epoch, step, lr, time, T losses, T accuracies.
        evals: per evaluation a float64 array (T, 2 + 8): epoch, step, then ``EVAL_METRICS``.
        image_epochs, image_losses, image_correct: per kept evaluation its epoch and per-image values (T, N).
    """

    study: Study
    arm: Arm
    data: list[TrialData]
    batches: list[np.ndarray] = field(default_factory=list)
    evals: list[np.ndarray] = field(default_factory=list)
    image_epochs: list[int] = field(default_factory=list)
    image_losses: list[np.ndarray] = field(default_factory=list)
    image_correct: list[np.ndarray] = field(default_factory=list)

    def add_batches(self, epoch: int, first_step: int, metrics: list[BatchMetrics]) -> None:
        """Record one epoch of every stack; ``first_step`` is the number of the epoch's first step, from 1."""
        steps = len(metrics[0].lr)
        columns = [np.full(steps, epoch), first_step + np.arange(steps), metrics[0].lr, metrics[0].time]
        columns += [column for m in metrics for column in m.loss.T]
        columns += [column for m in metrics for column in m.accuracy.T]
        self.batches.append(np.stack(columns, axis=1))

    def add_evaluation(self, epoch: int, step: int, results: list[Evaluation], keep_images: bool) -> np.ndarray:
        """Record an evaluation of every stack and return its metrics, float64 (T, 8) in the order of EVAL_METRICS."""
        losses = np.concatenate([r.loss for r in results])
        correct = np.concatenate([r.correct for r in results])
        rows = np.array([_summarise(d, loss, hit) for d, loss, hit in zip(self.data, losses, correct, strict=True)])
        where = np.tile([epoch, step], (len(rows), 1))
        self.evals.append(np.concatenate([where, rows], axis=1))
        if keep_images:
            self.image_epochs.append(epoch)
            self.image_losses.append(losses)
            self.image_correct.append(correct)
        return rows

    def state(self) -> dict[str, Tensor]:
        """Everything recorded since the last checkpoint, as tensors."""
        arrays = {
            "batches": np.concatenate(self.batches) if self.batches else None,
            "evals": np.stack(self.evals) if self.evals else None,
            "image_epochs": np.array(self.image_epochs) if self.image_epochs else None,
            "image_losses": np.stack(self.image_losses) if self.image_losses else None,
            "image_correct": np.stack(self.image_correct) if self.image_correct else None,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.batches = [arrays["batches"]] if "batches" in arrays else []
        self.evals = list(arrays.get("evals", []))
        self.image_epochs = [int(epoch) for epoch in arrays.get("image_epochs", [])]
        self.image_losses = list(arrays.get("image_losses", []))
        self.image_correct = list(arrays.get("image_correct", []))

    def flush(self, store: Store, checkpoint: Checkpoint) -> dict[str, tuple[Path, int]]:
        """Write what was recorded to one file per table, named after the checkpoint, and forget it.

        Returns:
            For every table written, its file and number of rows.
        """
        tables = {
            "training_batches": self._batch_columns(),
            "training_evals": self._eval_columns(),
            "image_progress": self._image_columns(),
        }
        written = {}
        for name, (columns, num_rows) in tables.items():
            if num_rows:
                path = store.table_folder(name, self.study.name, self.arm.key) / f"{checkpoint.epoch:04d}.parquet"
                common = {
                    "variant": self.arm.variant,
                    "k": self.arm.k,
                    "recipe": self.study.recipe_hash(self.arm),
                }
                write_parquet(path, to_arrow(name, {**common, **columns}, num_rows))
                written[name] = (path, num_rows)
        self.load_state({})
        return written

    def _batch_columns(self) -> tuple[dict[str, Any], int]:
        if not self.batches:
            return {}, 0
        rows = np.concatenate(self.batches)
        steps, trials = len(rows), len(self.data)
        losses = rows[:, 4 : 4 + trials].T.reshape(-1)
        columns = {
            "trial": np.repeat(np.arange(trials), steps),
            "epoch": np.tile(rows[:, 0].astype(int), trials),
            "step": np.tile(rows[:, 1].astype(int), trials),
            "loss_train_nats": losses,
            "loss_train_bits": losses / math.log(2),
            "acc_train": rows[:, 4 + trials :].T.reshape(-1),
            "lr": np.tile(rows[:, 2], trials),
            "weight_decay": self.study.variants[self.arm.variant].optimizer.weight_decay,
            "time": np.tile(rows[:, 3], trials),
        }
        return columns, steps * trials

    def _eval_columns(self) -> tuple[dict[str, Any], int]:
        if not self.evals:
            return {}, 0
        rows = np.stack(self.evals, axis=1)  # (T, evaluations, 10)
        trials, count = rows.shape[:2]
        flat = rows.reshape(trials * count, -1)
        columns: dict[str, Any] = {
            "trial": np.repeat(np.arange(trials), count),
            "epoch": flat[:, 0].astype(int),
            "step": flat[:, 1].astype(int),
        }
        columns |= {name: flat[:, 2 + i] for i, name in enumerate(EVAL_METRICS)}
        return columns, trials * count

    def _image_columns(self) -> tuple[dict[str, Any], int]:
        if not self.image_epochs:
            return {}, 0
        losses = np.stack(self.image_losses, axis=1)  # (T, evaluations, N)
        trials, count, images = losses.shape
        ids = np.stack([np.concatenate([d.train_ids, d.test_ids]) for d in self.data])
        num_train = len(self.data[0].train_ids)
        split = np.where(np.arange(images) < num_train, "train", "test")
        columns = {
            "trial": np.repeat(np.arange(trials), count * images),
            "epoch": np.tile(np.repeat(self.image_epochs, images), trials),
            "image_id": np.repeat(ids[:, None], count, axis=1).reshape(-1),
            "split": np.tile(split, trials * count),
            "loss": losses.reshape(-1),
            "correct": np.stack(self.image_correct, axis=1).reshape(-1),
        }
        return columns, losses.size


def _summarise(data: TrialData, loss: np.ndarray, correct: np.ndarray) -> list[float]:
    """The metrics of one trial's evaluation in the order of EVAL_METRICS; NaN where there is no such image."""
    num_train = len(data.train_ids)
    train = np.zeros(len(loss), dtype=bool)
    train[:num_train] = True
    noisy = np.zeros_like(train)
    noisy[:num_train] = data.is_noisy
    values = []
    for subset in (train, train & ~noisy, noisy, ~train):
        empty = not subset.any()
        values.append(math.nan if empty else 1 - float(correct[subset].mean()))
        values.append(math.nan if empty else float(loss[subset].mean(dtype=np.float64)))
    return values
