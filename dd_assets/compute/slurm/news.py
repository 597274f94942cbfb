"""What is heard from a job's machines through the data root alone: outcomes, and events on the way."""

from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

from dd_assets.compute.elsewhere import News
from dd_core.events import CheckpointWritten, End, Event, parse
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job


class FileNews(News):
    """News that machines write to files.

    Attributes:
        steps: for each place, how many checkpoints and ends it has told of: how far it has got.
    """

    def __init__(self, folder: JobFolder, job: Job, wanted: Container[str], events: Path | None):
        """``events`` is the folder of the events files, if there is one."""
        super().__init__(folder, job, wanted)
        self._tails = [_Tail(events / f"{place}.jsonl") for place in range(len(job.places))] if events else []
        self._place_of = {number: place for place, tasks in enumerate(job.places) for number in tasks}
        self.steps: Counter[int] = Counter()

    def read(self) -> Iterator[Event]:
        """What is new since the last time: of each task its end last, and once."""
        # First the ends, so that what is read then holds all that was told before them.
        outcomes = self.outcomes()
        for place, tail in enumerate(self._tails):
            for event in tail.read():
                self.steps[place] += isinstance(event, CheckpointWritten)
                if not isinstance(event, End):  # those are read where they cannot be lost
                    yield from self.tell(event)
        for number, outcome in sorted(outcomes.items()):
            self.steps[self._place_of[number]] += 1
            yield from self.tell(outcome)


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
