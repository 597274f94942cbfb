"""Where a job runs. One module per place; every place takes the same job and yields the same events."""

from collections.abc import Callable, Generator
from typing import Final, Protocol

import dagster as dg

from dd_core.errors import UserError
from dd_core.events import Event
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources


class Place(Protocol):
    """Somewhere to run jobs."""

    def machine(self, asked: Resources | None = None) -> Machine:
        """What there is to compute on, for forecasts and for dividing the work; ``asked`` by the studies."""

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Run a job to its end; yields for every task one event ``finished`` or ``failed``, and others before.

        Closing the generator early stops the job, unless another orchestrator shall go on with it.

        Raises:
            UserError: it cannot run there; nothing was started.
        """


def _local() -> Place:
    from dd_assets.compute.local import LocalPlace

    return LocalPlace()


def _kubernetes() -> Place:
    from dd_assets.compute.kubernetes.place import KubernetesPlace

    return KubernetesPlace.from_environment()


def _slurm() -> Place:
    from dd_assets.compute.slurm.place import SlurmPlace

    return SlurmPlace.from_environment()


_PLACES: dict[str, Callable[[], Place]] = {"local": _local, "kubernetes": _kubernetes, "slurm": _slurm}


def place_called(name: str) -> Place:
    """The place of that name.

    Raises:
        UserError: there is none, or its settings are wrong.
    """
    if name not in _PLACES:
        raise UserError(f"DD_COMPUTE is {name!r}, but jobs run only in one of these places: {', '.join(_PLACES)}")
    return _PLACES[name]()


# Runs that keep every core or GPU busy; dagster.yaml lets one of them run at a time, the others wait in the queue. A
# backfill over many arms is several runs, of which the first does the work (dd_assets.steps.partitions).
COMPUTE_POOL: Final = "compute"
