"""The loop over epochs: of one arm, or of several that share a network, in step."""

import math
import time
from collections.abc import Sequence
from statistics import fmean

from dd_core.events import CheckpointWritten, Event, Note, Progress, Report
from dd_core.training.live_rows import LiveRows
from dd_core.training.session import Session


def run(sessions: Sequence[Session], until: int, resume_seconds: float, report: Report) -> None:
    """Train up to an epoch.

    Args:
        sessions: one, or those of arms that share a network: where they stand at different epochs, those that have got
            further wait for the others.
        until: last epoch; one of the study's checkpoint epochs.
        resume_seconds: between two resume points, unless there are checkpoints.
        report: is called with events; of several arms, checkpoints bear the name of theirs.
    """
    study, epoch = sessions[0].study, min(session.epoch for session in sessions)
    saved_at = time.monotonic()
    for session in _at(sessions, epoch):
        session.join()
    live = {session.arm: LiveRows(session, until) for session in sessions}
    if epoch == 0:
        for session in _at(sessions, 0):
            headline, _ = session.evaluate()
            live[session.arm].add()
            if 0 in study.checkpoints:
                session.save_checkpoint(headline)
                report(_named(CheckpointWritten(epoch=0), session))
            live[session.arm].write()
    while epoch < until:
        behind, epoch = _at(sessions, epoch), epoch + 1
        _compute(behind, epoch)
        ended = [session.train_epoch() for session in behind]
        for session in _at(sessions, epoch):
            session.join()
        is_checkpoint = epoch in study.checkpoints
        for session, trials in zip(behind, ended, strict=True):
            if is_checkpoint or epoch % study.evaluation.every == 0:
                headline, also_ended = session.evaluate()
                trials = [*trials, *also_ended]
            live[session.arm].add()
            _tell_of_endings(session, trials, report)
            if is_checkpoint:
                session.save_checkpoint(headline)
        if is_checkpoint or time.monotonic() - saved_at > resume_seconds:
            for session in behind:
                session.save_resume_point()
            saved_at = time.monotonic()
        for session in behind if is_checkpoint else []:
            report(_named(CheckpointWritten(epoch=epoch), session))
        for session in behind:
            live[session.arm].write()
        report(_progress(sessions, epoch))
    for rows in live.values():
        rows.close()


def _progress(sessions: Sequence[Session], epoch: int) -> Progress:
    """What people are told after an epoch: means of the last evaluations of all trials that still train."""
    last = [trial.last for session in sessions for trial in session.progress if trial.is_training and trial.last]

    def mean(metric: str) -> float | None:
        values = [metrics[metric] for metrics in last]
        return fmean(values) if values and all(map(math.isfinite, values)) else None

    test_error, accuracy = mean("test_error"), mean("acc_val")
    if test_error is None and accuracy is not None:  # there are no test images
        test_error = 1 - accuracy
    return Progress(epoch=epoch, train_loss=mean("train_loss"), train_error=mean("train_error"), test_error=test_error)


def _at(sessions: Sequence[Session], epoch: int) -> list[Session]:
    return [session for session in sessions if session.epoch == epoch]


def _compute(sessions: Sequence[Session], epoch: int) -> None:
    """Where a network is shared, train it once for all, before each takes its part."""
    share = sessions[0].share
    if share is not None and any(trial.is_training for session in sessions for trial in session.progress):
        ended = [p for s in sessions if s.share is not None for p in s.share.places_of(s.ended(s.share))]
        share.shared.train_epoch(epoch, ended)


def _tell_of_endings(session: Session, trials: Sequence[int], report: Report) -> None:
    for trial in trials:
        ending = session.progress[trial].ending
        assert ending is not None
        number = session.study.first_trial + trial
        text = f"{session.arm.key} trial {number} {ending.status} in epoch {ending.epoch}: {ending.reason}"
        report(Note(text=text))


def _named(event: Event, session: Session) -> Event:
    """Where a task has several arms, it must be told of which an event speaks."""
    return event if session.share is None else event.of(f"{session.study.name}/{session.arm.key}")
