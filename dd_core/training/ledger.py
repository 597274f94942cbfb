"""The table ``runs``: one row per arm, trial and attempt, which writes one file when it starts and one when it ends.

No file is ever written again, so nobody who reads the table meets a change; the view shows the later of the two.
"""

import datetime
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dd_core.store import Store
from dd_core.studies import Arm, Study
from dd_core.tables import read_parquet, to_arrow, write_parquet
from dd_core.training.stack import TrialStack


@dataclass
class RunRecord:
    """One attempt to train an arm. Hold the arm's lock while using it."""

    path: Path
    columns: dict[str, Any]
    num_trials: int
    images_per_epoch: int
    started: float = field(default_factory=time.monotonic)
    headline: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls, store: Store, study: Study, arm: Arm, first_epoch: int, device: str, stacks: list[TrialStack]
    ) -> "RunRecord":
        """Start the next attempt."""
        number = max(_attempts(store, study, arm), default=0) + 1
        columns = {
            "variant": arm.variant,
            "k": arm.k,
            "trial": list(range(study.trials)),
            "recipe": study.recipe_hash(arm),
            "attempt": number,
            "seed": study.seed,
            "num_parameters": sum(p.numel() for p in stacks[0].model.parameters()) // len(stacks[0].trials),
            "device": device,
            "torch_version": torch.__version__,
            "first_epoch": first_epoch,
            "started_at": datetime.datetime.now(datetime.UTC),
        }
        folder = store.table_folder("runs", study.name, arm.key)
        record = cls(folder / _file_name(number, "end"), columns, study.trials, stacks[0].num_train * study.trials)
        record._write(folder / _file_name(number, "start"), "running", None, first_epoch, None)
        return record

    def close(self, status: str, reason: str | None, last_epoch: int) -> None:
        """Say how the attempt ended."""
        self._write(self.path, status, reason, last_epoch, datetime.datetime.now(datetime.UTC))

    def _write(
        self, path: Path, status: str, reason: str | None, last_epoch: int, ended_at: datetime.datetime | None
    ) -> None:
        seconds = time.monotonic() - self.started
        images = (last_epoch - self.columns["first_epoch"]) * self.images_per_epoch
        columns = {
            **self.columns,
            "status": status,
            "reason": reason,
            "last_epoch": last_epoch,
            "ended_at": ended_at,
            "seconds": seconds if ended_at else None,
            "samples_per_second": images / seconds if ended_at else None,
            **{name: self.headline.get(name) for name in ("train_error", "train_loss", "test_error", "test_loss")},
        }
        write_parquet(path, to_arrow("runs", columns, self.num_trials))


def mark_interrupted(store: Store, study: Study, arm: Arm) -> None:
    """End attempts that were killed: those without an end. Hold the arm's lock while doing so."""
    folder = store.table_folder("runs", study.name, arm.key)
    for number in _attempts(store, study, arm):
        start, end = folder / _file_name(number, "start"), folder / _file_name(number, "end")
        if start.exists() and not end.exists():
            table = read_parquet(start)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            # When it ended nobody knows; that it started is the last that was heard of it.
            columns |= {"status": "interrupted", "reason": "killed, or the machine stopped"}
            write_parquet(end, to_arrow("runs", columns, table.num_rows))


def _file_name(attempt: int, moment: str) -> str:
    return f"attempt-{attempt:04d}.{moment}.parquet"


def _attempts(store: Store, study: Study, arm: Arm) -> list[int]:
    """Numbers of the attempts so far, ascending; earlier versions wrote one file each, ``attempt-0001.parquet``."""
    folder = store.table_folder("runs", study.name, arm.key)
    return sorted({int(path.name.split(".")[0].removeprefix("attempt-")) for path in folder.glob("attempt-*.parquet")})
