"""``python -m dd_core.jobs.worker JOB``: do tasks of a job file, one after the other.

Which tasks comes either with ``--tasks 0 3 7`` or, one number per line, from stdin, so that an orchestrator on the same
machine can hand the next task to a free worker; a second number on the line halves the images at a time so often,
after a worker ran out of memory. Events go to stdout as lines of JSON: ready, started, progress,
checkpoint, note, finished, failed, ... Results are files; an event that is lost costs nothing but news.
"""

import argparse
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from dd_core.checks.machine import Network, networks_of, require_sound
from dd_core.errors import UserError
from dd_core.events import Event, Failed, Finished, Note, Progress, Report, Started
from dd_core.jobs.job import CheckpointTask, Job, Task, TrainTask
from dd_core.machine.arithmetic import objection
from dd_core.machine.devices import gpu_in_vain, keep_freed_memory
from dd_core.store.store import Store
from dd_core.study.study import Study

AllNetworks = Callable[[], set[Network]]


class Events:
    """Writes events; progress at most once a second, and what is to be noted once, however many tasks it is about."""

    def __init__(self) -> None:
        """Keep stdout for events alone: whatever a library prints goes to stderr."""
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._last_progress = 0.0
        self._noted: set[str] = set()

    def emit(self, event: Event) -> None:
        """Write one event; a closed pipe means the orchestrator is gone, and so should we be."""
        if isinstance(event, Progress):
            if time.monotonic() - self._last_progress < 1:
                return
            self._last_progress = time.monotonic()
        if isinstance(event, Note):
            if event.text in self._noted:
                return
            self._noted.add(event.text)
        try:
            self._out.write(event.as_line() + "\n")
        except BrokenPipeError:
            os._exit(1)


def prepare_process(threads: int) -> None:
    """Settings of PyTorch that every process doing real work shares; results depend on some of them.

    Deterministic kernels and no TF32 make a resumed training equal an undisturbed one to the last bit, on a GPU too.
    """
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)
    # Values below 1e-38 would otherwise slow the processor down by an order of magnitude.
    torch.set_flush_denormal(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    # As use_deterministic_algorithms, which loads the whole compiler, a second's work, in order to tell it too.
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would also write NaN into every new tensor, one operation in twenty, to expose code that reads
    # memory it has not written; nothing here does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def device_of(gpu: int) -> Any:
    """The GPU of that number, or the CPU where there is none."""
    import torch

    return torch.device(f"cuda:{gpu % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")


def run(job: Job, tasks: Iterable[tuple[int, int]], gpu: int, events: Events) -> int:
    """Do the tasks of those numbers, each with so many halvings; returns how many of them failed."""
    import torch

    from dd_core.machine.memory import set_halvings

    prepare_process(job.threads)
    device = device_of(gpu)
    in_vain = gpu_in_vain(torch.version.cuda)
    store = Store(job.root)
    num_failed = 0
    all_networks = cache(partial(_networks_of, job, job.tasks))
    for number, halvings in tasks:
        task = job.all_tasks[number]
        if in_vain:
            events.emit(Note(task=task.name, text=in_vain))
            in_vain = None
        set_halvings(halvings)
        torch.set_num_threads((task.threads if isinstance(task, TrainTask) else None) or job.threads)
        num_failed += not _perform(task, job, all_networks, store, device, events)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the others on this GPU, while this worker waits
    return num_failed


def _perform(task: Task, job: Job, all_networks: AllNetworks, store: Store, device: Any, events: Events) -> bool:
    """Do one task; what goes wrong is reported and does not keep the worker from the next."""
    study = job.studies[task.study]
    started = time.monotonic()
    events.emit(Started(task=task.name))
    try:
        if isinstance(task, TrainTask | CheckpointTask) and (said := objection(task.precision(study), device)):
            events.emit(Note(task=task.name, text=said))
        if isinstance(task, TrainTask):
            if device.type == "cpu":
                _see_that_pytorch_is_sound(task, job, all_networks, events)
            _train(task, study, store, device, lambda event: events.emit(event.of(event.task or task.name)))
        elif isinstance(task, CheckpointTask):
            task.compute(study, store, device=device)
    except UserError as error:
        events.emit(Failed(task=task.name, error=str(error), is_user_error=True))
        return False
    except Exception as error:
        traceback.print_exc()
        events.emit(defect(task.name, error))
        return False
    events.emit(Finished(task=task.name, seconds=time.monotonic() - started))
    return True


def _see_that_pytorch_is_sound(task: TrainTask, job: Job, all_networks: AllNetworks, events: Events) -> None:
    """Before an arm trains; all arms of the job are tested at once, and a test that was passed is not made again."""
    problem = require_sound(_networks_of(job, (task,)), all_networks(), task.threads or job.threads)
    if problem:
        events.emit(Note(task=task.name, text=f"{task.name}: {problem}"))


def _networks_of(job: Job, tasks: Iterable[Task]) -> set[Network]:
    of_tasks = (networks_of(job.studies[t.study], t.arm, len(t.places) or 1) for t in tasks if isinstance(t, TrainTask))
    return set().union(*of_tasks)


def _train(task: TrainTask, study: Study, store: Store, device: Any, report: Report) -> None:
    import torch

    from dd_core.training.train import train_together
    from dd_core.training.train_part import train_part

    if study.variants[task.arm.variant].compile is not None:
        torch.use_deterministic_algorithms(True)
    options = {"device": device, "gpu_share": task.gpu_share, "predicted_seconds": task.predicted_seconds}
    if task.trials is None:
        train_together(study, task.arms, store, task.until, places=task.places, report=report, **options)
    else:
        train_part(study, task.arm, store, task.until, range(*task.trials), report=report, **options)


def defect(task: str, error: Exception) -> Failed:
    """The event of a task that failed by no fault of the user."""
    text = "".join(traceback.format_exception(error))
    return Failed(task=task, error=f"{type(error).__name__}: {error}", traceback=text)


class TasksFromOrchestrator:
    """Numbers of tasks, and halvings, read from stdin until it is closed.

    If it is closed while a task is being done, the orchestrator has died: leave at once, so that the locks held here
    are free for whoever runs next. The work since the last resume point is done again then.
    """

    def __init__(self) -> None:
        """Start to read."""
        self._numbers: queue.Queue[tuple[int, int] | None] = queue.Queue()
        self._idle = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            number, _, halvings = line.partition(" ")
            self._numbers.put((int(number), int(halvings or 0)))
        if not self._idle.is_set():
            os._exit(1)
        self._numbers.put(None)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield each number when the one before is done."""
        while True:
            self._idle.set()
            number = self._numbers.get()
            self._idle.clear()
            if number is None:
                return
            yield number


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m dd_core.jobs.worker", description=__doc__)
    parser.add_argument("job", type=Path, help="job file, JSON")
    parser.add_argument("--gpu", type=int, default=0, help="number of the GPU to use, where there is one")
    parser.add_argument("--tasks", type=int, nargs="*", help="numbers of the tasks to do; default: read from stdin")
    arguments = parser.parse_args()
    events = Events()
    job = Job.model_validate_json(arguments.job.read_text(encoding="utf-8"))
    tasks = TasksFromOrchestrator() if arguments.tasks is None else [(number, 0) for number in arguments.tasks]
    sys.exit(1 if run(job, tasks, arguments.gpu, events) else 0)


if __name__ == "__main__":
    main()
