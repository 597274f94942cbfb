"""One arm from where it stands to a given epoch: the loop, the lock, exact resume and the checkpoints on the way."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dd_core.errors import StaleError
from dd_core.store import Store
from dd_core.studies import Arm, Checkpoint, Study
from dd_core.training.checkpoints import (
    check_checkpoint,
    digest,
    identity,
    read_tensors,
    save_checkpoint,
    save_tensors,
)
from dd_core.training.ledger import RunRecord, mark_interrupted
from dd_core.training.recorder import EVAL_METRICS, Recorder
from dd_core.training.stack import TrialStack, stacking

Report = Callable[[dict[str, Any]], None]

_METRIC_TABLES = ("training_batches", "training_evals", "image_progress")


class ArmBusyError(Exception):
    """Another process is training this arm at the moment."""


@contextlib.contextmanager
def arm_lock(store: Store, study: Study, arm: Arm, wait: bool) -> Iterator[None]:
    """Hold the arm; the operating system releases it when the process dies, however it dies.

    Raises:
        ArmBusyError: someone else holds it and ``wait`` is false.
    """
    path = store.lock_path(study.name, arm.key)
    store.check_writable()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise ArmBusyError(f"{arm.key} of {study.name} is being trained by another process") from error


@dataclass
class Session:
    """All trials of an arm on one device, at some epoch."""

    study: Study
    arm: Arm
    store: Store
    device: torch.device
    dtype: torch.dtype = torch.float32
    epoch: int = 0
    stacks: list[TrialStack] = field(init=False)
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        """Build every stack in its initial state."""
        self.stacks = [
            TrialStack(self.study, self.arm, trials, self.device, self.dtype)
            for trials in stacking(self.study, self.arm)
        ]
        self.recorder = Recorder(self.study, self.arm, [data for stack in self.stacks for data in stack.data])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.stacks[0].steps_per_epoch

    def train_epoch(self) -> None:
        """Train one epoch and record every batch."""
        first_step = self.epoch * self.steps_per_epoch + 1
        self.epoch += 1
        self.recorder.add_batches(self.epoch, first_step, [stack.train_epoch(self.epoch) for stack in self.stacks])

    def evaluate(self) -> dict[str, float]:
        """Evaluate and record; returns each metric's mean over trials."""
        keep = self.study.evaluation.image_progress == "evaluations" or self.epoch in self.study.checkpoints
        results = [stack.evaluate() for stack in self.stacks]
        rows = self.recorder.add_evaluation(self.epoch, self.epoch * self.steps_per_epoch, results, keep)
        return dict(zip(EVAL_METRICS, rows.mean(axis=0).tolist(), strict=True))

    def save_checkpoint(self, headline: dict[str, float]) -> None:
        """Write the metrics since the last checkpoint, the weights, and their manifest."""
        checkpoint = Checkpoint(self.arm, self.epoch)
        tables = self.recorder.flush(self.store, checkpoint)
        states = [(len(stack.trials), dict(stack.model.state_dict())) for stack in self.stacks]
        save_checkpoint(self.store, self.study, checkpoint, states, tables, headline, device_name(self.device))

    def save_resume_point(self) -> None:
        """Write everything needed to go on from here as if nothing had happened."""
        tensors = {f"recorder.{name}": tensor for name, tensor in self.recorder.state().items()}
        for index, stack in enumerate(self.stacks):
            tensors |= {f"stack{index}.{name}": tensor for name, tensor in stack.state().items()}
        metadata = {
            "epoch": str(self.epoch),
            "identity": json.dumps(identity(self.study, self.arm), sort_keys=True),
            "digest": digest(tensors),
        }
        save_tensors(self.store.resume_path(self.study.name, self.arm.key), tensors, metadata)

    def resume(self) -> str | None:
        """Go to the resume point if it is usable and all checkpoints before it are sound.

        Returns:
            Why training starts from the beginning although there is a resume point; None otherwise.
        """
        path = self.store.resume_path(self.study.name, self.arm.key)
        if not path.exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
            if metadata.get("identity") != json.dumps(identity(self.study, self.arm), sort_keys=True):
                return "the resume point belongs to another recipe or data set"
            if metadata.get("digest") != digest(tensors):
                return "the resume point is damaged"
            epoch = int(metadata["epoch"])
            for kept in self.study.checkpoints:
                if kept <= epoch:
                    check_checkpoint(self.store, self.study, Checkpoint(self.arm, kept))
        except StaleError as error:
            return str(error)
        self._load(tensors)
        self.epoch = epoch
        return None

    def _load(self, tensors: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.recorder.load_state(part("recorder."))
        for index, stack in enumerate(self.stacks):
            stack.load_state(part(f"stack{index}."))


def device_name(device: torch.device) -> str:
    """``cpu`` or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def sound_checkpoints(store: Store, study: Study, arm: Arm, until: int) -> bool:
    """Whether every checkpoint up to ``until`` is there with its metrics, of this recipe and data, and unharmed."""
    try:
        for epoch in study.checkpoints:
            if epoch <= until:
                check_checkpoint(store, study, Checkpoint(arm, epoch))
    except StaleError:
        return False
    return True


def remove_foreign_parts(store: Store, study: Study, arm: Arm, epoch: int) -> None:
    """Before training from ``epoch`` on: drop later metric files unless they are cut at the study's checkpoints.

    A file holds what happened since the checkpoint before it. Files cut at other epochs, side by side with new ones,
    would hold epochs twice or not at all, and an interruption could leave them so. A checkpoint without its files is
    trained again.
    """
    start = f"{epoch:04d}" if epoch else ""  # from the beginning, epoch 0 is evaluated again
    folders = [store.table_folder(table, study.name, arm.key) for table in _METRIC_TABLES]
    later = [path for folder in folders for path in folder.glob("*.parquet") if path.stem > start]
    cuts = sorted({path.stem for path in later})
    if cuts and cuts != [key for key in study.epoch_keys if start < key <= cuts[-1]]:
        # From the end, so that what a process killed here leaves is still recognised.
        for path in sorted(later, key=lambda path: path.stem, reverse=True):
            path.unlink()


def train_arm(
    study: Study,
    arm: Arm,
    store: Store,
    until: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    wait: bool = True,
    resume_seconds: float = 60.0,
    report: Report = lambda event: None,
) -> None:
    """Train all trials of an arm up to an epoch, going on from wherever an earlier attempt stopped.

    Does nothing if every checkpoint up to ``until`` is there and sound. Results of an earlier recipe are retired first.
    Killing the process at any moment and calling again gives the same bits as an undisturbed call on the same kind of
    device.

    Args:
        study: what to train.
        arm: which arm of it.
        store: where results go.
        until: last epoch; one of the study's checkpoint epochs.
        device: default the CPU.
        dtype: float32, or float64 for references.
        wait: if another process is training this arm, wait for it (and use its result) instead of raising.
        resume_seconds: how much work a kill may cost at most, besides one epoch.
        report: is called with events: progress (epoch), checkpoint (epoch), note (text).

    Raises:
        ArmBusyError: another process is training this arm and ``wait`` is false.
        DataMissingError: the data set is absent.
        StoreError: the data root cannot be written.
    """
    device = device or torch.device("cpu")
    with arm_lock(store, study, arm, wait):
        mark_interrupted(store, study, arm)
        retire_other_recipes(store, study, arm, report)
        for table in ("runs", *_METRIC_TABLES):
            store.clean_temporaries(store.table_folder(table, study.name, arm.key))
        store.clean_temporaries(store.arm_folder(study.name, arm.key))
        if sound_checkpoints(store, study, arm, until):
            return
        session = Session(study, arm, store, device, dtype)
        obstacle = session.resume()
        if obstacle:
            report({"event": "note", "text": f"{arm.key}: training from the beginning, because {obstacle}"})
        remove_foreign_parts(store, study, arm, session.epoch)
        record = RunRecord.open(store, study, arm, session.epoch, device_name(device), session.stacks)
        try:
            _run(session, until, resume_seconds, report, record)
        except BaseException as error:
            record.close("failed", f"{type(error).__name__}: {error}", session.epoch)
            raise
        record.close("finished", None, session.epoch)


def _run(session: Session, until: int, resume_seconds: float, report: Report, record: RunRecord) -> None:
    """The loop itself."""
    study = session.study
    saved_at = time.monotonic()
    if session.epoch == 0:
        headline = _note(record, session.evaluate())
        if 0 in study.checkpoints:
            session.save_checkpoint(headline)
            report({"event": "checkpoint", "epoch": 0})
    while session.epoch < until:
        session.train_epoch()
        is_checkpoint = session.epoch in study.checkpoints
        if is_checkpoint or session.epoch % study.evaluation.every == 0:
            headline = _note(record, session.evaluate())
        if is_checkpoint:
            session.save_checkpoint(headline)
        if is_checkpoint or time.monotonic() - saved_at > resume_seconds:
            session.save_resume_point()
            saved_at = time.monotonic()
        if is_checkpoint:
            report({"event": "checkpoint", "epoch": session.epoch})
        report({"event": "progress", "epoch": session.epoch})


def _note(record: RunRecord, headline: dict[str, float]) -> dict[str, float]:
    record.headline = headline
    return headline


def retire_other_recipes(store: Store, study: Study, arm: Arm, report: Report) -> None:
    """Move results of another recipe of this arm aside, so that tables never mix two recipes of one arm."""
    present = study.recipe_hash(arm)
    for path in sorted(store.arm_folder(study.name, arm.key).glob("[0-9]*.json")):
        manifest = store.read_manifest(path)
        if manifest is not None and manifest.get("recipe") != present:
            target = store.retire_arm(study.name, arm.key, str(manifest.get("recipe")))
            report({"event": "note", "text": f"{arm.key}: its recipe has changed; the old results lie in {target}"})
            return
