"""SLURM as a place where jobs run."""

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from dd_assets.compute.elsewhere import machine_of, run_elsewhere
from dd_assets.compute.slurm import commands
from dd_assets.compute.slurm.commands import Element, SlurmError, UnreachableError
from dd_assets.compute.slurm.following import Following
from dd_assets.compute.slurm.news import FileNews
from dd_assets.compute.slurm.refusals import refusal
from dd_assets.compute.slurm.script import Submission
from dd_assets.compute.slurm.settings import SlurmSettings, read_settings, settings_path
from dd_core.errors import UserError
from dd_core.events import Event
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources
from dd_core.words import counted

# Seconds after which an unanswered sbatch is tried again; first it is looked whether the job has got through.
_SUBMIT_PAUSES = (2.0, 5.0, 10.0, 20.0)
_USUAL = Resources(pods=1, gpus_per_pod=1)
_CORES_PER_GPU = 4


@dataclass(frozen=True)
class SlurmPlace:
    """A cluster whose commands (sbatch, squeue, ...) this machine has, and whose nodes see the data root.

    Attributes:
        settings: of the cluster.
        file: where they come from, for people.
    """

    settings: SlurmSettings
    file: str = "the file that DD_SLURM names"

    @classmethod
    def from_environment(cls) -> "SlurmPlace":
        """As ``DD_SLURM`` says.

        Raises:
            UserError: the file cannot be used.
        """
        path = settings_path()
        return cls(read_settings(path), str(path) if path else "the file that DD_SLURM names (it is not set)")

    def machine(self, asked: Resources | None = None) -> Machine:
        """What jobs get: so many pods alike."""
        return machine_of(self.resources(asked), self.settings.resources.gpu, self.settings.device)

    def resources(self, asked: Resources | None) -> Resources:
        """What to ask for: by the study, by the settings, by default; cores are never left open."""
        wanted = _USUAL.overridden_by(self.settings.resources).overridden_by(asked)
        cores = _CORES_PER_GPU * (wanted.gpus_per_pod or 0) or wanted.workers_per_pod or 1
        return Resources(cpus_per_pod=cores).overridden_by(wanted)

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Submit a job, or find the one that an orchestrator before us has submitted, and follow it to its end.

        Yields:
            For every task one event ``finished`` or ``failed``, and others before.

        Raises:
            UserError: it cannot run there; nothing was started.
        """
        return run_elsewhere(_Request(self, context, job), context, job)


class _Request:
    """One job on its way through SLURM."""

    def __init__(self, place: SlurmPlace, context: dg.AssetExecutionContext, job: Job):
        self._place, self._context, self._job, self._store = place, context, job, Store(job.root)
        self.machine = place.machine(job.resources)
        self.is_inside, self.end = "SLURM_JOB_ID" in os.environ, f"the SLURM job {job.name} was ended"

    def start(self, job: Job) -> Following:
        """The job of the same request that waits or runs already, or else this one."""
        # Of two orchestrators that ask for the same at the same time, the second finds the first one's job.
        with self._store.lock("slurm", job.name):
            following = self._adopted(job) or self._submitted(job)
        submitted = following.submission
        self._context.log.info(
            f"SLURM job {following.number} ({job.name}): {counted(len(submitted.job.tasks), 'task')} on "
            f"{counted(len(submitted.job.places), 'machine')}; logs: {submitted.logs}"
        )
        return following

    def cancel(self) -> bool:
        """End the job.

        It is looked for in the queue: the interruption may have come between sbatch and its answer.
        """
        try:
            for number in {element.job for element in _live(self._job.name, _comment(self._store))}:
                commands.cancel(number)
        except SlurmError as error:
            self._context.log.warning(
                f"the job was not ended, since SLURM said: {error}; do it: scancel --me --name={self._job.name}"
            )
        return True

    def _submission(self, job: Job, folder: JobFolder) -> Submission:
        store, settings = self._store, self._place.settings
        is_file_system = "://" not in store.address
        if not is_file_system and settings.logs is None:
            raise UserError(
                f"with the data root at {store.address} SLURM needs a folder that all nodes see for what pods print; "
                f"name one under logs in {self._place.file}"
            )
        return Submission(
            job=job,
            settings=settings,
            resources=self._place.resources(job.resources),
            root=store.address,
            job_file=folder.job_file,
            comment=_comment(store, folder),
            events=folder.events_file(0).parent if is_file_system else None,
            logs=Path(str(settings.logs / job.name if settings.logs else folder.path)),
        )

    def _submitted(self, job: Job) -> Following:
        """Hand the job to SLURM."""
        folder = JobFolder.of(self._store, job)
        submission = self._submission(job, folder)
        _forget_others(folder)
        folder.prepare(job)
        for path in (submission.logs, submission.events):
            if path:
                path.mkdir(parents=True, exist_ok=True)
        try:
            return self._submit(submission, folder)
        except UnreachableError as error:
            folder.remove()
            raise _no_answer(error) from error
        except SlurmError as error:
            folder.remove()
            raise refusal(error, submission, self._place.file) from error

    def _submit(self, submission: Submission, folder: JobFolder) -> Following:
        """Call sbatch until SLURM answers; a call that was not answered may have been heard all the same."""
        job = submission.job
        news = FileNews(folder, job, job.names, submission.events)
        for pause in (*_SUBMIT_PAUSES, None):
            try:
                return Following(commands.submit(submission.options(), submission.script()), submission, news)
            except UnreachableError:
                if pause is None:
                    raise
                time.sleep(pause)
            with contextlib.suppress(UnreachableError):
                if live := _live(job.name, submission.comment):
                    return Following(live[0].job, submission, news)
        raise AssertionError("unreachable")

    def _adopted(self, wanted: Job) -> Following | None:
        """Follow the job of the same request on this data root that waits or runs already, if there is one."""
        ours = _comment(self._store)
        try:
            live = _live(wanted.name, ours)
        except UnreachableError as error:
            raise _no_answer(error) from error
        if not live:
            return None
        newest = max(live, key=lambda element: element.job)
        try:
            folder = JobFolder.at(self._store, newest.comment.removeprefix(ours))
            running = folder.read_job()
        except (ValueError, FileNotFoundError) as error:
            raise UserError(
                f"SLURM job {newest.job} does the same already, but its job file is gone; end it (scancel "
                f"{newest.job}) and try again"
            ) from error
        submission = self._submission(running, folder)
        return Following(newest.job, submission, FileNews(folder, running, wanted.names, submission.events))


def _no_answer(error: UnreachableError) -> UserError:
    return UserError(f"SLURM does not answer ({error}); try again when sinfo does")


def _comment(store: Store, folder: JobFolder | None = None) -> str:
    """What a job carries to be recognised by: address of its job file, or what all those of a data root begin with."""
    return f"{store.address}/{folder.job_file if folder else ''}"


def _live(name: str, comment: str) -> list[Element]:
    """Elements that wait or run of jobs with this name and the beginning of their comment."""
    return [element for element in commands.elements(name) if element.is_live and element.comment.startswith(comment)]


def _forget_others(folder: JobFolder) -> None:
    """Remove what earlier jobs of the same request left, logs of failures for example."""
    siblings = folder.path.parent
    for path in list(siblings.iterdir()) if siblings.is_dir() else []:
        JobFolder(folder.store, folder.name, path.name).remove()
