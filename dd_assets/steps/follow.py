"""Following a job: progress with the time left in the log, a bar on a terminal, and what failed, in the end."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.running.console import OF_BAR, bar
from dd_core.errors import UserError
from dd_core.events import CheckpointWritten, Event, Failed, Finished, Note, Progress, Report, Started
from dd_core.jobs.job import CheckpointTask, Job, TrainTask, predicted_cost
from dd_core.words import counted, duration

_LOG_SECONDS = 10.0
# Each takes a tenth of a second to write.
_MOST_REASONS = 100
_MOST_NAMES = 3


class WorkerError(Exception):
    """A defect in the work itself, with the worker's stack trace; Dagster's retry policy may try again."""


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        failed: for every task that did not finish, why.
        defects: stack traces of those that failed by a defect rather than by circumstances.
        finished: for every task that finished, its seconds.
        seconds: from the start of the first task to the end of the last.
    """

    failed: dict[str, str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: "Outcome") -> None:
        """Take another job's end into account, which came after this one."""
        self.failed |= other.failed
        self.defects += other.defects
        self.finished |= other.finished
        self.seconds += other.seconds

    def keep_only(self, tasks: set[str]) -> None:
        """Leave out the failures of other tasks than these and their parts: those belong to another run."""
        self.failed = {name: reason for name, reason in self.failed.items() if name.split(" ")[0] in tasks}
        if not self.failed:
            self.defects.clear()

    def raise_if_failed(self, what: str, total: int, kept: str) -> None:
        """Say what did not finish.

        Raises:
            WorkerError: a task failed by a defect.
            UserError: otherwise.
        """
        if not self.failed:
            return
        named: dict[str, list[str]] = {}
        for name, reason in sorted(self.failed.items()):
            named.setdefault(reason, []).append(name)
        reasons = "; ".join(f"{_listed(names)}: {reason}" for reason, names in named.items())
        message = f"{len(self.failed)} of {total} {what} did not finish ({reasons}). {kept}"
        error = WorkerError("\n\n".join([message, *self.defects])) if self.defects else UserError(message)
        error.__dict__["reasons"] = self.failed
        raise error

    @contextlib.contextmanager
    def raised_after(self, what: str, total: int, kept: str) -> Iterator[None]:
        """Do what follows a job, then say what did not finish; trouble in between (a full disk) does not hide it."""
        with contextlib.suppress(UserError) if self.failed else contextlib.nullcontext():
            yield
        self.raise_if_failed(what, total, kept)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {counted(more, 'other')}" if more > 0 else "")


@contextlib.contextmanager
def reason_at_partitions(context: dg.AssetExecutionContext, key: dg.AssetKey) -> Iterator[None]:
    """Let a failure say at each partition that was not materialised why, where the UI shows the partition.

    Dagster itself shows there that a run failed, and no reason.
    """
    try:
        yield
    except (UserError, WorkerError) as error:
        if not (context.has_partition_key or context.has_partition_key_range):
            raise
        logs = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        events = [log.dagster_event for log in logs if log.dagster_event is not None]
        done = {event.partition for event in events if event.asset_key == key}
        reasons = {f"{task} ".split(" ")[0]: reason for task, reason in error.__dict__.get("reasons", {}).items()}
        for partition in [partition for partition in context.partition_keys if partition not in done][:_MOST_REASONS]:
            names = (f"{key.path[0]}/{partition}", f"{key.path[0]}/{partition.split('|')[0]}")
            reason = next((reasons[name] for name in names if name in reasons), str(error).split("\n\n")[0])
            metadata = {"why_it_failed": reason}
            context.log_event(dg.AssetObservation(key, partition=partition, description=reason, metadata=metadata))
        raise


def follow(context: dg.AssetExecutionContext, laboratory: Laboratory, job: Job, *on_event: Report) -> Outcome:
    """Run a job, log its progress, pass the events of its tasks on, and return how it ended."""
    outcome = Outcome()
    meter = _Meter(job)
    began: float | None = None
    with bar(_name_of(context)) as drawn:
        drawn.move(0.0, "starting workers")
        for event in _events(context, laboratory, job):
            if isinstance(event, Note):
                context.log.warning(event.text)
            if (result := meter.beside(event)) is not None:
                meter.update_beside(event, result)
                if isinstance(event, Failed):
                    what = f"{result.kind} of {event.task}"
                    context.log.warning(f"{what}: {event.error}; it is left to whoever asks for it")
            elif isinstance(event, Failed):
                outcome.failed[event.task] = event.error
                if event.traceback:
                    outcome.defects.append(event.traceback)
                context.log.error(f"{event.task}: {event.error}")
            elif isinstance(event, Finished):
                outcome.finished[event.task] = event.seconds
            if result is None:
                began = began or time.monotonic()  # with the first task; the start of its worker is no part of the work
                outcome.seconds = time.monotonic() - began
                meter.update(event)
                for report in on_event:
                    report(event)
            drawn.move(meter.fraction, meter.in_a_bar())
            if meter.is_due():
                context.log.info(meter.describe(), extra=OF_BAR)
        if began is not None:
            drawn.move(meter.fraction, f"{meter.counts()}, {duration(outcome.seconds)}", at_once=True)
    return outcome


def _name_of(context: dg.AssetExecutionContext) -> str:
    """The name of the bar: ``checkpoints``, ``curvature``."""
    return min((key.path[-1] for key in context.selected_asset_keys), default="")


def _events(context: dg.AssetExecutionContext, laboratory: Laboratory, job: Job) -> Iterator[Event]:
    """The job's events; the workers are stopped when the caller leaves early (a run cancelled in the UI)."""
    events = laboratory.run(context, job)
    try:
        yield from events
    finally:
        events.close()


class _Meter:
    """How much of the predicted work is done, and how long the rest will take at the present rate."""

    def __init__(self, job: Job):
        self.job = job
        self.started = self.logged = time.monotonic()
        self.cost = {task.name: predicted_cost(job.studies[task.study], task) for task in job.tasks}
        self.until = {task.name: task.until for task in job.tasks if isinstance(task, TrainTask)}
        self.total = sum(self.cost.values())
        self.num_beside = 0
        self._cost_beside = 0.0
        self._began_beside: float | None = None
        self.done: dict[str, float] = {}
        self._done_cost = 0.0
        # Epochs that were there before this job are no measure of its speed.
        self.first: dict[str, float] = {}
        self.finished = 0
        self.latest: tuple[str, list[str]] = "", []

    def update(self, event: Event) -> None:
        """Take an event into account."""
        task = event.task
        if isinstance(event, Started) and not self.done:
            self.started = time.monotonic()  # the start of the workers is no measure of the work
        if isinstance(event, Progress | CheckpointWritten) and self.until.get(task):
            share = event.epoch / self.until[task]
            self.first.setdefault(task, (event.epoch - 1) / self.until[task] if event.epoch else 0.0)
            self._is_done(task, max(share, self.done.get(task, 0.0)))  # a checkpoint may be behind one of the parts
            if isinstance(event, Progress):
                self.latest = _told(event, self.until[task])
        elif isinstance(event, Finished | Failed):
            if task not in self.done:
                self.first[task] = 1.0 if self.until else 0.0
            self._is_done(task, 1.0)
            self.finished += 1

    def beside(self, event: Event) -> CheckpointTask | None:
        """The task that an event is about, if it fills what the others leave free; names are not of one kind alone."""
        number = (event.number or 0) - len(self.job.tasks)
        return self.job.beside[number] if 0 <= number < len(self.job.beside) else None

    def update_beside(self, event: Event, task: CheckpointTask) -> None:
        """Take an event of such a task into account."""
        self._began_beside = self._began_beside or time.monotonic()
        if isinstance(event, Finished | Failed):
            self.num_beside += 1
            self._cost_beside += predicted_cost(self.job.studies[task.study], task)

    def _is_done(self, task: str, share: float) -> None:
        self._done_cost += self.cost[task] * (share - self.done.get(task, 0.0))
        self.done[task] = share

    @property
    def fraction(self) -> float:
        """Share of the predicted work that is done."""
        return self._done_cost / self.total

    def is_due(self) -> bool:
        """Whether something should be logged now."""
        if time.monotonic() - self.logged < _LOG_SECONDS:
            return False
        self.logged = time.monotonic()
        return True

    def left(self) -> str:
        """The time left, at the rate so far."""
        if self.finished == len(self.job.tasks) and self.num_beside < len(self.job.beside):
            return self._left_beside()
        before = sum(self.cost[task] * share for task, share in self.first.items()) / self.total
        gained = self.fraction - before
        if gained <= 0.005:
            return "time left unknown yet"
        if self.fraction >= 1:
            return "finishing"
        elapsed = time.monotonic() - self.started
        return f"about {duration(elapsed * (1 - self.fraction) / gained)} left"

    def _left_beside(self) -> str:
        if self._began_beside is None or not self._cost_beside:
            return "time left unknown yet"
        total = sum(predicted_cost(self.job.studies[task.study], task) for task in self.job.beside)
        elapsed = time.monotonic() - self._began_beside
        return f"about {duration(elapsed * (total / self._cost_beside - 1))} left"

    def counts(self) -> str:
        """How many of the tasks are done."""
        has_parts = any(isinstance(task, TrainTask) and task.trials for task in self.job.tasks)
        share = any(isinstance(task, TrainTask) and task.also for task in self.job.tasks)
        what = ("part of an arm" if has_parts else "network" if share else "arm") if self.until else "checkpoint"
        total = counted(len(self.job.tasks), what, "parts of arms" if what.startswith("part") else None)
        beside = f" and {self.num_beside} of {counted(len(self.job.beside), 'result')}" if self.job.beside else ""
        return f"{self.finished} of {total}{beside} done"

    def in_a_bar(self) -> str:
        """What stands behind the bar: the most important first, since a narrow terminal cuts it off."""
        where, values = self.latest
        return ", ".join(filter(None, [self.left(), self.counts().removesuffix(" done"), *values[::-1], where]))

    def describe(self) -> str:
        """One line."""
        done = f"{self.counts()}, {100 * self.fraction:.0f} % of the work, {self.left()}"
        where, values = self.latest
        return " - ".join(filter(None, [": ".join(filter(None, [where, ", ".join(values)])), done]))


def _told(event: Progress, until: int) -> tuple[str, list[str]]:
    """How a training stands: ``preact-resnet10.k004 epoch 57 of 120``, and ``loss 1.21``, ``test error 31 %``."""
    errors = {"training error": event.train_error} if event.test_error is None else {"test error": event.test_error}
    values = [] if event.train_loss is None else [f"loss {event.train_loss:#.3g}".rstrip(".")]
    values += [f"{name} {_percent(error)}" for name, error in errors.items() if error is not None]
    return f"{event.task.partition('/')[2]} epoch {event.epoch} of {until}", values


def _percent(fraction: float) -> str:
    return f"{100 * fraction:{'.0f' if fraction > 0.099 else '.2g'}} %"
