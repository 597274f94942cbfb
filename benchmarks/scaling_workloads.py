"""What is simulated: the tasks of Figure 1 and of per-image curvature, and how many seconds each takes.

Speed laws, seconds of a GPU for a training image: overhead + FLOPs / rate.

* ``CPU``: 209 us + FLOPs / 71 GFLOP/s, as ``figure1_cost.py`` fits it to this trainer on one core: nearly all FLOPs, so
  that wide networks take much longer than narrow ones. The hardest to balance.
* ``B200``: a public plain loop with four networks on one B200 (github.com/HP2706/ATDL-Group-Work, Assignment 2,
  our-results-folder/pilots/b200-2026-09-26, commit 34e116d): 160 epochs of widths 1 and 40 in 227 s, and an epoch of
  width 40 among its like in 7.16 s. One at a time it takes 2.48 s at every width: then all tasks are alike.
* A stack of five trials takes five times as long as one trial. On a GPU it takes less, how much is not measured here.
* Curvature: 847.3 s for the 50,000 images of a checkpoint on 8 GPUs, as the metadata of seed 002 say.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dd_core.jobs.job import Job, result_job, training_job
from dd_core.study.architectures import forward_flops
from dd_core.study.study import Checkpoint, Study

GPUS_PER_POD = 8
PUBLISHED_CHECKPOINT_SECONDS = 8 * 847.3


@dataclass(frozen=True)
class Law:
    """Seconds of one GPU (or core) for a training image at width k."""

    name: str
    overhead: float
    per_flop: float

    def __call__(self, k: int) -> float:
        """At that width, ResNet18k on 32x32x3."""
        return self.overhead + self.per_flop * training_flops(k)


def training_flops(k: int) -> float:
    """FLOPs of ResNet18k on one image of 32x32x3."""
    return 3.0 * forward_flops("preact_resnet18", k, (32, 32, 3), 10)


def published_b200() -> Law:
    """Through the two points of the module's docstring."""
    wide, mixed = 7.16 / 4 / 50_000, 227 / 160 / 50_000
    per_flop = (wide - mixed) / (training_flops(40) - (training_flops(1) + training_flops(40)) / 2)
    return Law("B200", wide - per_flop * training_flops(40), per_flop)


LAWS = (published_b200(), Law("CPU", 209e-6, 1 / 71e9))


@dataclass(frozen=True)
class Workload:
    """A job, and what its tasks take.

    Attributes:
        key: for the file of ratios.
        seconds: of each task on a device of its own, as predicted.
        resume_seconds: work between two points from which a task can go on; a shard of curvature has none.
    """

    key: str
    name: str
    job: Job
    seconds: tuple[float, ...]
    resume_seconds: float

    @property
    def longest(self) -> float:
        """Task, in seconds."""
        return max(self.seconds)

    def bound(self, num_gpus: int) -> float:
        """Largest efficiency that any schedule of these tasks can have: none ends before its longest task."""
        mean = sum(self.seconds) / num_gpus
        return mean / max(mean, self.longest)


def figure1(law: Law, study: Study) -> Iterator[Workload]:
    """The 320 trainings of Figure 1: as this project divides them, and in larger and smaller tasks."""
    parts = _training_job(study)
    yield _training("parts", "as this project divides them: small stacks to k = 8, single trials beyond", law, parts)
    arms = {task.name.partition(" ")[0]: task.model_copy(update={"trials": None}) for task in parts.tasks}
    whole = parts.model_copy(update={"tasks": tuple(arms.values())})
    yield _training("arms", "64 arms of 5 trials", law, whole)
    single = [study.model_copy(update={"name": f"{study.name}_{n}", "trials": 1}) for n in range(study.trials)]
    yield _training("trainings", "320 trainings, each a task", law, _together([_training_job(one) for one in single]))


def _training_job(study: Study) -> Job:
    last = [checkpoint for checkpoint in study.iter_checkpoints() if checkpoint.epoch == study.epochs]
    return training_job("/nowhere", study, last, GPUS_PER_POD, 8)


def _together(jobs: Sequence[Job]) -> Job:
    """One job of them all."""
    return jobs[0].model_copy(
        update={
            "studies": {name: study for job in jobs for name, study in job.studies.items()},
            "tasks": tuple(task for job in jobs for task in job.tasks),
        }
    )


def _training(key: str, name: str, law: Law, job: Job) -> Workload:
    """With its tasks in the order that the job has them in: longest first."""

    def seconds(task: Any) -> float:
        study = job.studies[task.study]
        return task.share(study) * study.trials * study.num_train_images * task.until * law(task.k)

    tasks = tuple(sorted(job.tasks, key=seconds, reverse=True))
    job = job.model_copy(update={"tasks": tasks, "num_workers": GPUS_PER_POD})
    return Workload(key, name, job, tuple(seconds(task) for task in tasks), resume_seconds=60.0)


def curvature(study: Study, num_checkpoints: int, trials: int) -> Workload:
    """Per-image curvature of some checkpoints of one width, 50,000 images a trial, at the published speed."""
    study = study.model_copy(update={"trials": trials})
    arm = list(study.arms.values())[-1]
    work = [(study.name, Checkpoint(arm, epoch)) for epoch in range(num_checkpoints)]
    job = result_job("per_image_curvature", "/nowhere", {study.name: study}, work, GPUS_PER_POD, 8)
    job = job.model_copy(update={"num_workers": GPUS_PER_POD})
    per_image = PUBLISHED_CHECKPOINT_SECONDS / 50_000
    all_rows = study.trials * study.num_train_images

    def rows(task: Any) -> int:
        assert task.kind == "per_image_curvature"
        return task.rows[1] - task.rows[0] if task.rows else all_rows

    seconds = tuple(rows(task) * per_image + shard_seconds(trials) for task in job.tasks)
    name = f"curvature of {num_checkpoints} checkpoint{'s' if num_checkpoints > 1 else ''}, trials: {trials}"
    return Workload(f"{num_checkpoints}_{trials}", name, job, seconds, resume_seconds=math.inf)


def shard_seconds(trials: int) -> float:
    """What a shard takes beside its images, as measured on one core with CIFAR-10 and k = 8 (``scaling_here.py``)."""
    return 0.1 + 0.3 * trials
