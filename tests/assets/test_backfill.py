"""A backfill over arms and epochs, launched as the UI launches it: webserver, daemon and queue are real."""

import os
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from support import Lab, wait_until

from .served import Server, served

STUDY = """\
description: four arms that take a few seconds
data: {dataset: digits, num_train: 200}
variants:
  plain:
    architecture: preact_resnet10
    batch_size: 20
    optimizer: {name: adam, learning_rate: 2.0e-3}
widths: [4, 5, 6, 7]
trials: 1
epochs: 12
checkpoints: [0, 3, 6, 9, 12]
keep_best: 0
"""
LAUNCH = """mutation($params: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $params) {
__typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}"""
STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {
status error {message}}}}"""
CHECK = """mutation($params: ExecutionParams!) {launchPipelineExecution(executionParams: $params) {
__typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
REASON = """query($id: ID!) {runOrError(runId: $id) {... on Run {status eventConnection {events {
__typename ... on ExecutionStepFailureEvent {message error {message}} ... on RunFailureEvent {message error {message}}
}}}}}"""


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

    answer = wait_until(ended, "the end of the backfill", pause=0.5)
    assert answer["status"] == "COMPLETED_SUCCESS", answer
    return str(launched["backfillId"])


def test_the_first_run_of_a_backfill_does_the_work_of_all_on_the_whole_machine(lab: Lab, server: Server) -> None:
    keys = [checkpoint.key for checkpoint in lab.study.iter_checkpoints()]
    name = backfill(server, "checkpoints", keys)
    with lab.instance() as instance:
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": name}))
    print(runs)


_ = os, CHECK, REASON
