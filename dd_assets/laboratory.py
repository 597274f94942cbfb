"""What assets need from outside: the data root and the place where jobs run."""

import os
from collections.abc import Generator, Iterable

import dagster as dg
from pydantic import Field

from dd_assets.compute import Place, place_called
from dd_core.events import Event
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.layout import bring_up_to_date
from dd_core.store.store import Store, store_at
from dd_core.study.resources import largest
from dd_core.study.study import Study


def writable_store(root: str | None = None) -> Store:
    """The data root at a folder, or an address of an object store; default ``DD_ROOT``.

    Raises:
        StoreError: it cannot be written.
    """
    store = store_at(root)
    store.check_writable()
    bring_up_to_date(store)
    return store


class Laboratory(dg.ConfigurableResource):
    """Where results lie and where work is done."""

    root: str = Field(
        default_factory=lambda: os.environ.get("DD_ROOT", "data"),
        description="data root, a folder or the address of an object store such as s3://bucket/folder (DD_ROOT)",
    )
    compute: str = Field(
        default_factory=lambda: os.environ.get("DD_COMPUTE", "local"),
        description="where jobs run (DD_COMPUTE): local, kubernetes or slurm",
    )

    def store(self) -> Store:
        """The data root, checked to be writable."""
        return writable_store(self.root)

    def place(self) -> Place:
        """Where jobs run.

        Raises:
            UserError: there is no such place, or its settings are wrong.
        """
        return place_called(self.compute)

    def machine(self, studies: Iterable[Study] = ()) -> Machine:
        """What work for these studies is done on."""
        return self.place().machine(largest(study.resources for study in studies))

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Run a job and yield its events."""
        return self.place().run(context, job)
