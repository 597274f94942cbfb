"""The life of a job that runs elsewhere, the same on every cluster: found or submitted, followed, and left.

Whoever asks for the same finds the job that runs already and follows it, and what that one lacks is submitted after it.
Outcomes on the data root say how tasks ended; all that is told on the way may be lost. Whoever leaves for good ends the
job. How a cluster is asked, and what the end of a machine means for its tasks, is a matter of each place.
"""

from collections.abc import Container, Generator, Iterable, Iterator
from typing import Final, Protocol

import dagster as dg

from dd_core.errors import UserError
from dd_core.events import CheckpointWritten, End, Event, Failed, Note
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources

KEPT: Final = "what it had finished is kept, run the same command again to go on"


class News:
    """The tasks of a running job: which of them have ended, and what there is to tell of those that are wanted.

    Attributes:
        left: numbers of all tasks without an end, as the running job counts them.
        any_failed: whether a task has failed.
    """

    def __init__(self, folder: JobFolder, job: Job, wanted: Container[str]):
        """Nothing is read yet.

        Args:
            folder: of the running job.
            job: as it was submitted, perhaps by an orchestrator before this one.
            wanted: names of what is asked for (``Job.names``), which other tasks may share in the running job.
        """
        self.folder, self.job = folder, job
        self._names = [task.name for task in job.tasks]
        self._wanted = {n for n, task in enumerate(job.tasks) if any(name in wanted for name in task.names)}
        self._seen: set[int] = set()
        self.left = set(range(len(self._names)))
        self.any_failed = False

    @property
    def awaited(self) -> set[int]:
        """Those of the tasks left that are wanted."""
        return self.left & self._wanted

    def outcomes(self) -> dict[int, End]:
        """Ends that are on the data root and were not there the last time, by number of the task."""
        new = self.folder.outcomes(self._seen)
        self._seen |= new.keys()
        return {number: end.of(self._names[number], number) for number, end in new.items()}

    def tell(self, event: Event) -> Iterator[Event]:
        """What there is to tell of an event: nothing of a task that nobody asked for, or that has ended."""
        is_news = event.number in self.awaited
        if event.number is not None and isinstance(event, End):
            self.left.discard(event.number)
            self.any_failed |= isinstance(event, Failed)
        if is_news or isinstance(event, Note):
            yield event

    def give_up(
        self, numbers: Iterable[int], error: str, traceback: str | None = None, is_defect: bool = False
    ) -> Iterator[Event]:
        """Tasks fail for want of an outcome: by a defect, if so or with a ``traceback``, otherwise by circumstances."""
        failed = Failed(error=error, is_user_error=traceback is None and not is_defect, traceback=traceback)
        for number in sorted(set(numbers) & self.left):
            yield from self.tell(failed.of(self._names[number], number))

    def note(self, text: str, number: int | None = None) -> Event:
        """News for people, of that task or of the whole."""
        of = min(self.awaited, default=0) if number is None else number
        return Note(task=self._names[of], text=text)


class _Asked:
    """The tasks that are asked for, which need not be those of the running job: other arms may share its networks.

    Attributes:
        left: numbers of the tasks without an end.
    """

    def __init__(self, job: Job):
        """``job``: as it is asked for."""
        self._tasks = job.tasks
        self._number_of = {name: number for number, task in enumerate(job.tasks) for name in task.names}
        self._missing = {number: set(task.names) for number, task in enumerate(job.tasks)}
        self._failed: dict[int, Failed] = {}
        self.left = set(self._missing)

    def told(self, event: Event, running: Job) -> Iterator[Event]:
        """An event of the running job, as one of each task asked for that it is about."""
        names = running.tasks[event.number].names if event.number is not None else (event.task,)
        numbers = sorted({self._number_of[name] for name in names if name in self._number_of} & self.left)
        if isinstance(event, Note):  # may be about a task that only the running job has
            yield self._of(event, numbers[0] if numbers else 0)
        elif isinstance(event, CheckpointWritten):  # bears the name of its arm
            for number in numbers[:1]:
                yield event.of(event.task, self._number_of.get(event.task, number))
        elif isinstance(event, End):
            yield from self._ends(event, set(names), numbers)
        else:
            yield from (self._of(event, number) for number in numbers)

    def _ends(self, end: End, names: set[str], numbers: list[int]) -> Iterator[Event]:
        """A task has ended with the last of what it is about, and failed with any, unless it was done as a whole."""
        for number in numbers:
            self._missing[number] -= names
            if isinstance(end, Failed):
                self._failed.setdefault(number, end)
            if not self._missing[number]:
                self.left.discard(number)
                is_whole = names.issuperset(self._tasks[number].names)
                yield self._of(end if is_whole else self._failed.get(number, end), number)

    def _of(self, event: Event, number: int) -> Event:
        return event.of(self._tasks[number].name, number)


class Following(Protocol):
    """A job that a cluster has, found or submitted, which is looked after until its tasks have ended."""

    @property
    def news(self) -> News:
        """The news of its tasks."""

    def events(self) -> Iterator[Event]:
        """For every task that is wanted one event ``finished`` or ``failed``, and others before."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""


class Request(Protocol):
    """One job as it is asked of a cluster.

    Attributes:
        machine: what each of its machines has.
        is_inside: whether this orchestrator is itself run by that cluster, which may move it.
        end: what is said when it was ended: ``the Job x was deleted``.
    """

    machine: Machine
    is_inside: bool
    end: str

    def start(self, job: Job) -> Following:
        """The job of that name that runs already, or else this one, submitted.

        Raises:
            UserError: it cannot run there; nothing was started.
        """

    def cancel(self) -> bool:
        """End the job as well as that goes; returns whether there was one of ours to end."""


def machine_of(resources: Resources, usual: str | None, device: str | None) -> Machine:
    """As many alike machines as there may be pods.

    Args:
        resources: of each.
        usual: product of GPU that the settings of the place ask for.
        device: name of those GPUs in PyTorch's words; one that a study asks for is known by its product alone.
    """
    num_gpus = resources.gpus_per_pod or 0
    known = resources.gpu if resources.gpu != usual else device or resources.gpu
    name = (known or "an unknown GPU") if num_gpus else "cpu"
    num_cores = resources.cpus_per_pod or max(1, num_gpus)
    return Machine(name, num_gpus, num_cores, resources.workers_per_pod, resources.pods or 1)


def warn_of_cores(product: str, machine: Machine, context: dg.AssetExecutionContext) -> bool:
    """Say so where a product of GPU is asked for and the work is done on cores; returns whether it is."""
    if machine.num_gpus:
        return False
    context.log.warning(f"{product} is asked for (gpu under resources), but this is done on {machine.describe()}")
    return True


def run_elsewhere(request: Request, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
    """Find a job or submit it, and follow it to its end; see ``dd_assets.compute.Place.run``.

    Raises:
        UserError: it cannot run there, or was interrupted and ended.
    """
    asked = _Asked(job)
    if job.resources and job.resources.gpu:
        warn_of_cores(job.resources.gpu, request.machine, context)
    while asked.left:  # once more, where the job of an orchestrator before us did not have all that is wanted now
        try:
            following = request.start(_part(job, asked.left, request.machine))
            for event in following.events():
                yield from asked.told(event, following.news.job)
        except GeneratorExit:
            _leave(request, context)
            raise
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as interrupt:
            if not _leave(request, context):
                raise
            raise UserError(f"interrupted: {request.end}; what it had finished is kept") from interrupt
        if following.is_over and not following.news.any_failed:
            following.news.folder.remove()


def _part(job: Job, numbers: set[int], machine: Machine) -> Job:
    """The job, or what of it is left, with its tasks dealt out to machines."""
    if len(numbers) == len(job.tasks) and job.places:
        return job
    tasks = tuple(job.tasks[number] for number in sorted(numbers))
    return divided(job.model_copy(update={"tasks": tasks, "places": ()}), machine)


def _leave(request: Request, context: dg.AssetExecutionContext) -> bool:
    """End the job, unless this orchestrator is being moved to another machine, and shall be followed by another.

    Returns:
        Whether the work was meant to end, and was ours.
    """
    if request.is_inside:
        run = context.instance.get_run_by_id(context.run.run_id)
        if run is None or run.status not in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
            return False
    return request.cancel()
