"""Who shares a device, who begins when, and how long all take: against a queue, and for every order of ends."""

import heapq
import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_core.jobs.placement import Placement, makespan
from dd_core.machine.devices import Machine

CPU = Machine("cpu", num_gpus=0, num_cores=2)
SHARES = st.lists(st.sampled_from([Fraction(1, workers) for workers in (1, 2, 3, 4, 7)]), max_size=12)


@given(shares=SHARES, num_devices=st.integers(1, 4), limit=st.integers(1, 9), data=st.data())
def test_no_device_is_overfull_and_every_task_has_its_turn(
    shares: list[Fraction], num_devices: int, limit: int, data: st.DataObject
) -> None:
    placement = Placement(shares, num_devices, limit)
    running: dict[int, int] = {}
    begun: list[int] = []
    while True:
        while (placed := placement.next()) is not None:
            task, device = placed
            running[task] = device
            begun.append(task)
        for device in range(num_devices):
            assert sum(shares[task] for task, place in running.items() if place == device) <= 1
        assert len(running) <= limit
        if placement.waiting and len(running) < limit:
            first = placement.waiting[0]
            used = [sum(shares[t] for t, place in running.items() if place == d) for d in range(num_devices)]
            assert min(used) + shares[first] > 1, "the longest that waits does so only for want of room"
        if not running:
            break
        done = data.draw(st.sampled_from(sorted(running)))
        placement.finish(done)
        del running[done]
    assert sorted(begun) == list(range(len(shares)))
    if len(set(shares)) <= 1:
        assert begun == sorted(begun), "longest first"


def test_small_tasks_do_not_hold_up_a_large_one() -> None:
    half, whole = Fraction(1, 2), Fraction(1)
    placement = Placement([half, half, half, whole, *[half] * 20], num_devices=2, limit=99)
    assert [placement.next() for _ in range(4)] == [(0, 0), (1, 1), (2, 0), None]
    placement.finish(0)
    # Device 0 is kept free for task 3, the other is not.
    assert [placement.next(), placement.next()] == [(4, 1), None]
    placement.finish(1)
    assert [placement.next(), placement.next()] == [(5, 1), None]
    placement.finish(2)
    assert placement.next() == (3, 0)


@given(
    seconds=st.lists(st.floats(0.1, 100), max_size=12),
    num_devices=st.integers(1, 4),
    per_device=st.integers(1, 4),
    limit=st.integers(1, 16),
)
def test_the_makespan_of_equal_shares_is_that_of_a_queue(
    seconds: list[float], num_devices: int, per_device: int, limit: int
) -> None:
    """With equal shares every place takes the next task when it is free: a heap of the times they are free at."""
    free_at = [0.0] * min(num_devices * per_device, limit)
    for duration in seconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + duration)
    shares = [Fraction(1, per_device)] * len(seconds)
    assert makespan(shares, num_devices, limit, seconds) == pytest.approx(max(free_at))


@given(shares=SHARES, num_devices=st.integers(1, 4), data=st.data())
def test_the_makespan_has_its_bounds(shares: list[Fraction], num_devices: int, data: st.DataObject) -> None:
    seconds = data.draw(st.lists(st.floats(0.1, 100), min_size=len(shares), max_size=len(shares)))
    result = makespan(shares, num_devices, 99, seconds)
    work = sum(float(share) * duration for share, duration in zip(shares, seconds, strict=True))
    assert max([*seconds, work / num_devices, 0.0]) <= result * (1 + 1e-9)
    assert result <= sum(seconds) * (1 + 1e-9)


# The machine.


@pytest.mark.parametrize(
    ("machine", "recommended", "num_arms", "workers", "threads"),
    [
        (CPU, None, 10, 2, 1),  # a worker for each core
        (CPU, None, 1, 2, 1),  # the number of arms changes no thread, and so no result
        (CPU, 1, 10, 1, 2),  # the probe
        (Machine("cpu", 0, 2, num_workers=4), 1, 10, 4, 1),  # the user
        (Machine("cpu", 0, 8, num_workers=2), None, 10, 2, 4),
        (Machine("gpu", 8, 64), None, 100, 3, 2),  # workers_per_gpu of the variant
        (Machine("gpu", 8, 64), 2, 100, 2, 4),
        (Machine("gpu", 8, 64), None, 10, 2, 4),  # room for all at once
        (Machine("gpu", 8, 64), None, 3, 1, 8),
        (Machine("gpu", 8, 64, num_workers=16), 4, 100, 2, 4),
        (Machine("gpu", 8, 64, num_workers=2), None, 100, 1, 8),
    ],
)
def test_who_shares_a_device(
    machine: Machine, recommended: int | None, num_arms: int, workers: int, threads: int
) -> None:
    assert machine.workers_per_device(3, recommended, num_arms) == workers
    assert machine.threads(workers) == threads


@given(st.integers(0, 8), st.integers(1, 64), st.none() | st.integers(1, 99), st.none() | st.integers(1, 4))
def test_workers_never_have_more_threads_than_there_are_cores(
    gpus: int, cores: int, num_workers: int | None, recommended: int | None
) -> None:
    machine = Machine("gpu" if gpus else "cpu", gpus, cores, num_workers)
    for per_gpu, arms in itertools.product((1, 3), (1, 20)):
        workers = machine.workers_per_device(per_gpu, recommended, arms)
        assert workers >= 1
        assert machine.threads(workers) == 1 or machine.threads(workers) * workers * max(1, gpus) <= cores


def test_the_machine_is_told_in_words() -> None:
    machines = (CPU, Machine("cpu", 0, 1), Machine("NVIDIA H200", 1, 16), Machine("NVIDIA H200", 8, 64, 2))
    assert [machine.describe() for machine in machines] == [
        "the 2 cores of this CPU",
        "the one core of this CPU",
        "1 GPU (NVIDIA H200)",
        "2 of 8 GPUs (NVIDIA H200)",
    ]
