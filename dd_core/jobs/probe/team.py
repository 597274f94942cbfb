"""How fast arms train with one, two, ... workers on a device: a few real steps of each, in lock-step.

All workers of a team (``dd_core.jobs.probe.worker``) are told to prepare an arm, and when the last has, to train the
same number of steps at the same time, several times over. One team serves all arms, since starting it takes longer than
measuring an arm.
"""

import itertools
import json
import queue
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dd_core.events import Event, Failed, OutOfMemory, Prepared, Timed
from dd_core.forecast.probe_table import Measurement
from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.process import News, Process
from dd_core.machine.devices import Machine
from dd_core.store.store import write_text
from dd_core.study.study import Arm, Study

# A step of the widest network on a slow CPU takes a minute; reached only when something hangs.
_PATIENCE = 900.0
# All numbers of workers in turn, and all again: what else the machine does meanwhile then shows as a spread, and not as
# a difference between them.
_ROUNDS, _REPETITIONS = 2, 2
_Answer = TypeVar("_Answer", bound=Event)


def measure(
    root: Path | str,
    arms: Sequence[tuple[Study, Arm]],
    counts: Sequence[int],
    machine: Machine,
    seconds: float,
    note: Callable[[str], None],
    *,
    folder: Path,
) -> Iterator[Measurement]:
    """Measure every arm with every number of workers on the first device of this machine.

    Args:
        root: data root.
        arms: in this order, for the first number of workers, then for the next.
        counts: numbers of workers, ascending. Where one ran out of memory, a larger one is not tried.
        machine: says how many threads each has.
        seconds: about how long to time each; at least one step.
        note: is told what could not be measured, and why.
        folder: for the job file, on this machine.
    """
    studies = {study.name: study for study, _ in arms}
    tasks = tuple(TrainTask(study=s.name, variant=a.variant, k=a.k, until=0) for s, a in arms)
    path = folder / f"{uuid.uuid4().hex}.json"
    exhausted: set[int] = set()
    failed: set[tuple[int, int]] = set()
    found: dict[tuple[int, int], list[_Repetition]] = {}
    try:
        for turn, count in itertools.product(range(_ROUNDS), counts):
            threads = machine.threads(count)
            job = Job(root=str(root), studies=studies, tasks=tasks, num_workers=count, threads=threads)
            write_text(path, job.model_dump_json())
            team = _Team(path, count)
            try:
                for number, (study, arm) in enumerate(arms):
                    if number in exhausted or (number, count) in failed:
                        continue
                    results = found.setdefault((number, count), [])
                    try:
                        results += _measured(team, number, seconds / _ROUNDS, machine)
                        if turn == _ROUNDS - 1:
                            yield _summary(study, arm, count, results, machine)
                    except _NoMemoryError:
                        exhausted.add(number)
                        if turn < _ROUNDS - 1:
                            yield from _before(found, number, study, arm, machine, count)
                        yield Measurement(study, arm, count, threads, "out of memory", machine.device)
                    except _NoAnswerError as error:
                        failed.add((number, count))
                        note(f"{tasks[number].name} with {count} workers was not measured: {error}")
            finally:
                team.end()
    finally:
        path.unlink(missing_ok=True)


def _before(
    found: dict[tuple[int, int], list["_Repetition"]], number: int, study: Study, arm: Arm, machine: Machine, most: int
) -> Iterator[Measurement]:
    """What is known of an arm with fewer workers than were too many for the memory."""
    for (other, count), results in sorted(found.items()):
        if other == number and count < most and results:
            yield _summary(study, arm, count, results, machine)


class _NoMemoryError(Exception):
    """A worker got no memory, or was killed for want of it."""


class _NoAnswerError(Exception):
    """A worker did not do what it was told, for another reason."""


def _measured(team: "_Team", number: int, seconds: float, machine: Machine) -> list["_Repetition"]:
    """What is known of the arm of that number when all workers of the team train it, of each repetition."""
    slowest = max(answer.seconds_per_step for answer in team.ask({"prepare": number}, Prepared))
    steps = max(1, round(seconds / _REPETITIONS / slowest))
    return [_repetition(team.ask({"steps": steps}, Timed), machine) for _ in range(_REPETITIONS)]


@dataclass(frozen=True)
class _Repetition:
    """What all workers of a team together have done at the same time; see ``Measurement``."""

    samples_per_second: float
    peak_memory_bytes: int
    utilisation: float | None
    num_steps: int
    torch_version: str


def _repetition(results: list[Timed], machine: Machine) -> _Repetition:
    shares = [result.utilisation for result in results if result.utilisation is not None]
    # Of a GPU each has seen the whole, of the cores its own part.
    of = len(shares) if machine.num_gpus else machine.num_cores
    return _Repetition(
        samples_per_second=sum(result.samples / result.seconds for result in results),
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        utilisation=sum(shares) / of if shares else None,
        num_steps=results[0].num_steps,
        torch_version=results[0].torch_version,
    )


def _summary(study: Study, arm: Arm, count: int, results: list[_Repetition], machine: Machine) -> Measurement:
    """The median of the repetitions, and how far they lie apart."""
    speeds = [result.samples_per_second for result in results]
    shares = [result.utilisation for result in results if result.utilisation is not None]
    middle = statistics.median(speeds)
    return Measurement(
        study,
        arm,
        count,
        machine.threads(count),
        status="ok",
        device=machine.device,
        samples_per_second=middle,
        spread=(max(speeds) - min(speeds)) / middle,
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        utilisation=statistics.median(shares) if shares else None,
        num_steps=sum(result.num_steps for result in results),
        torch_version=results[0].torch_version,
    )


class _Team:
    """Processes that do the same at the same time; after one was lost, all are started anew."""

    def __init__(self, path: Path, count: int):
        """``path`` is the job file."""
        self._path, self._count = path, count
        self._processes: list[Process] = []
        self._news: News = queue.Queue()

    def ask(self, question: dict[str, int], kind: type[_Answer]) -> list[_Answer]:
        """Ask all at once and wait for every answer: nobody goes on before the last is there.

        Raises:
            _NoMemoryError: one had not enough.
            _NoAnswerError: one had another problem, ended, or was silent for too long.
        """
        if not self._processes:
            self._news = queue.Queue()
            arguments = ["dd_core.jobs.probe.worker", str(self._path)]
            self._processes = [Process(number, arguments, self._news) for number in range(self._count)]
        for process in self._processes:
            process.tell(json.dumps(question))
        deadline = time.monotonic() + _PATIENCE
        answers = [self._next(deadline) for _ in self._processes]
        if any(isinstance(answer, OutOfMemory) for answer in answers):
            raise _NoMemoryError
        for answer in answers:
            if isinstance(answer, Failed):
                raise _NoAnswerError(answer.error)
        return [answer for answer in answers if isinstance(answer, kind)]

    def _next(self, deadline: float) -> Event:
        """The next answer of any."""
        try:
            number, answer = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.end()
            raise _NoAnswerError(f"no answer within {_PATIENCE:.0f} s") from None
        if answer is None:
            process = self._processes[number]
            self.end()
            if process.was_killed:
                raise _NoMemoryError
            raise _NoAnswerError(f"a worker {process.describe_end()}")
        return answer

    def end(self) -> None:
        """Kill what is left of it."""
        for process in self._processes:
            process.kill()
        self._processes = []
