"""The commands a user types, on two pods of a cluster and on this machine: the same results, to the last bit.

Training of three arms on two pods with two workers each, ``--select curvature``, and a Hessian that two nodes share.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from kubernetes_simulator import Cluster
from support import Lab, Result, results

from cluster.conftest import INDEX, ClusterLab

STUDY = """\
description: a hundred digits, three widths, two trials
data: {dataset: digits, num_train: 100}
variants:
  plain:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 50
    optimizer: {name: adam, learning_rate: 2.0e-3}
    schedule: {name: cosine}
widths: [1, 2, 3]
trials: 2
epochs: 8
checkpoints: [0, 8]
evaluation: {every: 4}
hessian: {quantities: [eigenvalues, hutchinson], num_eigenvalues: 2, lanczos_steps: 6, num_images: 60, ranks: 2}
"""
TRAIN = (
    "asset",
    "materialize",
    "--select",
    "tiny/checkpoints",
    "--partition-range",
    "plain.k001|0000...plain.k003|0008",
)
CURVATURE = ("asset", "materialize", "--select", "curvature")
HESSIAN = ("asset", "materialize", "--select", "tiny/hessian", "--partition", "plain.k002|0008")


@dataclass
class Story:
    """What three commands did on a cluster, and what they do on this machine."""

    lab: ClusterLab
    here: Lab
    commands: dict[str, Result]
    jobs: dict[str, dict]
    pods: dict[str, list[dict]]

    def of(self, kind: str) -> dict:
        """The one Job of that kind."""
        (name,) = (name for name in self.jobs if name.startswith(f"dd-{kind}-"))
        return self.jobs[name]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("place")
    here = Lab(folder / "here", STUDY)
    with Cluster() as cluster:
        lab = ClusterLab(folder / "there", cluster, study=STUDY)
        resources = {"pods": 2, "gpus_per_pod": 0, "cpus_per_pod": 1, "memory_gib_per_pod": 2, "workers_per_pod": 2}
        lab.write_settings(resources=resources)
        commands = {"train": lab.forked_dagster(*TRAIN), "curvature": lab.forked_dagster(*CURVATURE)}
        lab.write_settings(resources={**resources, "workers_per_pod": 1})
        commands["hessian"] = lab.forked_dagster(*HESSIAN)
        for command, workers in ((TRAIN, 1), (CURVATURE, 1), (HESSIAN, 2)):
            here.forked_dagster(*command, DD_WORKERS=workers).succeeded()
        jobs = {job["metadata"]["name"]: job for job in cluster.objects("Job")}
        yield Story(lab, here, commands, jobs, {name: cluster.pods(name) for name in jobs})


def test_every_command_succeeds(story: Story) -> None:
    for result in story.commands.values():
        result.succeeded()
    for name, job in story.jobs.items():
        failed = [pod for pod in story.pods[name] if pod["status"]["phase"] == "Failed"]
        assert not failed, [(pod["status"], story.lab.cluster.log(pod["metadata"]["name"])) for pod in failed]
        assert job["status"]["succeeded"] == 2
        assert "failed" not in job["status"]


def test_results_are_those_of_this_machine_to_the_last_bit(story: Story) -> None:
    there = results(story.lab.root)
    assert there == results(story.here.root)
    assert {path.split("/")[1] for path in there} >= {"tiny", "per_image_curvature", "hessian_spectra"}


def test_partitions_are_recorded_as_on_this_machine(story: Story) -> None:
    for asset in ("checkpoints", "per_image_curvature", "hessian"):
        assert story.lab.recorded(asset) == story.here.recorded(asset) != set()


def test_three_arms_are_divided_among_two_pods_of_two_workers(story: Story) -> None:
    job = story.of("train")
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    logs = [story.lab.cluster.log(pod["metadata"]["name"]) for pod in story.pods[job["metadata"]["name"]]]
    finished = [sum(": finished" in line for line in log.splitlines()) for log in logs]
    assert sorted(finished) == [1, 2]


def test_the_ranks_of_a_hessian_meet_through_a_service_that_belongs_to_its_job(story: Story) -> None:
    job = story.of("hessian")
    pods = story.pods[job["metadata"]["name"]]
    assert {pod["metadata"]["labels"][INDEX] for pod in pods} == {"0", "1"}
    (service,) = story.lab.cluster.objects("Service")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]


def test_nothing_of_a_job_that_went_well_stays_on_the_data_root(story: Story) -> None:
    assert list(story.lab.root.glob("jobs/**/*.json")) == []


def test_what_is_done_is_not_done_again(story: Story) -> None:
    uid = story.of("curvature")["metadata"]["uid"]
    story.lab.forked_dagster(*CURVATURE).succeeded()
    now = [
        job["metadata"]["uid"] for job in story.lab.cluster.objects("Job") if "-curvature-" in job["metadata"]["name"]
    ]
    assert now == [uid]
