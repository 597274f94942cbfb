"""Before an arm trains: its lock, whether anything is left to do, and what of other recipes and cuts must go first."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dd_core.data.datasets import fingerprint
from dd_core.errors import StaleError
from dd_core.events import Note, Report
from dd_core.store.checkpoints import check_checkpoint
from dd_core.store.files import remove
from dd_core.store.manifests import Manifest
from dd_core.store.parts import PartStore, all_parts, locks_of_parts
from dd_core.store.provenance import harmed_best
from dd_core.store.retirement import manifests_of_arm, restorable, restore, retire
from dd_core.store.store import LockedError, Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.live import begin_anew
from dd_core.training.ledger import mark_interrupted
from dd_core.training.recorder import METRIC_TABLES


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


def prepare(store: Store, study: Study, arm: Arm, report: Report) -> None:
    """Say which attempts were killed, let nothing of another recipe stay, and remove what writers left half done.

    Hold the arm's lock.

    Raises:
        ArmBusyError, LockedError: as ``set_recipe_right``.
    """
    mark_interrupted(store, study, arm)
    set_recipe_right(store, study, arm, report)
    begin_anew(store, study.name, arm.key)
    for table in ("runs", *METRIC_TABLES):
        store.clean_temporaries(store.table_folder(table, study.name, arm.key))
    for folder in (store.arm_folder(study.name, arm.key), store.best_folder(study.name, arm.key)):
        store.clean_temporaries(folder)


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
