"""A pod as its kubelet holds it: the stored object, what was prepared for it, what runs."""

import asyncio
import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .containers import Container
from .environment import Mount
from .store import Key, Object, Store, set_condition

_STATUSES = {"initContainerStatuses": "initContainers", "containerStatuses": "containers"}


class Stopped(Exception):
    """The pod is to end while it waits for something."""


@dataclass
class Pod:
    """Reads and writes its object in the store; everything else is the kubelet's own memory."""

    store: Store
    key: Key
    folder: Path
    gpus: list[int] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    volumes: dict[str, Path] = field(default_factory=dict)
    running: dict[str, Container] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    ended_by: dict[str, str] = field(default_factory=dict)  # status of a pod that the kubelet itself evicts

    @property
    def object(self) -> Object:
        """The pod as it is stored now."""
        return self.store.objects[self.key]

    @property
    def spec(self) -> Any:
        """Its spec as it is stored now."""
        return self.object["spec"]

    @property
    def containers(self) -> list[Any]:
        """Specs of init containers and containers, in the order they start in."""
        return [*(self.spec.get("initContainers") or []), *self.spec["containers"]]

    def update(self, change: Callable[[Object], Any]) -> None:
        """Change the stored object."""
        self.store.update(self.key, change)

    def event(self, kind: str, reason: str, message: str) -> None:
        """Say something about the pod."""
        self.store.event(self.object, kind, reason, message)

    def set_conditions(self, *kinds: str, status: str = "True", **more: str) -> None:
        """Set conditions at once."""

        def write(obj: Object) -> None:
            for kind in kinds:
                set_condition(obj, kind, status, **more)

        self.update(write)

    def announce(self) -> None:
        """Every container is waiting, as after the pod was bound to its node."""

        def write(obj: Object) -> None:
            for statuses, containers in _STATUSES.items():
                if specs := obj["spec"].get(containers):
                    obj["status"][statuses] = [_waiting(container) for container in specs]

        self.update(write)

    def state(self, container: str) -> Object:
        """The state of a container: its only key is waiting, running or terminated."""
        status = self.object["status"]
        statuses = [entry for name in _STATUSES for entry in status.get(name) or []]
        return copy.deepcopy(next(entry["state"] for entry in statuses if entry["name"] == container))

    def set_state(self, container: str, restarts: int | None = None, last: Any = None, **state: Any) -> None:
        """Write the state of a container, given as one keyword: waiting, running or terminated."""

        def write(obj: Object) -> None:
            for status in [entry for name in _STATUSES for entry in obj["status"].get(name) or []]:
                if status["name"] == container:
                    status |= {"state": state, "ready": "running" in state, "started": "running" in state}
                    status |= {"restartCount": restarts} if restarts is not None else {}
                    status |= {"lastState": last} if last else {}

        self.update(write)

    async def pause(self, seconds: float) -> None:
        """Wait, or raise `Stopped` as soon as the pod is to end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
            raise Stopped


def _waiting(container: Any) -> Object:
    status = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    return status | {"state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}}
