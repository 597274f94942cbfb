"""Arms over the GPUs of a machine: as many at a time as their shares allow, each once, whatever becomes of a worker."""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dd_assets.compute import local
from dd_core.errors import UserError
from dd_core.events import _TYPES, Event, Started
from dd_core.jobs import crew
from dd_core.jobs.job import CheckpointTask, Job, TrainTask, training_job
from dd_core.jobs.process import News, Process
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources
from dd_core.study.study import Study

# A worker that imports nothing and tells its process, its GPU and how often it shall halve what it takes at a time. A
# task takes it 50 ms; one of width 13 kills it, one of width 77 unless it takes a quarter at a time; one of width 66
# makes it crash after epoch 2, one of width 67 the first time.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
job = json.load(open(sys.argv[1]))
tasks = job["tasks"] + job.get("beside", [])
for line in sys.stdin:
    number, halvings = [*map(int, line.split()), 0][:2]
    task = tasks[number]
    name = "tiny/plain.k%03d" % task["k"]
    for event in ("started", "finished"):
        told = {"task": name, "event": event, "gpu": int(sys.argv[3]), "pid": os.getpid(), "seconds": 0.05}
        told["halvings"] = halvings
        print(json.dumps(told), flush=True)
        if event == "started":
            time.sleep(0.05)
            first = Path(sys.argv[1] + ".67")
            if task["k"] == 66 or task["k"] == 67 and not first.exists():
                if task["k"] == 67: first.touch()
                print(json.dumps({"task": name, "event": "checkpoint", "epoch": 2}), flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            if first.exists() and task["k"] == 67: first.unlink()
            if task["k"] == 13 or task["k"] == 77 and halvings < 2: os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True, kw_only=True)
class _Started(Started):
    """What the fake worker says of itself when it begins."""

    gpu: int
    pid: int
    halvings: int


@pytest.fixture
def run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_study: Study) -> Callable[..., list[Event]]:
    """Run tasks on a machine with so many GPUs and return the events."""
    (tmp_path / "fake_worker.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(number: int, arguments: list[str], news: News) -> Process:
        return Process(number, ["fake_worker", *arguments[1:]], news)

    monkeypatch.setattr(crew, "Process", start)
    monkeypatch.setitem(_TYPES, "started", _Started)  # type: ignore[arg-type]

    def run(num_gpus: int, tasks: list[Any], num_workers: int, beside: tuple[Any, ...] = ()) -> list[Event]:
        monkeypatch.setattr(crew, "num_gpus", lambda: num_gpus)
        root = tmp_path / "root"
        job = Job(
            root=root,
            studies={"tiny": tiny_study},
            tasks=tuple(tasks),
            beside=beside,
            num_workers=num_workers,
            threads=1,
        )
        events = list(local.run_job(job))
        assert list((root / "jobs").iterdir()) == [], "the job file is gone"
        return events

    return run


def train(k: int, workers_per_device: int | None = None) -> TrainTask:
    return TrainTask(study="tiny", variant="plain", k=k, until=4, workers_per_device=workers_per_device)


def check(events: list[Event], tasks: list[TrainTask], shares: list[Fraction]) -> tuple[int, dict[str, int]]:
    """Every task once and no GPU overfull; returns how many workers there were, and the GPU of each task."""
    share = {task.name: part for task, part in zip(tasks, shares, strict=True)}
    used: Counter[int] = Counter()
    places: dict[str, int] = {}
    running = set()
    for event in events:
        name = event.task
        if isinstance(event, _Started):
            assert name not in places
            places[name] = event.gpu
            running.add(name)
            used[event.gpu] += share[name]  # type: ignore[assignment]
        else:
            running.remove(name)
            used[places[name]] -= share[name]  # type: ignore[assignment]
        assert max(used.values()) <= 1
    assert not running
    assert set(places) == set(share)
    return len({event.pid for event in events if isinstance(event, _Started)}), places


def test_arms_share_gpus_as_their_variant_says(run_on: Callable[..., list[Event]]) -> None:
    tasks = [train(k, 3) for k in range(12, 0, -1)]
    events = run_on(2, tasks, num_workers=6)
    num_workers, places = check(events, tasks, [Fraction(1, 3)] * 12)
    assert num_workers == 6, "a worker takes the next task when it is free"
    assert set(places.values()) == {0, 1}


def test_an_arm_that_needs_a_gpu_has_it_alone(run_on: Callable[..., list[Event]]) -> None:
    workers = [1, 1, 1, 2, 2, 4, 4, 4, 4]
    tasks = [train(20 + index, count) for index, count in enumerate(workers)]
    check(run_on(2, tasks, num_workers=8), tasks, [Fraction(1, count) for count in workers])


def test_what_is_there_is_used(run_on: Callable[..., list[Event]]) -> None:
    """More GPUs than tasks, one GPU, none: the same tasks are done."""
    tasks = [train(k, 1) for k in (3, 2, 1)]
    for num_gpus, expected in ((8, 3), (1, 1)):
        num_workers, places = check(run_on(num_gpus, tasks, expected), tasks, [Fraction(1)] * 3)
        assert (num_workers, len(set(places.values()))) == (expected, expected)
    tasks = [train(k, 2) for k in (3, 2, 1)]
    num_workers, places = check(run_on(0, tasks, 2), tasks, [Fraction(1, 2)] * 3)
    assert (num_workers, set(places.values())) == (2, {0}), "the cores of a CPU are one device"


def test_other_work_takes_a_gpu_or_core_each(run_on: Callable[..., list[Event]]) -> None:
    tasks: list[Any] = [
        CheckpointTask(kind="hessian", study="tiny", variant="plain", k=k, epoch=0) for k in range(1, 6)
    ]
    for num_gpus, num_workers in ((2, 2), (0, 2), (2, 3), (4, 2)):
        events = run_on(num_gpus, tasks, num_workers)
        running = 0
        for event in events:
            running += 1 if event.name == "started" else -1
            assert running <= num_workers
        assert len({event.pid for event in events if isinstance(event, _Started)}) == num_workers
        assert sum(event.name == "finished" for event in events) == 5


def test_results_beside_wait_for_their_arm_and_hold_none_up(
    run_on: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none where an arm fails, nor of one that this job does not train."""
    handed: list[int] = []
    hand = crew._Worker.hand

    def note(worker: Any, number: int, halvings: int) -> None:
        handed.append(number)
        hand(worker, number, halvings)

    monkeypatch.setattr(crew._Worker, "hand", note)  # when a worker begins depends on how long it takes to start
    tasks = [train(k, 2) for k in (5, 13, 4, 3)]
    beside = tuple(
        CheckpointTask(kind="per_image_curvature", study="tiny", variant="plain", k=k, epoch=epoch)
        for k in (9, 13, 3, 4, 5)
        for epoch in (0, 2)
    )
    events = run_on(0, tasks, 2, beside)
    assert handed[:4] == [0, 1, 2, 3], "arms come first"
    assert sorted(handed[4:]) == [8, 9, 10, 11, 12, 13], "those of k = 3, 4 and 5, once each"
    said = [(event.name, event.number) for event in events]
    for first, trained in ((8, 3), (10, 2), (12, 0)):
        for number in (first, first + 1):
            assert said.index(("finished", trained)) < said.index(("started", number))
            assert ("finished", number) in said
    assert len({event.pid for event in events if isinstance(event, _Started)}) == 3, "one in place of that of k = 13"


def test_a_worker_that_dies_costs_its_task_alone(run_on: Callable[..., list[Event]]) -> None:
    tasks = [train(k, 2) for k in (13, 14, 15, 16, 17, 18)]
    events = run_on(1, tasks, num_workers=2)
    check(events, tasks, [Fraction(1, 2)] * 6)
    (failed,) = (event for event in events if event.name == "failed")
    assert failed.task == "tiny/plain.k013"
    assert failed.error.startswith("its worker was killed by SIGKILL (out of memory, perhaps)")
    assert sum(event.name == "finished" for event in events) == 5


def test_a_worker_that_crashes_twice_at_one_place_is_not_to_be_tried_for_ever(
    run_on: Callable[..., list[Event]],
) -> None:
    (failed,) = (e for e in run_on(0, [train(66, 1), train(1, 1)], num_workers=1) if e.name == "failed")
    assert failed.task == "tiny/plain.k066"
    assert failed.error.startswith("its worker was killed by SIGSEGV after epoch 2, twice at the same place")
    assert "run the same command again" not in failed.error
    page, _, section = failed.error.partition("docs/")[2].split(" ")[0].partition("#")
    headings = re.findall("^## (.*)$", (Path("docs") / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert section in {heading.lower().replace(" ", "-") for heading in headings}


def test_a_crash_that_does_not_come_again_costs_no_task(run_on: Callable[..., list[Event]]) -> None:
    events = run_on(0, [train(67, 1)], num_workers=1)
    assert [e.name for e in events] == ["started", "checkpoint", "note", "started", "finished"]
    assert "killed by SIGSEGV after epoch 2; a new one goes on" in events[2].text


def test_a_task_whose_worker_lacked_memory_is_tried_with_less(run_on, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Where the kernel says that it killed for want of memory; a hopeless one is given up."""
    monkeypatch.setattr(crew, "num_oom_kills", itertools.count().__next__)
    events = run_on(0, [train(k, 2) for k in (13, 77, 1)], num_workers=2)
    ended = {event.task: event for event in events if event.name in ("finished", "failed")}
    assert [ended[f"tiny/plain.k{k:03d}"].name for k in (13, 77, 1)] == ["failed", "finished", "finished"]
    halvings = {event.task: event.halvings for event in events if isinstance(event, _Started)}  # of the last try
    assert [halvings[f"tiny/plain.k{k:03d}"] for k in (77, 1)] == [2, 0]
    notes = [event.text for event in events if event.name == "note" and "k077" in event.task]
    assert [note.partition("again with ")[2] for note in notes] == [
        "1/2 of the batch at a time",
        "1/4 of the batch at a time",
    ]
    assert sum(event.name == "note" and "k013" in event.task for event in events) == 3


def test_workers_are_as_many_as_the_machine_or_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DD_WORKERS", raising=False)
    monkeypatch.setattr(local, "num_cores", lambda: 16)
    for num_gpus, expected in ((0, (16, 1)), (2, (2, 8))):
        monkeypatch.setattr(local, "num_gpus", lambda count=num_gpus: count)
        monkeypatch.setattr(local, "device_name", lambda count=num_gpus: "NVIDIA H200" if count else "cpu")
        assert local.this_machine().workers_and_threads() == expected
    assert local.this_machine() == Machine("NVIDIA H200", 2, 16)
    monkeypatch.setenv("DD_WORKERS", "4")
    assert local.this_machine().workers_and_threads() == (4, 4)
    assert local.this_machine().num_workers == 4
    monkeypatch.setenv("DD_WORKERS", "many")
    with pytest.raises(UserError, match="DD_WORKERS must be a positive number, not 'many'"):
        local.this_machine()


@pytest.mark.parametrize(
    ("device", "asked", "sentence"),
    [
        ("NVIDIA A100-SXM4-40GB", "NVIDIA-A100-SXM4-40GB", ""),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA-A100-SXM4-40GB", "the GPU of this machine is NVIDIA A100-SXM4-80GB, but NV"),
        ("cpu", "NVIDIA-A100-SXM4-40GB", "warning"),
        ("NVIDIA A100-SXM4-80GB", None, ""),
    ],
)
def test_another_product_of_gpu_than_the_study_wants_is_refused_and_cores_are_told(
    device: str, asked: str | None, sentence: str, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "num_gpus", lambda: int(device != "cpu"))
    monkeypatch.setattr(local, "device_name", lambda: device)
    study = tiny_study.model_copy(update={"resources": Resources(gpu=asked)})
    wanted = list(study.iter_checkpoints())
    job = training_job("/nowhere", study, wanted, 1, 1)
    told: list[str] = []
    context: Any = SimpleNamespace(log=SimpleNamespace(warning=told.append))
    with pytest.raises(UserError, match=sentence) if "GPU" in sentence else contextlib.nullcontext():
        local.LocalPlace().run(context, job).close()
    assert len(told) == (sentence == "warning")
    if told:
        assert told[0].startswith("NVIDIA-A100-SXM4-40GB is asked for (gpu under resources), but this is done on the ")
