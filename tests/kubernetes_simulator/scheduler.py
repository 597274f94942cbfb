"""Which node a pod goes to, and the sentence the real scheduler says when there is none.

Looks at cpu, memory, extended resources such as nvidia.com/gpu, nodeSelector, taints, cordons and missing claims. Left
out: affinity, topology spread, priorities, scores (the first node that fits is taken).
"""

import json
from collections import Counter
from typing import Any, NamedTuple

from .selectors import quantity
from .store import TERMINAL_PHASES, Key, Object, Store

GPU = "nvidia.com/gpu"
GPUS_ANNOTATION = "simulator/gpus"


class Placement(NamedTuple):
    """Where a pod goes and the numbers of its GPUs there."""

    node: str
    gpus: list[int]


def place(store: Store, pod: Object) -> Placement | str:
    """A node with room and the numbers of its free GPUs, or why there is none."""
    nodes = store.select("v1", "nodes")
    if missing := _missing_claim(store, pod):
        return _unschedulable(len(nodes), [f'persistentvolumeclaim "{missing}" not found'], may_preempt=False)
    reasons: Counter[str] = Counter()
    num_full = 0
    for node in nodes:
        refusals = _refusals(pod, node)
        if not refusals:
            refusals = _shortages(store, pod, node)
            num_full += bool(refusals)
        if not refusals:
            name, num_gpus = node["metadata"]["name"], int(needs(pod).get(GPU, 0))
            return Placement(name, _free_gpus(store, node)[:num_gpus])
        reasons.update(refusals)
    texts = sorted(f"{count} {reason}" for reason, count in reasons.items())
    return _unschedulable(len(nodes), texts, may_preempt=num_full == len(nodes))


def needs(pod: Object) -> Counter[str]:
    """What the pod's containers request together (an init container counts where it wants more)."""
    total: Counter[str] = Counter()
    for container in pod["spec"]["containers"]:
        total.update(_requests(container))
    for container in pod["spec"].get("initContainers") or []:
        total |= Counter(_requests(container))
    return total


def _requests(container: Any) -> dict[str, float]:
    resources = container.get("resources") or {}
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(value) for name, value in wanted.items()}


def _missing_claim(store: Store, pod: Object) -> str | None:
    for volume in pod["spec"].get("volumes") or []:
        if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
            key = Key("v1", "persistentvolumeclaims", pod["metadata"]["namespace"], claim)
            if key not in store.objects:
                return str(claim)
    return None


def _refusals(pod: Object, node: Object) -> list[str]:
    """Why this node is out of the question, however empty it is: the first reason, as the real filters stop there."""
    spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
    if spec.get("unschedulable"):
        return ["node(s) were unschedulable"]
    for taint in spec.get("taints") or []:
        tolerated = any(_tolerates(t, taint) for t in pod["spec"].get("tolerations") or [])
        if taint["effect"] != "PreferNoSchedule" and not tolerated:
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    named = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in named.items()):
        return ["node(s) didn't match Pod's node affinity/selector"]
    return []


def _tolerates(toleration: Any, taint: Any) -> bool:
    same_key = toleration.get("key") in (None, "", taint["key"])
    same_effect = toleration.get("effect") in (None, "", taint["effect"])
    exists = toleration.get("operator") == "Exists"
    return same_key and same_effect and (exists or toleration.get("value", "") == taint.get("value", ""))


def _on(store: Store, node: Object) -> list[Object]:
    name = node["metadata"]["name"]
    pods = [p for p in store.pods() if p["spec"].get("nodeName") == name]
    return [p for p in pods if p["status"].get("phase") not in TERMINAL_PHASES]


def _shortages(store: Store, pod: Object, node: Object) -> list[str]:
    used: Counter[str] = Counter()
    for other in _on(store, node):
        used.update(needs(other))
    capacity = node["status"]["allocatable"]
    lacking = [n for n, amount in needs(pod).items() if used[n] + amount > quantity(capacity.get(n, 0)) + 1e-9]
    return [f"Insufficient {name}" for name in lacking if name != "ephemeral-storage"]


def _free_gpus(store: Store, node: Object) -> list[int]:
    marks = [(p["metadata"].get("annotations") or {}).get(GPUS_ANNOTATION, "[]") for p in _on(store, node)]
    taken = {gpu for mark in marks for gpu in json.loads(mark)}
    return [gpu for gpu in range(int(node["status"]["allocatable"].get(GPU, 0))) if gpu not in taken]


def _unschedulable(num_nodes: int, reasons: list[str], may_preempt: bool) -> str:
    help_ = (
        "No preemption victims found for incoming pod" if may_preempt else "Preemption is not helpful for scheduling"
    )
    head = f"0/{num_nodes} nodes are available"
    return f"{head}: {', '.join(reasons)}. preemption: {head}: {num_nodes} {help_}."
