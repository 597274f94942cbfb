"""One machine's share of a job on a cluster, in real processes: what it leaves, how it ends, how it goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import TINY, Lab, results, wait_until, work

from dd_assets.compute.local import run_job
from dd_core.events import CheckpointWritten, Event, Finished, Note, Progress, event_from, parse
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job, result_job
from dd_core.jobs.pod import work as work_of_place
from dd_core.jobs.process import News, Process
from dd_core.jobs.ranks import team as rank_team
from dd_core.machine.devices import Machine

pytestmark = pytest.mark.slow

SHORT = TINY.replace("epochs: 24", "epochs: 4").replace("[0, 8, 16, 24]", "[0, 2, 4]").replace("trials: 2", "trials: 1")
HESSIAN = "hessian: {num_images: 40, num_eigenvalues: 2, lanczos_steps: 8, quantities: [eigenvalues], ranks: 2}\n"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab", SHORT + HESSIAN)


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Iterator[Start]:
    """Start the entry point of a pod as a process, which does not outlive the test."""
    with contextlib.ExitStack() as stack:

        def start_pod(job_file: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
            environment = lab.environment(OMP_NUM_THREADS=1, **variables)
            process = subprocess.Popen(
                [sys.executable, "-m", "dd_core.jobs.pod", job_file, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_pod


def prepared(lab: Lab, job: Job, num_places: int = 1) -> JobFolder:
    job = divided(job, Machine("cpu", 0, 1, 1, num_places))
    folder = JobFolder.of(lab.store, job)
    folder.prepare(job)
    return folder


def ends(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its exit code, -9 if it has hung for two minutes, and what it said."""
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_each_place_does_its_share_and_all_together_the_whole(lab: Lab, start: Start, tmp_path: Path) -> None:
    folder = prepared(lab, lab.training_job(), num_places=2)
    events = [folder.events_file(place) for place in range(2)]
    code, output, _ = ends(start(folder.job_file, "--events", str(events[0]), JOB_COMPLETION_INDEX="0"))
    assert (code, list(folder.outcomes())) == (0, [0])
    assert "tiny/plain.k002: finished" in output
    code, _, _ = ends(start(folder.job_file, "--events", str(events[1]), SLURM_ARRAY_TASK_ID="1"))
    assert (code, list(folder.outcomes())) == (0, [0, 1])
    told = [[parse(line) for line in file.read_bytes().splitlines()] for file in events]
    assert [{event.number for event in own if event} for own in told] == [{0}, {1}]
    for own in told:
        assert [event.epoch for event in own if isinstance(event, CheckpointWritten)] == [0, 2, 4]
    own = Lab(tmp_path / "own", SHORT)
    work(own, own.training_job())
    assert results(lab.root) == results(own.root)
    folder.remove()
    assert list(lab.store.jobs_folder.iterdir()) == []


def test_a_failed_task_is_told_with_its_reason_and_not_tried_again(lab: Lab, start: Start) -> None:
    wanted = [("tiny", checkpoint) for checkpoint in lab.study.iter_checkpoints() if checkpoint.epoch == 4]
    job = result_job("hessian", lab.root, {"tiny": lab.study}, wanted, 1, 1)
    job = job.model_copy(update={"tasks": tuple(task.model_copy(update={"ranks": 1}) for task in job.tasks)})
    folder = prepared(lab, job)
    code, _, _ = ends(start(folder.job_file))
    assert code == 42
    outcomes = folder.outcomes()
    assert {event.name for event in outcomes.values()} == {"failed"}
    assert all("has not been trained" in event.error and event.is_user_error for event in outcomes.values())
    written = {path: path.stat().st_mtime_ns for path in (folder.path / "outcomes").iterdir()}
    assert ends(start(folder.job_file))[0] == 42
    assert {path: path.stat().st_mtime_ns for path in (folder.path / "outcomes").iterdir()} == written


@pytest.mark.parametrize("root", ["another", ""])
def test_a_root_without_the_job_file_is_told_in_a_sentence(lab: Lab, start: Start, tmp_path: Path, root: str) -> None:
    job_file = prepared(lab, lab.training_job()).job_file
    code, _, errors = ends(start(job_file, DD_ROOT=str(tmp_path / root) if root else ""))
    assert code == 78
    assert f"has no job file {job_file}; is the volume mounted" in errors
    assert "Traceback" not in errors
    assert ends(start("../job.json"))[0] == 78


def test_told_to_end_it_ends_and_in_its_next_life_goes_on(lab: Lab, start: Start, tmp_path: Path) -> None:
    lab.write_study("tiny", TINY)
    job = lab.training_job("k002")
    folder = prepared(lab, job)
    process = start(folder.job_file)
    wait_until(lambda: lab.store.resume_path("tiny", "plain.k002").exists(), "a resume point")
    process.send_signal(signal.SIGTERM)
    assert ends(process)[0] == 143
    assert folder.outcomes() == {}
    assert ends(start(folder.job_file))[0] == 0
    own = Lab(tmp_path / "own", TINY)
    work(own, own.training_job("k002"))
    assert results(lab.root) == results(own.root)


def test_messages_reach_dagster_where_it_listens(lab: Lab, start: Start, tmp_path: Path) -> None:
    """Through Pipes as Dagster itself decodes them; without the pod knowing Dagster."""
    from dagster_pipes import encode_env_var

    messages = tmp_path / "messages"
    context = {"extras": {}, "run_id": "r", "job_name": "j", "retry_number": 0}
    names = ("asset_keys", "code_version_by_asset_key", "provenance_by_asset_key", "partition_key")
    context |= dict.fromkeys((*names, "partition_key_range", "partition_time_window"))
    folder = prepared(lab, lab.training_job("k001"))
    code, _, errors = ends(
        start(
            folder.job_file,
            DAGSTER_PIPES_CONTEXT=encode_env_var({"data": context}),
            DAGSTER_PIPES_MESSAGES=encode_env_var({"path": str(messages)}),
        )
    )
    assert code == 0, errors
    lines: list[dict[str, Any]] = [json.loads(line) for line in messages.read_text(encoding="utf-8").splitlines()]
    assert [lines[0]["method"], lines[-1]["method"]] == ["opened", "closed"]
    told = [event_from(line["params"]["payload"]) for line in lines if line["method"] == "report_custom_message"]
    expected = ["started", "checkpoint", "checkpoint", "checkpoint", "finished"]
    assert [event.name for event in told if event and not isinstance(event, Progress)] == expected


def rank_processes(root: Path) -> list[int]:
    """Process ids of the ranks at work for jobs below a root."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"dd_core.jobs.ranks.worker" in command
            and b"--launch" not in command
            and _environment_names(root, path.parent)
        ):
            found.append(int(path.parent.name))
    return found


def _environment_names(root: Path, process: Path) -> bool:
    try:
        return b"DD_ROOT=" + bytes(root) in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def test_ranks_of_a_machine_that_ran_out_of_memory_take_less(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two places is told to halve; torchrun's place is taken by a process that prints what it got."""
    wanted = [("tiny", checkpoint) for checkpoint in lab.study.iter_checkpoints()]
    folder = prepared(lab, result_job("hessian", lab.root, {"tiny": lab.study}, wanted, 1, 1), num_places=2)
    folder.halve(1)
    said = "{'task': 'tiny/plain.k001|0000', 'event': 'note', 'text': os.environ['DD_HALVINGS']}"
    code = f"import json, os; print(json.dumps({said}))"
    (lab.folder / "fake_torchrun.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(lab.folder))
    monkeypatch.setenv("DD_RENDEZVOUS", "127.0.0.1:1")
    started = partial(Process, arguments=["fake_torchrun"])
    monkeypatch.setattr(rank_team, "Process", lambda number, _, news, **given: started(number, news=news, **given))
    told: list[Event] = []
    for place in range(2):
        work_of_place(folder, folder.read_job(), place, told.append)
    assert [event.text for event in told if isinstance(event, Note)] == ["0", "1"]


def test_a_rank_that_dies_at_the_very_end_keeps_no_machine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first machine has told of everything and leaves; the second begins anew, and need not wait for it.

    torchrun and both pods are real; by itself the first would wait for five minutes, and the second for half an hour.
    """
    wanted = [("tiny", checkpoint) for checkpoint in lab.study.iter_checkpoints()]
    folder = prepared(lab, result_job("hessian", lab.root, {"tiny": lab.study}, wanted, 1, 1), num_places=2)
    job = folder.read_job()
    ends_of_tasks = [Finished(task=task.name, seconds=1.0).as_line() for task in job.tasks]
    program = lab.folder / "rank.py"
    program.write_text(
        "import os, sys, time\n"
        f"if os.environ['RANK'] == '0': print(*{ends_of_tasks}, sep='\\n')\n"
        "else: time.sleep(2); sys.exit(6)\n",
        encoding="utf-8",
    )

    def torchrun(number: int, arguments: list[str], news: News, **variables: str) -> Process:
        return Process(number, [*arguments[: arguments.index("-m")], str(program)], news, **variables)

    monkeypatch.setattr(rank_team, "Process", torchrun)
    monkeypatch.setenv("DD_RENDEZVOUS", _meeting_point())
    monkeypatch.setenv("DD_RANK_TIMEOUT", "3")
    started = time.monotonic()
    with ThreadPoolExecutor(2) as places:
        works = [places.submit(work_of_place, folder, job, place, lambda _: None) for place in range(2)]
        assert [failed.result() for failed in works] == [0, 0]
    assert {event.name for event in folder.outcomes().values()} == {"finished"}
    assert time.monotonic() - started < 60


def _meeting_point() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_ranks_on_two_places_survive_the_loss_of_one_and_equal_one_place(
    lab: Lab, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of a rank in the middle: torchrun begins anew everywhere, and the result has the same bits."""
    work(lab, lab.training_job())
    wanted = [("tiny", checkpoint) for checkpoint in lab.study.iter_checkpoints()]
    job = result_job("hessian", lab.root, {"tiny": lab.study}, wanted, 1, 1)
    folder = prepared(lab, job, num_places=2)
    meet = _meeting_point()
    pods = [start(folder.job_file, "--place", str(place), DD_RENDEZVOUS=meet) for place in range(2)]
    wait_until(lambda: list(lab.root.glob("manifests/hessian_spectra/**/*.json")), "the first result")
    os.kill(rank_processes(lab.root)[-1], signal.SIGKILL)
    ended = [ends(pod) for pod in pods]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert {event.name for event in folder.outcomes().values()} == {"finished"}
    assert len(folder.outcomes()) == len(wanted)
    together = results(lab.root)
    for path in lab.root.glob("tables/hessian_spectra/**/[0-9]*.*"):
        path.unlink()
    monkeypatch.setenv("DD_WORKERS", "2")
    events = list(run_job(job))
    assert [event.name for event in events if event.name in ("finished", "failed")] == ["finished"] * len(wanted)
    assert results(lab.root) == together
