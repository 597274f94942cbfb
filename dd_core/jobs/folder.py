"""What a job that runs elsewhere keeps on the data root while it runs: its file, what has ended, what was learnt.

Outcomes are the truth about tasks: events and messages on the way to the orchestrator may be lost. The folder is named
by the request and by the job file's content, so that nobody takes another job's outcomes for its own::

    jobs/<name>/<digest>/job.json
    jobs/<name>/<digest>/outcomes/<number>.json    how a task ended: its event finished or failed
    jobs/<name>/<digest>/memory/<place>.json       how often to halve what that machine takes at a time
    jobs/<name>/<digest>/events/<place>.jsonl      events as they come, where the place has no better way to tell
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dd_core.events import End, parse
from dd_core.jobs.job import Job
from dd_core.store.files import is_object, read_all, remove_leftovers
from dd_core.store.store import Store, write_text

_JOB_FILE = "job.json"


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job.

    Attributes:
        name: of the request.
        digest: of the job file's content.
    """

    store: Store
    name: str
    digest: str

    @classmethod
    def of(cls, store: Store, job: Job) -> "JobFolder":
        """The folder a job will have; touches nothing."""
        return cls(store, job.name, job.digest[:12])

    @classmethod
    def at(cls, store: Store, job_file: str) -> "JobFolder":
        """The folder of a job file given relative to the root.

        Raises:
            ValueError: it is no path of a job file.
        """
        parts = PurePosixPath(job_file).parts
        if len(parts) != 4 or parts[0] != "jobs" or parts[3] != _JOB_FILE:
            raise ValueError(f"{job_file!r} is not jobs/<name>/<digest>/{_JOB_FILE}")
        return cls(store, parts[1], parts[2])

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.store.jobs_folder / self.name / self.digest

    @property
    def job_file(self) -> str:
        """Relative to the root, as workers are told."""
        return f"jobs/{self.name}/{self.digest}/{_JOB_FILE}"

    def prepare(self, job: Job) -> None:
        """Forget what an earlier attempt left, and write the job file; call it while no such job runs."""
        self.remove()
        write_text(self.path / _JOB_FILE, job.model_dump_json())

    def read_job(self) -> Job:
        """The job, its root being the one it was found under.

        Raises:
            FileNotFoundError: there is none.
        """
        job = Job.model_validate_json((self.path / _JOB_FILE).read_text(encoding="utf-8"))
        return job.model_copy(update={"root": self.store.address})

    def write_outcome(self, number: int, end: End) -> None:
        """Keep how a task ended."""
        write_text(self.path / "outcomes" / f"{number}.json", end.as_line())

    def outcomes(self, known: frozenset[int] | set[int] = frozenset()) -> dict[int, End]:
        """How tasks ended, by number, but for those known already."""
        # By name alone: this is asked every other second, and another question about each file would be a request.
        paths = {int(path.stem): path for path in _visible(self.path / "outcomes")}
        new = sorted(paths.keys() - known)
        contents = read_all([paths[number] for number in new])
        ends = {number: parse(content) for number, content in zip(new, contents, strict=True) if content}
        return {number: end for number, end in ends.items() if isinstance(end, End)}

    def halvings(self, place: int) -> int:
        """How often a machine was out of memory as a whole."""
        path = self.path / "memory" / f"{place}.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def halve(self, place: int) -> int:
        """Note that a machine was out of memory; returns how often it was."""
        count = self.halvings(place) + 1
        write_text(self.path / "memory" / f"{place}.json", json.dumps(count))
        return count

    def events_file(self, place: int) -> Path:
        """Where a machine appends its events, one JSON object a line."""
        return self.path / "events" / f"{place}.jsonl"

    def remove(self) -> None:
        """Leave nothing behind."""
        folders = [*(self.path / name for name in ("outcomes", "memory", "events")), self.path]
        for folder in folders:
            for path in _files(folder):
                path.unlink(missing_ok=True)
        if is_object(self.path):
            return  # folders there are but the beginnings of names
        for folder in (*folders, self.path.parent):
            remove_leftovers(folder)
            with contextlib.suppress(OSError):  # not there, or another job of the same request has its folder in it
                folder.rmdir()


def _files(folder: Path) -> list[Path]:
    """Files of a folder by name, without hidden ones; none where there is no folder."""
    return [path for path in _visible(folder) if not path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder by name, without hidden files; nothing where there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
