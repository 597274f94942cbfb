"""Which task goes to which device, and when: each takes a share of one device, the longest come first."""

import heapq
from collections.abc import Sequence
from fractions import Fraction


class Placement:
    """Tasks waiting for a place, and the shares of each device that are taken. Starts nothing itself.

    A task that fits nowhere has a device kept free for it, the least used one, so that no stream of smaller tasks can
    hold it up; those behind it may take what is left of the others.
    """

    def __init__(self, shares: Sequence[Fraction], num_devices: int, limit: int):
        """At most ``limit`` at a time; ``shares[task]`` in (0, 1], in the order in which the tasks should begin."""
        self.shares, self.limit = list(shares), limit
        self.waiting = list(range(len(shares)))
        self.used = [Fraction(0)] * num_devices
        self._device_of: dict[int, int] = {}

    def next(self) -> tuple[int, int] | None:
        """The task that should begin now and its device; None while nothing fits."""
        free = set(range(len(self.used) if len(self._device_of) < self.limit else 0))
        for task in self.waiting:
            if not free:
                return None
            device = min(free, key=lambda d: (self.used[d], d))
            if self.used[device] + self.shares[task] <= 1:
                self.waiting.remove(task)
                self.used[device] += self.shares[task]
                self._device_of[task] = device
                return task, device
            free.remove(device)
        return None

    def finish(self, task: int) -> None:
        """Its share is free again."""
        device = self._device_of.pop(task)
        self.used[device] -= self.shares[task]

    def again(self, task: int) -> None:
        """It did not finish: its share is free, and it is the next to begin."""
        self.finish(task)
        self.waiting.insert(0, task)


def schedule(
    shares: Sequence[Fraction], num_devices: int, limit: int, seconds: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Where each task runs and when it ends, given how long each takes (Graham's list schedule).

    Args:
        shares: of a device, in (0, 1], in the order in which the tasks should begin.
        num_devices: alike.
        limit: most tasks at a time.
        seconds: of each task.

    Returns:
        The device of each task, and the seconds from the start of the first to the end of each.
    """
    if len(set(shares)) == 1 and limit >= num_devices * int(1 / shares[0]):
        return _schedule_alike(int(1 / shares[0]), num_devices, seconds)
    placement = Placement(shares, num_devices, limit)
    devices, ends = [0] * len(shares), [0.0] * len(shares)
    running: list[tuple[float, int]] = []
    now = 0.0
    while True:
        while (placed := placement.next()) is not None:
            task, devices[placed[0]] = placed
            ends[task] = now + seconds[task]
            heapq.heappush(running, (ends[task], task))
        if not running:
            return devices, ends
        now, first = heapq.heappop(running)
        placement.finish(first)


def _schedule_alike(num_slots: int, num_devices: int, seconds: Sequence[float]) -> tuple[list[int], list[float]]:
    """The same where all tasks take one of ``num_slots`` of a device: thousands on hundreds of devices in no time."""
    slots = [(0.0, slot, device) for slot in range(num_slots) for device in range(num_devices)]
    devices, ends = [], []
    for duration in seconds:
        free_at, slot, device = slots[0]
        heapq.heapreplace(slots, (free_at + duration, slot, device))
        devices.append(device)
        ends.append(free_at + duration)
    return devices, ends


def makespan(shares: Sequence[Fraction], num_devices: int, limit: int, seconds: Sequence[float]) -> float:
    """How long all tasks take together when placed so."""
    return max(schedule(shares, num_devices, limit, seconds)[1], default=0.0)
