"""A laboratory whose jobs run on a simulated cluster (see ``kubernetes_simulator`` for what it is and is not)."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from kubernetes_simulator import Cluster
from ruamel.yaml import YAML
from support import REPOSITORY, Lab, results, work

from dd_assets.compute.kubernetes.place import KubernetesPlace
from dd_assets.compute.kubernetes.settings import read_settings
from dd_core.events import Event
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job

INDEX = "batch.kubernetes.io/job-completion-index"


class ClusterLab(Lab):
    """Its data root is the volume ``data`` of the cluster."""

    def __init__(self, folder: Path, cluster: Cluster, **study: Any):
        """Two pods of one core each, looked at ten times a second."""
        super().__init__(folder, **study)
        self.cluster = cluster
        self.root.mkdir()
        self.settings_file = folder / "kubernetes.yaml"
        cluster.volume("data", self.root)
        self.write_settings()

    def write_settings(self, **changes: Any) -> Path:
        """The settings file; a change to None removes a key."""
        content = {
            "kubeconfig": str(self.cluster.kubeconfig()),
            "image": "worker:1",
            "env": {"PYTHONPATH": str(REPOSITORY)},
            "data_volume": {"claim": "data", "mount_path": str(self.root)},
            "resources": {"pods": 2, "gpus_per_pod": 0, "cpus_per_pod": 1, "memory_gib_per_pod": 2},
            "poll_seconds": 0.1,
            "run_as_user": 1000,
            **changes,
        }
        with self.settings_file.open("w", encoding="utf-8") as file:
            YAML().dump({key: value for key, value in content.items() if value is not None}, file)
        return self.settings_file

    def environment(self, **changes: Any) -> dict[str, str]:
        """Jobs run on the cluster unless a change says otherwise."""
        places = {"DD_COMPUTE": "kubernetes", "DD_KUBERNETES": self.settings_file}
        return super().environment(**{**places, **changes})

    def run(self, job: Job, on_event: Callable[[Event], None] = lambda event: None, **settings: Any) -> list[Event]:
        """Run a job as an asset does, within a step of Dagster's in this process; returns all events.

        ``on_event`` sees each of them as it comes, and may do to the cluster what it likes.
        """
        place = KubernetesPlace(read_settings(self.write_settings(**settings)))
        job = divided(job, place.machine())
        events: list[Event] = []

        @dg.asset
        def work(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            self.running = context
            with contextlib.closing(place.run(context, job)) as news:
                for event in news:
                    events.append(event)
                    on_event(event)
            return dg.MaterializeResult()

        dg.materialize([work])
        return events

    def job_folder(self) -> JobFolder:
        """What the one Job on the cluster keeps on the data root."""
        (manifest,) = self.cluster.objects("Job")
        return JobFolder.at(self.store, manifest["metadata"]["annotations"]["double-descent/job-file"])

    def pod(self, place: int) -> str:
        """The pod of that place which runs now."""
        (name,) = [
            pod["metadata"]["name"]
            for pod in self.cluster.objects("Pod")
            if pod["metadata"]["labels"][INDEX] == str(place) and pod["status"]["phase"] == "Running"
        ]
        return name

    def pods_made(self) -> list[int]:
        """For each pod that ever was, in order, its place."""
        made = [event["message"] for event in self.cluster.events if event["reason"] == "SuccessfulCreate"]
        return [int(message.split("-")[-2]) for message in made]


def ends(events: list[Event]) -> dict[str, str]:
    """How each task ended; every one did so once."""
    found = [(event.task, event.name) for event in events if event.name in ("finished", "failed")]
    assert len(dict(found)) == len(found), found
    return dict(found)


def notes(events: list[Event]) -> str:
    """All that people are told."""
    return "\n".join(event.text for event in events if event.name == "note")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes with two GPUs each."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def lab(tmp_path: Path, cluster: Cluster) -> ClusterLab:
    """Nothing is there but a study file."""
    return ClusterLab(tmp_path / "lab", cluster)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of training both arms of ``tiny`` on this machine, with nothing going wrong."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed") / "lab")
    work(lab, lab.training_job())
    return results(lab.root)
