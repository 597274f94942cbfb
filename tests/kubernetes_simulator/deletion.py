"""Deleting: grace periods of pods, finalizers, and what becomes of the objects that an object owns."""

from typing import Any

from .store import Key, Object, Store, key_of, now

FOREGROUND = "foregroundDeletion"


class Deletion:
    """The delete verb and the garbage collector."""

    def __init__(self, store: Store):
        """All state is in the store: finalizers and deletion times."""
        self._store = store

    def delete(self, key: Key, policy: str | None = None, grace: int | None = None) -> Object:
        """Delete as ``DELETE`` does. A Job's default is Orphan: batch/v1 really is so; kubectl asks for Background."""
        obj = self._store.objects[key]
        policy = policy or ("Orphan" if key.plural == "jobs" else "Background")
        if key.plural == "pods":
            return self._delete_pod(key, grace)
        if key.plural == "namespaces":
            for other in [k for k in self._store.objects if k.namespace == key.name and k.plural != "events"]:
                self.delete(other, "Background", 0)
        if policy == "Orphan":
            for dependent in self._dependents(obj):
                self._store.update(key_of(dependent), lambda o: _disown(o, obj))
        if policy == "Foreground" or obj["metadata"].get("finalizers"):
            finalizers = obj["metadata"].get("finalizers") or []
            added = [FOREGROUND] if policy == "Foreground" and FOREGROUND not in finalizers else []
            marks = {"deletionTimestamp": now(), "finalizers": finalizers + added}
            return self._store.update(key, lambda o: o["metadata"].update(marks)) or obj
        self._store.remove(key)
        details = {"name": key.name, "kind": key.plural, "uid": obj["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def collect_garbage(self) -> None:
        """One round: dependents of owners that are gone, and owners that wait for their dependents."""
        uids = {obj["metadata"]["uid"] for obj in self._store.objects.values()}
        for key, obj in list(self._store.objects.items()):
            metadata = obj["metadata"]
            owners = metadata.get("ownerReferences") or []
            if owners and not metadata.get("deletionTimestamp") and not any(o["uid"] in uids for o in owners):
                self.delete(key, "Background")
            if FOREGROUND in (metadata.get("finalizers") or []):
                dependents = self._dependents(obj)
                for dependent in dependents:
                    if not dependent["metadata"].get("deletionTimestamp"):
                        self.delete(key_of(dependent), "Background")
                if not dependents:
                    self.drop_finalizer(key, FOREGROUND)

    def drop_finalizer(self, key: Key, finalizer: str) -> None:
        """Let go of an object; a deleted one that nobody else holds is gone then."""

        def drop(obj: Any) -> None:
            obj["metadata"]["finalizers"] = [f for f in obj["metadata"].get("finalizers") or [] if f != finalizer]

        self._store.update(key, drop)

    def _delete_pod(self, key: Key, grace: int | None) -> Object:
        obj = self._store.objects[key]
        seconds = obj["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        marked = obj["metadata"].get("deletionGracePeriodSeconds")
        if marked is not None and marked <= seconds:  # a grace period can only become shorter
            return obj
        marks = {"deletionTimestamp": now(), "deletionGracePeriodSeconds": seconds}
        return self._store.update(key, lambda o: o["metadata"].update(marks)) or obj

    def _dependents(self, owner: Object) -> list[Object]:
        uid, objects = owner["metadata"]["uid"], self._store.objects.values()
        return [o for o in objects if any(r["uid"] == uid for r in o["metadata"].get("ownerReferences") or [])]


def _disown(obj: Object, owner: Object) -> None:
    references = obj["metadata"]["ownerReferences"]
    obj["metadata"]["ownerReferences"] = [r for r in references if r["uid"] != owner["metadata"]["uid"]]
