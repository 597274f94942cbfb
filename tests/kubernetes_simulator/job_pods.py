"""The pods of a Job: made from its template, judged by its podFailurePolicy."""

import copy
import secrets
from typing import Any

from .store import Key, Object, Store

TRACKING = "batch.kubernetes.io/job-tracking"  # the finalizer that keeps a pod until it was counted
_INDEX = "batch.kubernetes.io/job-completion-index"
_FAILURES = "batch.kubernetes.io/job-index-failure-count"
_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"


def create_pod(store: Store, job: Object, index: int | None, num_failures: int, num_ignored: int) -> Object:
    """Store a new pod with the names, labels and variables that the real controller gives it."""
    metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    name, uid, spec = metadata["name"], metadata["uid"], template["spec"]
    given = template.get("metadata") or {}
    labels, annotations = dict(given.get("labels") or {}), dict(given.get("annotations") or {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels |= {f"{prefix}controller-uid": uid, f"{prefix}job-name": name}
    if index is not None:
        labels[_INDEX] = annotations[_INDEX] = str(index)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            annotations[_FAILURES] = str(num_failures)
            if num_ignored:
                annotations[_IGNORED] = str(num_ignored)
        spec.setdefault("hostname", f"{name}-{index}")
        field = {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}
        for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
            container["env"] = [*(container.get("env") or []), {"name": "JOB_COMPLETION_INDEX", "valueFrom": field}]
    spec.setdefault("serviceAccountName", "default")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    owner |= {"controller": True, "blockOwnerDeletion": True}
    marks = {"labels": labels, "annotations": annotations, "ownerReferences": [owner], "finalizers": [TRACKING]}
    parts = [name, secrets.token_hex(3)[:5]] if index is None else [name, str(index), secrets.token_hex(3)[:5]]
    pod_name = "-".join(parts)
    store.event(job, "Normal", "SuccessfulCreate", f"Created pod: {pod_name}")
    key = Key("v1", "pods", metadata["namespace"], pod_name)
    return store.put(key, {"metadata": marks, "spec": spec, "status": {"phase": "Pending"}})


def index_of(pod: Object) -> int | None:
    """The completion index of a pod; None in a Job without indexes."""
    text = (pod["metadata"].get("annotations") or {}).get(_INDEX)
    return None if text is None else int(text)


def matching_rule(spec: Any, pod: Object) -> tuple[str, str]:
    """The action of the first rule of the podFailurePolicy that matches a failed pod, and the sentence about it."""
    status, metadata = pod["status"], pod["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    containers = (status.get("containerStatuses") or []) + (status.get("initContainerStatuses") or [])
    codes = {c["name"]: c["state"]["terminated"]["exitCode"] for c in containers if "terminated" in c["state"]}
    for i, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules") or []):
        ending = f"matching {rule['action']} rule at index {i}"
        if wanted := rule.get("onExitCodes"):
            for container, code in codes.items():
                named = wanted.get("containerName") in (None, container)
                if code and named and (code in wanted["values"]) == (wanted["operator"] == "In"):
                    return rule["action"], f"Container {container} for pod {name} failed with exit code {code} {ending}"
        for pattern in rule.get("onPodConditions") or []:
            found = [c for c in status.get("conditions") or [] if c["type"] == pattern["type"]]
            if any(c["status"] == pattern.get("status", "True") for c in found):
                return rule["action"], f"Pod {name} has condition {pattern['type']} {ending}"
    return "Count", ""
