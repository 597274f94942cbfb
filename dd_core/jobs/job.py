"""The job file: what to compute. The orchestrator writes it, ``dd_core.jobs.worker`` reads it. Needs no torch."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dd_core.forecast.work import training_cost
from dd_core.store.companions import networks
from dd_core.store.parts import division
from dd_core.store.store import Store
from dd_core.study.resources import Resources, largest
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.kinds import KINDS, Rows
from dd_core.words import counted

# The orchestrator looks at all tasks of a job every few seconds.
_MOST_TASKS = 10_000


def _is_empty(value: tuple[Any, ...]) -> bool:
    """What says nothing is left out of job files, so that names made of their content stay what they were."""
    return not value


class TrainTask(BaseModel):
    """Train one arm, one part of it, or arms that share a network, up to an epoch, with every checkpoint on the way.

    Attributes:
        variant, k: the arm, or the first of several.
        also: variants of the others, of the same width.
        places: variants that have a place in the network, if there are several (``dd_core.store.companions``).
        trials: number of the first trial of the part, and of the last plus one; None: all trials.
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
    also: tuple[str, ...] = Field(default=(), exclude_if=_is_empty)
    places: tuple[str, ...] = Field(default=(), exclude_if=_is_empty)
    trials: tuple[int, int] | None = None
    workers_per_device: int | None = None
    threads: int | None = None
    predicted_seconds: float | None = None

    @property
    def arm(self) -> Arm:
        """The arm to train, or the first of several."""
        return Arm(self.variant, self.k)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms to train."""
        return self.arm, *(Arm(variant, self.k) for variant in self.also)

    def precision(self, study: Study) -> str:
        """In which it should be computed."""
        return study.variants[self.variant].precision

    def share(self, study: Study) -> float:
        """The share of its arm's trials that it trains."""
        return 1.0 if self.trials is None else len(range(*self.trials)) / study.trials

    @property
    def gpu_share(self) -> float:
        """Share of a GPU that it has."""
        return 1 / (self.workers_per_device or 1)

    @property
    def name(self) -> str:
        """For people and events."""
        if self.also:
            return f"{self.study}/{self.arm.key} and {counted(len(self.also), 'other arm')}"
        if self.trials is None:
            return f"{self.study}/{self.arm.key}"
        first, last = self.trials[0], self.trials[1] - 1
        return f"{self.study}/{self.arm.key} trial{f' {first}' if first == last else f's {first}-{last}'}"

    @property
    def names(self) -> tuple[str, ...]:
        """What its name would be with each of its arms alone: the same whichever arms share a network."""
        return tuple(f"{self.study}/{arm.key}" for arm in self.arms) if self.also else (self.name,)


class CheckpointTask(BaseModel):
    """A result of one checkpoint, or some rows of it.

    Attributes:
        kind: name of a ``Kind``.
        rows: from the first to before the second, of one or several of the kind's ranges; None: all.
        ranks: processes that share its images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    study: str
    variant: str
    k: int
    epoch: int
    rows: Rows | None = None
    ranks: int = 1

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to look at."""
        return Checkpoint(Arm(self.variant, self.k), self.epoch)

    @property
    def name(self) -> str:
        """For people and events."""
        part = f" rows {self.rows[0]}-{self.rows[1]}" if self.rows else ""
        return f"{self.study}/{self.checkpoint.key}{part}"

    @property
    def names(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)

    def precision(self, study: Study) -> str:
        """In which it should be computed."""
        return KINDS[self.kind].precision(study)

    def compute(self, study: Study, store: Store, **options: Any) -> None:
        """Do it, with the options ``device`` and perhaps ``group``; nothing where a current result is there.

        Nor where every trial has diverged, as there are no weights to look at.
        """
        manifest = store.read_manifest(store.checkpoint_manifest_path(study.name, self.checkpoint))
        if manifest is not None and not manifest.live_trials:
            return
        rows = {} if self.rows is None else {"rows": self.rows}
        KINDS[self.kind].function(study, self.checkpoint, store, **rows, **options)


class ProbeTask(BaseModel):
    """How fast arms train with several workers side by side on the machine it runs on.

    Attributes:
        arms: study, variant and k of each.
        counts: numbers of workers, ascending; empty: what suits the machine.
        seconds: about how long to time each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["probe"] = "probe"
    study: str
    arms: tuple[tuple[str, str, int], ...]
    counts: tuple[int, ...] = ()
    seconds: float

    @property
    def name(self) -> str:
        """For people and events."""
        return "resource_probe"

    @property
    def names(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)


Task = TrainTask | ProbeTask | CheckpointTask
CheckpointOfStudy = tuple[str, Checkpoint]


class Job(BaseModel):
    """Tasks in the order workers should take them, with the studies they belong to, complete in itself.

    Attributes:
        root: address of the data root as a worker sees it.
        tasks: what was asked for.
        beside: results of arms that it trains. A worker that finds no arm to train takes them, each as soon as its arm
            is trained. They are numbered after the tasks. The job has not failed where one of them does: whoever asks
            for the result will be told.
        num_workers: at the same time at each place.
        threads: CPU threads of a worker.
        request: digest of what was asked for, finished or not; the same when an orchestrator asks once more.
        places: for each machine (pod, node) the numbers of its tasks, in order; empty: all on this machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: Annotated[str, BeforeValidator(str)]
    studies: dict[str, Study]
    tasks: tuple[Task, ...]
    beside: tuple[CheckpointTask, ...] = Field(default=(), exclude_if=_is_empty)
    num_workers: int
    threads: int
    request: str = ""
    places: tuple[tuple[int, ...], ...] = ()

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks and those beside them, by number."""
        return *self.tasks, *self.beside

    @property
    def ranks(self) -> int:
        """Processes that share each task; with more than one the tasks come one after the other, under torchrun."""
        return max((task.ranks for task in self.tasks if isinstance(task, CheckpointTask)), default=1)

    @property
    def resources(self) -> Resources | None:
        """What the studies of its tasks ask for."""
        names = set(self.studies) if self.is_probe else {task.study for task in self.tasks}
        return largest(self.studies[name].resources for name in sorted(names))

    @property
    def names(self) -> set[str]:
        """A digest of all that its tasks are about, by which two jobs of one request are compared."""
        return {name for task in self.tasks for name in task.names}

    @property
    def is_probe(self) -> bool:
        """Whether it measures the machine it runs on."""
        return isinstance(self.tasks[0], ProbeTask)

    @property
    def name(self) -> str:
        """The same for the same request: a DNS label of at most 52 characters, as Kubernetes wants it."""
        kind = self.tasks[0].kind.removeprefix("per_image_")
        studies = {task.study for task in self.tasks}
        about = re.sub(r"[^a-z0-9]+", "-", studies.pop())[:24].strip("-") if len(studies) == 1 else "studies"
        request = self.request or digest_of([task.model_dump_json() for task in self.tasks])
        return f"dd-{kind}-{about}-{request[:10]}"

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content."""
        return digest_of([self.model_dump_json()])


def digest_of(parts: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of texts in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def by_machines(job: Job) -> list[Job]:
    """The job in parts whose tasks are shared by equally many ranks and want the same product of GPU."""
    parts: dict[tuple[int, str | None], list[Task]] = {}
    for task in job.tasks:
        asked = job.studies[task.study].resources
        of = (task.ranks if isinstance(task, CheckpointTask) else 1, asked.gpu if asked else None)
        parts.setdefault(of, []).append(task)
    if len(parts) == 1:
        return [job]
    made = []
    for (ranks, gpu), tasks in parts.items():
        request = digest_of([job.request, str(ranks), *([gpu] if gpu else [])])
        made.append(job.model_copy(update={"tasks": tuple(tasks), "request": request}))
    return made


def predicted_cost(study: Study, task: Task) -> float:
    """Relative time of a task, for order and progress; workers take the longest first.

    Training: images times FLOPs and overhead. What is computed from checkpoints grows alike with the network.
    """
    if isinstance(task, TrainTask):
        return training_cost(study, task.arm, 0, task.until) * task.share(study) * len(task.arms)
    if isinstance(task, ProbeTask):
        return 1.0  # alone in its job
    num_seen = study.num_seen_images(task.epoch)
    cost = training_cost(study, task.checkpoint.arm, 0, 1) * num_seen / study.num_seen_images(1)
    if task.rows:
        cost *= (task.rows[1] - task.rows[0]) / (study.trials * num_seen)
    return cost


def training_job(
    root: Path | str,
    study: Study,
    checkpoints: list[Checkpoint],
    num_workers: int,
    threads: int,
    num_places: int = 1,
    num_gpus: int = 0,
) -> Job:
    """Train every arm named up to its last epoch named, longest first.

    In parts where it has independent ones; arms that differ in rates alone share a network, but for so many that each
    worker of each of ``num_places`` machines has one. Where there are ``num_gpus``, of all machines together, and an
    arm for each, more trials share a network (``dd_core.study.stacks``).
    """
    until: dict[Arm, int] = {}
    for checkpoint in checkpoints:
        until[checkpoint.arm] = max(until.get(checkpoint.arm, 0), checkpoint.epoch)
    store, tasks, whole = Store(root), [], {}
    for arm, epoch in until.items():
        parts = division(store, study, arm, on_gpu=0 < num_gpus <= len(until))
        if len(parts) == 1:
            whole[arm] = epoch
            continue
        for part in parts:
            trials = part.start, part.stop
            tasks.append(TrainTask(study=study.name, variant=arm.variant, k=arm.k, until=epoch, trials=trials))
    for network in networks(store, study, whole, num_workers * num_places):
        first, *others = network.arms
        places = network.places if len(network.places) > 1 else ()
        also = tuple(arm.variant for arm in others)
        task = TrainTask(
            study=study.name, variant=first.variant, k=first.k, until=network.until, also=also, places=places
        )
        tasks.append(task)
    return _job(root, {study.name: study}, tasks, num_workers, threads)


def result_job(
    kind: str,
    root: Path | str,
    studies: dict[str, Study],
    checkpoints: list[CheckpointOfStudy],
    num_workers: int,
    threads: int,
) -> Job:
    """One kind of result of every checkpoint named, large ones in several tasks, longest first.

    A task has one of the kind's ranges of rows, or as many in a row as keep the number of tasks bearable.
    """
    of = KINDS[kind]
    ranges = {at: list(of.ranges(studies[at[0]], at[1])) for at in {(study, c.epoch) for study, c in checkpoints}}
    at_a_time = max(1, -(-sum(len(ranges[study, c.epoch]) for study, c in checkpoints) // _MOST_TASKS))
    tasks = []
    for study, c in checkpoints:
        own = ranges[study, c.epoch]
        chunks = [own[start : start + at_a_time] for start in range(0, len(own), at_a_time)] if len(own) > 1 else [[]]
        for chunk in chunks:
            rows = (chunk[0][0], chunk[-1][1]) if chunk else None
            task = CheckpointTask(
                kind=kind,
                study=study,
                variant=c.arm.variant,
                k=c.arm.k,
                epoch=c.epoch,
                rows=rows,
                ranks=of.ranks(studies[study]),
            )
            tasks.append(task)
    return _job(root, studies, tasks, num_workers, threads)


def probe_jobs(root: Path | str, arms: Sequence[tuple[Study, Arm]], counts: Sequence[int], seconds: float) -> list[Job]:
    """Measure how fast these arms of studies train: on one machine for each product of GPU that studies want."""
    by_product: dict[str | None, list[tuple[Study, Arm]]] = {}
    for study, arm in arms:
        by_product.setdefault(study.resources.gpu if study.resources else None, []).append((study, arm))
    jobs = []
    for chosen in by_product.values():
        named = tuple((study.name, arm.variant, arm.k) for study, arm in chosen)
        task = ProbeTask(study=named[0][0], arms=named, counts=tuple(counts), seconds=seconds)
        jobs.append(_job(root, {study.name: study for study, _ in chosen}, [task], 1, 1))
    return jobs


def _job(root: Path | str, studies: dict[str, Study], tasks: Sequence[Task], num_workers: int, threads: int) -> Job:
    ordered = sorted(tasks, key=lambda task: predicted_cost(studies[task.study], task), reverse=True)
    used = max(1, min(num_workers, len(ordered)))
    return Job(root=str(root), studies=studies, tasks=tuple(ordered), num_workers=used, threads=threads)
