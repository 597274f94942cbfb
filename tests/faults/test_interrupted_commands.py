"""The commands a user types, with their processes killed from outside, and with a reader at the tables meanwhile.

One history: a command whose worker is killed, the same command killed itself, the same command left alone.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from support import TINY, Lab, Result, attempts, results, stamps, wait_until, work, workers_of

# Long enough that a process is killed in the middle of it, and not after.
LONG = TINY.replace("epochs: 24", "epochs: 72").replace("[0, 8, 16, 24]", "[0, 24, 48, 72]").replace("4}", "12}")
COMMAND = ("asset", "materialize", "--select", "tiny/checkpoints")
ALL = ("--partition-range", "plain.k001|0000...plain.k002|0072")

# DuckDB opens a file once to plan a query and again to run it. The file of an attempt in `runs` is written twice, at
# its start and at its end; a query between whose two looks it is replaced fails, and is right when it is asked again.
READER = """
import sys, time, duckdb
held = duckdb.connect(sys.argv[1], read_only=True)
print("reading", flush=True)
while True:
    with duckdb.connect(sys.argv[1], read_only=True) as opened:
        for connection in (held, opened):
            steps, = connection.sql("SELECT count(*) FROM training_batches WHERE arm = 'plain.k002'").fetchone()
            rows, different = connection.sql(
                "SELECT count(*), count(DISTINCT (arm, trial, epoch)) FROM training_evals").fetchone()
            assert rows == different, (rows, different)
            for chance in range(3):
                try:
                    connection.sql("SELECT * FROM runs").fetchall()
                    break
                except duckdb.Error:
                    assert chance < 2
    print(steps, flush=True)
    time.sleep(0.05)  # leaves the run some of the machine
"""


@dataclass
class History:
    """What the four commands printed, and what was found after each."""

    lab: Lab
    worker_killed: Result
    interrupted: Result
    recorded_then: set[str]
    finished_then: dict[str, tuple[int, int]]
    workers_left: list[int]
    attempts_after_command_killed: list[str]
    left_alone: Result
    finished_now: dict[str, tuple[int, int]]
    steps_read: list[int]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    lab = Lab(tmp_path_factory.mktemp("history") / "lab", LONG)
    weights = lab.root / "checkpoints/tiny/plain.k002"
    first_arm = "checkpoints/tiny/plain.k001/0*"

    with lab.start_dagster(*COMMAND, *ALL) as command:
        wait_until((weights / "0000.json").exists, "the first checkpoint")
        (worker,) = workers_of(lab.root)
        os.kill(worker, signal.SIGKILL)
        output, _ = command.communicate()
    worker_killed = Result(command.returncode, output)
    recorded_then, finished_then = lab.recorded("checkpoints"), stamps(lab.root, first_arm)

    with lab.start_dagster(*COMMAND, *ALL) as command:
        wait_until(
            lambda: (weights / "0024.json").exists() and (weights / "resume.safetensors").exists(), "a resume point"
        )
        command.kill()
        command.communicate()
    wait_until(lambda: not workers_of(lab.root), "the workers to leave")
    workers_left, attempts_then = workers_of(lab.root), attempts(lab.store, "plain.k002")

    with lab.start_dagster(*COMMAND, *ALL) as command:
        wait_until((weights / "0048.json").exists, "a checkpoint")
        command.send_signal(signal.SIGINT)
        output, _ = command.communicate()
    interrupted = Result(command.returncode, output)

    arguments = [sys.executable, "-c", READER, str(lab.store.warehouse_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        left_alone = lab.dagster(*COMMAND, *ALL)
        assert reader.poll() is None, reader.stdout.read()
        reader.terminate()
        lines = reader.stdout.read().splitlines()
    finished_now = stamps(lab.root, first_arm)
    return History(
        lab, worker_killed, interrupted, recorded_then, finished_then, workers_left, attempts_then, left_alone,
        finished_now, [int(line) for line in lines],
    )  # fmt: skip


def test_a_killed_worker_costs_its_arm_and_no_other(history: History) -> None:
    history.worker_killed.refused("1 of 2 arms did not finish (tiny/plain.k002: its worker was killed by SIGKILL")
    assert "run the same command again to go on" in history.worker_killed.output
    assert len(history.finished_then) == 8
    first_arm = {f"plain.k001|{epoch}" for epoch in ("0000", "0024", "0048", "0072")}
    assert first_arm <= history.recorded_then
    assert "plain.k002|0072" not in history.recorded_then


def test_workers_leave_when_the_command_is_killed(history: History) -> None:
    assert history.workers_left == []
    assert history.attempts_after_command_killed == ["interrupted", "running"]


def test_ctrl_c_ends_the_command_at_once_and_for_good(history: History) -> None:
    """Dagster's retry policy would make another attempt ten seconds later."""
    history.interrupted.refused("interrupted: what was finished is kept; run the same again to go on")
    assert "STEP_UP_FOR_RETRY" not in history.interrupted.output
    assert len(attempts(history.lab.store, "plain.k002")) == 4, "no attempt by nobody's wish"


def test_the_same_command_goes_on_and_ends_with_the_bits_of_an_undisturbed_run(
    history: History, tmp_path: Path
) -> None:
    history.left_alone.succeeded()
    assert history.finished_now == history.finished_then, "what was finished is not computed again"
    assert attempts(history.lab.store, "plain.k002") == [*["interrupted"] * 3, "finished"]
    assert len(history.lab.recorded("checkpoints")) == 8
    other = Lab(tmp_path / "other", LONG)
    work(other, other.training_job())
    assert results(history.lab.root) == results(other.root)


def test_a_reader_of_the_warehouse_and_a_run_do_not_disturb_each_other(history: History) -> None:
    history.left_alone.succeeded()
    assert history.steps_read == sorted(history.steps_read), "what was read once stays"
    with duckdb.connect(str(history.lab.store.warehouse_path), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM training_batches WHERE arm = 'plain.k002'").fetchone() == (288,)
    assert history.steps_read[-1] == 288
