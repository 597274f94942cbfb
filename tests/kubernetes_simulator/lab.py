"""For the simulator's own tests: small pods and Jobs, and a cluster together with the clients that speak to it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client, config

from .cluster import Cluster

DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
NEEDS_ISOLATION = pytest.mark.skipif(not Cluster.can_isolate(), reason="containers cannot be isolated here (not root)")


def pod_spec(command: str, container: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    main = {"name": "main", "image": "lab:1", "command": ["sh", "-c", command], **(container or {})}
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [main], **more}


def make_pod(name: str, command: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(command, **more)}


def make_job(
    name: str, command: str, pod: dict[str, Any] | None = None, rules: Any = (), **spec: Any
) -> dict[str, Any]:
    """Two indexes side by side, one more attempt for each."""
    spec = {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1, **spec}
    spec["template"] = {"spec": pod_spec(command, **(pod or {}))}
    if rules:
        spec["podFailurePolicy"] = {"rules": list(rules)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def on_exit(action: str, *codes: int) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"containerName": "main", "operator": "In", "values": list(codes)}}


def wait(what: Callable[[], Any], seconds: float = 10) -> Any:
    """The first value that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


class Lab:
    """A cluster and what speaks to it."""

    def __init__(self, cluster: Cluster, service_account: str | None = None):
        """As the administrator, or as a service account."""
        self.cluster = cluster
        self.api = config.new_client_from_config(str(cluster.kubeconfig(service_account)))
        self.core, self.batch = client.CoreV1Api(self.api), client.BatchV1Api(self.api)

    def run(self, manifest: dict[str, Any]) -> str:
        """Create a Job or a pod; its name."""
        create = self.batch.create_namespaced_job if manifest["kind"] == "Job" else self.core.create_namespaced_pod
        return str(create("default", manifest).metadata.name)

    def job(self, name: str) -> Any:
        """A Job as the client reads it."""
        return self.batch.read_namespaced_job(name, "default")

    def conditions(self, name: str) -> dict[str, str]:
        """The conditions of a Job that hold, with their reasons."""
        return {c.type: c.reason for c in self.job(name).status.conditions or [] if c.status == "True"}

    def finish(self, name: str) -> dict[str, str]:
        """Wait for the end of a Job; its conditions with their reasons."""
        return wait(lambda: {"Complete", "Failed"} & set(self.conditions(name)) and self.conditions(name))

    def pod(self, name: str) -> Any:
        """A pod as the client reads it."""
        return self.core.read_namespaced_pod(name, "default")

    def phase(self, name: str) -> str:
        """The phase of a pod."""
        return str(self.pod(name).status.phase)

    def state(self, name: str) -> Any:
        """The state of the only container of a pod."""
        return self.pod(name).status.container_statuses[0].state

    def running(self, job: str, num: int = 2) -> list[str]:
        """Names of the pods of a Job, by index, once so many run and have said something."""

        def ready() -> list[str]:
            pods = [p["metadata"]["name"] for p in self.cluster.pods(job) if p["status"]["phase"] == "Running"]
            return sorted(pods) if len(pods) == num and all(map(self.cluster.log, pods)) else []

        return wait(ready)

    def waiting(self, pod: str, reason: str) -> None:
        """Wait until the container waits for this reason."""

        def is_waiting() -> bool:
            statuses = self.pod(pod).status.container_statuses
            return bool(statuses and statuses[0].state.waiting and statuses[0].state.waiting.reason == reason)

        wait(is_waiting)
