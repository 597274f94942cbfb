"""kill -9 of a worker at any moment, or two of them at the same work: the results are those of one undisturbed run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ONE_CORE, TINY, Death, Lab, Worker, attempts, results, stamps, work, work_and_die

from dd_core.jobs.job import TrainTask
from dd_core.store.resume_points import trained_epoch

ARM = "plain.k002"

# One arm's training gives 27 files their names: its row in `runs`; then, at each of the four checkpoints, the batches
# (not at epoch 0), evaluations, monitors (not at epoch 0), images, weights, manifest and resume point (not at epoch 0);
# the row again.
MOMENTS = {
    "before_anything_is_written": Death("started"),
    "before_the_first_weights": Death(file=4),
    "before_the_first_manifest": Death(file=5),
    "right_after_the_first_checkpoint": Death("checkpoint", 0),
    "between_checkpoints": Death("progress", 1),
    "between_weights_and_manifest": Death(file=11),
    "between_manifest_and_resume_point": Death(file=12),
    "right_after_a_checkpoint": Death("checkpoint", 8),
    "in_the_middle_of_writing_metrics": Death(file=15),
    "at_the_last_resume_point": Death(file=26),
    "before_the_end_is_told": Death(file=27),
    "right_after_the_last_checkpoint": Death("checkpoint", 24),
}


def of_arm(digests: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if ARM in path}


@pytest.mark.parametrize("death", MOMENTS.values(), ids=MOMENTS)
def test_training_killed_and_run_again_gives_the_same_bits(
    death: Death, lab: Lab, expected_training: dict[str, str]
) -> None:
    job = lab.training_job(ARM)
    work_and_die(lab, job, death)
    interrupted = attempts(lab.store, ARM)
    work(lab, job)
    assert results(lab.root) == of_arm(expected_training)
    assert interrupted == (["running"] if death.event != "started" else [])
    assert attempts(lab.store, ARM) == [*["interrupted"] * len(interrupted), "finished"]
    assert [path for path in lab.root.rglob(".*") if ".tmp" in path.name] == [], "left by the killed worker"


def test_an_arm_killed_again_and_again_goes_on_each_time(lab: Lab, expected_training: dict[str, str]) -> None:
    job = lab.training_job(ARM)
    for epoch in (0, 8, 16):
        work_and_die(lab, job, Death("checkpoint", epoch))
    work(lab, job)
    assert results(lab.root) == of_arm(expected_training)
    assert attempts(lab.store, ARM) == ["interrupted", "interrupted", "interrupted", "finished"]


@pytest.mark.parametrize("file", [3, 4])
def test_curvature_killed_and_run_again_repeats_nothing_that_was_finished(
    file: int, trained: Lab, expected: dict[str, str]
) -> None:
    """Each checkpoint gives names to two files, its values and its manifest; the second is killed at one of them."""
    for folder in ("tables", "manifests"):
        shutil.rmtree(trained.root / folder / "per_image_curvature")
    job = trained.curvature_job()
    work_and_die(trained, job, Death(file=file))
    manifests = "manifests/per_image_curvature/**/*.json"
    before = stamps(trained.root, manifests)
    assert len(before) == 1
    work(trained, job)
    after = stamps(trained.root, manifests)
    assert len(after) == 8
    assert {path: after[path] for path in before} == before
    assert results(trained.root) == expected


def test_a_worker_leaves_at_once_when_its_orchestrator_dies(tmp_path: Path) -> None:
    """Its stdin is closed then. It must neither finish its task nor wait until nobody takes what it says."""
    lab = Lab(tmp_path / "lab", TINY.replace("epochs: 24", "epochs: 240").replace("[0, 8, 16, 24]", "[0, 240]"))
    path = lab.folder / "job.json"
    path.write_text(lab.training_job(ARM).model_dump_json(), encoding="utf-8")
    command = [*ONE_CORE, sys.executable, "-m", "dd_core.jobs.worker", str(path)]
    with subprocess.Popen(
        command, env=lab.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("0\n")
        worker.stdin.flush()
        for line in worker.stdout:
            if json.loads(line)["event"] == "checkpoint":
                break
        worker.stdin.close()
        said = [json.loads(line)["event"] for line in worker.stdout]
    assert worker.returncode == 1
    assert set(said) <= {"progress"}
    assert attempts(lab.store, ARM) == ["running"], "it was not even told that it ends"


def test_two_workers_on_one_arm_train_it_once(lab: Lab, expected_training: dict[str, str]) -> None:
    job = lab.training_job(ARM)
    first, second = Worker(lab, job), Worker(lab, job)
    assert (first.end(), second.end()) == (0, 0)
    assert [event.epoch for event in first.log + second.log if event.name == "checkpoint"] == [0, 8, 16, 24]
    assert attempts(lab.store, ARM) == ["finished"]
    assert results(lab.root) == of_arm(expected_training)


def test_two_workers_on_the_same_curvature_corrupt_nothing(trained: Lab, expected: dict[str, str]) -> None:
    for folder in ("tables", "manifests"):
        shutil.rmtree(trained.root / folder / "per_image_curvature")
    job = trained.curvature_job()
    first, second = Worker(trained, job), Worker(trained, job)
    assert (first.end(), second.end()) == (0, 0)
    assert results(trained.root) == expected
    assert list(trained.root.glob("tables/**/.*.tmp")) == []


TOGETHER = """\
description: two arms that differ in rates alone, of a trial each
data: {dataset: digits, num_train: 40}
variants:
  slow: &recipe
    architecture: cnn5
    batch_size: 20
    optimizer: &sgd {name: sgd, learning_rate: 0.02, momentum: 0.9}
  fast:
    <<: *recipe
    optimizer: {<<: *sgd, learning_rate: 0.1}
widths: [1]
trials: 1
epochs: 4
checkpoints: [0, 2, 4]
"""


def test_arms_in_one_network_are_killed_and_run_again_like_one(tmp_path: Path) -> None:
    """Between the resume points of the two, and before the end of the second is told."""
    undisturbed = Lab(tmp_path / "undisturbed", TOGETHER)
    work(undisturbed, undisturbed.training_job())
    expected = results(undisturbed.root)
    assert len(expected) == 2 * (3 + 2 + 3 + 2 + 3), "arms x (weights, batches, evals, monitors, images)"
    for file, epochs in ((26, {0, 2}), (43, {4})):
        lab = Lab(tmp_path / str(file), TOGETHER)
        job = lab.training_job()
        assert [len(task.arms) for task in job.tasks if isinstance(task, TrainTask)] == [2]
        work_and_die(lab, job, Death(file=file))
        assert {trained_epoch(lab.store, lab.study, arm) for arm in lab.study.arms.values()} == epochs
        work(lab, lab.training_job())
        assert results(lab.root) == expected
        told = [attempts(lab.store, arm) for arm in lab.study.arms]
        assert told[1] == ["interrupted", "finished"]
        assert told[0] == (["finished"] if file == 43 else told[1])
