"""Tasks on this machine: worker processes that share its GPUs or cores, each handed the next task when it is free.

Processes beat threads for small networks (1.6 times on two cores for 8x8 images), and a worker that dies takes only its
task with it. The same crew works on a laptop and in every pod of a cluster.
"""

import itertools
import queue
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dd_core.events import CheckpointWritten, End, Event, Failed, Finished, Note, Progress
from dd_core.jobs.division import shares
from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.placement import Placement
from dd_core.jobs.process import News, Process
from dd_core.machine.devices import num_gpus, num_oom_kills
from dd_core.store.store import write_text
from dd_core.study.study import Arm

# A task whose worker was killed for want of memory this often, with fewer images at a time each time, is given up.
_MOST_HALVINGS = 3
# What to read about a worker that crashes again and again.
_CRASH_PAGE = "docs/troubleshooting.md#a-worker-crashes-twice"


@dataclass
class _Worker:
    process: Process
    device: int
    task: int | None = None
    is_dismissed: bool = False

    def hand(self, number: int, halvings: int) -> None:
        self.task = number
        self.process.tell(f"{number} {halvings}" if halvings else str(number))

    def dismiss(self) -> None:
        self.is_dismissed = True
        self.process.dismiss()


class _Crew:
    """The workers of a job. One is started where a task finds none idle on its device."""

    def __init__(self, job: Job, numbers: Sequence[int], path: Path, halvings: int):
        """``path`` is the job file, ``numbers`` are the tasks to do."""
        self._followers = _Followers(job, numbers)
        self.job, self._path = job, path
        self.numbers = [*numbers, *self._followers.waiting]
        num_devices = min(num_gpus() or 1, job.num_workers)
        all_shares = shares(job.all_tasks, job.num_workers, num_devices)
        self.placement = Placement([all_shares[n] for n in self.numbers], num_devices, job.num_workers)
        self.placement.waiting = list(range(len(numbers)))  # followers later
        self.halvings = [halvings] * len(self.numbers)
        self.news: News = queue.Queue()
        self.workers: dict[int, _Worker] = {}
        self._oom_kills = num_oom_kills()
        # Of the tasks whose worker has crashed, how and how far they were.
        self._crashes: dict[int, str] = {}
        self._epochs: dict[int, int] = {}
        self._counter = itertools.count()

    def hand_out(self) -> None:
        """Let every task begin for which there is room; who will not be needed any more may leave."""
        while (placed := self.placement.next()) is not None:
            task, device = placed
            idle = (w for w in self.workers.values() if w.device == device and w.task is None and not w.is_dismissed)
            worker = next(idle, None) or self._start(device)
            worker.hand(self.numbers[task], self.halvings[task])
        if not self.placement.waiting and not self._followers.waiting:
            for worker in self.workers.values():
                if worker.task is None and not worker.is_dismissed:
                    worker.dismiss()

    def _start(self, device: int) -> _Worker:
        number = next(self._counter)
        process = Process(number, ["dd_core.jobs.worker", str(self._path), "--gpu", str(device)], self.news)
        self.workers[number] = _Worker(process, device)
        return self.workers[number]

    def task_done(self, worker: _Worker, has_finished: bool = False) -> None:
        """Its share of the device is free; those that wait for it may begin, or never will."""
        if worker.task is not None:
            self.placement.finish(self.numbers.index(worker.task))
            for number in self._followers.after(worker.task, has_finished):
                self.placement.waiting.append(self.numbers.index(number))
            worker.task = None

    def note_progress(self, worker: _Worker, event: Event) -> None:
        """Remember how far a task is."""
        if worker.task is not None and isinstance(event, Progress | CheckpointWritten):
            self._epochs[worker.task] = event.epoch

    def bury(self, worker: _Worker) -> Event | None:
        """A worker has ended: what to say of the task it was at.

        The task is tried again where memory was lacking and, once, after a crash, which may have been a passing fault.
        """
        worker.dismiss()
        del self.workers[worker.process.number]
        if worker.task is None:
            return None
        task = self.numbers.index(worker.task)
        kills, self._oom_kills = num_oom_kills() - self._oom_kills, num_oom_kills()
        number, name = worker.task, self.job.all_tasks[worker.task].name
        if worker.process.was_killed and kills and self.halvings[task] < _MOST_HALVINGS:
            self.halvings[task] += 1
            self.placement.again(task)
            worker.task = None
            return Note(task=name, number=number, text=_less_memory(name, self.halvings[task]))
        if worker.process.has_crashed:
            how = f"{worker.process.describe_end()} {self._place_of(worker.task)}"
            before = self._crashes.get(worker.task)
            if before is None:
                self._crashes[worker.task] = how
                self.placement.again(task)
                worker.task = None
                return Note(task=name, number=number, text=f"{name}: its worker {how}; a new one goes on")
            self.task_done(worker)
            return Failed(task=name, number=number, error=_crashed_again(before, how), is_user_error=True)
        self.task_done(worker)
        hint = " (out of memory, perhaps)" if worker.process.was_killed else ""
        error = (
            f"its worker {worker.process.describe_end()}{hint}; what it had finished is kept, run the same command "
            "again to go on"
        )
        return Failed(task=name, number=number, error=error, is_user_error=True)

    def _place_of(self, number: int) -> str:
        return f"after epoch {self._epochs[number]}" if number in self._epochs else "before it reported any progress"


class _Followers:
    """Tasks beside those of a job, each of which begins when all that trains its arm has finished."""

    def __init__(self, job: Job, numbers: Sequence[int]):
        """Those that wait for tasks with these numbers."""
        trained_by: dict[tuple[str, Arm], set[int]] = {}
        for number in numbers:
            task = job.tasks[number]
            for arm in task.arms if isinstance(task, TrainTask) else ():
                trained_by.setdefault((task.study, arm), set()).add(number)
        # By number, what each still waits for.
        self.waiting: dict[int, set[int]] = {}
        for number, follower in enumerate(job.beside, start=len(job.tasks)):
            if before := trained_by.get((follower.study, follower.checkpoint.arm)):
                self.waiting[number] = set(before)

    def after(self, number: int, has_finished: bool) -> list[int]:
        """Those that may begin now that a task has ended; if it has failed, what waits for it is given up."""
        begin = []
        for follower in [follower for follower, before in self.waiting.items() if number in before]:
            self.waiting[follower].discard(number)
            if not has_finished:
                del self.waiting[follower]
            elif not self.waiting[follower]:
                del self.waiting[follower]
                begin.append(follower)
        return begin


def _crashed_again(before: str, now: str) -> str:
    times = f"{now}, twice at the same place" if before == now else f"{now}, and {before} the time before"
    return (
        f"its worker {times}: this machine or its PyTorch is at fault, so that trying again will hardly help; "
        f"{_CRASH_PAGE} says what to do, and what it had finished is kept"
    )


def _less_memory(name: str, halvings: int) -> str:
    return f"{name}: its worker was killed for want of memory; again with 1/{2**halvings} of the batch at a time"


def run_crew(
    job: Job, folder: Path, numbers: Sequence[int] | None = None, halvings: int = 0
) -> Generator[Event, None, None]:
    """Do tasks of a job on this machine and yield the workers' events as they come.

    Every task ends in exactly one event ``finished`` or ``failed``: the task of a worker that dies has failed, unless
    it was killed for want of memory and may succeed with less; a new worker takes the next. So do those beside them
    whose arm was trained. Closing the generator early stops the workers.

    Args:
        job: its ``num_workers`` work at a time.
        folder: for the workers' copy of the job file, on this machine.
        numbers: of the tasks to do, in order; default all.
        halvings: begin with 2^-halvings of the images at a time.

    Yields:
        Events with the name and number of their task.
    """
    path = folder / f"{uuid.uuid4().hex}.json"
    write_text(path, job.model_dump_json())
    crew = _Crew(job, range(len(job.tasks)) if numbers is None else numbers, path, halvings)
    try:
        crew.hand_out()
        while crew.workers:
            number, event = crew.news.get()
            worker = crew.workers[number]
            if event is None:
                if (said := crew.bury(worker)) is not None:
                    yield said
                crew.hand_out()
                continue
            crew.note_progress(worker, event)
            yield event.of(event.task, worker.task)
            if isinstance(event, End):
                crew.task_done(worker, isinstance(event, Finished))
                crew.hand_out()
    finally:
        for worker in crew.workers.values():
            worker.process.kill()
        path.unlink(missing_ok=True)
