"""Simulated pods are placed, started and ended as the project's code relies on."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_simulator import Cluster
from kubernetes_simulator.lab import NEEDS_ISOLATION, Lab, make_job, make_pod, wait

from dd_assets.compute.kubernetes.api import Cluster as Orchestrators
from dd_assets.compute.kubernetes.manifests import GATE
from dd_assets.compute.kubernetes.settings import read_settings


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Cluster(images={"lab:*": Path(sys.executable).parent}) as cluster:
        yield Lab(cluster)


def test_killed_container_says_out_of_memory(lab: Lab) -> None:
    lab.run(make_job("killed", "echo on; exec sleep 60", completions=1, backoffLimitPerIndex=0))
    (pod,) = lab.running("killed", 1)
    lab.cluster.kill(pod)
    lab.finish("killed")
    terminated = lab.state(pod).terminated
    assert (terminated.reason, terminated.exit_code) == ("OOMKilled", 137)


@NEEDS_ISOLATION
@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="memory cgroups cannot be written here")
def test_memory_limit_is_real(lab: Lab) -> None:
    limit = {"resources": {"limits": {"memory": "64Mi"}}}
    lab.run(make_pod("greedy", "exec python -c 'x = bytearray(200 * 2**20)'", container=limit))
    wait(lambda: lab.phase("greedy") == "Failed")
    assert (lab.state("greedy").terminated.reason, lab.state("greedy").terminated.exit_code) == ("OOMKilled", 137)


def test_deletion_asks_first_and_kills_after_the_grace_period(lab: Lab) -> None:
    lab.run(make_pod("polite", "trap 'echo bye; exit 0' TERM; echo on; sleep 60 & wait"))
    lab.run(make_pod("deaf", "trap 'echo never' TERM; echo on; while true; do sleep 0.1; done"))
    for name, last, seconds in (("polite", "bye", 0.9), ("deaf", "never", 3.0)):
        wait(lambda n=name: lab.phase(n) == "Running" and lab.cluster.log(n))
        began = time.monotonic()
        assert lab.core.delete_namespaced_pod(name, "default").metadata.deletion_timestamp
        wait(lambda n=name: n not in [p["metadata"]["name"] for p in lab.cluster.objects("Pod")])
        assert time.monotonic() - began < seconds
        assert lab.cluster.log(name).split() == ["on", last]


def test_unschedulable_pod_says_why_and_starts_when_there_is_room() -> None:
    nodes = {"a": {"cpu": 2, "nvidia.com/gpu": 1}, "b": {"cpu": 2, "labels": {"kind": "cpu"}}}
    nodes["c"] = {"nvidia.com/gpu": 4, "taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}
    with Cluster(nodes=nodes) as cluster:
        lab = Lab(cluster)
        gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
        command = "echo $CUDA_VISIBLE_DEVICES; exec sleep 60"
        lab.run(make_pod("first", command, container=gpu))
        lab.run(make_pod("second", command, container=gpu))
        wait(lambda: lab.phase("first") == "Running" and lab.pod("second").status.conditions)
        condition = lab.pod("second").status.conditions[0]
        assert (condition.type, condition.status, condition.reason) == ("PodScheduled", "False", "Unschedulable")
        reasons = "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 Insufficient nvidia.com/gpu."
        assert condition.message.startswith(reasons)
        messages = [e["message"] for e in cluster.events if e["reason"] == "FailedScheduling"]
        assert messages == [condition.message]
        lab.core.delete_namespaced_pod("first", "default", grace_period_seconds=0)
        wait(lambda: lab.phase("second") == "Running")
        toleration = [{"key": "gpu", "operator": "Exists"}]
        lab.run(
            make_pod(
                "third", command, container={"resources": {"limits": {"nvidia.com/gpu": "3"}}}, tolerations=toleration
            )
        )
        wait(lambda: lab.phase("third") == "Running" and cluster.log("third") == "0,1,2\n")
        lab.run(make_pod("picky", "true", nodeSelector={"kind": "none"}))
        wait(lambda: lab.pod("picky").status.conditions)
        assert "2 node(s) didn't match Pod's node affinity/selector" in lab.pod("picky").status.conditions[0].message


def test_image_that_cannot_be_pulled_backs_off_until_it_can(lab: Lab) -> None:
    lab.run(make_pod("image", "echo here", container={"image": "missing:2"}))
    lab.waiting("image", "ImagePullBackOff")
    assert any("Failed to pull image" in e["message"] for e in lab.cluster.events)
    lab.cluster.set_image("missing:*", Path(sys.executable).parent)
    wait(lambda: lab.phase("image") == "Succeeded")


def test_missing_secret_and_claim_hold_the_pod_back(lab: Lab) -> None:
    source = {"secretKeyRef": {"name": "password", "key": "word"}}
    lab.run(make_pod("secretive", "echo $WORD", container={"env": [{"name": "WORD", "valueFrom": source}]}))
    lab.waiting("secretive", "CreateContainerConfigError")
    assert 'secret "password" not found' in lab.state("secretive").waiting.message
    lab.core.create_namespaced_secret("default", {"metadata": {"name": "password"}, "data": {"word": "c2VzYW1l"}})
    wait(lambda: lab.phase("secretive") == "Succeeded")
    assert lab.cluster.log("secretive") == "sesame\n"
    lab.run(make_pod("claimant", "true", volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "nowhere"}}]))
    wait(lambda: lab.pod("claimant").status.conditions)
    assert 'persistentvolumeclaim "nowhere" not found' in lab.pod("claimant").status.conditions[0].message


def test_command_that_does_not_exist(lab: Lab) -> None:
    lab.run(make_pod("typo", "", container={"command": ["no-such-program"]}))
    wait(lambda: lab.phase("typo") == "Failed")
    assert (lab.state("typo").terminated.reason, lab.state("typo").terminated.exit_code) == ("StartError", 128)


@NEEDS_ISOLATION
def test_mounts_and_names_of_isolated_containers(lab: Lab, tmp_path: Path) -> None:
    lab.cluster.volume("data", tmp_path)
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a.yaml": "b: 1\n"}}
    peers = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"}}
    peers["spec"] = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": "mounted"}}
    lab.cluster.apply([settings, peers])
    mounts = [
        {"name": "data", "mountPath": "/data"},
        {"name": "settings", "mountPath": "/etc/lab/a.yaml", "subPath": "a.yaml"},
        {"name": "memory", "mountPath": "/dev/shm"},
    ]
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    command = """
    hostname > /data/$JOB_COMPLETION_INDEX; cat /etc/lab/a.yaml; touch /dev/shm/x
    until getent hosts mounted-0.peers && getent hosts mounted-1.peers.default.svc; do sleep 0.1; done
    touch /data/seen-$JOB_COMPLETION_INDEX; until ls /data/seen-0 /data/seen-1; do sleep 0.1; done
    ls /var/run/secrets/kubernetes.io/serviceaccount || true
    """
    pod = {"container": {"volumeMounts": mounts}, "volumes": volumes, "subdomain": "peers"}
    lab.run(make_job("mounted", command, pod={**pod, "automountServiceAccountToken": False}))
    assert "Complete" in lab.finish("mounted")
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["mounted-0\n", "mounted-1\n"]
    log = lab.cluster.log(lab.cluster.pods("mounted")[0]["metadata"]["name"])
    assert "b: 1" in log and "127.1." in log and "token" not in log
    lab.run(make_pod("trusted", "ls /var/run/secrets/kubernetes.io/serviceaccount"))
    wait(lambda: lab.phase("trusted") == "Succeeded")
    assert lab.cluster.log("trusted").split() == ["ca.crt", "namespace", "token"]


def test_plain_containers_share_folders_by_their_own_path(tmp_path: Path) -> None:
    with Cluster(isolate=False) as cluster:
        lab = Lab(cluster)
        cluster.volume("data", tmp_path)
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        for name, target in (("same", str(tmp_path)), ("other", "/elsewhere")):
            mounts = {"volumeMounts": [{"name": "data", "mountPath": target}]}
            lab.run(make_pod(name, f"echo here > {tmp_path}/file", container=mounts, volumes=volumes))
        wait(lambda: lab.phase("same") == "Succeeded")
        assert (tmp_path / "file").read_text() == "here\n"
        lab.waiting("other", "CreateContainerConfigError")


def test_a_gate_of_ours_is_taken_away_and_nobody_elses(lab: Lab, tmp_path: Path) -> None:
    """As Kueue sets one of its own, until there is room in its queue."""
    lab.run(make_pod("kept", "echo on", schedulingGates=[{"name": GATE}, {"name": "kueue.x-k8s.io/admission"}]))
    settings = tmp_path / "kubernetes.yaml"
    settings.write_text(f"{{image: any, kubeconfig: {lab.cluster.kubeconfig()}, namespace: default}}", encoding="utf-8")
    Orchestrators(read_settings(settings), print).let_begin("kept")
    (pod,) = [pod for pod in lab.cluster.objects("Pod") if pod["metadata"]["name"] == "kept"]
    assert pod["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/admission"}]
