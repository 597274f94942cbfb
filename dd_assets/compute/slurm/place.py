"""SLURM as a place where jobs run."""

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from dd_assets.compute.slurm import commands
from dd_assets.compute.slurm.commands import Element, SlurmError, UnreachableError
from dd_assets.compute.slurm.following import Following
from dd_assets.compute.slurm.news import News
from dd_assets.compute.slurm.refusals import refusal
from dd_assets.compute.slurm.script import Submission
from dd_assets.compute.slurm.settings import SlurmSettings, read_settings, settings_path
from dd_core.errors import UserError
from dd_core.events import End, Event
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources, largest

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
        wanted = self._resources(asked)
        gpus = wanted.gpus_per_pod or 0
        device = (self.settings.device or "an unknown GPU") if gpus else "cpu"
        return Machine(device, gpus, wanted.cpus_per_pod or 1, wanted.workers_per_pod, wanted.pods or 1)

    def _resources(self, asked: Resources | None) -> Resources:
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
        numbers = {task.name: number for number, task in enumerate(job.tasks)}
        left = set(numbers)
        store = Store(job.root)
        while left:  # once more, where the job of an orchestrator before us did not have all that is wanted now
            try:
                following = self._start(store, job, left)
                submitted = following.submission
                context.log.info(
                    f"SLURM job {following.number} ({job.name}): {len(submitted.job.tasks)} tasks on "
                    f"{len(submitted.job.places)} machines; logs: {submitted.logs}"
                )
                for event in following.events():
                    if isinstance(event, End):
                        left.discard(event.task)
                    # News may be about a task that only the running job has.
                    task = event.task if event.task in numbers else job.tasks[0].name
                    yield event.of(task, numbers[task])
            except GeneratorExit:
                _leave(context, store, job)
                raise
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as interrupt:
                if not _leave(context, store, job):
                    raise
                raise UserError(
                    f"interrupted: the SLURM job {job.name} was ended; what it had finished is kept"
                ) from interrupt
            if not following.news.any_failed:
                following.folder.remove()

    def _start(self, store: Store, job: Job, names: set[str]) -> Following:
        """The job of the same request that waits or runs already, or else one of the tasks named."""
        asked = largest(study.resources for study in job.studies.values())
        tasks = tuple(task for task in job.tasks if task.name in names)
        wanted = divided(job.model_copy(update={"tasks": tasks, "places": ()}), self.machine(asked))
        # Of two orchestrators that ask for the same at the same time, the second finds the first one's job.
        with store.lock("slurm", job.name):
            return self._adopted(store, wanted) or self._submitted(store, wanted, self._resources(asked))

    def _submission(self, store: Store, job: Job, folder: JobFolder, resources: Resources) -> Submission:
        is_file_system = "://" not in store.address
        if not is_file_system and self.settings.logs is None:
            raise UserError(
                f"with the data root at {store.address} SLURM needs a folder that all nodes see for what pods print; "
                f"name one under logs in {self.file}"
            )
        logs = self.settings.logs / job.name if self.settings.logs else folder.path
        return Submission(
            job=job,
            settings=self.settings,
            resources=resources,
            root=store.address,
            job_file=folder.job_file,
            comment=_comment(store, folder),
            events=folder.events_file(0).parent if is_file_system else None,
            logs=Path(str(logs)),
        )

    def _submitted(self, store: Store, job: Job, resources: Resources) -> Following:
        """Hand the job to SLURM."""
        folder = JobFolder.of(store, job)
        submission = self._submission(store, job, folder, resources)
        _forget_others(folder)
        folder.prepare(job)
        for path in (submission.logs, submission.events):
            if path:
                path.mkdir(parents=True, exist_ok=True)
        try:
            return self._submit(submission, folder)
        except SlurmError as error:
            folder.remove()
            if isinstance(error, UnreachableError):
                raise UserError(f"SLURM does not answer ({error}); try again when sinfo does") from error
            raise refusal(error, submission, self.file) from error

    def _submit(self, submission: Submission, folder: JobFolder) -> Following:
        """Call sbatch until SLURM answers; a call that was not answered may have been heard all the same."""
        news = News(folder, submission.job, {task.name for task in submission.job.tasks}, submission.events)
        for pause in (*_SUBMIT_PAUSES, None):
            try:
                return Following(commands.submit(submission.options(), submission.script()), submission, folder, news)
            except UnreachableError:
                if pause is None:
                    raise
                time.sleep(pause)
            with contextlib.suppress(UnreachableError):
                if live := _live(submission.job.name, submission.comment):
                    return Following(live[0].job, submission, folder, news)
        raise AssertionError("unreachable")

    def _adopted(self, store: Store, wanted: Job) -> Following | None:
        """Follow the job of the same request on this data root that waits or runs already, if there is one."""
        try:
            live = _live(wanted.name, _comment(store))
        except UnreachableError as error:
            raise UserError(f"SLURM does not answer ({error}); try again when sinfo does") from error
        if not live:
            return None
        newest = max(live, key=lambda element: element.job)
        try:
            folder = JobFolder.at(store, newest.comment.removeprefix(_comment(store)))
            running = folder.read_job()
        except (ValueError, FileNotFoundError) as error:
            raise UserError(
                f"SLURM job {newest.job} does the same already, but its job file is gone; end it (scancel "
                f"{newest.job}) and try again"
            ) from error
        asked = largest(study.resources for study in running.studies.values())
        submission = self._submission(store, running, folder, self._resources(asked))
        names = {task.name for task in wanted.tasks}
        return Following(newest.job, submission, folder, News(folder, running, names, submission.events))


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


def _leave(context: dg.AssetExecutionContext, store: Store, job: Job) -> bool:
    """End the job, unless this orchestrator is itself a job that is moved away, and shall be followed by another.

    It is looked for in the queue: the interruption may have come between sbatch and its answer.

    Returns:
        Whether the work was meant to end.
    """
    if "SLURM_JOB_ID" in os.environ:
        run = context.instance.get_run_by_id(context.run.run_id)
        if run is None or run.status not in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
            return False
    try:
        for number in {element.job for element in _live(job.name, _comment(store))}:
            commands.cancel(number)
    except SlurmError as error:
        context.log.warning(f"the job was not ended, since SLURM said: {error}; do it: scancel --me --name={job.name}")
    return True
