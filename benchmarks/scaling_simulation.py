"""Jobs on pods of 8 GPUs, played through: the real division and the real order, with times that stand for the work.

What our own code decides is taken from it: the job (``dd_core.jobs.job``), which pod does what (``divided``), and the
order within a pod (``schedule``, which places tasks as the crew of a pod does). What is not ours is a condition: how
far real times are from predicted ones, how long a pod takes to start, how often one is evicted. A training then goes on
from its last resume point; a shard of curvature begins anew.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction

import numpy as np
from scaling_workloads import GPUS_PER_POD, Workload

from dd_core.jobs.division import divided
from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.placement import schedule
from dd_core.machine.devices import Machine


@dataclass(frozen=True)
class Conditions:
    """What a cluster does to a job.

    Attributes:
        sigma: of the logarithm of real over predicted times, whose mean is 1.
        start_seconds: from the start of a pod to its first task: image, ``import torch``, data.
        hours_between_evictions: of one pod, on average; infinite: none. Its tasks go on in a new pod.
    """

    sigma: float = 0.0
    start_seconds: float = 0.0
    hours_between_evictions: float = math.inf


@dataclass(frozen=True)
class Result:
    """How a job went.

    Attributes:
        efficiency: work over (GPUs x makespan).
        hours: makespan.
        spread: the last pod's end over the mean end.
        one_queue: efficiency if any GPU took the next task of all, which needs somebody to hand them out; without
            starts and evictions.
        num_evictions: of all pods.
    """

    efficiency: float
    hours: float
    spread: float
    one_queue: float
    num_evictions: float


def machine(num_gpus: int) -> Machine:
    """Pods of 8 GPUs."""
    return Machine("simulated", GPUS_PER_POD, 64, None, num_gpus // GPUS_PER_POD)


def divide(workload: Workload, num_gpus: int) -> Job:
    """The job as the place divides it, with the times that a forecast would have predicted."""
    tasks = [
        task.model_copy(update={"predicted_seconds": seconds, "workers_per_device": 1})
        if isinstance(task, TrainTask)
        else task
        for task, seconds in zip(workload.job.tasks, workload.seconds, strict=True)
    ]
    return divided(workload.job.model_copy(update={"tasks": tuple(tasks)}), machine(num_gpus))


def play(workload: Workload, num_gpus: int, conditions: Conditions, seed: int) -> Result:
    """One draw of times and evictions."""
    return play_divided(divide(workload, num_gpus), workload, num_gpus, conditions, seed)


def play_divided(job: Job, workload: Workload, num_gpus: int, conditions: Conditions, seed: int) -> Result:
    """As ``play``, of a job that has been divided already."""
    random = np.random.default_rng(seed)
    factors = np.exp(random.normal(-(conditions.sigma**2) / 2, conditions.sigma, len(workload.seconds)))
    real = np.array(workload.seconds) * factors
    ends, evictions = [], 0
    for place in job.places:
        end, lost = play_pod([float(real[n]) for n in place], workload.resume_seconds, conditions, random)
        ends.append(end)
        evictions += lost
    makespan = max(ends)
    mean = sum(ends) / (num_gpus // GPUS_PER_POD)  # a pod without tasks ends at once
    together = max(schedule([Fraction(1)] * len(real), num_gpus, num_gpus, real.tolist())[1])
    share = float(real.sum()) / num_gpus
    return Result(share / makespan, makespan / 3600, makespan / mean, share / together, evictions)


def play_pod(
    seconds: Sequence[float], resume_seconds: float, conditions: Conditions, random: np.random.Generator
) -> tuple[float, int]:
    """Seconds until a pod has done its tasks in their order, and how often it was evicted meanwhile."""
    left, now, evictions = list(seconds), 0.0, 0
    while True:
        now += conditions.start_seconds
        ends = schedule([Fraction(1)] * len(left), GPUS_PER_POD, GPUS_PER_POD, left)[1]
        life = math.inf
        if conditions.hours_between_evictions < math.inf:
            life = random.exponential(conditions.hours_between_evictions * 3600)
        if max(ends) <= life:
            return now + max(ends), evictions
        now += life
        evictions += 1
        left = [rest for end, all_ in zip(ends, left, strict=True) if (rest := _left(all_, end, life, resume_seconds))]


def _left(seconds: float, end: float, evicted_at: float, resume_seconds: float) -> float:
    """What of a task is left to do after an eviction: nothing, or all since its last resume point."""
    if end <= evicted_at:
        return 0.0
    done = max(0.0, evicted_at - (end - seconds))
    return seconds - (done - done % resume_seconds if resume_seconds < math.inf else 0.0)


def median_of(workload: Workload, num_gpus: int, conditions: Conditions, draws: int) -> Result:
    """Medians over draws, each with a seed of its own."""
    job = divide(workload, num_gpus)
    draws = draws if conditions.sigma or conditions.hours_between_evictions < math.inf else 1
    results = [play_divided(job, workload, num_gpus, conditions, seed) for seed in range(draws)]
    return Result(*(statistics.median(values) for values in zip(*map(astuple, results), strict=True)))
