"""A backfill over arms and epochs, launched as the UI launches it: webserver, daemon and queue are real."""

import contextlib
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from support import Lab, wait_until

from .served import Server, served

STUDY = """\
description: two arms
data: {dataset: digits, num_train: 100}
variants:
  plain:
    architecture: preact_resnet10
    batch_size: 20
    optimizer: {name: adam, learning_rate: 2.0e-3}
widths: [1, 2]
trials: 1
epochs: 2
checkpoints: [0, 2]
keep_best: 0
"""
LAUNCH = """mutation($params: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $params) {
__typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}"""
STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {
status error {message}}}}"""
RUN = """mutation($params: ExecutionParams!) {launchPipelineExecution(executionParams: $params) {
__typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
CHECKS = """query($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {
assetChecksOrError {... on AssetChecks {checks {name canExecuteIndividually}}}}}}"""
REASON = """query($key: AssetKeyInput!, $keys: [String!]) {assetNodeOrError(assetKey: $key) {... on AssetNode {
assetObservations(partitions: $keys, limit: 1) {description metadataEntries {label}}}}}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("backfill") / "lab", STUDY)
    lab.shell("source ./env.sh && dagster instance concurrency set compute 1").succeeded()
    return lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Server]:
    with served(lab, with_daemon=True, DD_WORKERS="2") as server:
        yield server


def backfill(server: Server, asset: str, keys: list[str]) -> str:
    """Launch one and wait for its end."""
    params = {"assetSelection": [{"path": ["tiny", asset]}], "partitionNames": keys}
    launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def ended() -> Any:
        answer = server.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        return answer if answer["status"] not in ("REQUESTED", "COMPLETED") else None

    # Several runs one after the other, each with processes of its own: more than one of them is waited for.
    for _ in range(3):
        with contextlib.suppress(AssertionError):
            wait_until(ended, "the end of the backfill", pause=0.5)
    answer = wait_until(ended, "the end of the backfill", pause=0.5)
    assert answer["status"] == "COMPLETED_SUCCESS", answer
    return str(launched["backfillId"])


def run(server: Server, lab: Lab, tags: dict[str, str], **selection: Any) -> dg.DagsterRun:
    """Launch one and wait for its end."""
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "double_descent_lab"}
    chosen = {"assetSelection": [], "assetCheckSelection": [], **selection}
    params = {
        "mode": "default",
        "runConfigData": {},
        "selector": {**selector, "pipelineName": "__ASSET_JOB", **chosen},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    launched = server.ask(RUN, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    with lab.instance() as instance:

        def ended() -> dg.DagsterRun | None:
            found = instance.get_run_by_id(launched["run"]["runId"])
            return found if found is not None and found.is_finished else None

        return wait_until(ended, "the end of the run", pause=0.5)


def messages(lab: Lab, backfill_id: str) -> list[list[str]]:
    """What each run of a backfill has said, in the order in which they ran."""
    with lab.instance() as instance:
        records = instance.get_run_records(dg.RunsFilter(tags={"dagster/backfill": backfill_id}))
        ordered = sorted(records, key=lambda record: record.start_time or 0.0)
        return [[log.user_message for log in instance.all_logs(r.dagster_run.run_id)] for r in ordered]


def test_the_first_run_of_a_backfill_does_the_work_of_all_on_the_whole_machine(lab: Lab, server: Server) -> None:
    keys = [checkpoint.key for checkpoint in lab.study.iter_checkpoints()]
    said = messages(lab, backfill(server, "checkpoints", keys))
    assert len(said) == 2, "a run for each arm: Dagster cuts the box so"
    assert "2 arms of tiny wanted, 2 to train" in said[0]
    assert any("with up to 2 workers" in line for line in said[0])
    assert "1 arm of tiny wanted, 0 to train" in said[1]
    assert lab.recorded("checkpoints") == set(keys)

    said = messages(lab, backfill(server, "per_image_curvature", keys))
    assert any(line.startswith("curvature of 4 checkpoints") for line in said[0])
    assert any(line.startswith("curvature of 2 checkpoints") for line in said[1])
    found = server.statuses()
    for asset in ("checkpoints", "per_image_curvature"):
        assert found[f"tiny/{asset}"] == dict.fromkeys(keys, ("FRESH", ()))


@pytest.mark.parametrize(
    ("asset", "check"),
    [
        ("per_image_curvature", "one_row_per_image"),
        ("checkpoints", "files_match_manifests"),
        ("checkpoints", "metrics_complete_and_in_range"),
    ],
)
def test_a_check_is_executed_alone(lab: Lab, server: Server, asset: str, check: str) -> None:
    key = {"path": ["tiny", asset]}
    checks = server.ask(CHECKS, key=key)["assetNodeOrError"]["assetChecksOrError"]["checks"]
    assert {"name": check, "canExecuteIndividually": "CAN_EXECUTE"} in checks
    with lab.instance() as instance:
        before = instance.get_latest_materialization_event(dg.AssetKey(["tiny", asset]))
        ran = run(server, lab, {}, assetCheckSelection=[{"assetKey": key, "name": check}])
        assert ran.is_success
        logs = instance.all_logs(ran.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        (evaluation,) = [log.get_dagster_event().asset_check_evaluation_data for log in logs]
        assert (evaluation.check_name, evaluation.passed) == (check, True), evaluation.description
        assert int(str(evaluation.metadata["checked"].value)) > 0
        assert instance.get_latest_materialization_event(dg.AssetKey(["tiny", asset])) == before


def test_a_partition_that_failed_says_why(lab: Lab, server: Server) -> None:
    partition = lab.study.arms["plain.k001"].key + "|0002"
    lab.write_study("tiny", STUDY.replace("2.0e-3", "1.9e-3"))
    server.reload()
    key = {"path": ["tiny", "per_image_curvature"]}
    ran = run(server, lab, {"dagster/partition": partition}, assetSelection=[key])
    assert not ran.is_success
    (observation,) = server.ask(REASON, key=key, keys=[partition])["assetNodeOrError"]["assetObservations"]
    assert "was trained with another recipe" in observation["description"]
    assert "--partition 'plain.k001|0002'" in observation["description"]
    assert [entry["label"] for entry in observation["metadataEntries"]] == ["why_it_failed"]
