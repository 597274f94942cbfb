"""Which machine of a cluster does which tasks: decided before anything starts, so that nobody has to talk.

The tasks are dealt out as the list schedule over all devices would place them, longest first, by their predicted times;
within a machine a free worker takes the next.
"""

from fractions import Fraction

from dd_core.errors import UserError
from dd_core.jobs.job import Job, Task, TrainTask, predicted_cost
from dd_core.jobs.placement import schedule
from dd_core.machine.devices import Machine
from dd_core.words import counted


def shares(tasks: tuple[Task, ...], num_workers: int, num_devices: int) -> list[Fraction]:
    """Share of a device that each task takes, on a machine with so many workers and devices.

    One that does not say so itself shares its device with as many as the machine has workers for each.
    """
    usual = -(-num_workers // num_devices)
    return [Fraction(1, (t.workers_per_device if isinstance(t, TrainTask) else None) or usual) for t in tasks]


def durations(job: Job) -> list[float]:
    """How long each task takes: predicted seconds if all are known, else relative costs."""
    seconds = [task.predicted_seconds if isinstance(task, TrainTask) else None for task in job.tasks]
    known = [value for value in seconds if value is not None]
    if len(known) == len(seconds):
        return known
    return [predicted_cost(job.studies[task.study], task) for task in job.tasks]


def divided(job: Job, machine: Machine) -> Job:
    """The job with its tasks dealt out to at most ``machine.num_places`` machines.

    With ``job.ranks`` above one each machine has every task, and there are as many machines as share the ranks evenly.

    Raises:
        UserError: there are fewer GPUs or workers than ranks.
    """
    if job.ranks > 1:
        return job.model_copy(update={"places": (tuple(range(len(job.tasks))),) * _places_of_ranks(job.ranks, machine)})
    per_place = machine.devices_per_place
    taken = shares(job.tasks, job.num_workers, min(per_place, job.num_workers))
    limit = machine.num_places * job.num_workers
    devices, _ = schedule(taken, machine.num_places * min(per_place, job.num_workers), limit, durations(job))
    places: list[list[int]] = [[] for _ in range(machine.num_places)]
    for number, device in enumerate(devices):
        places[device // min(per_place, job.num_workers)].append(number)
    return job.model_copy(update={"places": tuple(tuple(place) for place in places if place)})


def _places_of_ranks(ranks: int, machine: Machine) -> int:
    """The smallest number of machines that share the ranks evenly and have a GPU or worker for each of theirs."""
    per_place, _ = machine.workers_and_threads()
    for places in range(1, machine.num_places + 1):
        if ranks % places == 0 and ranks // places <= per_place:
            return places
    raise UserError(
        f"hessian.ranks is {ranks}, but {counted(machine.num_places, 'pod')} with "
        f"{per_place} GPUs or workers each cannot share them evenly"
    )
