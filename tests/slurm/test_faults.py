"""What clusters do to jobs, done to jobs: each goes on where it was, and ends with the bits of an undisturbed run."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import dagster as dg
import pytest
from support import PATIENCE, TINY, Lab, Result, attempts, results, wait_until, work

from dd_assets.compute.slurm import commands, place
from dd_assets.compute.slurm.commands import UnreachableError
from dd_assets.compute.slurm.place import SlurmPlace
from dd_core.errors import UserError
from slurm.cluster import Cluster
from slurm.conftest import (
    ONE_GPU_EACH,
    Event,
    Site,
    held,
    kill_pod,
    live,
    make_site,
    orchestrate,
    submitted,
    without_delay,
)

pytestmark = pytest.mark.slurm

# Long enough that a process is hit in the middle of it, and not after.
LONG = TINY.replace("epochs: 24", "epochs: 60").replace("[0, 8, 16, 24]", "[0, 20, 40, 60]").replace("4}", "12}")
LONG = LONG.replace("trials: 2", "trials: 1")
COMMAND = (
    "asset",
    "materialize",
    "--select",
    "tiny/checkpoints",
    "--partition-range",
    "plain.k001|0000...plain.k002|0060",
)


@dataclass
class History:
    """What the second orchestrator printed, and what was there in the end."""

    site: Site
    numbers: set[int]
    printed: Result
    expected: dict[str, str]


def until_it_follows(orchestrator: "subprocess.Popen[str]") -> str:
    """Wait until it says that it has a job; returns what it has printed."""
    assert orchestrator.stdout is not None
    lines = []
    for line in orchestrator.stdout:
        lines.append(line)
        if "SLURM job" in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def history(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> History:
    """The orchestrator is killed; one pod is put back into the queue, the other killed; the command is typed again."""
    own = Lab(tmp_path_factory.mktemp("own") / "lab", LONG)
    work(own, own.training_job())
    site = make_site(cluster, tmp_path_factory.mktemp("history") / "lab", LONG, ONE_GPU_EACH)
    checkpoints = site.lab.root / "checkpoints/tiny"
    with site.lab.start_dagster(*COMMAND, **site.environment) as orchestrator:
        for arm in ("plain.k001", "plain.k002"):
            wait_until((checkpoints / arm / "0000.json").exists, "the first checkpoint")
        orchestrator.kill()
        (name,) = [path.name for path in site.lab.store.jobs_folder.iterdir()]
        (number, *more) = submitted(cluster, name)
        cluster.run("scontrol", "requeue", f"{number}_0")  # the wider arm
        assert kill_pod(site.lab.root, 1, signal.SIGTERM)
        output, _ = orchestrator.communicate()
        assert not more, output
    with site.lab.start_dagster(*COMMAND, **site.environment) as orchestrator:
        printed = until_it_follows(orchestrator)
        with without_delay(cluster):
            output, _ = orchestrator.communicate(timeout=PATIENCE)
    output = printed + output
    return History(site, submitted(cluster, name), Result(orchestrator.returncode, output), results(own.root))


def test_a_new_orchestrator_follows_the_job_of_the_one_that_was_killed(history: History) -> None:
    history.printed.succeeded()
    (number,) = history.numbers
    assert f"SLURM job {number} (dd-train-tiny-" in history.printed.output
    assert len(history.site.lab.recorded("checkpoints")) == 8


def test_what_is_put_back_or_killed_resumes_and_ends_with_the_bits_of_an_undisturbed_run(history: History) -> None:
    assert results(history.site.lab.root) == history.expected
    for arm in ("plain.k001", "plain.k002"):
        assert attempts(history.site.lab.store, arm) == ["interrupted", "finished"]

    said = " ".join(history.printed.output.split())
    assert re.search(
        "tiny/plain.k001: element 1 of SLURM job [0-9]+ on n[12] ended with exit code 143; again as soon as SLURM lets",
        said,
    )


def test_a_machine_that_slurm_puts_back_into_the_queue_is_left_to_it(
    site: Site, machine: Callable[[str], None]
) -> None:
    machine("[ $n = 1 ] || exit 1; scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; sleep 60")
    with without_delay(site.cluster):
        events = orchestrate(site.training_job("k001"))
    (note,) = [e.text for e in events if e.name == "note" and "waits" not in e.text]
    assert note.endswith("went back into SLURM's queue; again as soon as SLURM lets it (attempt 2)")


def test_interrupting_the_command_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    site = make_site(cluster, tmp_path / "lab", LONG, ONE_GPU_EACH)
    with site.lab.start_dagster(*COMMAND, **site.environment) as orchestrator:
        printed = until_it_follows(orchestrator)
        orchestrator.send_signal(signal.SIGINT)
        output, _ = orchestrator.communicate(timeout=PATIENCE)
    assert orchestrator.returncode != 0, printed + output
    assert (printed + output).count("2 arms of tiny wanted") == 1, "an interrupted command does not begin again"
    wait_until(lambda: live(cluster) == "", "the job to end")


def test_a_command_interrupted_while_it_submits_leaves_no_job(
    site: Site, drained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = commands.submit

    def interrupted(options: Iterable[str], script: str) -> int:
        submit(options, script)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "submit", interrupted)
    with pytest.raises(UserError, match=r"the SLURM job dd-train-tiny-\w+ was ended"):
        orchestrate(site.training_job("k001"))
    assert live(site.cluster) == ""


def test_an_sbatch_whose_answer_is_lost_is_not_repeated(
    site: Site, drained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, calls = commands.submit, []

    def unanswered(options: Iterable[str], script: str) -> int:
        calls.append(submit(options, script))
        raise UnreachableError("Socket timed out on send/recv operation")

    monkeypatch.setattr(commands, "submit", unanswered)
    monkeypatch.setattr(place, "_SUBMIT_PAUSES", (0.1, 0.1))
    site.configure(f"pending_patience_seconds: 0.5\n{ONE_GPU_EACH}")
    error = the_failure(orchestrate(site.training_job("k001")))
    (number,) = calls
    assert f"SLURM job {number} has waited" in error


def test_a_machine_out_of_memory_starts_again_with_fewer_images_at_a_time(
    site: Site, machine: Callable[[str], None]
) -> None:
    machine("[ $n -gt 2 ] && exit 1; kill -9 $$")
    with without_delay(site.cluster):
        events = orchestrate(site.training_job("k001"))
    notes = " ".join(event.text for event in events if event.name == "note")
    again = "was killed by signal 9; again as soon as SLURM lets it (attempt"
    assert f"{again} 2), with 1/2 of the batch at a time" in notes
    assert f"{again} 3), with 1/4 of the batch at a time" in notes
    (memory,) = site.lab.store.jobs_folder.glob("*/*/memory/0.json")
    assert memory.read_text(encoding="utf-8") == "2", "what the pod reads when it starts"


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_orchestrator_in_a_job_of_its_own_leaves_the_work_to_its_successor_unless_the_run_is_cancelled(
    is_cancelled: bool, site: Site, monkeypatch: pytest.MonkeyPatch, drained: None
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with dg.DagsterInstance.ephemeral() as instance:

        @dg.asset
        def computed(context: dg.AssetExecutionContext) -> None:
            events = SlurmPlace.from_environment().run(context, site.training_job())
            next(events)  # it waits
            if is_cancelled:
                instance.report_run_canceling(context.run)
            events.close()

        dg.materialize([computed], instance=instance)
    assert bool(live(site.cluster)) is not is_cancelled
    site.cluster.run("scancel", "--me")


@pytest.fixture
def machine(site: Site, tmp_path: Path) -> Callable[[str], None]:
    """Let the interpreter on the nodes be a line of bash; ``$n`` counts how often it was started."""

    def behave(line: str) -> None:
        path, count = tmp_path / "python", tmp_path / "count"
        path.write_text(f"#!/bin/bash\necho >> {count}\nn=$(wc -l < {count})\n{line}\n", encoding="utf-8")
        path.chmod(0o755)
        site.configure(f"{ONE_GPU_EACH}python: {path}\n")

    return behave


def the_failure(events: list[Event]) -> str:
    """Of the only task."""
    (event,) = [event for event in events if event.name == "failed"]
    return str(event.error)


def test_a_machine_that_gets_no_further_is_given_up_after_three_restarts(
    site: Site, machine: Callable[[str], None]
) -> None:
    machine("exit 75")
    with without_delay(site.cluster):
        events = orchestrate(site.training_job("k001"))
    assert "ended with exit code 75, 4 times without getting any further; what it had finished is kept" in the_failure(
        events
    )
    notes = [event.text for event in events if event.name == "note"]
    assert len([note for note in notes if "again as soon as SLURM lets it" in note]) == 3


def test_retries_are_as_many_as_asked_for_and_begin_when_asked_for(
    site: Site, machine: Callable[[str], None], tmp_path: Path
) -> None:
    """SLURM by itself would let each wait for two minutes."""
    machine(f"date +%s >> {tmp_path}/times; exit 75")
    settings = site.settings.read_text(encoding="utf-8")
    retries = settings.replace("{pods: 2,", "{pods: 2, retries: 2, retry_seconds: 1,")
    site.settings.write_text(retries, encoding="utf-8")
    began = time.monotonic()
    events = orchestrate(site.training_job("k001"))
    assert "ended with exit code 75 in attempt 3, and 2 retries were asked for" in the_failure(events)
    said = [event.text for event in events if event.name == "note" and "again in" in event.text]
    assert [text.partition("75; ")[2] for text in said] == [
        "again in 1 s (attempt 2 of 3)",
        "again in 2 s (attempt 3 of 3)",
    ]
    first, second, third = map(int, (tmp_path / "times").read_text(encoding="utf-8").split())
    assert second - first >= 1 and third - second >= 2
    assert time.monotonic() - began < 100


def test_a_defect_ends_the_job_at_once_with_the_end_of_the_log(site: Site, machine: Callable[[str], None]) -> None:
    machine("echo 'NameError: it is broken' >&2; exit 1")
    (first, second) = [event for event in orchestrate(site.training_job()) if event.name == "failed"]
    assert not first.is_user_error
    assert "ended with exit code 1: NameError: it is broken (log: " in first.error
    assert first.traceback == "NameError: it is broken"
    assert {first.number, second.number} == {0, 1}


def test_an_interpreter_that_is_not_there_is_a_matter_of_the_settings(site: Site) -> None:
    site.configure("python: /not/there/python\n" + ONE_GPU_EACH)
    (event,) = [event for event in orchestrate(site.training_job("k001")) if event.name == "failed"]
    assert event.is_user_error
    assert "ended with exit code 127" in event.error
    assert "/not/there/python: No such file or directory" in event.error
    assert "check python and setup in the file that DD_SLURM names" in event.error


def test_a_node_that_does_not_see_the_data_root_is_told_apart(
    site: Site, machine: Callable[[str], None], tmp_path: Path
) -> None:
    machine(f'DD_ROOT={tmp_path}/empty exec {sys.executable} "$@"')
    error = the_failure(orchestrate(site.training_job("k001")))
    assert "ended with exit code 78" in error
    assert f"the data root {tmp_path}/empty of this worker has no job file" in error


def test_a_node_that_cannot_open_the_log_ends_the_job(site: Site) -> None:
    site.configure(ONE_GPU_EACH)
    events: list[Event] = []
    following = Thread(target=lambda: events.extend(orchestrate(site.training_job("k001"))))
    with held(site.cluster):
        following.start()
        wait_until(lambda: live(site.cluster), "the job")
        shutil.rmtree(site.lab.store.jobs_folder)  # as if it were on this machine alone
    following.join()
    error = the_failure(events)
    assert "could not open its log" in error
    assert f"does that node see the data root {site.lab.root}?" in error


def test_an_element_that_somebody_cancels_stays_cancelled(site: Site, machine: Callable[[str], None]) -> None:
    machine("scancel ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; sleep 60")
    error = the_failure(orchestrate(site.training_job("k001")))
    assert re.search("element 0 of SLURM job [0-9]+ on n[12] was cancelled; what it had finished is kept", error)


def test_a_job_for_which_there_is_no_room_says_so_and_waits_as_long_as_configured(site: Site, drained: None) -> None:
    site.configure("pending_patience_seconds: 1\n" + ONE_GPU_EACH)
    events = orchestrate(site.training_job("k001"))
    assert any("waits" in event.text for event in events if event.name == "note")
    assert "for longer than pending_patience_seconds (1) and was given up" in the_failure(events)
    assert live(site.cluster) == ""


def test_a_job_that_can_never_start_is_given_up(site: Site) -> None:
    site.configure("partition: short\nresources: {pods: 1, gpus_per_pod: 1, hours: 10}\n")
    error = the_failure(orchestrate(site.training_job("k001")))
    assert "asks for more than it may ever have there" in error
    assert live(site.cluster) == ""


def test_tasks_that_the_running_job_does_not_have_come_after_it(site: Site, machine: Callable[[str], None]) -> None:
    machine("exit 1")
    request = {"request": "the same"}
    small, both = site.training_job("k001").model_copy(update=request), site.training_job().model_copy(update=request)
    first = Thread(target=orchestrate, args=(small,))
    with held(site.cluster):
        first.start()
        wait_until(lambda: live(site.cluster), "the first job")
        second = Thread(target=lambda: events.extend(orchestrate(both)))
        events: list[Event] = []
        second.start()
        time.sleep(1)
        assert len(live(site.cluster).splitlines()) == 1, "the second orchestrator follows the first one's job"
    first.join()
    second.join()
    assert sorted(event.task for event in events if event.name == "failed") == [
        "tiny/plain.k001",
        "tiny/plain.k002",
    ]
