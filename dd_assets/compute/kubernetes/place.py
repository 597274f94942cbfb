"""A Kubernetes cluster as a place where jobs run.

A job runs as the Job of its name, which is the same whenever the same is asked for: an orchestrator that was killed and
started again finds its Job and follows it, and nothing runs twice. A Job that has ended stays until its time to live is
over, for people who look for logs, or until the same is asked for again.
"""

import contextlib
import secrets
import time
import warnings
from collections.abc import Generator, Mapping
from functools import cached_property, partial

import dagster as dg
from dagster import PipesEnvContextInjector, open_pipes_session

from dd_assets.compute.elsewhere import News, machine_of, run_elsewhere
from dd_assets.compute.kubernetes.api import AlreadyThereError, Cluster, Object, is_inside_cluster
from dd_assets.compute.kubernetes.checks import check_before
from dd_assets.compute.kubernetes.explain import is_ending, phase
from dd_assets.compute.kubernetes.follow import Following
from dd_assets.compute.kubernetes.logs import EventReader
from dd_assets.compute.kubernetes.manifests import JOB_FILE_ANNOTATION, Order, job_manifest, service_manifest
from dd_assets.compute.kubernetes.settings import KubernetesSettings, settings_from_environment
from dd_assets.compute.retries import Retries
from dd_core.errors import UserError
from dd_core.events import Event
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources

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
        usual = self.settings.resources
        return machine_of(usual.overridden_by(asked), usual.gpu, self.settings.device)

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Run a job, or follow it where it runs already; see ``dd_assets.compute.Place``.

        Raises:
            UserError: before anything is made, if it cannot run; later, if the API server does not answer for long.
        """
        with contextlib.ExitStack() as session:
            yield from run_elsewhere(_Request(self, context, job, session), context, job)


class _Request:
    """One job on its way through the cluster."""

    def __init__(
        self, place: KubernetesPlace, context: dg.AssetExecutionContext, job: Job, session: contextlib.ExitStack
    ):
        self._settings, self._context, self._session = place.settings, context, session
        self._cluster = Cluster(place.settings, context.log.warning)
        self.machine = place.machine(job.resources)
        self._resources = place.settings.resources.overridden_by(job.resources)
        self.is_inside, self.end = is_inside_cluster(), f"the Job {job.name} was deleted"
        self._name, self._store = job.name, Store(job.root)
        self._reader = EventReader()
        self._is_ours = False

    def start(self, job: Job) -> Following:
        """Find the Job, or make it."""
        check_before(self._cluster, self._settings, self._resources, len(job.places), job.ranks)
        cluster, environment, wanted = self._cluster, self._environment, job.names
        while True:
            found = cluster.patiently(lambda: cluster.job(self._name))
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
            return Following(
                cluster, found, News(folder, job, wanted), self._reader, Retries.of(self._resources), is_found
            )

    def cancel(self) -> bool:
        """Delete the Job, unless it is none of ours."""
        if self._is_ours:
            with contextlib.suppress(UserError):
                self._cluster.patiently(lambda: self._cluster.delete_job(self._name), _PATIENCE_OF_CANCELLING)
        return self._is_ours

    @cached_property
    def _environment(self) -> Mapping[str, str]:
        """Through which workers speak with Dagster; the session lasts as long as the request."""
        with warnings.catch_warnings():
            # Dagster still asks its own context for this.
            warnings.filterwarnings("ignore", "AssetExecutionContext.run_id", DeprecationWarning)
            session = open_pipes_session(self._context, PipesEnvContextInjector(), self._reader)
            return self._session.enter_context(session).get_bootstrap_env_vars()

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
            service=f"{job.name}-{secrets.token_hex(4)}",
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
