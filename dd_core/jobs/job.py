"""The job file: what to compute. The orchestrator writes it, ``dd_core.jobs.worker`` reads it. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dd_core.cost import training_cost
from dd_core.studies import Arm, Checkpoint, Study


class TrainTask(BaseModel):
    """Train one arm up to an epoch, writing every checkpoint on the way.

    Attributes:
        workers_per_device: how many arms like this one share a GPU, or the cores of a CPU; None: as many as the job
            has workers for each.
        threads: CPU threads; None: as the job says. An arm that goes on keeps those it began with.
        predicted_seconds: wall time, or None where nothing is known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["train"] = "train"
    study: str
    variant: str
    k: int
    until: int
    workers_per_device: int | None = None
    threads: int | None = None
    predicted_seconds: float | None = None

    @property
    def arm(self) -> Arm:
        """The arm to train."""
        return Arm(self.variant, self.k)

    @property
    def gpu_share(self) -> float:
        """Share of a GPU that it has."""
        return 1 / (self.workers_per_device or 1)

    @property
    def name(self) -> str:
        """For people and events."""
        return f"{self.study}/{self.arm.key}"


class CurvatureTask(BaseModel):
    """Per-image curvature of one checkpoint, or of some rows of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["per_image_curvature"] = "per_image_curvature"
    study: str
    variant: str
    k: int
    epoch: int
    rows: tuple[int, int] | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to look at."""
        return Checkpoint(Arm(self.variant, self.k), self.epoch)

    @property
    def name(self) -> str:
        """For people and events."""
        part = f" rows {self.rows[0]}-{self.rows[1]}" if self.rows else ""
        return f"{self.study}/{self.checkpoint.key}{part}"


class HessianTask(BaseModel):
    """The Hessian in the weights of every trial at one checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["hessian"] = "hessian"
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


Task = TrainTask | CurvatureTask | HessianTask
CheckpointOfStudy = tuple[str, Checkpoint]


class Job(BaseModel):
    """Tasks in the order workers should take them, with the studies they belong to, complete in itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: Path
    studies: dict[str, Study]
    tasks: tuple[Task, ...]
    num_workers: int
    threads: int


def predicted_cost(study: Study, task: Task) -> float:
    """Relative time of a task, for order and progress; workers take the longest first.

    Training: images times FLOPs and overhead. What is computed from checkpoints grows alike with the network.
    """
    if isinstance(task, TrainTask):
        return training_cost(study, task.arm, 0, task.until)
    cost = training_cost(study, task.checkpoint.arm, 0, 1)
    if isinstance(task, CurvatureTask) and task.rows:
        cost *= (task.rows[1] - task.rows[0]) / (study.trials * study.num_train_images)
    return cost


def training_job(root: Path, study: Study, checkpoints: list[Checkpoint], num_workers: int, threads: int) -> Job:
    """Train every arm named up to its last epoch named, longest first."""
    until: dict[Arm, int] = {}
    for checkpoint in checkpoints:
        until[checkpoint.arm] = max(until.get(checkpoint.arm, 0), checkpoint.epoch)
    tasks = [TrainTask(study=study.name, variant=a.variant, k=a.k, until=e) for a, e in until.items()]
    return _job(root, {study.name: study}, tasks, num_workers, threads)


def curvature_job(
    root: Path, studies: dict[str, Study], checkpoints: list[CheckpointOfStudy], num_workers: int, threads: int
) -> Job:
    """Per-image curvature of every checkpoint named, large ones in several ranges of rows, longest first."""
    tasks = []
    for study, c in checkpoints:
        ranges: list[tuple[int, int]] | list[None] = studies[study].curvature_ranges
        for rows in ranges if len(ranges) > 1 else [None]:
            tasks.append(CurvatureTask(study=study, variant=c.arm.variant, k=c.arm.k, epoch=c.epoch, rows=rows))
    return _job(root, studies, tasks, num_workers, threads)


def hessian_job(
    root: Path, studies: dict[str, Study], checkpoints: list[CheckpointOfStudy], num_workers: int, threads: int
) -> Job:
    """The Hessian in the weights of every checkpoint named, longest first."""
    tasks = [HessianTask(study=study, variant=c.arm.variant, k=c.arm.k, epoch=c.epoch) for study, c in checkpoints]
    return _job(root, studies, tasks, num_workers, threads)


def _job(root: Path, studies: dict[str, Study], tasks: Sequence[Task], num_workers: int, threads: int) -> Job:
    ordered = sorted(tasks, key=lambda task: predicted_cost(studies[task.study], task), reverse=True)
    used = max(1, min(num_workers, len(ordered)))
    return Job(root=root, studies=studies, tasks=tuple(ordered), num_workers=used, threads=threads)
