"""What SLURM refuses, and what is wrong before it is asked: one sentence, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dd_assets.compute.slurm import commands
from dd_core.errors import UserError
from slurm.conftest import ONE_GPU_EACH, Site, live, orchestrate

pytestmark = pytest.mark.slurm

Refused = Callable[..., None]


@pytest.fixture
def refused(site: Site) -> Refused:
    """A job is refused with these words."""

    def check(settings: str, *words: str) -> None:
        site.configure(settings)
        with pytest.raises(UserError) as caught:
            orchestrate(site.training_job())
        for part in words:
            assert part in str(caught.value)
        assert list(site.lab.store.jobs_folder.rglob("*.*")) == []
        assert live(site.cluster) == ""

    return check


def test_a_partition_that_is_not_there(refused: Refused, site: Site) -> None:
    refused(
        "partition: nope\n",
        f"this SLURM has no partition 'nope' (partition in {site.settings}); there are lab, short",
    )


def test_more_gpus_than_any_node_has(refused: Refused) -> None:
    refused(
        "resources: {gpus_per_pod: 9, cpus_per_pod: 1}\n",
        "no node of the default partition has 9 GPUs (gpu) and 1 cores, which each pod asks for",
        "its nodes have 2 cores, 4000 MiB and gpu:2; ask for less under resources",
    )


def test_a_product_of_gpu_that_no_node_has(refused: Refused) -> None:
    refused(
        "resources: {gpus_per_pod: 1, cpus_per_pod: 1, gpu: NVIDIA-A100-SXM4-40GB}\n",
        "no node of the default partition has 1 GPUs (gpu:NVIDIA-A100-SXM4-40GB) and 1 cores, which each pod asks for",
        "its nodes have 2 cores, 4000 MiB and gpu:2; ask for less",
        "or for another gpu, or say under gpus how this cluster calls it",
    )


def test_more_memory_than_any_node_has(refused: Refused) -> None:
    refused("resources: {gpus_per_pod: 0, memory_gib_per_pod: 1000}\n", "has 1 cores and 1000 GiB, which each pod asks")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("constraint: h100\n", "constraint"),
        ("reservation: mine\n", "reservation"),
        ("options: {no-such-option: 1}\n", "options"),
    ],
)
def test_a_key_that_this_cluster_does_not_know(settings: str, key: str, refused: Refused, site: Site) -> None:
    refused(settings, "SLURM refuses the job", f"check {key} in {site.settings}")


def test_a_machine_without_slurm(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no squeue on this machine; run this on a login node of the SLURM"):
        orchestrate(site.training_job())


def test_a_slurm_that_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configuration = Path(site.cluster.environment["SLURM_CONF"]).read_text(encoding="utf-8")
    dead = "".join(f"{line}\n" for line in configuration.splitlines() if not line.startswith("SlurmctldPort"))
    (tmp_path / "slurm.conf").write_text(f"{dead}SlurmctldPort=1\nMessageTimeout=1\n", encoding="utf-8")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(
        UserError, match=r"SLURM does not answer \(.*Unable to contact slurm controller.*try again when"
    ):
        orchestrate(site.training_job())


@pytest.mark.skipif(Path("/etc/slurm/slurm.conf").exists(), reason="this machine is configured")
def test_programs_without_a_configuration(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF")
    with pytest.raises(
        UserError, match=r"SLURM does not answer \((.|\n)*configuration source.*try again when sinfo does"
    ):
        orchestrate(site.training_job())


def test_a_job_whose_file_is_gone_is_not_followed(site: Site, drained: None) -> None:
    site.configure(ONE_GPU_EACH)
    job = site.training_job()
    address = f"{site.lab.root}/jobs/{job.name}/0123456789ab/job.json"
    number = commands.submit([f"--job-name={job.name}", f"--comment={address}", "--output=/dev/null"], "#!/bin/bash\n")
    with pytest.raises(UserError, match=rf"SLURM job {number} does the same already, but its job file is gone"):
        orchestrate(job)


def test_the_job_of_another_data_root_is_none_of_ours(site: Site) -> None:
    site.configure(f"{ONE_GPU_EACH}python: /not/there\n")
    job = site.training_job("k001")
    other = f"--comment=/somewhere/else/jobs/{job.name}/0123456789ab/job.json"
    number = commands.submit([f"--job-name={job.name}", other, "--output=/dev/null"], "#!/bin/bash\nsleep 30\n")
    (event,) = [event for event in orchestrate(job) if event.name == "failed"]
    assert f"SLURM job {number}" not in event.error
