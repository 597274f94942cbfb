"""An arm in parts (``dd_core.store.parts``): one of them trained, and the checkpoints written that all have reached.

Trials are independent of each other to the last bit, so these equal what one training of the whole arm writes: weights,
trial by trial, and rows in the same order. Only the time of a step is each part's own.
"""

import contextlib
from typing import Any

from dd_core.errors import StaleError
from dd_core.events import CheckpointWritten, Event, Report
from dd_core.store.best_checkpoints import save_best
from dd_core.store.checkpoints import check_checkpoint, identity, read_tensors
from dd_core.store.files import remove
from dd_core.store.parts import Part, all_parts, locks_of_parts
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import LockedError, Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.live import forget
from dd_core.training.assembly import assemble, remove_what_parts_need_no_more
from dd_core.training.recorder import METRIC_TABLES
from dd_core.training.tidying import arm_lock, set_recipe_right
from dd_core.training.train import train_arm


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
    """Train some trials of an arm up to an epoch, and write every checkpoint that all parts of it have reached.

    Trains nothing if every checkpoint of the arm up to ``until`` is there and sound. Any part may be trained by any
    process at any time; killing each at any moment and calling again leads to the results of one training of the arm.

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
    while not _prepared(part, store, study, arm, report):
        for lock in locks_of_parts(store, study, arm):  # one trains another recipe, which is not moved now
            with store.lock(*lock):
                pass

    def pass_on(event: Event) -> None:
        if not isinstance(event, CheckpointWritten):
            report(event)
            return
        for epoch in put_together(store, study, arm):
            report(CheckpointWritten(epoch=epoch))

    train_arm(part.study, arm, part.store, until, report=pass_on, **options)
    # Once more, for what was there already when the part began, but not put together because of a kill.
    for epoch in put_together(store, study, arm):
        report(CheckpointWritten(epoch=epoch))


def _prepared(part: Part, store: Store, study: Study, arm: Arm, report: Report) -> bool:
    """Whether everything of the arm is of its present recipe now, and of this version."""
    with arm_lock(store, study, arm, wait=True):
        try:
            set_recipe_right(store, study, arm, report)
        except LockedError:
            return False
        for table in ("runs", *METRIC_TABLES):
            store.clean_temporaries(store.table_folder(table, study.name, arm.key))
        store.clean_temporaries(store.arm_folder(study.name, arm.key))
        _take_over(part, arm)
    return True


def _take_over(part: Part, arm: Arm) -> None:
    """Go on from what earlier versions have left in the part's folder.

    They kept best checkpoints there, and manifests that vouched for the arm's files, which the arm's own do.
    """
    folder = part.store.folder
    paths = sorted(folder.glob("[0-9]*.json"))
    manifests = zip(paths, part.store.read_manifests(paths), strict=True)
    remove(*(path for path, manifest in manifests if manifest is not None and "whole" in manifest.files))
    best = sorted((folder / "best").glob("trial-*"))
    own = identity(part.study, arm)
    for manifest in part.store.read_manifests([path for path in best if path.suffix == ".json"]):
        if manifest is not None and not own.differs_from(manifest):
            with contextlib.suppress(StaleError):  # of a damaged one nothing is left
                weights, _ = read_tensors(part.store.verify(manifest.files["weights"]))
                how = manifest.trial, manifest.epoch, manifest.loss_val_nats
                save_best(part.store, part.study, arm, *how, weights)
    remove(*best)


def put_together(store: Store, study: Study, arm: Arm) -> list[int]:
    """Write every checkpoint of an arm that all its parts have reached, and remove what the parts need no more.

    Returns:
        The epochs written now.
    """
    parts, written, newest = all_parts(store, study, arm), [], None
    with store.lock(study.name, arm.key):
        there = trained_checkpoints(store, study, {arm})
        of_parts = [trained_checkpoints(part.store, part.study, {arm}) for part in parts]
        for checkpoint in (Checkpoint(arm, epoch) for epoch in study.checkpoints):
            if all(checkpoint in own for own in of_parts) and not _is_sound(store, study, checkpoint):
                try:
                    assemble(store, study, checkpoint, parts)
                except (StaleError, FileNotFoundError):  # a part has been harmed
                    break
                written.append(checkpoint.epoch)
            elif checkpoint not in there:
                break
            newest = checkpoint.epoch
        if newest is not None:
            remove_what_parts_need_no_more(store, study, arm, parts, newest)
            forget(store, study.name, arm.key, until=newest)
    return written


def _is_sound(store: Store, study: Study, checkpoint: Checkpoint) -> bool:
    try:
        check_checkpoint(store, study, checkpoint)
    except StaleError:
        return False
    return True
