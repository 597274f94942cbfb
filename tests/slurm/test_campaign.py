"""The commands a user types, with their GPU work on a real SLURM of two nodes: the bits of one's own machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import TINY, Lab, Result, results, work

from slurm.cluster import Cluster
from slurm.conftest import ONE_GPU_EACH, Site, live, make_site

pytestmark = pytest.mark.slurm

THREE = TINY.replace("widths: [1, 2]", "widths: [1, 2, 3]").replace("epochs: 24", "epochs: 8")
THREE = THREE.replace("[0, 8, 16, 24]", "[0, 4, 8]")
ALL = ("--partition-range", "plain.k001|0000...plain.k003|0008")
HESSIAN = "hessian: {num_images: 40, num_eigenvalues: 2, lanczos_steps: 8, quantities: [eigenvalues], ranks: 2}\n"


@dataclass
class Campaign:
    """What was printed, and what lay on the data root."""

    site: Site
    training: Result
    curvature: Result
    expected: dict[str, str]


@pytest.fixture(scope="module")
def campaign(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    own = Lab(tmp_path_factory.mktemp("own") / "lab", THREE)
    work(own, own.training_job())
    work(
        own,
        own.curvature_job(),
    )
    site = make_site(cluster, tmp_path_factory.mktemp("campaign") / "lab", THREE)
    training = site.lab.materialize("tiny/checkpoints", *ALL, **site.environment)
    curvature = site.lab.materialize("curvature", **site.environment)
    return Campaign(site, training, curvature, results(own.root))


def test_training_on_two_nodes_with_two_workers_each_gives_the_bits_of_one_worker_here(campaign: Campaign) -> None:
    campaign.training.succeeded()
    expected = {path: digest for path, digest in campaign.expected.items() if "curvature" not in path}
    found = {path: digest for path, digest in results(campaign.site.lab.root).items() if "curvature" not in path}
    assert len(expected) == 3 * (3 + 2 + 3 + 2 + 3)  # arms x (weights, batches, evals, monitors, images)
    assert found == expected
    assert "3 tasks on 2 machines" in campaign.training.output
    assert len(campaign.site.lab.recorded("checkpoints")) == 9


def test_the_bare_command_for_curvature_works_on_slurm(campaign: Campaign) -> None:
    campaign.curvature.succeeded()
    expected = {path: digest for path, digest in campaign.expected.items() if "per_image_curvature" in path}
    found = {path: digest for path, digest in results(campaign.site.lab.root).items() if "per_image_curvature" in path}
    assert len(expected) == 9
    assert found == expected
    assert len(campaign.site.lab.recorded("per_image_curvature")) == 9


def test_nothing_is_left_behind(campaign: Campaign) -> None:
    assert list(campaign.site.lab.store.jobs_folder.rglob("*.*")) == []
    assert live(campaign.site.cluster) == ""


def test_two_nodes_compute_one_hessian_together(campaign: Campaign, cluster: Cluster, tmp_path: Path) -> None:
    site = make_site(cluster, tmp_path / "lab", THREE + HESSIAN, ONE_GPU_EACH)
    own = Lab(tmp_path / "own", THREE + HESSIAN)
    for lab in (site.lab, own):
        shutil.copytree(campaign.site.lab.root, lab.root, dirs_exist_ok=True)
    command = ("asset", "materialize", "--select", "tiny/hessian", "--partition", "plain.k002|0008")
    together = site.lab.forked_dagster(*command, **site.environment)
    together.succeeded()
    assert "1 task on 2 machines" in together.output
    own.forked_dagster(*command, OMP_NUM_THREADS=1, DD_WORKERS=2).succeeded()
    found = {path: digest for path, digest in results(site.lab.root).items() if "hessian" in path}
    assert len(found) == 1
    assert found == {path: digest for path, digest in results(own.root).items() if "hessian" in path}
    assert site.lab.recorded("hessian") == {"plain.k002|0008"}
