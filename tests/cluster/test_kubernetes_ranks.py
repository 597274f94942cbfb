"""Ranks on two pods that share a Hessian: they meet again when either is lost, and leave nothing when cancelled."""

from pathlib import Path

import pytest
from kubernetes_simulator import Cluster
from support import TINY, results, wait_until, work

from cluster.conftest import ClusterLab, Event, ends, notes
from dd_assets.compute.local import run_job
from dd_core.jobs.job import Job, result_job

pytestmark = pytest.mark.skipif(not Cluster.can_isolate(), reason="pods have no host names here")

SHORT = TINY.replace("epochs: 24", "epochs: 8").replace("[0, 8, 16, 24]", "[0, 4, 8]").replace("trials: 2", "trials: 1")
HESSIAN = "hessian: {num_images: 40, num_eigenvalues: 2, lanczos_steps: 8, quantities: [eigenvalues], ranks: 2}\n"


@pytest.fixture
def lab(tmp_path: Path, cluster: Cluster) -> ClusterLab:
    """One arm is trained."""
    lab = ClusterLab(tmp_path / "lab", cluster, study=SHORT + HESSIAN)
    work(lab, lab.training_job("k001"))
    return lab


def job_of(lab: ClusterLab) -> Job:
    wanted = [("tiny", c) for c in lab.study.iter_checkpoints() if c.arm.k == 1]
    return result_job("hessian", lab.root, {"tiny": lab.study}, wanted, 1, 1)


@pytest.mark.parametrize("place", [0, 1])
def test_ranks_meet_again_after_a_pod_was_lost(
    place: int, lab: ClusterLab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod at which they meet, or another; the result is that of two ranks on this machine."""
    evicted = []

    def evict(event: Event) -> None:
        if event.name == "finished" and not evicted:
            evicted.append(cluster.evict(lab.pod(place)))

    events = lab.run(job_of(lab), evict)
    assert set(ends(events).values()) == {"finished"}
    assert "was evicted (EvictionByEvictionAPI" in notes(events)
    assert len(lab.pods_made()) > 2
    together = results(lab.root)
    for path in lab.root.glob("tables/hessian_spectra/**/[0-9]*.*"):
        path.unlink()
    monkeypatch.setenv("DD_WORKERS", "2")
    assert {e.name for e in run_job(job_of(lab)) if e.name in ("finished", "failed")} == {"finished"}
    assert results(lab.root) == together


def test_cancelled_ranks_leave_no_job_no_pod_and_no_service(lab: ClusterLab, cluster: Cluster) -> None:
    class Enough(Exception):
        """Whoever follows the job leaves."""

    def leave(event: Event) -> None:
        if event.name == "started":
            assert len(cluster.objects("Service")) == 1
            raise Enough

    with pytest.raises(Enough):
        lab.run(job_of(lab), leave)
    assert cluster.objects("Job") == []
    wait_until(lambda: cluster.objects("Service") == [], "the garbage collector to take the Service")
    wait_until(lambda: cluster.objects("Pod") == [], "the pods to end")


def test_a_job_that_follows_at_once_on_one_of_its_name_keeps_its_service(lab: ClusterLab, cluster: Cluster) -> None:
    """The Service of the first is taken away some time after its Job, under the next one's feet if it had its name."""
    for _ in range(2):
        events = lab.run(job_of(lab))
        assert set(ends(events).values()) == {"finished"}
        for path in lab.root.glob("tables/hessian_spectra/**/[0-9]*.*"):
            path.unlink()
    assert lab.pods_made() == [0, 1, 0, 1]
    wait_until(lambda: len(cluster.objects("Service")) == 1, "the garbage collector to take the first one's Service")
