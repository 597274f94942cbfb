"""What assets need from outside: the data root and the place where jobs run."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from dd_assets.compute.local import run_job, this_machine, workers_and_threads
from dd_core.errors import UserError
from dd_core.jobs.job import Job
from dd_core.jobs.machine import Machine
from dd_core.store import Store


class Laboratory(dg.ConfigurableResource):
    """Where results lie and where work is done."""

    root: str = Field(
        default_factory=lambda: os.environ.get("DD_ROOT", "data"), description="data root, a folder (DD_ROOT)"
    )
    compute: str = Field(
        default_factory=lambda: os.environ.get("DD_COMPUTE", "local"), description="where jobs run (DD_COMPUTE): local"
    )

    def store(self) -> Store:
        """The data root, checked to be writable."""
        store = Store(Path(self.root).expanduser().absolute())
        store.check_writable()
        return store

    def machine(self) -> Machine:
        """What arms are trained on."""
        self._check_compute()
        return this_machine()

    def workers(self) -> tuple[int, int]:
        """Number of workers and threads per worker, of work that takes a GPU or core each."""
        self._check_compute()
        return workers_and_threads()

    def _check_compute(self) -> None:
        if self.compute != "local":
            raise UserError(f"DD_COMPUTE is {self.compute!r}, but jobs can run only on this machine (local)")

    def run(self, job: Job) -> Generator[dict[str, Any], None, None]:
        """Run a job and yield its events."""
        return run_job(job)
