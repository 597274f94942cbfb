"""The job on this machine: a crew of worker processes, or torchrun where a task is shared by several ranks."""

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import dagster as dg

from dd_assets.compute.elsewhere import warn_of_cores
from dd_core.errors import UserError
from dd_core.events import Event
from dd_core.jobs.crew import run_crew
from dd_core.jobs.division import divided
from dd_core.jobs.job import Job
from dd_core.jobs.probe.run import run_probe
from dd_core.jobs.ranks.team import run_ranks
from dd_core.machine.devices import Machine, device_name, num_cores, num_gpus, product_of
from dd_core.study.resources import Resources


def this_machine() -> Machine:
    """What there is to train on; ``DD_WORKERS`` says how many workers to use, if not as many as is best.

    Raises:
        UserError: ``DD_WORKERS`` is not a positive number.
    """
    text = os.environ.get("DD_WORKERS", "")
    if text and not (text.isdigit() and int(text) > 0):
        raise UserError(f"DD_WORKERS must be a positive number, not {text!r}")
    return Machine(device_name(), num_gpus(), num_cores(), int(text) if text else None)


def run_job(job: Job) -> Generator[Event, None, None]:
    """Run a job to its end and yield the workers' events as they come, see ``run_crew``.

    Raises:
        UserError: a task is to be shared by more ranks than there are GPUs or workers.
    """
    with contextlib.ExitStack() as stack:
        is_object_store = "://" in job.root
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dd-job-")) if is_object_store else None
        job_folder = Path(folder) if folder else Path(job.root) / "jobs"
        if job.is_probe:
            yield from run_probe(job, this_machine(), job_folder)
        elif job.ranks > 1:
            yield from run_ranks(divided(job, this_machine()), job_folder)
        else:
            yield from run_crew(job, job_folder)


class LocalPlace:
    """This machine as a place where jobs run."""

    def machine(self, asked: Resources | None = None) -> Machine:
        """What is here, whatever is asked for on a cluster."""
        return this_machine()

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Run a job and yield its events.

        Raises:
            UserError: its studies will do with one product of GPU alone, and this machine has another.
        """
        product = job.resources.gpu if job.resources else None
        if product and warn_of_cores(product, this_machine(), context):
            return run_job(job)
        if product and product_of(device_name()).lower() != product_of(product).lower():
            studies = sorted({task.study for task in job.tasks})
            raise UserError(
                f"the GPU of this machine is {device_name()}, but {product} is the only one that will do (gpu under "
                f"resources of {', '.join(studies)}); name another there, or run it elsewhere (DD_COMPUTE)"
            )
        return run_job(job)
