"""What a job may use on a cluster: how many machines, what of each, and how often. Needs nothing but pydantic."""

from collections.abc import Iterable

from pydantic import Field

from dd_core.study.yaml_files import Strict


class Resources(Strict):
    """What to ask for; what is left null is decided by the next in line: study, settings of the place, default.

    A pod is one machine's share of a job: a Kubernetes pod, or a node of SLURM.
    """

    pods: int | None = Field(default=None, ge=1, le=10_000, description="at most; fewer where there is less to do")
    gpus_per_pod: int | None = Field(default=None, ge=0, le=64, description="0: the cores of the CPU")
    gpu: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$",
        description="the only product of GPU that will do, as the place calls it: NVIDIA-A100-SXM4-40GB; null: any",
    )
    cpus_per_pod: int | None = Field(default=None, ge=1, le=4096, description="cores")
    memory_gib_per_pod: float | None = Field(default=None, gt=0, description="GiB of main memory")
    workers_per_pod: int | None = Field(
        default=None, ge=1, le=4096, description="worker processes; null: one per GPU, or per core without GPUs"
    )
    hours: float | None = Field(
        default=None,
        gt=0,
        description="after which an attempt of a pod is ended; the next goes on from its last resume point. "
        "null: as the place does by itself",
    )
    retries: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="how often a pod that was lost or ran out of time is tried again; null: after what is no fault of "
        "its own (eviction, preemption) always, otherwise as long as the place thinks fit",
    )
    retry_seconds: float | None = Field(
        default=None,
        gt=0,
        le=7 * 24 * 3600,
        description="before the first retry, and twice as long before each further one, up to an hour; null: as the "
        "place does",
    )

    def overridden_by(self, other: "Resources | None") -> "Resources":
        """These, but where the other says something, that."""
        return self.model_copy(update=other.model_dump(exclude_none=True)) if other else self


def largest(asked: Iterable[Resources | None]) -> Resources | None:
    """The most that any of several studies asks for, of each quantity; None if none asks for anything.

    Products of GPU have no order: where studies name different ones there is none (``dd_core.jobs.job.by_machines``
    keeps such studies apart).
    """
    given = [resources.model_dump(exclude_none=True) for resources in asked if resources]
    products = {values.pop("gpu") for values in given if "gpu" in values}
    names = {name for values in given for name in values}
    most = {name: max(values[name] for values in given if name in values) for name in names}
    if len(products) == 1:
        most["gpu"] = products.pop()
    return Resources(**most) if most else None
