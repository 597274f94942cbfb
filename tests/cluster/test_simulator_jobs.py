"""Simulated Jobs go the way the project's code relies on: seen through the real Python client."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import watch
from kubernetes_simulator import Cluster
from kubernetes_simulator.lab import DISRUPTED, Lab, make_job, on_exit, wait


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Cluster(images={"lab:*": Path(sys.executable).parent}) as cluster:
        yield Lab(cluster)


def test_job_of_two_indexes_completes_with_names_and_numbers_of_its_pods(lab: Lab) -> None:
    lab.run(make_job("numbers", "echo number $JOB_COMPLETION_INDEX"))
    assert lab.finish("numbers") == {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    status = lab.job("numbers").status
    assert (status.succeeded, status.failed, status.active) == (2, None, None)
    assert (status.completed_indexes, status.failed_indexes) == ("0,1", "")
    pods = sorted(lab.cluster.pods("numbers"), key=lambda p: p["metadata"]["name"])
    for index, pod in enumerate(pods):
        assert pod["spec"]["hostname"] == f"numbers-{index}"
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(index)
        assert lab.cluster.log(pod["metadata"]["name"]) == f"number {index}\n"


def test_counters_of_a_running_job_are_never_negative(lab: Lab) -> None:
    lab.run(make_job("counted", "exit $JOB_COMPLETION_INDEX"))
    for event in watch.Watch().stream(
        lab.batch.list_namespaced_job, "default", resource_version="0", timeout_seconds=9
    ):
        if event["object"].metadata.name == "counted":
            status = event["object"].status
            assert min(status.ready or 0, status.terminating or 0, status.active or 0) >= 0
            assert (status.active or 0) + (status.succeeded or 0) <= 2
            if "Failed" in [c.type for c in status.conditions or []]:
                break


def test_job_is_made_again_under_its_name_while_its_pods_still_end(lab: Lab) -> None:
    lab.run(make_job("again", "trap 'sleep 0.3; exit 1' TERM; echo on; sleep 60 & wait"))
    old = set(lab.running("again"))
    lab.batch.delete_namespaced_job("again", "default", propagation_policy="Background")
    lab.run(make_job("again", "true"))
    assert "Complete" in lab.finish("again")
    wait(lambda: not old & {p["metadata"]["name"] for p in lab.cluster.pods("again")})
    assert lab.job("again").status.failed is None


def test_failed_index_is_tried_again_alone_then_fails_the_job(lab: Lab) -> None:
    lab.run(make_job("limit", "test $JOB_COMPLETION_INDEX = 0"))
    assert lab.finish("limit") == {"FailureTarget": "FailedIndexes", "Failed": "FailedIndexes"}
    status = lab.job("limit").status
    assert (status.completed_indexes, status.failed_indexes, status.failed) == ("0", "1", 2)
    assert len(lab.cluster.pods("limit")) == 3


def test_exit_code_can_fail_an_index_at_once(lab: Lab) -> None:
    lab.run(make_job("index", "exit 42", rules=[on_exit("FailIndex", 42)], maxFailedIndexes=2, completions=3))
    assert lab.finish("index")["Failed"] in ("MaxFailedIndexesExceeded", "FailedIndexes")
    assert len(lab.cluster.pods("index")) == 3
    lab.run(
        make_job("most", "exit 42", rules=[on_exit("FailIndex", 42)], maxFailedIndexes=0, completions=3, parallelism=1)
    )
    assert lab.finish("most")["Failed"] == "MaxFailedIndexesExceeded"
    assert len(lab.cluster.pods("most")) == 1


def test_exit_code_can_fail_the_job_and_ends_the_other_pods(lab: Lab) -> None:
    command = "test $JOB_COMPLETION_INDEX = 0 && exit 78; echo on; exec sleep 60"
    lab.run(make_job("defect", command, rules=[on_exit("FailJob", 78)]))
    assert lab.finish("defect")["Failed"] == "PodFailurePolicy"
    message = lab.job("defect").status.conditions[-1].message
    assert "failed with exit code 78 matching FailJob rule at index 0" in message
    assert all(p["status"]["phase"] == "Failed" for p in lab.cluster.pods("defect"))


def test_plain_backoff_limit_and_deadline(lab: Lab) -> None:
    lab.run(make_job("tries", "exit 3", backoffLimitPerIndex=None, backoffLimit=1, completions=1))
    assert lab.finish("tries")["Failed"] == "BackoffLimitExceeded"
    lab.run(make_job("late", "exec sleep 60", activeDeadlineSeconds=1, completions=1))
    assert lab.finish("late")["Failed"] == "DeadlineExceeded"


@pytest.mark.parametrize("disrupt", ["evict", "preempt", "lose_node"])
def test_disrupted_index_alone_starts_again_without_counting(disrupt: str) -> None:
    nodes = {"node-a": {"nvidia.com/gpu": 1}, "node-b": {"nvidia.com/gpu": 1}, "node-c": {"nvidia.com/gpu": 1}}
    with Cluster(nodes=nodes) as cluster:
        lab = Lab(cluster)
        gpu = {"container": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
        spec = {"rules": [DISRUPTED], "backoffLimitPerIndex": 0}
        lab.run(make_job("job", "trap 'exit 143' TERM; echo on; sleep 60 & wait", pod=gpu, **spec))
        first, second = lab.running("job")
        hit = lab.pod(second).spec.node_name if disrupt == "lose_node" else second
        pods = lab.core.list_namespaced_pod
        before = pods("default").metadata.resource_version
        getattr(cluster, disrupt)(hit)
        reasons = {"evict": "EvictionByEvictionAPI", "preempt": "PreemptionByScheduler"}
        for event in watch.Watch().stream(pods, "default", resource_version=before, timeout_seconds=10):
            found = [c.reason for c in event["object"].status.conditions or [] if c.type == "DisruptionTarget"]
            if event["object"].metadata.name == second and event["object"].status.phase == "Failed":
                assert found == [reasons.get(disrupt, "DeletionByTaintManager")]
                break
        else:
            pytest.fail("the disrupted pod never failed")
        again = lab.running("job")
        assert first in again
        assert second not in again
        assert lab.job("job").status.failed is None
        assert lab.pod(again[1]).spec.node_name != hit


def test_node_pressure_eviction_leaves_the_failed_pod(lab: Lab) -> None:
    lab.run(make_job("pressed", "echo on; exec sleep 60", rules=[DISRUPTED]))
    _, second = lab.running("pressed")
    lab.cluster.evict(second, by_kubelet=True)
    wait(lambda: lab.phase(second) == "Failed")
    assert lab.pod(second).status.reason == "Evicted"
    assert len(lab.running("pressed")) == 2


def test_replacement_waits_for_the_end_of_the_old_pod(lab: Lab) -> None:
    """The podReplacementPolicy Failed, which every Job with a podFailurePolicy has: no index runs twice at a time."""
    command = "trap 'sleep 0.4; exit 1' TERM; echo on; sleep 60 & wait"
    for name, policy, most in (("patient", "Failed", 2), ("hasty", "TerminatingOrFailed", 3)):
        lab.run(make_job(name, command, podReplacementPolicy=policy))
        _, second = lab.running(name)
        lab.core.delete_namespaced_pod(second, "default")
        alive, numbers = True, set()
        while alive:
            pods = lab.cluster.pods(name)
            numbers.add(len([p for p in pods if p["status"]["phase"] in ("Pending", "Running")]))
            alive = any(p["metadata"]["name"] == second for p in pods)
        assert max(numbers) == most


def test_suspended_job_has_no_pods_until_resumed(lab: Lab) -> None:
    lab.run(make_job("paused", "true", suspend=True))
    wait(lambda: lab.conditions("paused") == {"Suspended": "JobSuspended"})
    assert not lab.cluster.pods("paused")
    lab.batch.patch_namespaced_job("paused", "default", {"spec": {"suspend": False}})
    assert "Complete" in lab.finish("paused")


def test_job_is_gone_after_its_time_to_live(lab: Lab) -> None:
    lab.run(make_job("short", "true", ttlSecondsAfterFinished=0))
    wait(lambda: "short" not in [j["metadata"]["name"] for j in lab.cluster.objects("Job")])
    wait(lambda: not lab.cluster.pods("short"))


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan", None])
def test_what_a_job_owns_goes_with_it_unless_orphaned(lab: Lab, policy: str | None) -> None:
    name = f"owner-{str(policy).lower()}"
    lab.run(make_job(name, "echo on; exec sleep 60"))
    owner = lab.job(name).metadata
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner.uid}
    service = {"metadata": {"name": name, "ownerReferences": [reference]}, "spec": {"clusterIP": "None"}}
    lab.core.create_namespaced_service("default", service)
    lab.running(name)
    lab.batch.delete_namespaced_job(name, "default", **({"propagation_policy": policy} if policy else {}))
    if policy in ("Background", "Foreground"):
        wait(lambda: not lab.cluster.pods(name))
        assert name not in [s["metadata"]["name"] for s in lab.cluster.objects("Service")]
    else:  # what batch/v1 does when nothing is said
        time.sleep(0.2)
        assert ["deletionTimestamp" in p["metadata"] for p in lab.cluster.pods(name)] == [False, False]
        assert name in [s["metadata"]["name"] for s in lab.cluster.objects("Service")]
        for pod in lab.cluster.pods(name):
            lab.core.delete_namespaced_pod(pod["metadata"]["name"], "default", grace_period_seconds=0)
    wait(lambda: name not in [j["metadata"]["name"] for j in lab.cluster.objects("Job")])
