"""The files of the table ``runs``: each attempt to train an arm writes one when it starts and one when it ends.

``dd_core.training.ledger`` says what is in them. Needs no torch, since the orchestrator asks whether an arm is settled.
"""

from pathlib import Path

from dd_core.data.datasets import fingerprint
from dd_core.errors import StaleError
from dd_core.store.parts import PartStore
from dd_core.store.provenance import checkpoint_manifest, harmed_best
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet

# How the last attempt ends where something may have been left undone, although every checkpoint is there.
_UNSETTLED = {"running", "interrupted", "failed"}


def attempt_path(store: Store, study: Study, arm: Arm, attempt: int, moment: str) -> Path:
    """The file of an attempt's ``start`` or ``end``."""
    part = f"{store.name}." if isinstance(store, PartStore) else ""
    return store.table_folder("runs", study.name, arm.key) / f"attempt-{attempt:04d}.{part}{moment}.parquet"


def attempt_numbers(store: Store, study: Study, arm: Arm) -> list[int]:
    """Numbers of the attempts so far, ascending, those of all parts too."""
    return sorted(_files(store, study, arm))


def is_settled(store: Store, study: Study, arm: Arm) -> bool:
    """Whether the last attempt at each trial of an arm came to its end, or nothing is known of any.

    Where it did not, because it was killed or the disk was full after the last manifest, the arm's checkpoints may all
    be there, and still best checkpoints that have given way lie beside the others and ``runs`` has no results.
    """
    files, missing = _files(store, study, arm), set(study.trial_numbers)
    for number in sorted(files, reverse=True):
        try:
            table = read_parquet(min(files[number]))  # the end sorts before the start
        except (OSError, ValueError, StaleError):  # damaged: it says nothing
            continue
        statuses = dict(zip(table["trial"].to_pylist(), table["status"].to_pylist(), strict=True))
        if any(statuses[trial] in _UNSETTLED for trial in missing & statuses.keys()):
            return False
        missing -= statuses.keys()
        if not missing:
            break
    return True


def _files(store: Store, study: Study, arm: Arm) -> dict[int, list[Path]]:
    """Files by the number of the attempt. Earlier versions wrote one each, ``attempt-0001.parquet``."""
    found: dict[int, list[Path]] = {}
    for path in store.table_folder("runs", study.name, arm.key).glob("attempt-*.parquet"):
        found.setdefault(int(path.name.split(".")[0].removeprefix("attempt-")), []).append(path)
    return found


def arm_is_complete(store: Store, study: Study, arm: Arm, until: int) -> bool:
    """Whether every checkpoint up to an epoch is there in the present recipe, unharmed, and nothing is left to be done.

    A worker asks the same once more under the arm's lock.
    """
    wanted = [Checkpoint(arm, epoch) for epoch in study.checkpoints if epoch <= until]
    try:
        manifests = [checkpoint_manifest(store, study, checkpoint) for checkpoint in wanted]
    except StaleError:
        return False
    data_sha256 = fingerprint(study.data.dataset)
    return (
        all(m.data_sha256 == data_sha256 and store.is_sound(m) for m in manifests)
        and next(harmed_best(store, study, arm), None) is None
        and is_settled(store, study, arm)
    )
