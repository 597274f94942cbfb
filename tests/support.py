"""A laboratory for tests: a data root, Dagster home and study folder of its own, used through real processes.

Commands are typed as a user types them (``Lab.dagster``). Where a test needs many processes, ``Lab.forked_dagster`` and
``Worker`` run the same entry points in processes forked from one that has imported torch and Dagster already, which
saves five seconds each; they can be killed like any other.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dd_core.events import Event, parse
from dd_core.jobs.job import Job, result_job, training_job
from dd_core.store.store import Store, sha256_of
from dd_core.study.files import read_study
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet

REPOSITORY = Path(__file__).parent.parent
# Long enough for any busy machine; reached only when something hangs.
PATIENCE = 120.0
# One worker with one thread on every machine: the number of threads decides the order of sums, and so the last bits.
# Tests that run side by side (pytest -n) have a core each.
_CORES = sorted(os.sched_getaffinity(0), reverse=True)
CORE = _CORES[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(_CORES)]
ONE_CORE = ["taskset", "--cpu-list", str(CORE)]

TINY = """\
description: a hundred digits, two widths, two trials
data: {dataset: digits, num_train: 100}
variants:
  plain:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 50
    optimizer: {name: adam, learning_rate: 2.0e-3}
    schedule: {name: cosine}
    augmentation: {shift_x: 1}
widths: [1, 2]
trials: 2
epochs: 24
checkpoints: [0, 8, 16, 24]
evaluation: {every: 4}
"""

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(
    [
        *(
            "dd_core.curvature",
            "dd_core.training",
            "dd_core.tables.warehouse",
            "sklearn.datasets",
            "torch._dynamo",
            "pyarrow",
        ),
        *("dagster._cli", "dagster._core.storage.sqlite_storage", "dagster._core.storage.event_log", "alembic.command"),
        *("sqlalchemy.dialects.sqlite", "ruamel.yaml", "tqdm"),
    ]
)


def wait_until(condition: Callable[[], Any], what: str, pause: float = 0.005) -> Any:
    """Poll until the condition holds; ``PATIENCE`` bounds the wait and measures nothing."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(pause)
    raise AssertionError(f"waited in vain for {what}")


@dataclass(frozen=True)
class Result:
    """What a command printed, both streams together, and its exit code."""

    code: int
    output: str

    def succeeded(self) -> "Result":
        """Its exit code is 0."""
        assert self.code == 0, self.output
        return self

    def refused(self, sentence: str) -> "Result":
        """It failed with this sentence (spaces may be line breaks) and without a stack trace."""
        assert self.code != 0, self.output
        assert sentence in " ".join(self.output.split()), self.output
        assert not re.search("Traceback|Stack Trace", self.output), self.output
        return self


class Lab:
    """Everything a run needs, below one folder."""

    def __init__(self, folder: Path, study: str = TINY):
        """Write the study ``tiny``."""
        self.folder, self.root = folder, folder / "data"
        self.studies = folder / "studies"
        self.studies.mkdir(parents=True)
        self.write_study("tiny", study)
        self.home = folder / "dagster"

    def write_study(self, name: str, text: str) -> Path:
        """Write or replace a study file."""
        path = self.studies / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    @property
    def store(self) -> Store:
        """Where results lie."""
        return Store(self.root)

    @property
    def study(self) -> Study:
        """The study ``tiny`` as its file says now."""
        return read_study(self.studies / "tiny.yaml")

    def environment(self, **changes: Any) -> dict[str, str]:
        """This process's environment with the laboratory's own places; a change to None removes a variable."""
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("DD_", "DAGSTER_"))}
        places = {"DD_ROOT": self.root, "DAGSTER_HOME": self.home, "DD_STUDIES": self.studies}
        return {k: str(v) for k, v in {**inherited, **places, **changes}.items() if v is not None}

    def start_dagster(self, *arguments: str, **changes: Any) -> "subprocess.Popen[str]":
        """``source env.sh``, then ``dagster ...``; the process is dagster's own."""
        return subprocess.Popen(
            [*ONE_CORE, "bash", "-c", 'source ./env.sh && exec dagster "$@"', "bash", *arguments],
            cwd=REPOSITORY,
            env=self.environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def dagster(self, *arguments: str, **changes: Any) -> Result:
        """Run ``dagster ...`` to its end."""
        with self.start_dagster(*arguments, **changes) as process:
            output, _ = process.communicate(timeout=PATIENCE)
        return Result(process.returncode, output)

    def materialize(self, select: str, *arguments: str, **changes: Any) -> Result:
        """Run ``dagster asset materialize --select ...``."""
        return self.dagster("asset", "materialize", "--select", select, *arguments, **changes)

    def shell(self, command: str, **changes: Any) -> Result:
        """A line typed into bash at the repository."""
        done = subprocess.run(
            [*ONE_CORE, "bash", "-c", command],
            cwd=REPOSITORY,
            env=self.environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout)

    def forked_dagster(self, *arguments: str, **changes: Any) -> Result:
        """The dagster command in a forked process: the same code, without its imports."""
        environment = self.environment(DAGSTER_MODULE_NAME="dd_assets.definitions", **changes)
        self.home.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "dd_assets" / "dagster.yaml", self.home)
        output = self.folder / "forked.log"
        process = _forkserver.Process(target=_run_dagster, args=(arguments, environment, output))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"dagster {arguments} hangs"
        return Result(process.exitcode, output.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """What Dagster has recorded."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", str(self.home))  # dagster.yaml asks for it
            instance = dg.DagsterInstance.get()
        with instance:
            yield instance

    def recorded(self, asset: str) -> set[str]:
        """Partitions of ``tiny/<asset>`` that Dagster shows as materialised."""
        with self.instance() as instance:
            return instance.get_materialized_partitions(dg.AssetKey(["tiny", asset]))

    def training_job(self, arms: str = "") -> Job:
        """Train all arms to the end, the widest first, or those whose key ends so."""
        wanted = [c for c in self.study.iter_checkpoints() if c.arm.key.endswith(arms)]
        return training_job(self.root, self.study, wanted, 1, 1)

    def curvature_job(self) -> Job:
        """Per-image curvature of every checkpoint, in the order of the study: arms, then epochs."""
        wanted = [("tiny", checkpoint) for checkpoint in self.study.iter_checkpoints()]
        job = result_job("per_image_curvature", self.root, {"tiny": self.study}, wanted, 1, 1)
        return job.model_copy(update={"tasks": tuple(sorted(job.tasks, key=lambda task: task.name))})


def _run_dagster(arguments: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
    """What the interpreter does for ``.venv/bin/dagster``: run it, and show what escapes through sys.excepthook."""
    os.environ.clear()
    os.environ.update(environment)
    os.sched_setaffinity(0, {CORE})
    os.chdir(REPOSITORY)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _fork_workers()
    script = Path(sys.executable).with_name("dagster")
    sys.argv = [str(script), *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)


def _fork_workers() -> None:
    """Let workers that this process starts be forked as well; everything else that it starts is new, as ever."""
    from multiprocessing import forkserver

    from dd_core.jobs import process

    def popen(command: list[str], **options: Any) -> Any:
        is_worker = command[:3] == [sys.executable, "-m", "dd_core.jobs.worker"]
        return _ForkedWorker(command[3:], options["env"]) if is_worker else subprocess.Popen(command, **options)

    names = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    vars(process)["subprocess"] = SimpleNamespace(Popen=popen, **names)
    # The one that this process came from; Python would start another.
    vars(forkserver._forkserver)["ensure_running"] = lambda: None  # type: ignore[attr-defined]


class _ForkedWorker:
    """As the Popen of a worker, as far as ``dd_core.jobs.process`` asks for it."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        """Start it."""
        (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
        streams = [_Stream(number) for number in (read_in, write_out, 2)]
        self._process = _forkserver.Process(target=_become_worker, args=(arguments, environment, streams))
        self._process.start()
        os.close(read_in)
        os.close(write_out)
        self.stdin, self.stdout = os.fdopen(write_in, "w"), os.fdopen(read_out)
        self._lock = threading.Lock()

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        with self._lock:  # Python's own look at it is not for several threads
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            time.sleep(0.005)

    def terminate(self) -> None:
        """SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            if self._process.exitcode is None:
                assert self._process.pid is not None
                os.kill(self._process.pid, number)


@dataclass(frozen=True)
class _Stream:
    """A file descriptor that goes along to a forked process."""

    number: int

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.number),)


def _received(stream: Any) -> int:
    return int(stream.detach())


def _become_worker(arguments: list[str], environment: dict[str, str], streams: list[int]) -> None:
    """What ``python -m dd_core.jobs.worker`` does."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.sched_setaffinity(0, {CORE})
    os.chdir(REPOSITORY)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = ["dd_core.jobs.worker", *arguments]
    from dd_core.jobs.worker import main

    main()


@dataclass(frozen=True)
class Death:
    """When a worker shall be killed, exactly: right after an event, or before a file gets its final name.

    Attributes:
        event: name of the event, and of what epoch; None: of any.
        file: number of the file, counted from 1, without live rows, of which time decides how often they are written.
    """

    event: str | None = None
    epoch: int | None = None
    file: int | None = None

    def await_in_this_process(self) -> None:
        """Let this very process receive SIGKILL when the time has come."""
        from dd_core.jobs.worker import Events

        emit, replace, replaced = Events.emit, Path.replace, itertools.count(1)

        def emit_or_die(events: Events, event: Event) -> None:
            emit(events, event)
            if self.event == event.name and self.epoch in (None, getattr(event, "epoch", None)):
                os.kill(os.getpid(), signal.SIGKILL)

        def replace_or_die(path: Path, target: Path) -> Path:
            if "live" not in target.parts and next(replaced) == self.file:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Events.emit = emit_or_die  # type: ignore[method-assign]
        Path.replace = replace_or_die  # type: ignore[method-assign,assignment]


def _run_worker(arguments: list[str], root: Path, events: Path, death: Death) -> None:
    """What ``python -m dd_core.jobs.worker`` does, its stdout being a file."""
    os.environ["DD_ROOT"] = str(root)
    with events.open("ab") as file:
        os.dup2(file.fileno(), 1)
    sys.argv = ["dd_core.jobs.worker", *arguments]
    from dd_core.jobs.worker import main

    death.await_in_this_process()
    main()


class Worker:
    """A worker process of one's own on all tasks of a job."""

    def __init__(self, lab: Lab, job: Job, death: Death | None = None):
        """Start it."""
        number = len(list(lab.folder.glob("job-*.json")))
        path, self._events = lab.folder / f"job-{number}.json", lab.folder / f"events-{number}"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        self._events.touch()
        arguments = [str(path), "--tasks", *map(str, range(len(job.tasks)))]
        target = (arguments, lab.root, self._events, death or Death())
        self.process = _forkserver.Process(target=_run_worker, args=target)
        self.process.start()

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the worker hangs"
        return self.process.exitcode

    @property
    def log(self) -> list[Event]:
        """Its events."""
        lines = self._events.read_text(encoding="utf-8").splitlines()
        return [event for line in lines if (event := parse(line)) is not None]


def work(lab: Lab, job: Job) -> list[Event]:
    """Let a worker do all tasks of a job; returns its events."""
    worker = Worker(lab, job)
    assert worker.end() == 0, worker.log
    return worker.log


def work_and_die(lab: Lab, job: Job, death: Death) -> None:
    """Let a worker begin with a job and be killed."""
    assert Worker(lab, job, death).end() == -signal.SIGKILL


def results(root: Path) -> dict[str, str]:
    """Digest of every result below a root, by path: all bits of weights and tables but wall-clock times.

    Weights in several files, of parts that trained apart, are told as of the one file that a whole training writes.
    Left out: the table ``runs`` (it tells when and how often), and the columns ``time`` and ``seconds`` of the others;
    of ``loss_slopes`` the digest of files that have such columns.
    """
    digests = {}
    for path in sorted(root.glob("checkpoints/**/[0-9]*.safetensors")):
        digests[str(path.relative_to(root))] = sha256_of(path)
    for path in sorted(root.glob("checkpoints/*/*/[0-9]*.json")):
        manifest = Store(root).read_manifest(path)
        if manifest is not None and "weights" not in manifest.files:
            from dd_core.store.checkpoints import read_weights, save_tensors

            with tempfile.TemporaryDirectory() as folder:
                key = f"{manifest.content['study']}/{manifest.content['arm']}|{manifest.epoch:04d}"
                file = Path(folder) / path.with_suffix(".safetensors").name
                save_tensors(file, read_weights(Store(root), manifest), {"checkpoint": key})
                digests[str(path.with_suffix(".safetensors").relative_to(root))] = sha256_of(file)
    for path in sorted(root.glob("tables/**/*.parquet")):
        if "study=none" in path.parts:  # the empty files that views need
            continue
        table = read_parquet(path)
        if "tables/runs/" not in str(path):
            apart = ("time", "seconds", *["source_sha256"] * ("tables/loss_slopes/" in str(path)))
            columns = {name: table[name].to_pylist() for name in table.column_names if name not in apart}
            digests[str(path.relative_to(root))] = hashlib.sha256(repr(columns).encode()).hexdigest()
    return digests


def stamps(root: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Inode and modification time of files, which change whenever a file is written again."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(root.glob(pattern))}


def attempts(store: Store, arm: str) -> list[str]:
    """The status of each attempt to train an arm of ``tiny``."""
    latest: dict[str, Path] = {}
    for path in sorted(store.table_folder("runs", "tiny", arm).glob("*.parquet"), reverse=True):
        latest[path.name.split(".")[0]] = path  # the end sorts before the start
    return [read_parquet(latest[attempt])["status"][0].as_py() for attempt in sorted(latest)]


def workers_of(root: Path) -> list[int]:
    """Process ids of the workers that are at work for a data root."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"dd_core.jobs.worker" in command and any(part.startswith(bytes(root)) for part in command):
            found.append(int(path.parent.name))
    return found
