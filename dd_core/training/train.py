"""One arm from where it stands to a given epoch: the lock, the loop, out of memory, results of other recipes."""

import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dd_core.data.datasets import fingerprint
from dd_core.errors import StaleError, UserError
from dd_core.events import CheckpointWritten, Note, Progress, Report
from dd_core.machine.memory import begin_with, is_out_of_memory
from dd_core.store.checkpoints import check_checkpoint
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.parts import PartStore, all_parts, locks_of_parts
from dd_core.store.provenance import harmed_best
from dd_core.store.retirement import manifests_of_arm, restorable, restore, retire
from dd_core.store.store import LockedError, Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.ledger import RunRecord, mark_interrupted
from dd_core.training.recorder import METRIC_TABLES
from dd_core.training.session import Session
from dd_core.training.settling import settle

# Micro-batches below this are no longer what BatchNorm was made for.
_SMALLEST_MICRO_BATCH = 16


class ArmBusyError(Exception):
    """Another process is training this arm at the moment."""


@contextlib.contextmanager
def arm_lock(store: Store, study: Study, arm: Arm, wait: bool) -> Iterator[None]:
    """Hold the arm.

    Raises:
        ArmBusyError: someone else holds it and ``wait`` is false.
    """
    store.check_writable()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.lock(study.name, arm.key, timeout=None if wait else 0))
        except LockedError as error:
            raise ArmBusyError(f"{arm.key} of {study.name} is being trained by another process") from error
        yield


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
    gpu_share: float = 1.0,
    predicted_seconds: float | None = None,
    report: Report = lambda event: None,
) -> None:
    """Train all trials of an arm up to an epoch, going on from wherever an earlier attempt stopped.

    Trains nothing if every checkpoint up to ``until`` is there and sound, but does what an attempt has left undone that
    was killed after the last of them. Results of an earlier recipe are retired first.
    Killing the process at any moment and calling again gives the same bits as an undisturbed call on the same kind of
    device. Where memory runs out, training goes on from the last resume point with half as many images at a time.

    Args:
        study: what to train.
        arm: which arm of it.
        store: where results go.
        until: last epoch; one of the study's checkpoint epochs.
        device: default the CPU.
        dtype: float32, or float64 for references.
        wait: if another process is training this arm, wait for it (and use its result) instead of raising.
        resume_seconds: how much work a kill may cost at most, besides one epoch.
        gpu_share: share of the GPU that this arm has, for the ledger.
        predicted_seconds: how long this was expected to take, for the ledger.
        report: is called with ``Progress``, ``CheckpointWritten`` and ``Note``.

    Raises:
        ArmBusyError: another process is training this arm and ``wait`` is false.
        DataMissingError: the data set is absent.
        StoreError: the data root cannot be written.
        UserError: there is not enough memory for 16 images at a time, or a monitor cannot be made.
    """
    device = device or torch.device("cpu")
    threads = torch.get_num_threads()
    with arm_lock(store, study, arm, wait):
        mark_interrupted(store, study, arm)
        set_recipe_right(store, study, arm, report)
        for table in ("runs", *METRIC_TABLES):
            store.clean_temporaries(store.table_folder(table, study.name, arm.key))
        for folder in (store.arm_folder(study.name, arm.key), store.best_folder(study.name, arm.key)):
            store.clean_temporaries(folder)
        try:
            usual = study.variants[arm.variant].batch_size
            micro_batch = min(usual, max(_SMALLEST_MICRO_BATCH, begin_with(usual)))
            while not sound_checkpoints(store, study, arm, until):
                session = Session(study, arm, store, device, dtype, micro_batch)
                record = RunRecord(store, study, arm, device, gpu_share, predicted_seconds)
                shortage = _attempt(session, record, until, resume_seconds, report)
                if not shortage:
                    return
                micro_batch = session.micro_batch or micro_batch
                del session, record
                micro_batch = _less(micro_batch, shortage, arm, device, report)
            settle(store, study, arm, device)
        finally:
            torch.set_num_threads(threads)


def _attempt(session: Session, record: RunRecord, until: int, resume_seconds: float, report: Report) -> str:
    """Train on from the resume point; returns what was said if memory ran out, else nothing."""
    obstacle = session.resume()
    if obstacle:
        report(Note(text=f"{session.arm.key}: training from the beginning, because {obstacle}"))
    if session.differs:
        text = f"{session.arm.key}: going on at epoch {session.epoch} {session.differs}; the last bits may differ"
        report(Note(text=text))
    remove_foreign_parts(session.store, session.study, session.arm, session.epoch)
    record.open(session)
    try:
        _run(session, until, resume_seconds, report)
    except BaseException as error:
        if not is_out_of_memory(error):
            record.close(session, "failed", f"{type(error).__name__}: {error}")
            raise
        shortage = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"out of memory with {session.micro_batch} images at a time ({shortage})"
        record.close(session, "failed", what)
        return shortage
    record.close(session, "finished", None)
    return ""


def _less(micro_batch: int, shortage: str, arm: Arm, device: torch.device, report: Report) -> int:
    """Half the micro-batch, and memory free for it.

    Raises:
        UserError: half would be too small.
    """
    # Only here, after the exception and with it the frames that hold the failed step's tensors are gone.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    half = -(-micro_batch // 2)
    if half < _SMALLEST_MICRO_BATCH:
        raise UserError(
            f"out of memory: {arm.key} cannot be trained with {micro_batch} images at a time ({shortage}), and fewer "
            f"than {_SMALLEST_MICRO_BATCH} are too few for BatchNorm; use a device with more memory, or fewer trials"
        )
    text = (
        f"{arm.key}: out of memory with {micro_batch} images at a time; going on from the last resume point with "
        f"{half}, whose gradients are added up. The loss is the same, but BatchNorm sees {half} images"
    )
    report(Note(text=text))
    return half


def _run(session: Session, until: int, resume_seconds: float, report: Report) -> None:
    """The loop itself."""
    study = session.study
    saved_at = time.monotonic()
    if session.epoch == 0:
        headline, _ = session.evaluate()
        if 0 in study.checkpoints:
            session.save_checkpoint(headline)
            report(CheckpointWritten(epoch=0))
    while session.epoch < until:
        ended = session.train_epoch()
        is_checkpoint = session.epoch in study.checkpoints
        if is_checkpoint or session.epoch % study.evaluation.every == 0:
            headline, also_ended = session.evaluate()
            ended = [*ended, *also_ended]
        for trial in ended:
            ending = session.progress[trial].ending
            assert ending is not None
            number = study.first_trial + trial
            text = f"{session.arm.key} trial {number} {ending.status} in epoch {ending.epoch}: {ending.reason}"
            report(Note(text=text))
        if is_checkpoint:
            session.save_checkpoint(headline)
        if is_checkpoint or time.monotonic() - saved_at > resume_seconds:
            session.save_resume_point()
            saved_at = time.monotonic()
        if is_checkpoint:
            report(CheckpointWritten(epoch=session.epoch))
        report(Progress(epoch=session.epoch))


def sound_checkpoints(store: Store, study: Study, arm: Arm, until: int) -> bool:
    """Whether every checkpoint up to ``until`` is there with its metrics, of this recipe and data, and unharmed.

    And every best checkpoint that is known of.
    """
    if next(harmed_best(store, study, arm), None) is not None:
        return False
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
    remove_foreign_files(store, study, arm, f"{epoch:04d}" if epoch else "")  # epoch 0 is evaluated again


def remove_foreign_files(store: Store, study: Study, arm: Arm, start: str) -> None:
    """Remove the metric files after an epoch, of four digits, if they are cut otherwise; ``""``: from the beginning.

    The manifests that vouch for them go first. From the end: what a process leaves that is killed while it removes them
    in this order is still recognised.
    """
    foreign = _foreign_files(store, study, arm, start)
    stems = sorted({path.stem for path in foreign}, reverse=True)
    remove(*(store.arm_folder(study.name, arm.key) / f"{stem}.json" for stem in stems))
    for stem in stems:
        remove(*(path for path in foreign if path.stem == stem))


def _foreign_files(store: Store, study: Study, arm: Arm, start: str) -> list[Path]:
    folders = [store.table_folder(table, study.name, arm.key) for table in METRIC_TABLES]
    later = [path for folder in folders for path in folder.glob("*.parquet") if path.stem > start]
    cuts = sorted({path.stem for path in later})
    if not cuts or cuts == [key for key in study.epoch_keys if start < key <= cuts[-1]]:
        return []
    return later


def set_recipe_right(store: Store, study: Study, arm: Arm, report: Report) -> None:
    """Move aside results of another recipe, or of other data, and put back what there was of the present one.

    So tables never mix two recipes of an arm, and who goes back to a recipe need not train it again. Hold the arm's
    lock, or that of a part: then it was done before, for the whole arm.

    Raises:
        ArmBusyError: since then another process has begun with another recipe.
        LockedError: a part is being trained, and all would have to be moved.
    """
    whole, study = (store.whole, study.whole) if isinstance(store, PartStore) else (store, study)
    recipes = {study.recipe_hash(arm), *(part.study.recipe_hash(arm) for part in all_parts(whole, study, arm))}
    data_sha256 = fingerprint(study.data.dataset)

    def is_own(manifest: Manifest) -> bool:
        return manifest.recipe in recipes and manifest.data_sha256 == data_sha256

    found = manifests_of_arm(whole, study.name, arm.key)
    # One among others that are right is damaged, not of another recipe; its checkpoint is trained again.
    is_other = bool(found) and not any(map(is_own, found))
    if not is_other and restorable(whole, study.name, arm.key, is_own) is None:
        return
    if whole is not store:
        raise ArmBusyError(f"{arm.key} of {study.name} is being trained with another recipe by another process")
    with contextlib.ExitStack() as stack:
        for lock in locks_of_parts(store, study, arm):
            stack.enter_context(store.lock(*lock, timeout=0))
        if is_other:
            target = retire(store, study.name, arm.key, found[0].recipe or "unknown")
            what = "recipe" if found[0].recipe not in recipes else "data set"
            report(Note(text=f"{arm.key}: its {what} has changed; the old results lie in {target}"))
        if (source := restore(store, study.name, arm.key, is_own)) is not None:
            mark_interrupted(store, study, arm)
            report(Note(text=f"{arm.key}: its results are put back from {source}"))
