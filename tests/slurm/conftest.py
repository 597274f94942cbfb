"""A SLURM of our own for the whole session, and laboratories whose jobs go there."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from support import REPOSITORY, TINY, Lab

from dd_assets.compute.slurm.place import SlurmPlace
from dd_core.events import Event
from dd_core.jobs.job import Job
from slurm.cluster import Cluster, missing_programs, running_cluster

# Two pods with two pretended GPUs each; without real ones, their workers compute on the CPU with one thread.
TWO_PODS = "resources: {pods: 2, gpus_per_pod: 2, cpus_per_pod: 2, workers_per_pod: 2}\n"
ONE_GPU_EACH = "resources: {pods: 2, gpus_per_pod: 1, cpus_per_pod: 1}\n"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """SLURM, running."""
    if missing := missing_programs():
        pytest.skip(f"needs slurm-wlm and munge (missing: {', '.join(missing)})")
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@dataclass(frozen=True)
class Site:
    """A laboratory on a cluster."""

    lab: Lab
    cluster: Cluster
    settings: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a user has set."""
        places = {"DD_COMPUTE": "slurm", "DD_SLURM": str(self.settings), "OMP_NUM_THREADS": "1"}
        path = f"{REPOSITORY}/.venv/bin:{self.cluster.environment['PATH']}"
        return {**places, **self.cluster.environment, "PATH": path}

    def configure(self, text: str) -> None:
        """Write the settings file; SLURM is asked often here."""
        self.settings.write_text(f"poll_seconds: 0.2\n{text}", encoding="utf-8")

    def training_job(self, arms: str = "") -> Job:
        """As the asset asks for it."""
        asked = SlurmPlace.from_environment().machine().workers_and_threads()
        job = self.lab.training_job(arms)
        return job.model_copy(update={"num_workers": min(asked[0], len(job.tasks)), "threads": asked[1]})


def make_site(cluster: Cluster, folder: Path, study: str = TINY, settings: str = TWO_PODS) -> Site:
    """With a study and a settings file."""
    site = Site(Lab(folder, study), cluster, folder / "slurm.yaml")
    site.lab.root.mkdir()
    site.configure(settings)
    return site


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Used from this process too, with a data root whose name SLURM and bash would take apart."""
    site = make_site(cluster, tmp_path / "lab %a $HOME 'x'")
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    yield site
    cluster.run("scancel", "--me")


def orchestrate(job: Job) -> list[Event]:
    """Run a job at the place that the environment names, in an asset of Dagster's; returns its events."""
    events: list[Event] = []

    @dg.asset
    def computed(context: dg.AssetExecutionContext) -> None:
        events.extend(SlurmPlace.from_environment().run(context, job))

    dg.materialize([computed])
    return events


@contextmanager
def without_delay(cluster: Cluster) -> Iterator[None]:
    """What is put back into the queue starts at once, and not after the two minutes that SLURM lets it wait."""
    stop = threading.Event()

    def release() -> None:
        while not stop.wait(0.2):
            for line in cluster.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
                if line.endswith(" BeginTime"):
                    cluster.run("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")

    thread = threading.Thread(target=release)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def submitted(cluster: Cluster, name: str) -> set[int]:
    """Numbers of all jobs of that name that SLURM remembers."""
    return {int(line) for line in cluster.run("squeue", "-h", "-t", "all", f"--name={name}", "-o", "%F").split()}


def live(cluster: Cluster) -> str:
    """What waits or runs."""
    return cluster.run("squeue", "-h", "-r", "-o", "%i %T %j")


@contextmanager
def held(cluster: Cluster) -> Iterator[None]:
    """The nodes take no new jobs for as long as the context lasts."""
    cluster.run("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "NodeName=n1,n2", "State=RESUME")


@pytest.fixture
def drained(cluster: Cluster) -> Iterator[None]:
    """No node takes new jobs."""
    with held(cluster):
        yield


def kill_pod(root: Path, place: int, number: int) -> bool:
    """Send a signal to the pod of a place, which SLURM started for this data root."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "dd_core.jobs.pod" in words and any(
            w.startswith(str(root)) and w.endswith(f"/{place}.jsonl") for w in words
        ):
            os.kill(int(path.parent.name), number)
            return True
    return False
