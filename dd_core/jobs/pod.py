"""``python -m dd_core.jobs.pod JOB_FILE``: one machine's share of a job that runs on a cluster.

The data root is ``DD_ROOT`` and the job file lies below it. Which share is ours says ``--place``, or the index given by
Kubernetes (JOB_COMPLETION_INDEX) or SLURM (SLURM_ARRAY_TASK_ID, with ranks SLURM_NODEID). What ended in an earlier life
of this machine is left out. Needs no Dagster; where one listens, events reach it through Pipes.

Its exit code is 0 when all tasks have finished, or else one of ``exit_codes.py``.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TextIO

from dd_core.errors import UserError
from dd_core.events import End, Event, Failed, Progress, Report
from dd_core.jobs.crew import run_crew
from dd_core.jobs.exit_codes import NO_JOB_FILE, TASKS_FAILED, TOLD_TO_END, TRY_AGAIN
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.jobs.probe.run import run_probe
from dd_core.jobs.ranks.team import PeersLostError, run_ranks
from dd_core.machine.devices import Machine, device_name, num_cores, num_gpus
from dd_core.store.store import Store


def work(folder: JobFolder, job: Job, place: int, tell: Report) -> int:
    """Do what is left of one place's tasks; returns how many failed, now or before.

    Raises:
        PeersLostError: other machines that share the tasks are gone, and some tasks have not ended.
    """
    left, failed = _outcomes(folder, job, place)
    if not left:
        return len(failed)
    try:
        with tempfile.TemporaryDirectory(prefix="dd-pod-") as scratch:
            for event in _events(job, left, Path(scratch), folder.halvings(place)):
                if isinstance(event, End):
                    assert event.number is not None
                    folder.write_outcome(event.number, event)
                    if isinstance(event, Failed):
                        failed.add(event.number)
                tell(event)
    except PeersLostError:
        # Peers that had finished and left are not missed, though a rank of ours was lost at the very end.
        left, failed = _outcomes(folder, job, place)
        if left:
            raise
    return len(failed)


def _outcomes(folder: JobFolder, job: Job, place: int) -> tuple[list[int], set[int]]:
    """Which tasks of a place have not ended yet, and which have failed."""
    ended = folder.outcomes()
    own = job.places[place]
    return [n for n in own if n not in ended], {n for n in own if isinstance(ended.get(n), Failed)}


def _events(job: Job, left: list[int], scratch: Path, halvings: int) -> Generator[Event, None, None]:
    """The names of the tasks with these numbers."""
    if job.is_probe:
        return run_probe(job, Machine(device_name(), num_gpus(), num_cores()), scratch)
    return run_ranks(job, scratch, halvings) if job.ranks > 1 else run_crew(job, scratch, left, halvings)


@contextlib.contextmanager
def _told(events_file: Path | None) -> Iterator[Report]:
    """Tell of events: people on stdout, a file if there is one, and Dagster if it listens."""
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        if events_file:
            events_file.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(events_file.open("a", encoding="utf-8", buffering=1))
        pipes = None
        if "DAGSTER_PIPES_CONTEXT" in os.environ:
            from dagster_pipes import open_dagster_pipes

            pipes = stack.enter_context(open_dagster_pipes())

        def tell(event: Event) -> None:
            if not isinstance(event, Progress):
                print(event, flush=True)
            if file:
                file.write(event.as_line() + "\n")
            if pipes:
                pipes.report_custom_message(json.loads(event.as_line()))

        yield tell


def _own_place(job: Job) -> int:
    """Our index, as the cluster says it."""
    names = ["JOB_COMPLETION_INDEX", "SLURM_NODEID" if job.ranks > 1 else "SLURM_ARRAY_TASK_ID"]
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dd_core.jobs.pod", description=__doc__)
    parser.add_argument("job_file", help="relative to the data root (DD_ROOT)")
    parser.add_argument("--place", type=int, help="which share of the job; default: as the cluster says")
    parser.add_argument("--events", type=Path, help="file to append events to, a JSON object a line")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TOLD_TO_END))
    root = os.environ.get("DD_ROOT", "")
    try:
        folder = JobFolder.at(Store(root), arguments.job_file)
        job = folder.read_job()
    except (FileNotFoundError, UserError, ValueError) as error:
        reason = f" ({error})" if isinstance(error, UserError | ValueError) else ""
        print(
            f"the data root {root or 'DD_ROOT, which is not set,'} of this worker has no job file "
            f"{arguments.job_file}{reason}; is the volume mounted, and is it the one that the orchestrator writes to?",
            file=sys.stderr,
        )
        return NO_JOB_FILE
    place = _own_place(job) if arguments.place is None else arguments.place
    if place >= len(job.places):
        return 0  # more machines than were needed
    with _told(arguments.events) as tell:
        try:
            return TASKS_FAILED if work(folder, job, place, tell) else 0
        except PeersLostError as error:
            print(f"other machines of this job are gone: {error}", file=sys.stderr)
            return TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main())
