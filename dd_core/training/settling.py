"""What is left to do for an arm whose checkpoints are all there, because the process that wrote them came to no end.

A kill, or a full disk, between the last manifest and the end of an attempt leaves best checkpoints that have given way
to better ones, and a row in ``runs`` without results. Both follow from the evaluations in the arm's tables, so nothing
is trained again and no weights are touched.
"""

import math
from typing import Any

import torch

from dd_core.errors import StaleError
from dd_core.store.best_checkpoints import prune_best
from dd_core.store.parts import PartStore
from dd_core.store.provenance import checkpoint_manifest
from dd_core.store.resume_points import trained_epoch
from dd_core.store.store import Store
from dd_core.study.former_names import now
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.attempts import is_settled
from dd_core.tables.files import read_parquet
from dd_core.training.ledger import RunRecord
from dd_core.training.recorder import EVAL_METRICS
from dd_core.training.session import Session
from dd_core.training.trial_progress import TrialProgress


def settle(store: Store, study: Study, arm: Arm, device: torch.device) -> None:
    """Remove best checkpoints that have given way, and write an attempt that finished, if the last one did not.

    Does nothing where training has gone on beyond the last checkpoint: then there is a resume point to go on from. Hold
    the lock of the arm, or of the part.

    Raises:
        UserError: DD_PRICE_PER_GPU_HOUR is not a price.
    """
    epoch = _last_checkpoint(store, study, arm)
    if epoch is None or is_settled(store, study, arm) or trained_epoch(store, study, arm) > epoch:
        return
    session = Session(study, arm, store, device)
    session.epoch, session.progress = epoch, progress_at(store, study, Checkpoint(arm, epoch))
    record = RunRecord(store, study, arm, device)
    record.open(session)
    prune_best(store, study, arm, [[kept for _, kept in trial.kept] for trial in session.progress])
    record.close(session, "finished", None)


def _last_checkpoint(store: Store, study: Study, arm: Arm) -> int | None:
    """The epoch of the last of the study's checkpoints before the first that is missing."""
    last = None
    for epoch in study.checkpoints:
        try:
            checkpoint_manifest(store, study, Checkpoint(arm, epoch))
        except StaleError:
            break
        last = epoch
    return last


def progress_at(store: Store, study: Study, checkpoint: Checkpoint) -> list[TrialProgress]:
    """Where each trial stood at a checkpoint, from its evaluations: last, best, kept and ending.

    What a schedule or early stopping remembers between evaluations is not told.

    Raises:
        StaleError: there is no such checkpoint.
    """
    manifest = checkpoint_manifest(store, study, checkpoint)
    # That of a part counts its own trials, that of the arm all of them.
    first = 0 if manifest.recipe == study.recipe_hash(checkpoint.arm) else study.first_trial
    progress, calendar = [], study.calendar(checkpoint.arm.variant)
    restarts = study.variants[checkpoint.arm.variant].schedule.restarts
    for trial, evaluations in enumerate(_evaluations(store, study, checkpoint)):
        ending = manifest.ended.get(first + trial)
        stood, task = TrialProgress(), 1
        # Up to where it stands, too: one that diverged at the beginning of a task has no evaluation there.
        for epoch in sorted({*evaluations, ending.epoch if ending else checkpoint.epoch}):
            stood.ending = ending if ending is not None and epoch > ending.epoch else None
            if (now := calendar.task_of(max(epoch, 1))) != task:
                stood.begin_task(restarts)
                task = now
            if epoch in evaluations:
                stood.note_evaluation(epoch, evaluations[epoch], study.keep_best)
        progress.append(stood.model_copy(update={"ending": ending}))
    return progress


def _former(row: dict[str, Any], name: str) -> float:
    """A metric of a row under the name that training has for it; NaN where there is none."""
    value = now(name).former(row[now(name).name])
    return math.nan if value is None else float(value)


def _evaluations(store: Store, study: Study, checkpoint: Checkpoint) -> list[dict[int, dict[str, float]]]:
    """For each trial the metrics of its evaluations up to a checkpoint, by epoch."""
    name, arm = "training_evals", checkpoint.arm.key
    folders = [(store.table_folder(name, study.name, arm), 0)]
    if isinstance(store, PartStore):  # what has been put together has left the part, and counts trials as the arm does
        folders.append((store.whole.table_folder(name, study.name, arm), study.first_trial))
    found: list[dict[int, dict[str, float]]] = [{} for _ in study.trial_numbers]
    for folder, first in folders:
        for path in sorted(folder.glob("[0-9]*.parquet")):
            columns = [now(name).name for name in EVAL_METRICS]
            rows: list[dict[str, Any]] = read_parquet(path).select(["trial", "epoch", *columns]).to_pylist()
            for row in rows:
                trial, epoch = row["trial"] - first, row["epoch"]
                if 0 <= trial < study.trials and epoch <= checkpoint.epoch:
                    metrics = {n: _former(row, n) for n in EVAL_METRICS}
                    found[trial].setdefault(epoch, metrics)
    return found
