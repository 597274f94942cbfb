"""The job file: what to compute. The orchestrator writes it, ``dd_core.jobs.worker`` reads it. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dd_core.studies import Arm, Checkpoint, Study


class TrainTask(BaseModel):
    """Train one arm up to an epoch, writing every checkpoint on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["train"] = "train"
    study: str
    variant: str
    k: int
    until: int

    @property
    def arm(self) -> Arm:
        """The arm to train."""
        return Arm(self.variant, self.k)

    @property
    def name(self) -> str:
        """For people and events."""
        return f"{self.study}/{self.arm.key}"


class CurvatureTask(BaseModel):
    """Per-image curvature of one checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["per_image_curvature"] = "per_image_curvature"
    study: str
    variant: str
    k: int
    epoch: int

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to look at."""
        return Checkpoint(Arm(self.variant, self.k), self.epoch)

    @property
    def name(self) -> str:
        """For people and events."""
        return f"{self.study}/{self.checkpoint.key}"


class Job(BaseModel):
    """Tasks in the order workers should take them, with the studies they belong to, complete in itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: Path
    studies: dict[str, Study]
    tasks: tuple[TrainTask | CurvatureTask, ...]
    num_workers: int
    threads: int


def predicted_cost(study: Study, task: TrainTask | CurvatureTask) -> float:
    """Relative time of a task, for order and progress; workers take the longest first.

    Measured on one thread, two trials of ResNet10k on 8x8 digits: an arm takes 10, 12, 21, 47 s at k = 1, 4, 8, 16,
    about proportional to 3 + k; the cost of a curvature pass grows alike. On a GPU wide networks grow with the square,
    which leaves the order as it is.
    """
    epochs = task.until if isinstance(task, TrainTask) else 1
    return (3 + task.k) * max(epochs, 1)


def training_job(root: Path, study: Study, checkpoints: list[Checkpoint], num_workers: int, threads: int) -> Job:
    """Train every arm named up to its last epoch named, longest first."""
    until: dict[Arm, int] = {}
    for checkpoint in checkpoints:
        until[checkpoint.arm] = max(until.get(checkpoint.arm, 0), checkpoint.epoch)
    tasks = [TrainTask(study=study.name, variant=a.variant, k=a.k, until=e) for a, e in until.items()]
    return _job(root, {study.name: study}, tasks, num_workers, threads)


def curvature_job(
    root: Path, studies: dict[str, Study], checkpoints: list[tuple[str, Checkpoint]], num_workers: int, threads: int
) -> Job:
    """Per-image curvature of every checkpoint named, longest first."""
    tasks = [CurvatureTask(study=study, variant=c.arm.variant, k=c.arm.k, epoch=c.epoch) for study, c in checkpoints]
    return _job(root, studies, tasks, num_workers, threads)


def _job(
    root: Path,
    studies: dict[str, Study],
    tasks: Sequence[TrainTask | CurvatureTask],
    num_workers: int,
    threads: int,
) -> Job:
    ordered = sorted(tasks, key=lambda task: predicted_cost(studies[task.study], task), reverse=True)
    used = max(1, min(num_workers, len(ordered)))
    return Job(root=root, studies=studies, tasks=tuple(ordered), num_workers=used, threads=threads)
