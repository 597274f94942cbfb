"""Runs whose process was killed, beside a real `make ui`: they are ended, and what waits behind them goes on."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from support import REPOSITORY, TINY, Lab, wait_until

from dd_assets.running.instance import PROCESS, end_dead_runs
from dd_assets.running.whereabouts import Whereabouts

# Nobody waits for its end.
ENDLESS = TINY.replace("epochs: 24", "epochs: 9999").replace("[0, 8, 16, 24]", "[0, 9999]")
LAUNCH = """mutation Launch($parameters: ExecutionParams!) { launchPipelineExecution(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
TERMINATE = """mutation End($id: String!) { terminateRun(runId: $id) {
  __typename ... on TerminateRunFailure { message } } }"""


class Ui:
    """A running `make ui` of a laboratory."""

    def __init__(self, lab: Lab):
        """Start it and wait for its first answer."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address, self.log = f"http://127.0.0.1:{port}", lab.folder / "ui.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # Not a reason to install anything: these tests leave the environment alone that they run in.
                ["make", "ENVIRONMENT=:", "ui"],
                cwd=REPOSITORY,
                env=lab.environment(DD_PORT=port),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, "an answer from the UI", pause=0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/server_info", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """An answer to a GraphQL query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.address}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def launch(self, study: str, arm: str, epoch: str) -> str:
        """Materialise a partition of the checkpoints as a click does; returns the run's id."""
        key = {"path": [study, "checkpoints"]}
        parameters = {
            "mode": "default",
            "selector": {
                "repositoryLocationName": "double_descent_lab",
                "repositoryName": "__repository__",
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [key],
            },
            "executionMetadata": {
                "tags": [
                    {"key": "dagster/partition", "value": f"{arm}|{epoch}"},
                    {"key": "dagster/partition/arm", "value": arm},
                    {"key": "dagster/partition/epoch", "value": epoch},
                ]
            },
        }
        answer = self.ask(LAUNCH, parameters=parameters)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        """Of a run, as the page shows it."""
        return str(self.ask(STATUS, id=run_id)["runOrError"]["status"])

    def end(self, how: signal.Signals) -> None:
        """All its processes, as a closed terminal or a power cut ends them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("dead") / "lab")
    lab.write_study("endless", ENDLESS)
    settings = (REPOSITORY / "dd_assets" / "dagster.yaml").read_text(encoding="utf-8")
    assert "poll_interval_seconds: 15" in settings
    lab.home.mkdir()
    often = settings.replace("poll_interval_seconds: 15", "poll_interval_seconds: 2")
    (lab.home / "dagster.yaml").write_text(often, encoding="utf-8")
    return lab


@pytest.fixture(scope="module")
def ui(lab: Lab) -> Iterator[Ui]:
    ui = Ui(lab)
    yield ui
    ui.end(signal.SIGTERM)


@contextlib.contextmanager
def endless_command(lab: Lab, arm: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A training typed at a terminal that is well under way; and the id of its run."""
    shutil.rmtree(lab.root / "checkpoints/endless", ignore_errors=True)
    command = lab.start_dagster("asset", "materialize", "--select", "endless/checkpoints", "--partition", f"{arm}|9999")
    with command:
        try:
            wait_until(lambda: (lab.root / "checkpoints/endless" / arm / "0000.json").exists(), "training", pause=0.1)
            (run,) = unfinished(lab)
            yield command, run.run_id
        finally:
            command.kill()


def unfinished(lab: Lab) -> list[dg.DagsterRun]:
    with lab.instance() as instance:
        return list(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])))


def said_of(lab: Lab, run_id: str) -> str:
    """Everything that is recorded of a run."""
    with lab.instance() as instance:
        return "\n".join(entry.user_message or entry.message or "" for entry in instance.all_logs(run_id))


def test_a_command_killed_beside_the_ui_does_not_block_it(lab: Lab, ui: Ui) -> None:
    with endless_command(lab, "plain.k001") as (command, run_id):
        waiting = ui.launch("tiny", "plain.k001", "0008")
        command.kill()
        command.communicate()
        wait_until(lambda: ui.status(waiting) == "SUCCESS", "the run that waited", pause=0.5)
    assert ui.status(run_id) == "FAILURE"
    assert "is gone without a word: it was killed, or the machine went down" in said_of(lab, run_id)


def test_a_closed_terminal_ends_a_command_as_ctrl_c_does(lab: Lab) -> None:
    with endless_command(lab, "plain.k001") as (command, run_id):
        command.send_signal(signal.SIGHUP)
        output, _ = command.communicate(timeout=60)
        assert command.returncode == 1, "by itself, not by the signal"
    assert "interrupted: what was finished is kept; run the same again to go on" in output
    with lab.instance() as instance:
        assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]


def test_the_next_command_ends_dead_runs_and_no_others(lab: Lab) -> None:
    with endless_command(lab, "plain.k002") as (command, living):
        with lab.instance() as instance:
            alive = instance.get_run_by_id(living)
            assert alive is not None
            here = Whereabouts.read(alive.tags[PROCESS])
            assert here is not None and here.pid == command.pid
            elsewhere = dataclasses.replace(here, host="elsewhere", pid=2**22 - 1)
            killed = dataclasses.replace(here, pid=2**22 - 1)
            runs = {}
            for name, tags in (
                ("elsewhere", {PROCESS: str(elsewhere)}),
                ("killed", {PROCESS: str(killed)}),
                ("old", {}),
            ):
                runs[name] = instance.add_run(dg.DagsterRun("x", status=dg.DagsterRunStatus.STARTED, tags=tags)).run_id
        lab.materialize("curvature")
        with lab.instance() as instance:
            status = {name: instance.get_run_by_id(run).status.value for name, run in {**runs, "alive": living}.items()}  # type: ignore[union-attr]
            for name in ("elsewhere", "old"):
                instance.delete_run(runs[name])
    assert status == {"elsewhere": "STARTED", "killed": "FAILURE", "old": "STARTED", "alive": "STARTED"}


def test_a_command_can_be_terminated_in_the_ui(lab: Lab, ui: Ui) -> None:
    with endless_command(lab, "plain.k001") as (command, run_id):
        assert ui.ask(TERMINATE, id=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        command.communicate(timeout=60)
    wait_until(lambda: ui.status(run_id) in ("CANCELED", "FAILURE"), "the end of the run", pause=0.2)


def test_after_a_power_cut_the_next_ui_goes_on(lab: Lab, ui: Ui) -> None:
    """The last one: it kills the UI, with the run that the UI has started."""
    run_id = ui.launch("endless", "plain.k001", "9999")
    wait_until(lambda: ui.status(run_id) == "STARTED", "the run", pause=0.2)
    wait_until(lambda: unfinished(lab) and PROCESS in unfinished(lab)[0].tags, "its process", pause=0.1)
    (run,) = unfinished(lab)
    process = Whereabouts.read(run.tags[PROCESS])
    assert process is not None
    ui.end(signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    again = Ui(lab)
    try:
        assert again.status(run_id) == "FAILURE"
        assert f"run {run_id} was still called running, and is now ended" in Path(again.log).read_text(encoding="utf-8")
        after = again.launch("tiny", "plain.k001", "0016")
        wait_until(lambda: again.status(after) == "SUCCESS", "the next run", pause=0.5)
    finally:
        again.end(signal.SIGTERM)


def test_nothing_is_ended_twice(lab: Lab) -> None:
    with lab.instance() as instance:
        assert end_dead_runs(instance) == []
