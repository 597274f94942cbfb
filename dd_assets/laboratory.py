"""What assets need from outside: the data root and the place where jobs run."""

import contextlib
import os
from collections.abc import Generator, Iterable

import dagster as dg
from pydantic import Field

from dd_assets.compute import Place, place_called
from dd_core.errors import DataMissingError, UserError
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


def existing_store(root: str | None = None, *, is_written: bool = True) -> Store:
    """A data root that is there already, with SQL views as this version has them; default ``DD_ROOT``.

    Args:
        root: a folder, or an address of an object store.
        is_written: it is to be written, and not only looked at.

    Raises:
        DataMissingError: there is none.
        StoreError: it cannot be written and is to be.
    """
    store = store_at(root)
    if "://" not in store.address and not store.root.is_dir():
        raise DataMissingError(f"there is no data root {store.root}; set DD_ROOT to the folder that has the results")
    if is_written:
        store = writable_store(root)
    with contextlib.suppress(UserError):  # whoever only looks does so with the views that there are
        renew_views(store)
    return store


def renew_views(store: Store) -> None:
    """Rebuild a warehouse file of an earlier version, which has former names of columns and no live rows.

    Raises:
        StoreError: it cannot be written.
    """
    if store.warehouse_path.exists():
        from dd_core.tables import live
        from dd_core.tables.warehouse import refresh

        if not live.is_in_views(store):
            refresh(store)


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
