"""The kubelets of all nodes: they take a pod from Pending to its end by running its containers.

Left out: probes, lifecycle hooks, runAsUser and the rest of the security context, sidecars, entry points of images.
"""

import asyncio
import contextlib
import fnmatch
import ipaddress
import json
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .containers import Container, Log
from .environment import ConfigError, Mount, Volumes, expand, variables
from .names import hostname, write_hosts
from .pods import Pod, Stopped
from .scheduler import GPU, GPUS_ANNOTATION, Placement, place
from .selectors import quantity
from .store import TERMINAL_PHASES, Change, Object, Store, now

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_BACKOFF = 300.0


class Kubelet:
    """Runs every pod that appears in the store and ends every pod that is marked as deleted."""

    def __init__(self, store: Store, volumes: Volumes, folder: Path, isolate: bool, backoff: float):
        """``folder`` holds what belongs to a pod, by uid; ``backoff`` seconds pass before something is tried again."""
        self._store, self._volumes, self._folder = store, volumes, folder
        self._isolate, self._backoff = isolate, backoff
        self.images: dict[str, Path | None] = {}  # pattern of names -> folder put first on PATH; None: cannot be pulled
        self.baked: Mapping[str, str] = {}  # variables of every image
        self._pods: dict[str, Pod] = {}
        self._logs: dict[str, dict[str, list[Log]]] = {}  # by uid of pod and container: a log per run
        self._next_address = ipaddress.ip_address("127.1.0.2")
        store.listeners.append(self._on_change)

    def logs(self, uid: str) -> dict[str, list[Log]]:
        """By container, a log for each time it ran; also of pods that are gone."""
        return self._logs[uid]

    def last_uid(self, name: str) -> str:
        """The newest pod of this name, which may be gone."""
        return next(uid for uid, pod in reversed(self._pods.items()) if pod.key.name == name)

    def kill(self, uid: str, reason: str | None, exit_code: int) -> None:
        """SIGKILL to every process of a pod; reason and code are what its status will say."""
        if not self._pods[uid].running:
            raise LookupError(f"no container of pod {self._pods[uid].key.name} runs")
        for container in self._pods[uid].running.values():
            container.reason, container.exit_code = reason, exit_code
            container.signal(signal.SIGKILL)

    def evict(self, uid: str, message: str) -> None:
        """The node is short of something: the pod ends as Failed but stays, as with a real node-pressure eviction."""
        pod = self._pods[uid]
        pod.set_conditions("DisruptionTarget", reason="TerminationByKubelet", message=message)
        pod.ended_by = {"phase": "Failed", "reason": "Evicted", "message": message}
        pod.tasks.append(asyncio.create_task(self._terminate(pod, 0)))

    async def stop(self) -> None:
        """End every process."""
        for pod in self._pods.values():
            pod.stopping.set()
            for container in pod.running.values():
                container.signal(signal.SIGKILL)
        if tasks := [task for pod in self._pods.values() for task in pod.tasks]:
            _, late = await asyncio.wait(tasks, timeout=5)
            for task in late:
                task.cancel()

    def _on_change(self, change: Change) -> None:
        obj, key = change.object, change.key
        uid = obj["metadata"]["uid"]
        if key.plural == "services" or (key.plural == "pods" and change.kind == "DELETED"):
            write_hosts(self._store, key.namespace, self._folder)
        elif key.plural == "pods" and change.kind == "ADDED":
            pod = self._pods[uid] = Pod(self._store, key, self._folder / uid)
            self._logs[uid] = {}
            pod.tasks.append(asyncio.create_task(self._run(pod)))
        elif key.plural == "pods" and obj["metadata"].get("deletionTimestamp"):
            pod, seconds = self._pods[uid], obj["metadata"]["deletionGracePeriodSeconds"]
            if obj["status"].get("phase") not in TERMINAL_PHASES and (not pod.stopping.is_set() or seconds == 0):
                pod.tasks.append(asyncio.create_task(self._terminate(pod, seconds)))

    async def _terminate(self, pod: Pod, grace: float) -> None:
        """SIGTERM, the grace period, SIGKILL."""
        pod.stopping.set()
        deadline = time.monotonic() + grace
        for container in list(pod.running.values()):
            container.signal(signal.SIGTERM if grace else signal.SIGKILL)
        while pod.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        while pod.running:
            for container in list(pod.running.values()):
                container.signal(signal.SIGKILL)
            await asyncio.sleep(0.02)

    async def _run(self, pod: Pod) -> None:
        phase = "Failed"
        try:
            await self._schedule(pod)
            await self._pull(pod)
            await self._prepare(pod)
            phase = await self._run_containers(pod)
        except Stopped:
            pass
        finally:
            pod.set_conditions("Ready", "ContainersReady", status="False", reason=f"Pod{phase}")
            pod.update(lambda obj: obj["status"].update({"phase": phase, **pod.ended_by}))
            write_hosts(self._store, pod.key.namespace, self._folder)
            shutil.rmtree(pod.folder, ignore_errors=True)

    async def _schedule(self, pod: Pod) -> None:
        said = ""
        while pod.spec.get("schedulingGates"):
            if not said:
                said = "Scheduling is blocked due to non-empty scheduling gates"
                pod.set_conditions("PodScheduled", status="False", reason="SchedulingGated", message=said)
            await pod.pause(0.02)
        while isinstance(placement := self._place(pod), str):
            if placement != said:
                said = placement
                pod.event("Warning", "FailedScheduling", said)
                pod.set_conditions("PodScheduled", status="False", reason="Unschedulable", message=said)
            await pod.pause(0.05)
        address, pod.gpus = str(self._next_address), placement.gpus
        self._next_address += 1

        def write(obj: Object) -> None:
            obj["spec"]["nodeName"] = placement.node
            obj["metadata"].setdefault("annotations", {})[GPUS_ANNOTATION] = json.dumps(placement.gpus)
            obj["status"] |= {"hostIP": "127.0.0.1", "podIP": address, "podIPs": [{"ip": address}], "startTime": now()}

        pod.update(write)
        pod.announce()
        pod.set_conditions("PodScheduled")
        place_name = f"{pod.key.namespace}/{pod.key.name}"
        pod.event("Normal", "Scheduled", f"Successfully assigned {place_name} to {placement.node}")
        pod.folder.mkdir(parents=True)
        (pod.folder / "hosts").touch()
        write_hosts(self._store, pod.key.namespace, self._folder)

    def _place(self, pod: Pod) -> Placement | str:
        if node := pod.spec.get("nodeName"):  # a pod made with a node passes the scheduler by
            return Placement(node, [])
        return place(self._store, pod.object)

    async def _pull(self, pod: Pod) -> None:
        for container in pod.containers:
            attempt, image = 0, container["image"]
            while self._image(image) is None:
                problem, backing_off = f'Failed to pull image "{image}": not found', f'Back-off pulling image "{image}"'
                pod.set_state(container["name"], waiting={"reason": "ErrImagePull", "message": problem})
                pod.event("Warning", "Failed", problem)
                pod.event("Warning", "Failed", "Error: ErrImagePull")
                await pod.pause(0.1)
                pod.set_state(container["name"], waiting={"reason": "ImagePullBackOff", "message": backing_off})
                pod.event("Normal", "BackOff", backing_off)
                attempt += 1
                await pod.pause(min(self._backoff * 2**attempt, _LONGEST_BACKOFF))

    def _image(self, name: str) -> Path | None:
        matching = [pattern for pattern in self.images if fnmatch.fnmatch(name, pattern)]
        return self.images[max(matching, key=len)] if matching else None

    async def _prepare(self, pod: Pod) -> None:
        """Volumes, and a look at what the containers will need; again until all of it exists."""
        said = ""
        while True:
            try:
                pod.volumes = self._volumes.prepare(pod.object, pod.folder)
                pod.mounts = self._volumes.service_account(pod.object, pod.folder)
                for container in pod.containers:
                    self._variables(pod, container)
                    self._check_plain(pod, container)
                return
            except ConfigError as error:
                problem = str(error)
            for container in pod.containers:
                pod.set_state(container["name"], waiting={"reason": "CreateContainerConfigError", "message": problem})
            if problem != said:
                said = problem
                pod.event("Warning", "Failed", f"Error: {problem}")
            await pod.pause(0.2)

    def _check_plain(self, pod: Pod, container: Any) -> None:
        """Without isolation nothing can be mounted: a folder must lie where the container looks for it."""
        if self._isolate:
            return
        empty = {volume["name"] for volume in pod.spec.get("volumes") or [] if "emptyDir" in volume}
        named = [m["name"] for m in container.get("volumeMounts") or []]
        for name, mount in zip(named, self._volumes.mounts(container, pod.volumes), strict=True):
            if name not in empty and Path(mount.target).resolve() != mount.source.resolve():
                raise ConfigError(f"a container without isolation cannot see {mount.source} as {mount.target}")

    def _variables(self, pod: Pod, container: Any) -> dict[str, str]:
        base = {"PATH": f"{self._image(container['image'])}:{_PATH}", "HOSTNAME": hostname(pod.object), **self.baked}
        base["HOME"] = "/root" if self._isolate else str(pod.folder)
        if num_gpus := _num_gpus(container):  # the GPUs of a pod go to its containers in their order
            names = [other["name"] for other in pod.spec["containers"]]
            before = pod.spec["containers"][: names.index(container["name"])] if container["name"] in names else []
            first = sum(_num_gpus(other) for other in before)
            numbers = ",".join(map(str, pod.gpus[first : first + num_gpus]))
            base |= {"NVIDIA_VISIBLE_DEVICES": numbers, "CUDA_VISIBLE_DEVICES": numbers}
        return variables(self._store, pod.object, container, base)

    async def _run_containers(self, pod: Pod) -> str:
        for container in pod.spec.get("initContainers") or []:
            if await self._run_container(pod, container):
                return "Failed"
        pod.update(lambda obj: obj["status"].update(phase="Running"))
        pod.set_conditions("Initialized", "ContainersReady", "Ready")
        write_hosts(self._store, pod.key.namespace, self._folder)
        if seconds := pod.spec.get("activeDeadlineSeconds"):
            pod.tasks.append(asyncio.create_task(self._end_after(pod, seconds)))
        codes = await asyncio.gather(*(self._run_container(pod, c) for c in pod.spec["containers"]))
        return "Failed" if any(codes) else "Succeeded"

    async def _end_after(self, pod: Pod, seconds: float) -> None:
        """The pod's activeDeadlineSeconds, counted here from the start of its containers."""
        with contextlib.suppress(Stopped):
            await pod.pause(seconds)
            if pod.running:
                message = "Pod was active on the node longer than the specified deadline"
                pod.ended_by = {"phase": "Failed", "reason": "DeadlineExceeded", "message": message}
                await self._terminate(pod, pod.spec.get("terminationGracePeriodSeconds", 30))

    async def _run_container(self, pod: Pod, container: Any) -> int:
        """Run one container, again where the restart policy says so; its last exit code."""
        policy, num_restarts = pod.spec.get("restartPolicy", "Always"), 0
        while True:
            code = await self._run_once(pod, container)
            is_done = code == 0 and (policy != "Always" or container in (pod.spec.get("initContainers") or []))
            if is_done or policy == "Never" or pod.stopping.is_set():
                return code
            num_restarts += 1
            waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
            last = pod.state(container["name"])
            pod.set_state(container["name"], waiting=waiting, restarts=num_restarts, last=last)
            await pod.pause(min(self._backoff * 2 ** (num_restarts - 1), _LONGEST_BACKOFF))

    async def _run_once(self, pod: Pod, container: Any) -> int:
        name, environment, log = container["name"], self._variables(pod, container), Log()
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        argv = [expand(word, environment) for word in words]
        self._logs[pod.object["metadata"]["uid"]].setdefault(name, []).append(log)
        started = now()
        if not argv or ("/" not in argv[0] and not shutil.which(argv[0], path=environment["PATH"])):
            log.closed = True
            problem = f'exec: "{argv[0] if argv else ""}": executable file not found in $PATH'
            pod.set_state(name, terminated={"exitCode": 128, "reason": "StartError", "message": problem})
            return 128
        mounts = [*self._volumes.mounts(container, pod.volumes), *pod.mounts]
        mounts.append(Mount(pod.folder / "hosts", "/etc/hosts", False))
        running = pod.running[name] = Container(argv, environment, log, container.get("workingDir"))
        pod.set_state(name, running={"startedAt": started})
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        memory = int(quantity(limit)) if limit else None
        try:
            code = await running.run(pod.folder, hostname(pod.object), mounts, self._isolate, memory)
        finally:
            del pod.running[name]
        reason = running.reason or ("Error" if code else "Completed")
        ended = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        pod.set_state(name, terminated=ended)
        return code


def _num_gpus(container: Any) -> int:
    return int(quantity(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0)))
