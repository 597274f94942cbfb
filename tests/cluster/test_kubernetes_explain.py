"""What is said of pods and Jobs, from what an API server says of them."""

import dataclasses
import datetime
import time
from typing import Any

import pytest

from dd_assets.compute.elsewhere import News
from dd_assets.compute.kubernetes.attempts import Attempts
from dd_assets.compute.kubernetes.explain import (
    condition,
    disrupted,
    ending_of,
    indexes,
    is_ending,
    why_no_pods,
    why_waiting,
)
from dd_assets.compute.kubernetes.manifests import GATE
from dd_assets.compute.kubernetes.verdict import Verdict
from dd_assets.compute.retries import Retries
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job, training_job
from dd_core.store.store import Store
from dd_core.study.study import Study

JOB = "dd-train-tiny-0123456789"


def pod(place: int = 0, **status: Any) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-completion-index": str(place)}
    return {"metadata": {"name": f"{JOB}-{place}-abcde", "uid": "u", "labels": labels}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return pod(phase="Pending", containerStatuses=[{"name": "worker", "state": state}])


def ended(place: int = 0, code: int | None = None, reason: str = "Error", **status: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}} if code is not None else {}
    return pod(place, phase="Failed", containerStatuses=[{"name": "worker", "state": state}], **status)


def true(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": "True", **more}


def unscheduled(message: str) -> dict[str, Any]:
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[told])


def event(reason: str, message: str, kind: str = "Warning") -> dict[str, Any]:
    return {"reason": reason, "message": message, "type": kind}


@pytest.mark.parametrize(
    ("thing", "events", "words", "is_fault"),
    [
        (
            unscheduled("0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
            [],
            "4 Insufficient nvidia.com",
            False,
        ),
        (unscheduled('persistentvolumeclaim "data" not found'), [], "waits for a node", True),
        (waiting("ErrImagePull"), [event("Failed", "Failed to pull image x: denied")], "denied", True),
        (waiting("ImagePullBackOff", 'Back-off pulling image "x"'), [], 'Back-off pulling image "x"', True),
        (waiting("CreateContainerConfigError", 'secret "s3" not found'), [], 'secret "s3" not found', True),
        (waiting("ContainerCreating"), [event("FailedMount", "mount timed out")], "cannot get its volume", True),
    ],
)
def test_a_pod_that_does_not_run_says_why(thing: Any, events: Any, words: str, is_fault: bool) -> None:
    why = why_waiting(thing, events)
    assert why is not None
    assert words in why.reason
    assert why.is_fault == is_fault


@pytest.mark.parametrize(
    "thing", [waiting("ContainerCreating"), waiting("PodInitializing"), pod(phase="Pending"), pod()]
)
def test_a_pod_that_is_being_started_needs_no_explanation(thing: Any) -> None:
    assert why_waiting(thing, [event("Pulling", "Pulling image", "Normal")]) is None


def test_a_job_without_pods_says_why() -> None:
    quota = why_no_pods(
        {"metadata": {}, "spec": {}}, [event("FailedCreate", "pods is forbidden: exceeded quota: gpus")]
    )
    assert quota is not None
    assert "exceeded quota: gpus" in quota.reason
    assert why_no_pods({"metadata": {}, "spec": {}}, []) is None


def test_ends_of_pods_are_told_apart() -> None:
    evicting = [true("DisruptionTarget", reason="PreemptionByScheduler", message="preempting")]
    cases = {
        "out of memory": ended(code=137, reason="OOMKilled"),
        "killed": ended(code=137),
        "preempted": ended(code=137, conditions=evicting),
        "evicted": ended(reason="Evicted", message="The node was low on resource: memory."),
        "segfault": ended(code=139),
        "too long": ended(code=137, message="Pod was active on the node longer than the specified deadline"),
    }
    cases["evicted"]["status"]["reason"] = "Evicted"
    cases["too long"]["status"]["reason"] = "DeadlineExceeded"
    cases["too long"]["spec"] = {"activeDeadlineSeconds": 7200}
    ends = {name: ending_of(thing) for name, thing in cases.items()}
    assert {name for name, end in ends.items() if end and end.is_out_of_memory} == {"out of memory", "killed"}
    assert {name for name, end in ends.items() if end and end.is_disruption} == {"preempted"}
    assert ends["segfault"].reason == "ended with exit code 139"
    assert ends["too long"].reason == "took longer than the 2 h that an attempt may take (hours under resources)"
    assert ends["preempted"].reason == "was preempted (PreemptionByScheduler: preempting)"
    assert "low on resource" in ends["evicted"].reason
    for name in ("killed", "out of memory", "segfault", "preempted"):
        cases[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert ending_of(cases["killed"]) is None, "by whoever deleted it"
    assert all(ending_of(cases[name]) == ends[name] for name in ("out of memory", "segfault", "preempted"))
    assert ending_of(pod(phase="Running")) is None
    assert ending_of(pod(phase="Succeeded")) is None
    assert disrupted(pod(phase="Running", conditions=evicting)) is not None
    assert disrupted(pod(phase="Succeeded", conditions=evicting)) is None, "it had finished when it was evicted"


def test_only_conditions_that_are_true_count() -> None:
    job = {"metadata": {}, "status": {"failed": 3, "conditions": [{"type": "Failed", "status": "False"}]}}
    assert not is_ending(job)
    job["status"]["conditions"].append(true("FailureTarget"))
    assert is_ending(job)
    assert condition(job, "Complete", "Failed") is None


@pytest.mark.parametrize(("text", "members"), [("", set()), (None, set()), ("3", {3}), ("0,2-4,7", {0, 2, 3, 4, 7})])
def test_lists_of_indexes(text: str | None, members: set[int]) -> None:
    assert indexes(text) == members


# When the next attempt begins


class Gates:
    """Remembers whose are taken away."""

    def __init__(self) -> None:
        """None yet."""
        self.let = list[str]()

    def let_begin(self, pod: str) -> None:
        """Of that pod."""
        self.let.append(pod)


def at(seconds: float) -> str:
    """A time so many seconds ago, as Kubernetes writes it."""
    return datetime.datetime.fromtimestamp(time.time() - seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def gated(place: int, age: float, failures: int) -> dict[str, Any]:
    thing = pod(place)
    count = {"batch.kubernetes.io/job-index-failure-count": str(failures)}
    thing["metadata"] |= {"name": f"{place}", "creationTimestamp": at(age), "annotations": count}
    return {**thing, "spec": {"schedulingGates": [{"name": GATE}]}}


def test_a_pause_that_another_orchestrator_began_is_not_begun_anew(job: Job) -> None:
    """The Job says how often it tries, and its pods since when; what is asked for by now may be something else."""
    spec = {"backoffLimitPerIndex": 2, "podFailurePolicy": {"rules": [{"action": "Count"}]}}
    news = News(JobFolder.of(Store("/data"), job), job, {task.name for task in job.tasks})
    gates = Gates()
    attempts = Attempts(gates, {"spec": spec}, news, Retries(most=9, first_seconds=60.0))  # type: ignore[arg-type]
    lost = ended(1, 137, "OOMKilled", conditions=[true("Ready")])
    lost["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = at(90)
    ending = ending_of(lost)
    assert ending and ending.at is not None
    assert attempts.describe(ending, ", with less").endswith("; again in 60 s (attempt 2 of 3), with less")
    attempts.let_begin([gated(0, age=30, failures=1), gated(1, age=30, failures=1), gated(2, age=-30, failures=0)])
    assert gates.let == ["1", "2"]
    attempts.let_begin([gated(0, age=90, failures=1)])
    assert gates.let == ["1", "2", "0"]
    last = dataclasses.replace(ending, attempt=3, failures=2)
    assert attempts.describe(last, ", with less").endswith("; that was attempt 3, and the last")


# What becomes of tasks without an outcome


@pytest.fixture
def job(tiny_study: Study) -> Job:
    """Two arms on two pods: the wider is task 0 on place 0."""
    work = training_job("/data", tiny_study, list(tiny_study.iter_checkpoints()), 1, 1)
    return work.model_copy(update={"places": ((0,), (1,))})


def verdict(job: Job, ends: list[tuple[dict[str, Any], list[str]]], manifest: dict[str, Any] | None) -> dict[str, Any]:
    """Events by task; every task has one."""
    names = {task.name for task in job.tasks}
    judge = Verdict(News(JobFolder.of(Store("/data"), job), job, names), JOB)
    for thing, lines in ends:
        ending = ending_of(thing)
        assert ending
        judge.add(ending, lines)
    events = [e for e in judge.on(manifest) if e.name == "failed"]
    assert len(events) == len(job.tasks)
    return {e.task: e for e in events}


def failed(reason: str, message: str = "", **status: Any) -> dict[str, Any]:
    return {"metadata": {}, "status": {"conditions": [true("Failed", reason=reason, message=message)], **status}}


def test_the_pod_that_the_condition_names_is_the_culprit(job: Job) -> None:
    ends = [(ended(0, 1), ["zero"]), (ended(1, 2), ["ImportError: one", '{"method": "closed"}'])]
    message = f"Container worker for pod lab/{JOB}-1-abcde failed with exit code 2 matching FailJob rule at index 1"
    events = verdict(job, ends, failed("PodFailurePolicy", message))
    assert events["tiny/plain.k001"].error == f"the pod {JOB}-1-abcde ended with exit code 2: ImportError: one"
    assert "ImportError: one" in (events["tiny/plain.k001"].traceback or "")
    assert events["tiny/plain.k002"].traceback is None, "the log once"
    assert not any(e.is_user_error for e in events.values())


def test_a_pod_that_failed_too_often_speaks_for_its_own_tasks(job: Job) -> None:
    last = ended(1, 139)
    # Counted by Kubernetes: one failure, and before it an eviction that was ignored.
    counts = {"failure": "1", "ignored-failure": "1"}
    last["metadata"]["annotations"] = {f"batch.kubernetes.io/job-index-{k}-count": v for k, v in counts.items()}
    ends = [(ended(1, 137, "OOMKilled"), ["a"]), (last, ["Segmentation fault"])]
    events = verdict(job, ends, failed("FailedIndexes", "Job has failed indexes", failedIndexes="1"))
    assert "ended with exit code 139 (Segmentation fault) in attempt 3, the last" in events["tiny/plain.k001"].error
    assert "Job has failed indexes (failed: 1)" in events["tiny/plain.k002"].error
    assert all(e.is_user_error for e in events.values())


def test_a_deletion_is_called_so(job: Job) -> None:
    assert all("somebody deleted the Job" in e.error for e in verdict(job, [], None).values())


def test_a_job_that_went_well_without_an_outcome_is_not_taken_for_done(job: Job) -> None:
    manifest = {"metadata": {}, "status": {"conditions": [true("Complete")]}}
    assert all("outcome" in e.error for e in verdict(job, [], manifest).values())
