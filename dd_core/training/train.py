"""Arms from where they stand to a given epoch, alone or several in a network: locks, attempts, out of memory."""

import contextlib
import gc
from collections.abc import Sequence
from typing import Any

import torch

from dd_core.errors import UserError
from dd_core.events import Note, Report
from dd_core.machine.memory import begin_with, is_out_of_memory
from dd_core.store.store import Store
from dd_core.study.architectures import architecture_called
from dd_core.study.study import Arm, Study
from dd_core.training.ledger import RunRecord
from dd_core.training.loop import run
from dd_core.training.session import Session
from dd_core.training.settling import settle
from dd_core.training.shared_stack import SharedStack
from dd_core.training.tidying import ArmBusyError, arm_lock, prepare, remove_foreign_parts, sound_checkpoints

__all__ = ["ArmBusyError", "arm_lock", "train_arm", "train_together"]

# Micro-batches below this are no longer what BatchNorm was made for; without it a single example will do.
_SMALLEST_FOR_BATCH_NORM = 16


def train_arm(study: Study, arm: Arm, store: Store, until: int, **options: Any) -> None:
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
        options: as of ``train_together``.

    Raises:
        ArmBusyError: another process is training this arm and ``wait`` is false.
        DataMissingError: the data set is absent.
        StoreError: the data root cannot be written.
        UserError: there is not enough memory for 16 images at a time (without BatchNorm, one), or a monitor cannot be
            made.
    """
    train_together(study, (arm,), store, until, **options)


def train_together(
    study: Study,
    arms: Sequence[Arm],
    store: Store,
    until: int,
    *,
    places: Sequence[str] = (),
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    wait: bool = True,
    resume_seconds: float = 60.0,
    gpu_share: float = 1.0,
    predicted_seconds: float | None = None,
    report: Report = lambda event: None,
) -> None:
    """Train several arms that share a network (``dd_core.study.stacks``), each as ``train_arm`` does, or a single one.

    The same bits come of it as of an undisturbed call with the same places, whatever each of the arms has reached.

    Args:
        study: what to train.
        arms: of equal width, which differ in settings of the optimiser that each trial can have of its own.
        store: where results go.
        until: last epoch; one of the study's checkpoint epochs.
        places: the variants whose arms have a place in the network, those of ``arms`` among them; default these alone.
            Bits depend on it. With a single place the arm trains as it does apart from all others.
        device: default the CPU.
        dtype: float32, or float64 for references.
        wait: if another process is training one of the arms, wait for it (and use its result) instead of raising.
        resume_seconds: how much work a kill may cost at most, besides one epoch.
        gpu_share: share of the GPU that these arms have, for the ledger.
        predicted_seconds: how long this was expected to take, for the ledger.
        report: is called with ``Progress``, ``CheckpointWritten`` and ``Note``.

    Raises:
        ArmBusyError, DataMissingError, StoreError, UserError: as ``train_arm``.
    """
    device = device or torch.device("cpu")
    threads = torch.get_num_threads()
    places = places or [arm.variant for arm in arms]
    with contextlib.ExitStack() as locks:
        for arm in sorted(arms):  # in the same order everywhere, so that nobody waits for one who waits for him
            locks.enter_context(arm_lock(store, study, arm, wait))
        for arm in arms:
            prepare(store, study, arm, report)
        try:
            usual = study.variants[arms[0].variant].batch_size
            smallest = _smallest_micro_batch(study, arms)
            micro_batch = min(usual, max(smallest, begin_with(usual)))
            while True:
                unfinished = [arm for arm in arms if not sound_checkpoints(store, study, arm, until)]
                for arm in arms:
                    if arm not in unfinished:
                        settle(store, study, arm, device)
                if not unfinished:
                    return
                sessions = _sessions(study, unfinished, places, store, device, dtype, micro_batch)
                expected = None if predicted_seconds is None else predicted_seconds / len(sessions)
                records = [
                    RunRecord(store, study, arm, device, gpu_share, expected, len(sessions)) for arm in unfinished
                ]
                shortage = _attempt(sessions, records, until, resume_seconds, report)
                if not shortage:
                    return
                micro_batch = sessions[0].micro_batch or micro_batch
                del sessions, records
                micro_batch = _less(study, micro_batch, shortage, unfinished, device, report)
        finally:
            torch.set_num_threads(threads)


def _sessions(
    study: Study,
    arms: Sequence[Arm],
    places: Sequence[str],
    store: Store,
    device: torch.device,
    dtype: torch.dtype,
    micro_batch: int,
) -> list[Session]:
    if len(places) == 1:
        return [Session(study, arms[0], store, device, dtype, micro_batch)]
    shared = SharedStack(study, arms, places, device, dtype, micro_batch)
    return [Session(study, arm, store, device, dtype, micro_batch, share=shared.part(arm)) for arm in arms]


def _attempt(
    sessions: Sequence[Session], records: Sequence[RunRecord], until: int, resume_seconds: float, report: Report
) -> str:
    """Train on from the resume points; returns what was said if memory ran out, else nothing."""
    obstacles = [session.resume() for session in sessions]
    for session, obstacle in zip(sessions, obstacles, strict=True):
        if obstacle:
            report(Note(text=f"{session.arm.key}: training from the beginning, because {obstacle}"))
        if session.differs:
            text = f"{session.arm.key}: going on at epoch {session.epoch} {session.differs}; the last bits may differ"
            report(Note(text=text))
        remove_foreign_parts(session.store, session.study, session.arm, session.epoch)
    _agree_on_micro_batch(sessions)
    for session, record in zip(sessions, records, strict=True):
        record.open(session)
    try:
        run(sessions, until, resume_seconds, report)
    except BaseException as error:
        shortage, what = "", f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            shortage = (str(error).strip() or type(error).__name__).splitlines()[0]
            examples = sessions[0].study.data.record.examples
            what = f"out of memory with {sessions[0].micro_batch} {examples} at a time ({shortage})"
        for session, record in zip(sessions, records, strict=True):
            record.close(session, "failed", what)
        if not shortage:
            raise
        return shortage
    for session, record in zip(sessions, records, strict=True):
        record.close(session, "finished", None)
    return ""


def _agree_on_micro_batch(sessions: Sequence[Session]) -> None:
    """In a shared network all have as few images at a time as the one with the fewest so far."""
    fewest = min(session.micro_batch or 0 for session in sessions)
    for session in sessions:
        if session.share is not None:
            session.micro_batch = fewest
            session.share.set_micro_batch(fewest)


def _smallest_micro_batch(study: Study, arms: Sequence[Arm]) -> int:
    return _SMALLEST_FOR_BATCH_NORM if _has_batch_norm(study, arms[0]) else 1


def _has_batch_norm(study: Study, arm: Arm) -> bool:
    variant = study.variants[arm.variant]
    return architecture_called(variant.architecture).has_batch_norm(variant.network)


def _less(
    study: Study, micro_batch: int, shortage: str, arms: Sequence[Arm], device: torch.device, report: Report
) -> int:
    """Half the micro-batch, and memory free for it.

    Raises:
        UserError: half would be too small.
    """
    # Only here, after the exception and with it the frames that hold the failed step's tensors are gone.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    half, names, examples = -(-micro_batch // 2), " and ".join(arm.key for arm in arms), study.data.record.examples
    if half < _smallest_micro_batch(study, arms) or micro_batch == 1:
        has_batch_norm = _has_batch_norm(study, arms[0])
        too_few = f", and fewer than {_SMALLEST_FOR_BATCH_NORM} are too few for BatchNorm" if has_batch_norm else ""
        raise UserError(
            f"out of memory: {names} cannot be trained with {micro_batch} {examples} at a time ({shortage}){too_few}; "
            "use a device with more memory, or fewer trials"
        )
    text = (
        f"{names}: out of memory with {micro_batch} {examples} at a time; going on from the last resume point with "
        f"{half}, whose gradients are added up. The loss is the same"
        + (f", but BatchNorm sees {half} images" if _has_batch_norm(study, arms[0]) else "")
    )
    report(Note(text=text))
    return half
