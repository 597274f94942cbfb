"""What clusters do to jobs: each test does it, and the results are those of an undisturbed run, to the last bit."""

import contextlib
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, attempts, results, wait_until

from cluster.conftest import ClusterLab, Event, ends, notes
from dd_core.errors import UserError
from dd_core.jobs.folder import JobFolder

FINISHED = {"tiny/plain.k001": "finished", "tiny/plain.k002": "finished"}
# One pod does where it makes no difference.
ONE = {"tiny/plain.k001": "finished"}

RESOURCES = {"pods": 2, "gpus_per_pod": 0, "cpus_per_pod": 1}

TRAIN = (
    "asset",
    "materialize",
    "--select",
    "tiny/checkpoints",
    "--partition-range",
    "plain.k001|0000...plain.k002|0024",
)


def signal_workers(root: Path, number: int) -> None:
    """Send a signal to every process of a pod that works for this data root."""
    sent = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_worker = b"dd_core.jobs." in (folder / "cmdline").read_bytes()
            if is_worker and f"DD_ROOT={root}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), number)
                sent += 1
    assert sent


class Once:
    """Does something at the first event that has these items."""

    def __init__(self, action: Any, **items: Any):
        """``action`` takes nothing."""
        self.action, self.items, self.done = action, items, False

    def __call__(self, event: Event) -> None:
        """An event has come."""
        if not self.done and self.items.items() <= {**vars(event), "event": event.name}.items():
            self.done = True
            self.action()


def test_an_evicted_pod_goes_on_from_its_last_checkpoint_and_no_other_pod_notices(
    lab: ClusterLab, undisturbed: dict[str, str]
) -> None:
    evict = Once(lambda: lab.cluster.evict(lab.pod(1)), event="checkpoint", task="tiny/plain.k001", epoch=8)
    events = lab.run(lab.training_job(), evict)
    assert evict.done
    assert ends(events) == FINISHED
    assert "tiny/plain.k001 was evicted (EvictionByEvictionAPI: Eviction API: evicting) (pod dd-" in notes(events)
    assert "; again as soon as there is room (attempt 2)" in notes(events)
    assert sorted(lab.pods_made()) == [0, 1, 1]
    assert results(lab.root) == undisturbed
    assert attempts(lab.store, "plain.k001") == ["interrupted", "finished"]
    assert attempts(lab.store, "plain.k002") == ["finished"]


def test_a_pod_out_of_memory_starts_again_with_half_as_much_at_once(lab: ClusterLab) -> None:
    job = lab.training_job()
    halvings = []

    def look(event: Event) -> None:
        kill(event)
        if event.name == "started" and event.task == "tiny/plain.k002":
            halvings.append(lab.job_folder().halvings(0))

    kill = Once(lambda: lab.cluster.kill(lab.pod(0)), event="checkpoint", task="tiny/plain.k002", epoch=8)
    events = lab.run(job, look)
    assert ends(events) == FINISHED
    assert halvings == [0, 1]
    assert "was killed for want of memory (exit code 137)" in notes(events)
    assert sorted(lab.pods_made()) == [0, 0, 1]


def image(lab: ClusterLab, script: str) -> dict[str, Any]:
    """Settings with an image whose Python is this shell script."""
    folder = lab.root / "image"
    folder.mkdir()
    (folder / "python").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "python").chmod(0o755)
    lab.cluster.set_image("broken:*", folder)
    # The first process of a container does not heed SIGTERM by itself, as the real worker does.
    impatient = {"run_k8s_config": {"pod_spec_config": {"terminationGracePeriodSeconds": 0}}}
    return {"image": "broken:1", "container_context": impatient}


def test_a_bug_fails_fast_with_the_log_of_the_pod_that_failed(lab: ClusterLab) -> None:
    script = (
        "[ $JOB_COMPLETION_INDEX = 0 ] && exec sleep 60\n"
        "for i in $(seq 30); do echo line $i of pod $JOB_COMPLETION_INDEX; done\n"
        "echo 'ImportError: no module named misspelt' >&2\nexit 1"
    )
    events = lab.run(lab.training_job(), **image(lab, script))
    assert ends(events) == dict.fromkeys(FINISHED, "failed")
    failed = {event.task: event for event in events}
    guilty, other = failed["tiny/plain.k001"], failed["tiny/plain.k002"]
    assert "ended with exit code 1: ImportError: no module named misspelt" in guilty.error
    assert guilty.error in other.error
    assert not guilty.is_user_error
    log = guilty.traceback.splitlines()
    assert log[1:] == [*(f"line {i} of pod 1" for i in range(12, 31)), "ImportError: no module named misspelt"]
    assert lab.pods_made() == [0, 1], "it was tried again"


def test_a_pod_that_crashes_every_time_is_given_up_and_the_others_finish(lab: ClusterLab) -> None:
    python = Path(sys.executable)
    script = f'[ $JOB_COMPLETION_INDEX = 0 ] && exec {python} "$@"\necho out of cheese; exit 3'
    events = lab.run(lab.training_job(), **image(lab, script), resources={**RESOURCES, "retries": 1})
    assert ends(events) == {"tiny/plain.k001": "failed", "tiny/plain.k002": "finished"}
    (failed,) = (event for event in events if event.name == "failed")
    assert "ended with exit code 3 (out of cheese) in attempt 2, the last" in failed.error
    assert sorted(lab.pods_made()) == [0, 1, 1]


def test_a_task_that_fails_says_why_itself_and_is_not_tried_again(lab: ClusterLab) -> None:
    folder = lab.store.arm_folder("tiny", "plain.k001")
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder", encoding="utf-8")
    events = lab.run(lab.training_job())
    assert ends(events) == {"tiny/plain.k001": "failed", "tiny/plain.k002": "finished"}
    (failed,) = (event for event in events if event.name == "failed")
    assert str(folder) in failed.error
    assert sorted(lab.pods_made()) == [0, 1]
    assert lab.job_folder().outcomes().keys() == {0, 1}, "kept for those who look"


def test_each_attempt_has_as_long_as_an_attempt_may_take_and_the_last_one_fails(lab: ClusterLab) -> None:
    resources = {**RESOURCES, "pods": 1, "hours": 0.0002, "retries": 1, "retry_seconds": 0.3}
    events = lab.run(lab.training_job("k001"), **image(lab, "exec sleep 60"), resources=resources)
    took = "took longer than the 0.0002778 h that an attempt may take (hours under resources)"
    first, last = (line for line in notes(events).splitlines() if took in line)
    assert first.endswith("again in 0.3 s (attempt 2 of 2)")
    assert last.endswith("that was attempt 2, and the last")
    (failed,) = (event for event in events if event.name == "failed")
    assert f"{took} in attempt 2, the last" in failed.error
    assert "memory" not in notes(events)
    assert lab.pods_made() == [0, 0]


def test_an_api_server_in_trouble_costs_nothing_but_time(lab: ClusterLab, undisturbed: dict[str, str]) -> None:
    faults = lab.cluster.faults
    faults.fail(lambda verb, path: verb == "create" and path.endswith("/jobs"), 500, times=2)
    faults.fail(lambda verb, path: verb == "create" and path.endswith("/jobs"), 429, retry_after=1)
    faults.fail(lambda verb, path: verb == "list" and "/pods" in path, 410, times=2)
    faults.fail(lambda verb, path: verb == "get" and "/jobs/" in path, 503, retry_after=0)

    drop = Once(lambda: faults.refuse_connections(1.5), event="checkpoint", task="tiny/plain.k001", epoch=8)
    events = lab.run(lab.training_job(), drop)
    assert drop.done
    assert ends(events) == FINISHED
    assert "does not answer" in notes(events)
    assert "answers again" in notes(events)
    assert lab.pods_made() == [0, 1]
    assert results(lab.root) == undisturbed


def test_an_api_server_that_stays_away_is_given_up_and_the_job_goes_on(lab: ClusterLab) -> None:
    leave = Once(lambda: lab.cluster.faults.refuse_connections(5), event="started")
    with pytest.raises(UserError, match=r"does not answer .* goes on by itself, run the same command again"):
        lab.run(lab.training_job("k001"), leave, api_patience_seconds=1)
    wait_until(lambda: [c for j in lab.cluster.objects("Job") for c in j["status"].get("conditions", [])], "the Job")
    (job,) = lab.cluster.objects("Job")
    assert job["status"]["succeeded"] == 1


def test_a_log_stream_that_breaks_loses_nothing(lab: ClusterLab) -> None:
    cut = Once(lab.cluster.faults.break_log_streams, event="checkpoint", epoch=8)
    events = lab.run(lab.training_job("k001"), cut)
    assert cut.done
    assert ends(events) == ONE
    assert [event.epoch for event in events if event.name == "checkpoint"] == [0, 8, 16, 24]


def test_without_any_message_the_outcomes_tell_even_where_the_volume_shows_them_late(
    lab: ClusterLab, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, late = JobFolder.outcomes, itertools.count()

    def seen_late(folder: JobFolder, known: Any = frozenset()) -> Any:
        is_complete = any("completionTime" in job["status"] for job in lab.cluster.objects("Job"))
        return outcomes(folder, known) if is_complete and next(late) > 3 else {}

    monkeypatch.setattr(JobFolder, "outcomes", seen_late)
    events = lab.run(lab.training_job(), max_log_streams=0)
    assert [event.name for event in events] == ["finished", "finished"]
    assert results(lab.root) == undisturbed


def test_an_image_that_cannot_be_pulled_is_told_at_once_and_given_up_after_a_while(lab: ClusterLab) -> None:
    lab.cluster.set_image("nowhere:*", None)
    events = lab.run(lab.training_job(), image="nowhere:1", faulty_patience_seconds=1)
    assert events[0].name == "note"
    assert "cannot pull its image" in events[0].text
    assert "nowhere:1" in events[0].text
    assert ends(events) == dict.fromkeys(FINISHED, "failed")
    assert all("cannot pull its image" in event.error for event in events if event.name == "failed")
    assert len(notes(events).splitlines()) <= 2  # ErrImagePull, ImagePullBackOff
    wait_until(lambda: not lab.cluster.objects("Job") and not lab.cluster.objects("Pod"), "the end of the Job")


def test_pods_that_fit_nowhere_say_why_and_begin_when_there_is_room(lab: ClusterLab) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}
    add = Once(
        lambda: lab.cluster.apply(
            [{**node, "metadata": {"name": "node-a", "labels": {"kind": "large"}}}],
        ),
        event="note",
    )
    events = lab.run(lab.training_job("k001"), add, node_selector={"kind": "large"}, check_nodes=False)
    assert "waits for a node (0/2 nodes are available" in notes(events)
    assert ends(events) == ONE


def test_pods_that_fit_nowhere_are_given_up_after_as_long_as_configured(lab: ClusterLab) -> None:
    events = lab.run(
        lab.training_job(), node_selector={"kind": "large"}, check_nodes=False, pending_patience_seconds=0.5
    )
    assert ends(events) == dict.fromkeys(FINISHED, "failed")
    assert all("waits for a node" in event.error for event in events if event.name == "failed")
    wait_until(lambda: not lab.cluster.objects("Job") and not lab.cluster.objects("Pod"), "the end of the Job")


def test_an_orchestrator_that_is_killed_finds_its_job_again_and_nothing_runs_twice(
    lab: ClusterLab, undisturbed: dict[str, str]
) -> None:
    with lab.start_dagster(*TRAIN) as orchestrator:
        wait_until(lambda: list(lab.root.glob("checkpoints/tiny/plain.k00?/0008.json")), "a checkpoint")
        signal_workers(lab.root, signal.SIGSTOP)  # until there is another orchestrator
        orchestrator.send_signal(signal.SIGKILL)
    (job,) = lab.cluster.objects("Job")
    with lab.start_dagster(*TRAIN) as orchestrator:
        assert orchestrator.stdout
        lines = iter(orchestrator.stdout.readline, "")
        assert any("is there already" in line for line in lines)
        signal_workers(lab.root, signal.SIGCONT)
        output, _ = orchestrator.communicate(timeout=PATIENCE)
    assert orchestrator.returncode == 0, output
    (same,) = lab.cluster.objects("Job")
    assert same["metadata"]["uid"] == job["metadata"]["uid"]
    assert lab.pods_made() == [0, 1]
    assert attempts(lab.store, "plain.k001") == attempts(lab.store, "plain.k002") == ["finished"]
    assert results(lab.root) == undisturbed
    assert len(lab.recorded("checkpoints")) == 8


def test_a_run_that_is_interrupted_leaves_no_job_and_no_pod(lab: ClusterLab) -> None:
    with lab.start_dagster(*TRAIN) as orchestrator:
        wait_until(lambda: list(lab.root.glob("checkpoints/tiny/plain.k00?/0000.json")), "a checkpoint")
        orchestrator.send_signal(signal.SIGINT)
        output, _ = orchestrator.communicate(timeout=PATIENCE)
    assert orchestrator.returncode != 0
    # It may meet the place or whoever follows it, who say the same in other words.
    assert "interrupted: " in output
    assert "Stack Trace" not in output
    wait_until(lambda: not lab.cluster.objects("Job") and not lab.cluster.objects("Pod"), "the end of the Job")
    assert lab.pods_made() == [0, 1], "it was tried again"


class Drained(Exception):
    """Whatever makes an orchestrator leave in the middle."""


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["drained", "cancelled"])
def test_an_orchestrator_inside_the_cluster_leaves_its_job_to_the_next_unless_the_run_is_cancelled(
    lab: ClusterLab, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr("dd_assets.compute.kubernetes.place.is_inside_cluster", lambda: True)

    def leave() -> None:
        if is_cancelled:
            lab.running.instance.report_run_canceling(lab.running.run)
        raise Drained

    with pytest.raises(Drained):
        lab.run(lab.training_job("k001"), Once(leave, event="started"))
    if is_cancelled:
        wait_until(lambda: not lab.cluster.objects("Job") and not lab.cluster.objects("Pod"), "the end of the Job")
    else:
        events = lab.run(lab.training_job("k001"))
        assert "is there already" in notes(events)
        assert ends(events) == ONE
        assert lab.pods_made() == [0]
