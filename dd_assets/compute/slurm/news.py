"""What is heard from a job's machines through the data root: outcomes, which are the truth, and events on the way."""

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from dd_core.events import CheckpointWritten, End, Event, Failed, Note, parse
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job


class News:
    """Tasks of a running job, who of them has ended, and what is new.

    Attributes:
        left: numbers of tasks without an end, as the running job counts them.
        any_failed: whether a task has failed.
        steps: for each place, how many checkpoints and ends it has told of: how far it has got.
    """

    def __init__(self, folder: JobFolder, job: Job, wanted: Container[str], events: Path | None):
        """Nothing is read yet.

        Args:
            folder: of the running job.
            job: as it was submitted, perhaps by an orchestrator before this one.
            wanted: names of the tasks whose events are asked for.
            events: folder of the events files, if there is one.
        """
        self._folder = folder
        self._names = [task.name for task in job.tasks]
        self._wanted = {number for number, name in enumerate(self._names) if name in wanted}
        self._tails = [_Tail(events / f"{place}.jsonl") for place in range(len(job.places))] if events else []
        self._place_of = {number: place for place, tasks in enumerate(job.places) for number in tasks}
        self.left = set(range(len(self._names)))
        self.any_failed = False
        self.steps: Counter[int] = Counter()

    def read(self) -> list[Event]:
        """What is new since the last time: of each task its end last, and once."""
        ended = set(range(len(self._names))) - self.left
        # First the ends, so that what is read then holds all that was told before them.
        outcomes = self._folder.outcomes(ended)
        events = [event for place, tail in enumerate(self._tails) for event in self._told(place, tail)]
        for number, outcome in sorted(outcomes.items()):
            self.steps[self._place_of[number]] += 1
            events += self._end(number, outcome)
        return events

    def _told(self, place: int, tail: "_Tail") -> Iterator[Event]:
        """Events of a place, but for ends: those are read where they cannot be lost."""
        for event in tail.read():
            self.steps[place] += isinstance(event, CheckpointWritten)
            if not isinstance(event, End) and event.number in self.left & self._wanted:
                yield event

    def _end(self, number: int, end: End) -> list[Event]:
        """The end of a task, if anyone asked for it."""
        self.left.discard(number)
        self.any_failed |= isinstance(end, Failed)
        return [end] if number in self._wanted else []

    def give_up(self, numbers: Iterable[int], error: str, traceback: str | None = None) -> Iterator[Event]:
        """Tasks fail for want of an outcome; with a ``traceback`` it is a defect, otherwise circumstances."""
        failed = Failed(error=error, is_user_error=traceback is None, traceback=traceback)
        for number in sorted(set(numbers) & self.left):
            yield from self._end(number, failed.of(self._names[number], number))

    def note(self, text: str) -> Event:
        """News for people."""
        task = min(self.left & self._wanted, default=0)
        return Note(task=self._names[task], text=text)


class _Tail:
    """The lines of a growing file; it is opened anew each time, since other machines write it."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self) -> list[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._offset += len(whole) + bool(whole)
        # A line may be cut off by a kill, and gone on with by the next process.
        return [event for line in whole.splitlines() if (event := parse(line)) is not None]


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log, or nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""
