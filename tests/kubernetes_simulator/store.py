"""The cluster's memory: objects by key, a resource version per change, and the stream of changes that watches read."""

import asyncio
import copy
import datetime
import secrets
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

Object = dict[str, Any]

RESOURCES: dict[str, dict[str, tuple[str, bool]]] = {  # group version -> plural -> (kind, whether it is namespaced)
    "v1": {
        "pods": ("Pod", True),
        "services": ("Service", True),
        "configmaps": ("ConfigMap", True),
        "secrets": ("Secret", True),
        "events": ("Event", True),
        "persistentvolumeclaims": ("PersistentVolumeClaim", True),
        "resourcequotas": ("ResourceQuota", True),
        "serviceaccounts": ("ServiceAccount", True),
        "namespaces": ("Namespace", False),
        "nodes": ("Node", False),
    },
    "batch/v1": {"jobs": ("Job", True), "cronjobs": ("CronJob", True)},
    "apps/v1": {"deployments": ("Deployment", True), "statefulsets": ("StatefulSet", True)},
    "rbac.authorization.k8s.io/v1": {
        "roles": ("Role", True),
        "rolebindings": ("RoleBinding", True),
        "clusterroles": ("ClusterRole", False),
        "clusterrolebindings": ("ClusterRoleBinding", False),
    },
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": ("SelfSubjectAccessReview", False)},
    "scheduling.k8s.io/v1": {"priorityclasses": ("PriorityClass", False)},
}
TERMINAL_PHASES = ("Succeeded", "Failed")


class Key(NamedTuple):
    """Where an object is found."""

    group_version: str
    plural: str
    namespace: str | None
    name: str


class Change(NamedTuple):
    """One entry of the history; ``object`` is a copy."""

    version: int
    kind: str  # ADDED, MODIFIED or DELETED
    key: Key
    object: Object


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key_of(obj: Object) -> Key:
    plurals = {kind: (plural, namespaced) for plural, (kind, namespaced) in RESOURCES[obj["apiVersion"]].items()}
    plural, namespaced = plurals[obj["kind"]]
    metadata = obj["metadata"]
    return Key(obj["apiVersion"], plural, metadata["namespace"] if namespaced else None, metadata["name"])


def condition(obj: Object, kind: str) -> Object | None:
    """The condition of this type that holds."""
    conditions = obj.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def set_condition(obj: Object, kind: str, status: str = "True", **more: str) -> None:
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    entry = {"type": kind, "status": status, "lastProbeTime": now(), "lastTransitionTime": now(), **more}
    conditions[:] = [c for c in conditions if c["type"] != kind] + [entry]


class Store:
    """All objects. Whoever wants to act on changes appends to ``listeners``; watches read ``watchers`` queues."""

    def __init__(self, history: int = 5000):
        """Changes older than the last ``history`` are forgotten."""
        self.objects: dict[Key, Object] = {}
        self.version = 1000
        self.forgotten = 0  # changes up to this version can no longer be watched
        self.history: deque[Change] = deque()
        self.listeners: list[Callable[[Change], None]] = []
        self.watchers: set[asyncio.Queue[Change]] = set()
        self._max_history = history

    def put(self, key: Key, obj: Object) -> Object:
        """Write an object as it is given; name, uid, times and version are the store's."""
        old = self.objects.get(key)
        obj = copy.deepcopy(obj)
        obj["apiVersion"], obj["kind"] = key.group_version, RESOURCES[key.group_version][key.plural][0]
        metadata = obj.setdefault("metadata", {})
        metadata["name"] = key.name
        if key.namespace:
            metadata["namespace"] = key.namespace
        metadata["uid"] = old["metadata"]["uid"] if old else str(uuid.uuid4())
        metadata["creationTimestamp"] = old["metadata"]["creationTimestamp"] if old else now()
        self.objects[key] = obj
        self._record("MODIFIED" if old else "ADDED", key, obj)
        if _is_gone(obj):
            self.remove(key)
        return obj

    def update(self, key: Key, change: Callable[[Object], Any]) -> Object | None:
        """Change an object in place; nothing is recorded where nothing changed or the object is gone."""
        if (old := self.objects.get(key)) is None:
            return None
        obj = copy.deepcopy(old)
        change(obj)
        return old if obj == old else self.put(key, obj)

    def remove(self, key: Key) -> None:
        """Take an object out, whoever holds it."""
        if obj := self.objects.pop(key, None):
            self._record("DELETED", key, obj)

    def select(self, group_version: str, plural: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind; all namespaces where none is named. Read only."""
        wanted = (group_version, plural)
        found = [key for key in self.objects if key[:2] == wanted and namespace in (None, key.namespace)]
        return [self.objects[key] for key in found]

    def pods(self, namespace: str | None = None) -> list[Object]:
        """All pods."""
        return self.select("v1", "pods", namespace)

    def since(self, version: int) -> list[Change]:
        """What changed after a version."""
        return [change for change in self.history if change.version > version]

    def forget_history(self) -> None:
        """As etcd's compaction: what happened until now can no longer be watched."""
        self.history.clear()
        self.forgotten = self.version

    def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """Write an Event (``kind``: Normal or Warning)."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        involved = {"kind": about["kind"], "name": metadata["name"], "namespace": namespace, "uid": metadata["uid"]}
        body = {"involvedObject": involved, "type": kind, "reason": reason, "message": message, "count": 1}
        body |= {"firstTimestamp": now(), "lastTimestamp": now(), "source": {"component": "simulator"}}
        self.put(Key("v1", "events", namespace, f"{metadata['name']}.{secrets.token_hex(8)}"), body)

    def _record(self, kind: str, key: Key, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, kind, key, copy.deepcopy(obj))
        self.history.append(change)
        while len(self.history) > self._max_history:
            self.forgotten = self.history.popleft().version
        for queue in self.watchers:
            queue.put_nowait(change)
        for listener in self.listeners:
            listener(change)


def _is_gone(obj: Object) -> bool:
    """Deleted, nobody holds it by a finalizer, and, for a pod, its processes have ended."""
    metadata = obj["metadata"]
    ended = obj["kind"] != "Pod" or obj.get("status", {}).get("phase") in TERMINAL_PHASES
    return bool(metadata.get("deletionTimestamp")) and not metadata.get("finalizers") and ended
