"""A whole cluster for the length of a ``with`` block: HTTPS server, controllers and containers in a thread."""

import asyncio
import base64
import contextlib
import copy
import itertools
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from .access import Users
from .api import Api, Request, merge
from .containers import can_isolate, remove_leftovers
from .deletion import Deletion
from .environment import Volumes
from .faults import Faults
from .jobs import JobController
from .kubelet import Kubelet
from .server import Server
from .store import RESOURCES, Change, Key, Object, Store, key_of, set_condition

_SHARED_MEMORY = Path("/dev/shm")  # an overlay needs its upper folder on another file system than the lower one
_PREFIX = "kubernetes-simulator-"
_NODES: dict[str, Mapping[str, Any]] = {"node-a": {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 2}}
_NODES["node-b"] = dict(_NODES["node-a"])


class Cluster:
    """``with Cluster() as cluster``: everything below may be called from any thread while the block lasts.

    Args:
        nodes: Capacity by node name; the keys ``labels`` and ``taints`` are no capacity.
        isolate: Containers with own file systems and host names (root only); None where this machine can.
        images: Folder put first on PATH by pattern of image names; None where it cannot be pulled. Every image is this
            Python's environment unless told otherwise.
        backoff: Seconds before a failed pod, container or pull is tried again; doubles each time (really 10).
        environment: Variables baked into every image.
    """

    can_isolate = staticmethod(can_isolate)

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, Any]] | None = None,
        isolate: bool | None = None,
        images: Mapping[str, Path | None] | None = None,
        backoff: float = 0.1,
        environment: Mapping[str, str] | None = None,
    ):
        """Keep the settings; everything starts with the block."""
        self._nodes, self._isolate, self._backoff = nodes or _NODES, isolate, backoff
        self._images, self._environment = images, environment
        self._cleanup = contextlib.AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubernetes simulator", daemon=True)

    def __enter__(self) -> Self:
        """Start the server and the controllers."""
        self._thread.start()
        try:
            self._await(self._start())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        """Kill every container and close every connection."""
        try:
            self._await(self._cleanup.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    # What a test gives to the code it tests.

    def kubeconfig(self, service_account: str | None = None, namespace: str = "default") -> Path:
        """A kubeconfig file of the administrator, or of a service account (whose roles then hold)."""
        token = self._users.admin_token
        if service_account:
            token = self._call(lambda: self._users.token(namespace, service_account))
        ca = base64.b64encode(self.ca.read_bytes()).decode()
        context = {"cluster": "simulator", "user": "user", "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "simulator",
            "clusters": [{"name": "simulator", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "simulator", "context": context}],
        }
        file = self._base / f"kubeconfig-{secrets.token_hex(4)}"
        file.write_text(json.dumps(content))
        return file

    def volume(self, claim: str, folder: Path, namespace: str = "default") -> None:
        """Bind a claim of this name to a local folder; the claim is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        size = {"requests": {"storage": "1Gi"}}
        manifest = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}}
        manifest |= {"spec": {"accessModes": ["ReadWriteMany"], "resources": size}}
        self._volumes.claims[claim] = folder
        self.apply([manifest], namespace)

    def apply(self, manifests: Sequence[Mapping[str, Any]] | Path, namespace: str = "default") -> None:
        """Create or change objects as the administrator: manifests, or a YAML file of them."""
        if isinstance(manifests, Path):
            manifests = [m for m in yaml.safe_load_all(manifests.read_text()) if m]
        for manifest in manifests:
            self._call(partial(self._apply, dict(manifest), namespace))

    # What a test looks at.

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order of their answers."""
        return list(self._api.requests)

    def objects(self, kind: str, namespace: str | None = None) -> list[Object]:
        """Copies of all objects of a kind such as ``Job``; in all namespaces unless one is named."""
        places = {k: (gv, plural) for gv, plurals in RESOURCES.items() for plural, (k, _) in plurals.items()}
        return self._call(lambda: copy.deepcopy(self._store.select(*places[kind], namespace)))

    @property
    def events(self) -> list[Object]:
        """All events of all namespaces."""
        return self.objects("Event")

    def pods(self, job: str) -> list[Object]:
        """The pods of a Job that exist, oldest first."""
        pods = self.objects("Pod")
        return [p for p in pods if (p["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-name") == job]

    def log(self, pod: str, container: str | None = None) -> str:
        """All that a container (the first one) ever wrote; also of pods that are gone."""
        logs = self._call(lambda: self._kubelet.logs(self._kubelet.last_uid(pod)))
        runs = logs[container or next(iter(logs))] if logs else []
        return "".join(line.decode(errors="replace") + "\n" for log in runs for _, line in log.lines)

    # What happens to clusters.

    def evict(self, pod: str, by_kubelet: bool = False) -> None:
        """By the eviction API (a drain), or because the node is short of memory."""
        if by_kubelet:
            message = "The node was low on resource: memory."
            self._call(lambda: self._kubelet.evict(self._uid(pod), message))
        else:
            self._call(lambda: self._api.evict(self._pod(pod)))

    def preempt(self, pod: str) -> None:
        """A pod of higher priority takes its place."""
        message = "default-scheduler: preempting to accommodate a higher priority pod"
        self._call(lambda: self._api.disrupt(self._pod(pod), "PreemptionByScheduler", message))

    def lose_node(self, node: str) -> None:
        """The node is gone: its processes end at once, its pods are deleted by the taint manager."""
        self._call(lambda: self._lose_node(node))

    def kill(self, pod: str, exit_code: int = 137, oom: bool = True) -> None:
        """SIGKILL to all processes of a pod; its status says OOMKilled, or Error with the given code."""
        reason = "OOMKilled" if oom else None
        self._call(lambda: self._kubelet.kill(self._uid(pod), reason, exit_code))

    def forget_history(self) -> None:
        """Watches from any version so far get a 410, as after a compaction."""
        self._call(self._store.forget_history)

    def set_image(self, pattern: str, folder: Path | None) -> None:
        """From now on images of these names are this folder; None: they cannot be pulled."""
        self._call(lambda: self._kubelet.images.update({pattern: folder}))

    # Behind it.

    def _call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return self._await(run())

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _pod(self, name: str) -> Key:
        return next(key for key in self._store.objects if key.plural == "pods" and key.name == name)

    def _uid(self, pod: str) -> str:
        return str(self._store.objects[self._pod(pod)]["metadata"]["uid"])

    def _apply(self, manifest: Object, namespace: str) -> None:
        kinds = {kind: (plural, namespaced) for plural, (kind, namespaced) in RESOURCES[manifest["apiVersion"]].items()}
        plural, is_namespaced = kinds[manifest["kind"]]
        place = manifest["metadata"].get("namespace", namespace) if is_namespaced else None
        key = Key(manifest["apiVersion"], plural, place, manifest["metadata"]["name"])
        if key in self._store.objects:
            self._store.update(key, lambda obj: obj.update(merge(obj, manifest)))
        else:
            self._api.create(manifest["apiVersion"], plural, place, manifest)

    def _lose_node(self, name: str) -> None:
        def lost(node: Object) -> None:
            taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "value": ""}
            node.setdefault("spec", {})["taints"] = [*(node["spec"].get("taints") or []), taint]
            set_condition(node, "Ready", "Unknown", reason="NodeStatusUnknown")

        self._store.update(Key("v1", "nodes", None, name), lost)
        for pod in self._store.pods():
            if pod["spec"].get("nodeName") == name and pod["status"]["phase"] in ("Pending", "Running"):
                message = "Taint manager: deleting due to NoExecute taint"
                self._api.disrupt(key_of(pod), "DeletionByTaintManager", message, grace=0)

    async def _start(self) -> None:
        self._base = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_SHARED_MEMORY))
        self._cleanup.callback(shutil.rmtree, self._base, ignore_errors=True)
        remove_leftovers(_SHARED_MEMORY.glob(f"{_PREFIX}*"))
        self._store, self.faults = Store(), Faults()
        self._users, self._deletion = Users(self._store), Deletion(self._store)
        self.ca = self._base / "ca.crt"
        self._volumes = Volumes(self._store, self._base, self._users.token, self.ca)
        isolate = can_isolate() if self._isolate is None else self._isolate
        self._kubelet = Kubelet(self._store, self._volumes, self._base / "pods", isolate, self._backoff)
        self._kubelet.images.update(self._images or {"*": Path(sys.executable).parent})
        self._cleanup.push_async_callback(self._kubelet.stop)
        self._api = Api(self._store, self._users, self._deletion, self._kubelet, self.faults)
        self._jobs = JobController(self._store, self._deletion, self._backoff)
        self._store.listeners.append(self._on_change)
        self._fill()
        self._cleanup.callback(asyncio.create_task(self._control()).cancel)
        server = Server(self._api.handle, self._base)
        await server.start()
        self._cleanup.push_async_callback(server.stop)
        self.faults.close_port = lambda seconds: self._await(server.close_for(seconds))
        self.url = f"https://127.0.0.1:{server.port}"
        own = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        self._kubelet.baked = own | dict(self._environment or {})

    def _fill(self) -> None:
        for namespace in ("default", "kube-system"):
            self._store.put(Key("v1", "namespaces", None, namespace), {"status": {"phase": "Active"}})
        for name, given in self._nodes.items():
            capacity = {k: str(v) for k, v in given.items() if k not in ("labels", "taints")}
            status = {"capacity": capacity, "allocatable": {"cpu": "1000", "memory": "1Ti", **capacity}}
            node: Object = {"metadata": {"labels": {"kubernetes.io/hostname": name, **given.get("labels", {})}}}
            node |= {"spec": {"taints": list(given.get("taints", []))}, "status": status}
            set_condition(node, "Ready", reason="KubeletReady")
            self._store.put(Key("v1", "nodes", None, name), node)

    def _on_change(self, change: Change) -> None:
        """The small controllers: every namespace has an account named default, every claim is bound."""
        if change.kind == "ADDED" and change.key.plural == "namespaces":
            self._store.put(Key("v1", "serviceaccounts", change.key.name, "default"), {})
        if change.kind == "ADDED" and change.key.plural == "persistentvolumeclaims":
            self._store.update(change.key, lambda claim: claim.update(status={"phase": "Bound"}))

    async def _control(self) -> None:
        for number in itertools.count():
            self._jobs.reconcile_all()
            if number % 30 == 0:  # a second behind, as in a cluster
                self._deletion.collect_garbage()
            await asyncio.sleep(0.03)
