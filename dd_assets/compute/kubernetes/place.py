"""A Kubernetes cluster as a place where jobs run.

A job runs as the Job of its name, which is the same whenever the same is asked for: an orchestrator that was killed and
started again finds its Job and follows it, and nothing runs twice. A Job that has ended stays until its time to live is
over, for people who look for logs, or until the same is asked for again.
"""

import contextlib
import time
import warnings
from collections.abc import Generator, Mapping
from functools import partial

import dagster as dg
from dagster import DagsterExecutionInterruptedError, PipesEnvContextInjector, open_pipes_session

from dd_assets.compute.kubernetes.api import AlreadyThereError, Cluster, Object, is_inside_cluster
from dd_assets.compute.kubernetes.checks import check_before
from dd_assets.compute.kubernetes.explain import is_ending, phase
from dd_assets.compute.kubernetes.follow import Following
from dd_assets.compute.kubernetes.logs import EventReader
from dd_assets.compute.kubernetes.manifests import JOB_FILE_ANNOTATION, Order, job_manifest, service_manifest
from dd_assets.compute.kubernetes.settings import KubernetesSettings, settings_from_environment
from dd_core.errors import UserError
from dd_core.events import End, Event, Failed, Note
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources, largest

# A person who cancels a run should not wait for a cluster that does not answer.
_PATIENCE_OF_CANCELLING = 30.0
# Those on a node that was lost never go.
_PATIENCE_WITH_OLD_PODS = 60.0


class KubernetesPlace:
    """The cluster that the settings name; nothing is asked of it before a job runs."""

    def __init__(self, settings: KubernetesSettings):
        """Where, and how."""
        self.settings = settings

    @classmethod
    def from_environment(cls) -> "KubernetesPlace":
        """With the settings of the file that ``DD_KUBERNETES`` names, or the defaults.

        Raises:
            UserError: the file cannot be used.
        """
        return cls(settings_from_environment())

    def machine(self, asked: Resources | None = None) -> Machine:
        """As many alike machines as there may be pods."""
        resources = self.settings.resources.overridden_by(asked)
        num_gpus = resources.gpus_per_pod or 0
        device = (self.settings.device or "an unknown GPU") if num_gpus else "cpu"
        num_cores = resources.cpus_per_pod or max(1, num_gpus)
        return Machine(device, num_gpus, num_cores, resources.workers_per_pod, resources.pods or 1)

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Run a job, or follow it where it runs already; see ``dd_assets.compute.Place``.

        Raises:
            UserError: before anything is made, if it cannot run; later, if the API server does not answer for long.
        """
        cluster = Cluster(self.settings, context.log.warning)
        launch = _Launch(self, cluster, context, job)
        try:
            yield from launch.events()
        except GeneratorExit:
            launch.withdraw()
            raise
        except (KeyboardInterrupt, DagsterExecutionInterruptedError) as interrupt:
            if not launch.withdraw():
                raise
            raise UserError(f"interrupted: the Job {job.name} was deleted; what it had finished is kept") from interrupt


class _Launch:
    """One job on its way through the cluster."""

    def __init__(self, place: KubernetesPlace, cluster: Cluster, context: dg.AssetExecutionContext, job: Job):
        self._settings, self._cluster, self._context = place.settings, cluster, context
        asked = largest(study.resources for study in job.studies.values())
        self._machine, self._resources = place.machine(asked), place.settings.resources.overridden_by(asked)
        self._job, self._store = job, Store(job.root)
        self._reader = EventReader()
        self._is_ours = False

    def events(self) -> Generator[Event, None, None]:
        """Of every task, in one Job; in a second one those that a Job found running does not have."""
        numbers = {task.name: number for number, task in enumerate(self._job.tasks)}
        failed, left = False, set(numbers)
        check = self._job if self._job.places else divided(self._job, self._machine)
        check_before(self._cluster, self._settings, self._resources, len(check.places), check.ranks)
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                # Dagster still asks its own context for this.
                warnings.filterwarnings("ignore", "AssetExecutionContext.run_id", DeprecationWarning)
                session = open_pipes_session(self._context, PipesEnvContextInjector(), self._reader)
                environment = stack.enter_context(session).get_bootstrap_env_vars()
            while left:
                job = self._part(left)
                manifest, folder, running, is_found = self._launch(job, environment)
                if is_found:
                    yield self._found(manifest)
                following = Following(self._cluster, manifest, folder, running, self._reader)
                for event in following.events(left):
                    if isinstance(event, End):
                        left.discard(event.task)
                        failed = failed or isinstance(event, Failed)
                    yield event.of(event.task, numbers[event.task])
                if not failed and following.is_over:
                    folder.remove()

    def withdraw(self) -> bool:
        """Delete the Job if nobody wants it any more; returns whether that is so."""
        if not (self._is_ours and _is_final(self._context)):
            return False
        with contextlib.suppress(UserError):
            self._cluster.patiently(lambda: self._cluster.delete_job(self._job.name), _PATIENCE_OF_CANCELLING)
        return True

    def _part(self, names: set[str]) -> Job:
        """The job, or what of it is left."""
        if len(names) == len(self._job.tasks) and self._job.places:
            return self._job
        tasks = tuple(task for task in self._job.tasks if task.name in names)
        return divided(self._job.model_copy(update={"tasks": tasks, "places": ()}), self._machine)

    def _launch(self, job: Job, environment: Mapping[str, str]) -> tuple[Object, JobFolder, Job, bool]:
        """Make the Job or find it; returns it with its folder, the job file that it reads, and whether it was there."""
        cluster, name = self._cluster, job.name
        while True:
            found = cluster.patiently(lambda: cluster.job(name))
            if is_found := found is not None:
                if is_ending(found):
                    self._remove(found)
                    continue
                folder, job = self._file_of(found)
                self._is_ours = True
            else:
                folder = JobFolder.of(self._store, job)
                manifest = job_manifest(self._settings, self._order(job, folder, environment))
                folder.prepare(job)
                self._is_ours = True
                try:
                    found = cluster.patiently(partial(cluster.create_job, manifest))
                except AlreadyThereError:
                    continue  # made by another, or by ourselves when the answer was lost
            if job.ranks > 1:
                service = service_manifest({**found, "metadata": {"namespace": cluster.namespace, **found["metadata"]}})
                cluster.patiently(partial(cluster.create_service, service))
            return found, folder, job, is_found

    def _remove(self, manifest: Object) -> None:
        """Delete a Job that has come to its end, and wait for those of its pods that are still on their way out."""
        name = manifest["metadata"]["name"]
        self._cluster.patiently(lambda: self._cluster.delete_job(name))
        deadline = time.monotonic() + _PATIENCE_WITH_OLD_PODS
        while time.monotonic() < deadline:
            is_there = self._cluster.patiently(lambda: self._cluster.job(name)) is not None
            pods = self._cluster.patiently(lambda: self._cluster.pods(manifest))
            if not is_there and not any(phase(pod) in ("Pending", "Running") for pod in pods):
                return
            time.sleep(min(1.0, self._settings.poll_seconds))

    def _order(self, job: Job, folder: JobFolder, environment: Mapping[str, str]) -> Order:
        return Order(
            name=job.name,
            job_file=folder.job_file,
            root=job.root,
            num_places=len(job.places),
            ranks=job.ranks,
            resources=self._resources,
            environment=environment,
            labels={"dagster/run-id": self._context.run.run_id},
        )

    def _file_of(self, manifest: Object) -> tuple[JobFolder, Job]:
        """The folder and job file of a Job that runs.

        Raises:
            UserError: it is none of ours.
        """
        name = manifest["metadata"]["name"]
        try:
            folder = JobFolder.at(self._store, manifest["metadata"]["annotations"][JOB_FILE_ANNOTATION])
            return folder, folder.read_job()
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise UserError(
                f"a Job {name} runs in {self._cluster.namespace}, but its job file is not on this data root "
                f"({self._store.root}); if nobody needs it: kubectl -n {self._cluster.namespace} delete job {name}"
            ) from error

    def _found(self, manifest: Object) -> Event:
        name = manifest["metadata"]["name"]
        text = f"the Job {name} is there already, since {manifest['metadata'].get('creationTimestamp')}; it is followed"
        return Note(task=self._job.tasks[0].name, text=text)


def _is_final(context: dg.AssetExecutionContext) -> bool:
    """Whether who leaves now wants the work to end: the run is cancelled, or a person at a terminal has interrupted it.

    A pod of Dagster's own that is moved to another node leaves too; its successor takes the Job up.
    """
    if not is_inside_cluster():
        return True
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
