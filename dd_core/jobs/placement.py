"""Which task goes to which device, and when: each takes a share of one device, the longest come first."""

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


def makespan(shares: Sequence[Fraction], num_devices: int, limit: int, seconds: Sequence[float]) -> float:
    """How long all tasks take together when placed so, given how long each takes (Graham's list schedule)."""
    placement = Placement(shares, num_devices, limit)
    ends: dict[int, float] = {}
    now = 0.0
    while True:
        while (placed := placement.next()) is not None:
            ends[placed[0]] = now + seconds[placed[0]]
        if not ends:
            return now
        first = min(ends, key=lambda task: (ends[task], task))
        now = ends.pop(first)
        placement.finish(first)
