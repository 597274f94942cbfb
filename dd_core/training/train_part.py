"""An arm in parts (``dd_core.store.parts``): one of them trained, and what all have trained put together.

Trials are independent of each other to the last bit, so what is put together equals what one training of the whole arm
writes: weights, and rows in the same order. Only the time of a step is each part's own.
"""

import contextlib
from typing import Any

import torch

from dd_core.errors import StaleError
from dd_core.events import CheckpointWritten, Event, Report
from dd_core.store.best_checkpoints import prune_best
from dd_core.store.checkpoints import check_checkpoint
from dd_core.store.files import remove
from dd_core.store.manifests import FileEntry, Manifest
from dd_core.store.parts import Part, PartStore, all_parts, parts_folder
from dd_core.store.provenance import checkpoint_manifest, trained_checkpoints
from dd_core.store.retirement import retire
from dd_core.store.store import LockedError, Store, sha256_of
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.assembly import assemble, copy_best, newest_epoch_before
from dd_core.training.ledger import mark_interrupted
from dd_core.training.recorder import METRIC_TABLES
from dd_core.training.settling import settle
from dd_core.training.train import (
    arm_lock,
    remove_foreign_files,
    set_recipe_right,
    sound_checkpoints,
    train_arm,
)


def train_part(
    study: Study,
    arm: Arm,
    store: Store,
    until: int,
    trials: range,
    *,
    report: Report = lambda event: None,
    **options: Any,
) -> None:
    """Train some trials of an arm up to an epoch, and put together every checkpoint that all parts of it have reached.

    Does nothing if every checkpoint of the arm up to ``until`` is there and sound. Any part may be trained by any
    process at any time; killing each at any moment and calling again leads to the files of one training of the arm.

    Args:
        study: what to train.
        arm: which arm of it.
        store: where results go.
        until: last epoch; one of the study's checkpoint epochs.
        trials: numbers of the trials of one part, see ``dd_core.study.stacks.stacking``.
        report: is called with events as ``train_arm`` has them; checkpoint: one of the whole arm is there now.
        options: as of ``train_arm``.

    Raises:
        ArmBusyError: another process is training this part and ``wait`` is false.
        DataMissingError: the data set is absent.
        StoreError: the data root cannot be written.
        UserError: as ``train_arm``.
    """
    part = Part.of(store, study, arm, trials)
    with arm_lock(store, study, arm, wait=True):
        set_recipe_right(store, study, arm, report)
        _retire_other_divisions(store, study, arm)
        folders = [store.table_folder(table, study.name, arm.key) for table in ("runs", *METRIC_TABLES)]
        for folder in (*folders, store.arm_folder(study.name, arm.key), store.best_folder(study.name, arm.key)):
            store.clean_temporaries(folder)
        is_complete = sound_checkpoints(store, study, arm, until)
    if is_complete:
        with contextlib.suppress(LockedError), part.store.lock(study.name, arm.key, timeout=0):
            for folder in (part.store.folder, part.store.best_folder(study.name, arm.key)):
                part.store.clean_temporaries(folder)
            mark_interrupted(part.store, part.study, arm)
            settle(part.store, part.study, arm, options.get("device") or torch.device("cpu"))
        put_together(store, study, arm)
        return

    def pass_on(event: Event) -> None:
        if not isinstance(event, CheckpointWritten):
            report(event)
            return
        for epoch in put_together(store, study, arm, held=part):
            report(CheckpointWritten(epoch=epoch))

    train_arm(part.study, arm, part.store, until, report=pass_on, **options)
    # Once more: what the last of several parts that end at the same time could not do while others held their locks.
    for epoch in put_together(store, study, arm):
        report(CheckpointWritten(epoch=epoch))


def put_together(store: Store, study: Study, arm: Arm, held: Part | None = None) -> list[int]:
    """Write every checkpoint of an arm that all its parts have reached, and remove what the parts need no more.

    Args:
        store: where results are.
        study: the whole.
        arm: which arm of it.
        held: the part whose lock the caller has.

    Returns:
        The epochs written now.
    """
    parts = all_parts(store, study, arm)
    if not _has_news(parts, study, arm):
        return []
    written, newest = [], None
    with store.lock(study.name, arm.key):
        for epoch in study.checkpoints:
            checkpoint = Checkpoint(arm, epoch)
            if not _is_sound(store, study, checkpoint):
                try:
                    _put_together(store, study, checkpoint, parts)
                except (StaleError, FileNotFoundError):  # a part is not there yet, or again
                    break
                written.append(epoch)
            newest = epoch
        if newest is not None:
            _tidy(store, study, arm, parts, newest, held)
    return written


def _has_news(parts: list[Part], study: Study, arm: Arm) -> bool:
    """Whether there is a checkpoint that every part has, and one of them has not been handed over, files and all."""
    trained = [trained_checkpoints(part.store, part.study, {arm}) for part in parts]
    of_all = set(trained[0]).intersection(*trained[1:])
    if not all(_is_handed_over(manifests[checkpoint]) for manifests in trained for checkpoint in of_all):
        return True
    newest = max(of_all, default=None)
    return newest is not None and any(part.store.checkpoint_path(study.name, newest).exists() for part in parts)


def _is_sound(store: Store, study: Study, checkpoint: Checkpoint) -> bool:
    try:
        check_checkpoint(store, study, checkpoint)
    except StaleError:
        return False
    return True


def _put_together(store: Store, study: Study, checkpoint: Checkpoint, parts: list[Part]) -> None:
    """Write one checkpoint of the arm.

    Raises:
        StaleError: a part does not have it.
        FileNotFoundError: a part is being trained anew.
    """
    arm = checkpoint.arm
    manifests = [check_checkpoint(part.store, part.study, checkpoint) for part in parts]
    if any(map(_is_handed_over, manifests)):
        raise StaleError(f"a part of {checkpoint.key} has to be trained again")
    # Whatever another process with an older study file has put together in the meantime.
    set_recipe_right(store, study, arm, lambda event: None)
    after = newest_epoch_before(store, study, checkpoint)
    remove_foreign_files(store, study, arm, "" if after is None else f"{after:04d}")
    assemble(store, study, checkpoint, parts, manifests, after)


def _is_handed_over(manifest: Manifest) -> bool:
    return "whole" in manifest.files


def _tidy(store: Store, study: Study, arm: Arm, parts: list[Part], newest: int, held: Part | None) -> None:
    """Keep the best checkpoints of all parts with the arm's, and hand over what is there up to an epoch."""
    with contextlib.ExitStack() as stack:
        ready = []
        for part in parts:
            with contextlib.suppress(LockedError):  # it will hand over by itself
                if part != held:
                    stack.enter_context(part.store.lock(study.name, arm.key, timeout=0))
                ready.append(part)
        kept = [epochs for part in parts for epochs in copy_best(part, store, study, arm, newest)]
        prune_best(store, study, arm, kept)
        # Last, because as long as a part has not handed over, all of this is done again after a kill.
        for part in ready:
            prune_best(part.store, part.study, arm, [])
            _hand_over(part, store, study, arm, newest)


def _hand_over(part: Part, store: Store, study: Study, arm: Arm, newest: int) -> None:
    """Let the manifests of a part vouch for the arm's files instead of its own, and remove these. Hold both locks.

    If the arm's are lost later, the part's checkpoints do not exist either, and it is trained again.
    """
    done = None
    for epoch in study.checkpoints:
        checkpoint = Checkpoint(arm, epoch)
        if epoch > newest or not _is_sound(part.store, part.study, checkpoint):
            break
        done = epoch
        path = part.store.checkpoint_manifest_path(study.name, checkpoint)
        manifest = checkpoint_manifest(part.store, part.study, checkpoint)
        if not _is_handed_over(manifest):
            whole_path = store.checkpoint_manifest_path(study.name, checkpoint)
            files = checkpoint_manifest(store, study, checkpoint).files
            where = str(whole_path.relative_to(store.root))
            entry = FileEntry(where, sha256_of(whole_path), whole_path.stat().st_size)
            part.store.seal(path, manifest.vouching_for({**files, "whole": entry}))
    if done is None:
        return
    manifests = part.store.arm_folder(study.name, arm.key).glob("[0-9]*.json")
    remove(*(path for path in manifests if int(path.stem) < done and path.stem not in study.epoch_keys))
    tables = [path for table in METRIC_TABLES for path in part.store.table_folder(table).glob("[0-9]*.parquet")]
    weights = sorted(part.store.arm_folder(study.name, arm.key).glob("[0-9]*.safetensors"), key=lambda path: path.stem)
    # The newest weights last: by them _has_news sees that there is something left to remove.
    for path in (*tables, *weights):
        if int(path.stem) <= done:
            path.unlink()


def _retire_other_divisions(store: Store, study: Study, arm: Arm) -> None:
    """Move aside what other numbers of trials, or other stacks, have left, unless it is still being written."""
    names = {part.store.name for part in all_parts(store, study, arm)}
    folder = parts_folder(store, study.name, arm.key)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in names:
            other = PartStore(store, study.name, arm.key, path.name)
            with contextlib.suppress(LockedError), other.lock(study.name, arm.key, timeout=0):
                manifests = (store.read_manifest(found) for found in sorted(path.glob("[0-9]*.json")))
                recipe = next((found.recipe for found in manifests if found is not None), "unknown")
                retire(other, study.name, arm.key, recipe)
