"""Measuring workers side by side: real ones, ones that fail in every way, and what is kept of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_core.forecast.probe_table import Measurement, is_uneven, read_probe, recommended_workers, write_measurements
from dd_core.jobs.job import training_job
from dd_core.jobs.probe import team
from dd_core.jobs.probe import worker as probe_module
from dd_core.jobs.probe.run import _sentence, default_counts
from dd_core.jobs.probe.worker import Trainee
from dd_core.jobs.process import News, Process
from dd_core.machine.devices import Machine, device_name, num_cores, num_gpus
from dd_core.machine.memory import peak_memory, reset_peak_memory
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.warehouse import connect

pytestmark = pytest.mark.slow

CPU = Machine("cpu", num_gpus=0, num_cores=2)
MEGABYTE = 1 << 20


def measurements(study: Study, speeds: dict[int, float | None]) -> list[Measurement]:
    """Of the study's first arm; None is out of memory."""
    arm = next(iter(study.arms.values()))
    return [
        Measurement(study, arm, count, CPU.threads(count), "ok", "cpu", speed, 300 * MEGABYTE, 0.9, 7, "2.14")
        if speed
        else Measurement(study, arm, count, CPU.threads(count), "out of memory", "cpu")
        for count, speed in speeds.items()
    ]


# Real workers.


@pytest.fixture(scope="module")
def measured(make_study, tmp_path_factory: pytest.TempPathFactory) -> list[Measurement]:  # type: ignore[no-untyped-def]
    """Both arms of a study with two workers, from one team."""
    study = make_study(widths=(1, 8))
    root = tmp_path_factory.mktemp("probe")
    arms = [(study, arm) for arm in study.arms.values()]
    found = list(team.measure(root, arms, [2], CPU, 0.2, pytest.fail, folder=root))
    assert list(root.glob("*.json")) == [], "the job file is gone"
    return found


def test_every_arm_is_measured_under_load(measured: list[Measurement]) -> None:
    assert [(m.arm.k, m.num_workers, m.threads, m.status) for m in measured] == [(1, 2, 1, "ok"), (8, 2, 1, "ok")]
    for measurement in measured:
        assert measurement.num_steps >= 1
        assert measurement.samples_per_second is not None
        # Two trials see 100 images in 4 steps; each of the two workers was timed for about 0.2 s, on a busy machine for
        # longer, and in no case faster than ten thousand steps a second.
        assert 0 < measurement.samples_per_second < 2 * 10_000 * 2 * 32
        assert measurement.torch_version == torch.__version__


def test_memory_and_cores_in_use_are_those_of_processes_at_work(measured: list[Measurement]) -> None:
    for measurement in measured:
        assert measurement.peak_memory_bytes is not None
        assert 100 * MEGABYTE < measurement.peak_memory_bytes < 8000 * MEGABYTE
        assert measurement.utilisation is not None
        # process_time ticks in 10 ms where the kernel counts so.
        assert 0.05 < measurement.utilisation <= 1.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_workers_share_a_gpu(tiny_study: Study, tmp_path: Path) -> None:
    machine = Machine(device_name(), num_gpus(), num_cores())
    assert machine.device == torch.cuda.get_device_name(0), "rows are found again by this name"
    arm = next(iter(tiny_study.arms.values()))
    for result in team.measure(tmp_path, [(tiny_study, arm)], [1, 2], machine, 1.0, pytest.fail, folder=tmp_path):
        assert result.status == "ok"
        assert result.peak_memory_bytes is not None
        assert 0 < result.peak_memory_bytes < 1 << 30, "allocated by one worker, for a tiny network"
        assert result.utilisation is None or 0 <= result.utilisation <= 1


def test_the_peak_of_memory_is_that_since_the_last_reset() -> None:
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    block = np.ones(100 * MEGABYTE // 8)
    assert before + 95 * MEGABYTE < peak_memory(cpu) < before + 130 * MEGABYTE
    del block
    assert peak_memory(cpu) > before + 95 * MEGABYTE, "freed, but it was there"
    reset_peak_memory(cpu)
    assert peak_memory(cpu) < before + 30 * MEGABYTE


# Workers that fail. They import nothing, and do what the width of the arm says.

FAKE = """
import json, os, signal, sys, time
tasks = json.load(open(sys.argv[1]))["tasks"]
for line in sys.stdin:
    question = json.loads(line)
    k = tasks[question["prepare"]]["k"] if "prepare" in question else 0
    if sys.argv[2] == "1":
        if k == 11: os.kill(os.getpid(), signal.SIGKILL)
        if k == 12: time.sleep(3600)
        if k == 13: os._exit(7)
        if k in (14, 15):
            answer = {"event": "out of memory"} if k == 14 else {"event": "failed", "error": "no data"}
            print(json.dumps(answer), flush=True)
            continue
    print(json.dumps({"event": "timed" if "steps" in question else "prepared", "seconds_per_step": 0.1, "seconds": 2.0,
        "samples": 300, "num_steps": 5, "utilisation": 0.5, "peak_memory_bytes": 1000 + int(sys.argv[2]),
        "torch_version": "2"}), flush=True)
"""


@pytest.fixture
def fake_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Teams are made of these; returns all that were started."""
    (tmp_path / "fake_probe.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started: list[Process] = []

    def start(number: int, arguments: list[str], news: News) -> Process:
        started.append(Process(number, ["fake_probe", *arguments[1:], str(number)], news))
        return started[-1]

    monkeypatch.setattr(team, "Process", start)
    return started


def probe(study: Study, widths: list[int], counts: list[int], root: Path) -> tuple[list[Measurement], list[str]]:
    """Measure arms of these widths, with the fake workers."""
    notes: list[str] = []
    arms = [(study, Arm("plain", k)) for k in widths]
    return list(team.measure(root, arms, counts, CPU, 1.0, notes.append, folder=root)), notes


def test_five_workers_are_tried_on_a_gpu_and_on_a_cpu_what_suits_its_cores() -> None:
    assert default_counts(Machine("gpu", 1, 16)) == (1, 2, 3, 4, 5)
    assert {cores: default_counts(replace(CPU, num_cores=cores)) for cores in (1, 2, 16)} == {
        1: (1,),
        2: (1, 2),
        16: (1, 2, 3, 4, 16),
    }


def test_speeds_add_up_and_the_largest_memory_counts(
    fake_workers: list[Process], tiny_study: Study, tmp_path: Path
) -> None:
    (result,), notes = probe(tiny_study, [1], [3], tmp_path / "root")
    assert (result.samples_per_second, result.peak_memory_bytes, result.num_steps) == (3 * 150, 1002, 4 * 5)
    assert result.utilisation == pytest.approx(3 * 0.5 / 2), "cores in use of those there are"
    assert notes == []
    gpu = Machine("gpu", 1, 16)
    (shared,) = team.measure(
        tmp_path / "root", [(tiny_study, Arm("plain", 1))], [3], gpu, 1.0, notes.append, folder=tmp_path
    )
    assert shared.utilisation == pytest.approx(0.5), "each has seen the whole GPU"
    assert shared.threads == 5


@pytest.mark.parametrize("k", [11, 14], ids=["killed", "told"])
def test_memory_that_runs_out_costs_that_arm_and_no_other(
    k: int, fake_workers: list[Process], tiny_study: Study, tmp_path: Path
) -> None:
    found, notes = probe(tiny_study, [1, k, 2], [1, 2, 3], tmp_path / "root")
    assert [(m.num_workers, m.status) for m in found if m.arm.k == k] == [(1, "ok"), (2, "out of memory")]
    assert [(m.arm.k, m.num_workers) for m in found if m.arm.k != k] == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    assert notes == []
    teams = 2 * (1 + 2 + 3)  # two rounds
    assert len(fake_workers) == teams + (2 if k == 11 else 0), "one team for all arms, until one of it is lost"


def test_a_worker_that_ends_or_fails_is_told_of(fake_workers: list[Process], tiny_study: Study, tmp_path: Path) -> None:
    found, notes = probe(tiny_study, [1, 13, 15, 2], [2], tmp_path / "root")
    assert [m.arm.k for m in found] == [1, 2]
    assert notes == [
        "tiny/plain.k013 with 2 workers was not measured: a worker ended with exit code 7",
        "tiny/plain.k015 with 2 workers was not measured: no data",
    ]


def test_a_worker_that_hangs_holds_nobody_up_for_ever(
    fake_workers: list[Process], tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "_PATIENCE", 3.0)
    found, notes = probe(tiny_study, [1, 12, 2], [2], tmp_path / "root")
    assert [m.arm.k for m in found] == [1, 2]
    assert notes == ["tiny/plain.k012 with 2 workers was not measured: no answer within 3 s"]
    assert all(process.was_killed for process in fake_workers), "the team that hung, and the one after it at the end"


# What is kept.


@given(
    speeds=st.dictionaries(st.integers(1, 8), st.none() | st.floats(1, 1e6), min_size=1, max_size=5),
    factor=st.floats(1e-3, 1e3),
)
def test_the_fewest_workers_near_the_best_are_recommended(
    tiny_study: Study, speeds: dict[int, float | None], factor: float
) -> None:
    rows = measurements(tiny_study, speeds)
    best = recommended_workers(rows)
    enough = {count: speed for count, speed in speeds.items() if speed}
    if not enough:
        assert best is None
        return
    assert best is not None
    assert enough[best] >= 0.97 * max(enough.values())
    assert all(speed < 0.97 * max(enough.values()) for count, speed in enough.items() if count < best)
    faster = [replace(m, samples_per_second=m.samples_per_second and m.samples_per_second * 2) for m in rows]
    assert recommended_workers(faster) == best, "whatever the unit"


def uneven(study: Study, speeds: dict[int, tuple[float, float]]) -> list[Measurement]:
    """Measurements with a median and a spread."""
    rows = measurements(study, {count: speed for count, (speed, _) in speeds.items()})
    return [replace(row, spread=speeds[row.num_workers][1]) for row in rows]


UNEVEN = {
    "a cold first measurement": ({1: (88.0, 70.0), 2: (5509.0, 0.1)}, True),
    "a busy machine": ({1: (3000.0, 0.8), 2: (3600.0, 0.5)}, True),
    "far apart in spite of the spread": ({1: (1000.0, 0.3), 2: (2500.0, 0.3)}, False),
    "even": ({1: (1000.0, 0.04), 2: (1020.0, 0.06)}, False),
    "as good, but uneven": ({1: (1000.0, 0.4), 2: (1010.0, 0.02)}, True),
    "one number alone": ({1: (1000.0, 0.9)}, False),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_nothing_is_recommended_when_repetitions_lie_farther_apart_than_numbers_of_workers(
    case: str, tiny_study: Study, store: Store
) -> None:
    speeds, is_inconclusive = UNEVEN[case]
    rows = uneven(tiny_study, speeds)
    assert is_uneven(rows) is is_inconclusive
    path = write_measurements(store, CPU, rows)
    assert any(read_parquet(path)["recommended"].to_pylist()) is not is_inconclusive
    assert read_parquet(path)["spread"].to_pylist() == [spread for _, spread in speeds.values()]
    with connect(store) as connection:
        assert (read_probe(connection, tiny_study, CPU) == {}) is is_inconclusive, "nor is anything predicted from it"
    assert ("too uneven to recommend a number" in _sentence(rows)) is is_inconclusive


MOODY = """
import json, pathlib, sys
calls = pathlib.Path(__file__).with_name("calls")
for line in sys.stdin:
    is_timed = "steps" in json.loads(line)
    with calls.open("a") as file: file.write("x" * is_timed)
    seconds = 20.0 if len(calls.read_text()) == 1 else 1.0  # something else was running at first
    print(json.dumps({"event": "timed" if is_timed else "prepared", "seconds_per_step": 0.1, "seconds": seconds,
        "samples": 100, "num_steps": 1, "utilisation": 0.5, "peak_memory_bytes": 1, "torch_version": "2"}), flush=True)
"""


def test_a_disturbance_shows_as_a_spread_and_is_no_median(
    fake_workers: list[Process], tiny_study: Study, tmp_path: Path
) -> None:
    (tmp_path / "fake_probe.py").write_text(MOODY, encoding="utf-8")
    found, _ = probe(tiny_study, [1], [1, 2], tmp_path / "root")
    assert [m.samples_per_second for m in found] == [100.0, 200.0]
    assert [m.spread for m in found] == [pytest.approx(0.95), 0.0]
    assert recommended_workers(found) == 2, "95 of 100 is less than the 100 between them"


def test_timing_begins_when_steps_are_steady(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold machine, whose first steps take a thousand times as long."""
    clock = [0.0]
    monkeypatch.setattr(probe_module.time, "monotonic", lambda: clock[0])
    trainee = Trainee(
        training_job(tmp_path, tiny_study, list(tiny_study.iter_checkpoints()), 1, 1), torch.device("cpu")
    )
    durations = iter([1.0, 0.1, 0.01, 0.0011, 0.001, *[0.001] * 1000])

    def train(num_steps: int) -> float:
        seconds = sum(next(durations) for _ in range(num_steps))
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(trainee, "_train", train)
    assert trainee._warm_up() == pytest.approx(0.001, rel=0.1)


def test_what_is_measured_is_read_again(tiny_study: Study, store: Store) -> None:
    arm = next(iter(tiny_study.arms.values()))
    path = write_measurements(store, CPU, measurements(tiny_study, {1: 100.0, 2: 180.0, 3: None}))
    rows = read_parquet(path).to_pylist()
    assert [row["recommended"] for row in rows] == [False, True, False]
    assert [row["status"] for row in rows] == ["ok", "ok", "out of memory"]
    assert (rows[2]["samples_per_second"], rows[2]["utilisation"]) == (None, None)
    assert {row["recipe"] for row in rows} == {tiny_study.recipe_hash(arm)}
    with connect(store) as connection:
        probed = read_probe(connection, tiny_study, CPU)
        assert list(probed) == [arm]
        assert (probed[arm].recommended, probed[arm].speeds) == (2, {1: 100.0, 2: 180.0})
        assert probed[arm].seconds_per_image(1) == 1 / 100
        assert probed[arm].seconds_per_image(4) == 2 / 180, "what was not measured counts as what is recommended"


def test_another_recipe_or_machine_has_its_own(tiny_study: Study, store: Store, make_study) -> None:  # type: ignore[no-untyped-def]
    rows = measurements(tiny_study, {1: 100.0, 2: 180.0})
    gpu = Machine("NVIDIA H200", 1, 16)
    paths = {write_measurements(store, machine, rows) for machine in (CPU, gpu, replace(CPU, num_cores=8))}
    assert {path.name for path in paths} == {"cpu-of-2.parquet", "nvidia-h200.parquet", "cpu-of-8.parquet"}
    with connect(store) as connection:
        assert read_probe(connection, make_study({"batch_size": 50}), CPU) == {}
        assert read_probe(connection, tiny_study, Machine("NVIDIA B200", 1, 16)) == {}
        assert read_probe(connection, tiny_study, replace(CPU, num_cores=16)) == {}, "two would have eight threads"
        assert len(read_probe(connection, tiny_study, replace(gpu, num_cores=64))) == 1


def test_an_arm_that_never_fits_recommends_nothing(tiny_study: Study, store: Store) -> None:
    path = write_measurements(store, CPU, measurements(tiny_study, {1: None}))
    assert json.dumps(read_parquet(path)["recommended"].to_pylist()) == "[false]"
    with connect(store) as connection:
        assert read_probe(connection, tiny_study, CPU) == {}
