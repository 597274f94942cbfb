"""The table ``runs``: one row per arm, trial and attempt, which writes one file when it starts and one when it ends.

No file is ever written again, so nobody who reads the table meets a change; the view shows the later of the two.
"""

import contextlib
import datetime
import json
import time
from typing import Any

import torch

from dd_core.errors import StaleError
from dd_core.machine.memory import name_of, peak_memory, reset_peak_memory
from dd_core.store.parts import PartStore
from dd_core.store.store import Store
from dd_core.study.former_names import now
from dd_core.study.price import price_per_gpu_hour
from dd_core.study.study import Arm, Study
from dd_core.tables.attempts import attempt_numbers, attempt_path
from dd_core.tables.files import TABLES, read_parquet, to_arrow, write_result
from dd_core.training.session import Session
from dd_core.training.trial_progress import best_by

_OUTCOMES = ("train_error", "train_loss", "loss_val_nats", "acc_val", "test_error", "test_loss")


class RunRecord:
    """One attempt to train an arm. Hold the arm's lock while using it."""

    def __init__(
        self,
        store: Store,
        study: Study,
        arm: Arm,
        device: torch.device,
        gpu_share: float = 1.0,
        predicted_seconds: float | None = None,
        arms_together: int = 1,
    ):
        """The next attempt; nothing is written before ``open``.

        ``arms_together``: how many are trained in one network, each of which takes an equal share of the time.

        Raises:
            UserError: DD_PRICE_PER_GPU_HOUR is not a price.
        """
        self._store, self._study, self._arm = store, study, arm
        self._device = device
        self._price = price_per_gpu_hour(study)
        self._started = time.monotonic()
        variant = study.variants[arm.variant]
        self._columns: dict[str, Any] = {
            "variant": arm.variant,
            "k": arm.k,
            "trial": list(study.trial_numbers),
            "recipe": study.whole.recipe_hash(arm),
            "architecture": variant.architecture,
            "optimizer": variant.optimizer.name,
            "learning_rate": variant.optimizer.learning_rate,
            "weight_decay": variant.optimizer.weight_decay,
            "schedule": variant.schedule.name,
            "batch_size": variant.batch_size,
            "label_noise": variant.label_noise,
            "label_noise_kind": variant.label_noise_kind if variant.label_noise else None,
            "settings": json.dumps(study.whole.recipe(arm), sort_keys=True),
            "family": variant.family or arm.variant,
            "grid": json.dumps(variant.grid_values, sort_keys=True) if variant.grid_values else None,
            "seed": study.seed,
            "device": name_of(device),
            "torch_version": torch.__version__,
            "started_at": datetime.datetime.now(datetime.UTC),
            "predicted_seconds": predicted_seconds,
            "gpu_share": gpu_share if device.type == "cuda" else 0.0,
            "arms_together": arms_together,
            "price_per_gpu_hour": self._price,
        }

    def open(self, session: Session) -> None:
        """Say that it has begun, at the session's epoch."""
        stack = session.stacks[0]
        self._first_epoch = session.epoch
        self._columns |= {
            "first_epoch": session.epoch,
            "micro_batch_size": session.micro_batch,
            "precision": session.precision,
            "threads": torch.get_num_threads(),
            "num_parameters": stack.num_parameters,
        }
        reset_peak_memory(self._device)
        with _writing(self._store, self._study, self._arm):
            self._columns["attempt"] = max(attempt_numbers(self._store, self._study, self._arm), default=0) + 1
            self._write(session, "start", "running", None, {"ended_at": None, **dict.fromkeys(_MEASURED)})

    def close(self, session: Session, status: str, reason: str | None) -> None:
        """Say how the attempt ended; trials that ended by themselves keep their own reason."""
        seconds = (time.monotonic() - self._started) / self._columns["arms_together"]
        gpu_seconds = seconds * self._columns["gpu_share"]
        spent = {
            "ended_at": datetime.datetime.now(datetime.UTC),
            "seconds": seconds,
            "gpu_seconds": gpu_seconds,
            "cost": None if self._price is None else gpu_seconds / 3600 * self._price,
            "samples_per_second": self._images(session) / seconds,
            "peak_memory_bytes": peak_memory(self._device),
        }
        with _writing(self._store, self._study, self._arm):
            self._write(session, "end", status, reason, spent)

    def _images(self, session: Session) -> int:
        """Images that trials have seen in this attempt."""
        calendar, first = session.calendar, self._first_epoch
        last = [max(p.ending.epoch if p.ending else session.epoch, first) for p in session.progress]
        steps = [calendar.steps_after(epoch) for epoch in (first, *last)]
        before, *seen = map(calendar.examples_within, steps)
        return sum(seen) - len(seen) * before

    def _write(self, session: Session, moment: str, status: str, reason: str | None, spent: dict[str, Any]) -> None:
        endings = [trial.ending for trial in session.progress]
        columns = {
            **self._columns,
            **spent,
            "status": [ending.status if ending else status for ending in endings],
            "reason": [ending.reason if ending else reason for ending in endings],
            "last_epoch": session.epoch,
            "end_epoch": [ending.epoch if ending else None for ending in endings],
            "end_step": [ending.step if ending else None for ending in endings],
            **_outcomes(session),
        }
        table = to_arrow("runs", columns, self._study.trials)
        path = attempt_path(self._store, self._study, self._arm, self._columns["attempt"], moment)
        write_result(self._store, path, table)


_MEASURED = ("seconds", "gpu_seconds", "cost", "samples_per_second", "peak_memory_bytes")


def _outcomes(session: Session) -> dict[str, list[Any]]:
    """The last and the best evaluation of every trial, null where there was none yet."""
    progress = session.progress

    def told(at: str, evaluations: list[dict[str, float]]) -> dict[str, list[Any]]:
        return {f"{at}_{now(n).name}": [now(n).value(each.get(n)) for each in evaluations] for n in _OUTCOMES}

    return {
        **told("last", [trial.last for trial in progress]),
        "best_by": [now(best_by(trial.best)).name if trial.best else None for trial in progress],
        "best_epoch": [trial.best.get("epoch") for trial in progress],
        **told("best", [trial.best for trial in progress]),
    }


def mark_interrupted(store: Store, study: Study, arm: Arm) -> None:
    """End attempts that were killed: those without an end. Hold the lock of the arm, or of the part, while doing so."""
    for number in attempt_numbers(store, study, arm):
        start, end = (attempt_path(store, study, arm, number, moment) for moment in ("start", "end"))
        # An end that is vouched for was there: it is lost, and the checks name it.
        if start.exists() and not end.exists() and store.read_manifest(store.manifest_path(end)) is None:
            try:
                table = read_parquet(start)
            except StaleError:  # the checks name it; nobody can say any more what it told
                continue
            # An earlier version knew fewer columns.
            columns = {
                c.name: table[c.name].to_pylist() if c.name in table.column_names else None
                for c in TABLES["runs"].file_columns
            }
            columns |= {"status": "interrupted", "reason": "killed, or the machine stopped"}
            columns |= _until_last_sign_of_life(store, study, arm, columns)
            with _writing(store, study, arm):
                write_result(store, end, to_arrow("runs", columns, table.num_rows))


def _until_last_sign_of_life(store: Store, study: Study, arm: Arm, columns: dict[str, Any]) -> dict[str, Any]:
    """What a killed attempt has cost at least: the time from its start to its last checkpoint or resume point."""
    started = columns["started_at"][0]
    written = 0.0
    checkpoints = sorted(store.arm_folder(study.name, arm.key).glob("[0-9]*.json"))
    for path in (*checkpoints[-1:], store.resume_path(study.name, arm.key)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            written = max(written, path.stat().st_mtime)
    seconds = written - started.timestamp()
    if seconds <= 0:
        return {}
    seconds /= (columns["arms_together"] or [1])[0] or 1
    gpu_seconds = seconds * ((columns["gpu_share"] or [0.0])[0] or 0.0)
    price = (columns["price_per_gpu_hour"] or [None])[0]
    return {
        "ended_at": datetime.datetime.fromtimestamp(written, datetime.UTC),
        "seconds": seconds,
        "gpu_seconds": gpu_seconds,
        "cost": None if price is None else gpu_seconds / 3600 * price,
    }


def _writing(store: Store, study: Study, arm: Arm) -> contextlib.AbstractContextManager[None]:
    """Hold the arm while a part, which does not hold it, writes where others may write too."""
    return store.whole.lock(study.name, arm.key) if isinstance(store, PartStore) else contextlib.nullcontext()
