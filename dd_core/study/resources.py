"""What a job may use on a cluster: how many machines, and what of each. Needs nothing but pydantic."""

from collections.abc import Iterable

from pydantic import Field

from dd_core.study.yaml_files import Strict


class Resources(Strict):
    """What to ask for; what is left null is decided by the next in line: study, settings of the place, default.

    A pod is one machine's share of a job: a Kubernetes pod, or a node of SLURM.
    """

    pods: int | None = Field(default=None, ge=1, le=10_000, description="at most; fewer where there is less to do")
    gpus_per_pod: int | None = Field(default=None, ge=0, le=64, description="0: the cores of the CPU")
    cpus_per_pod: int | None = Field(default=None, ge=1, le=4096, description="cores")
    memory_gib_per_pod: float | None = Field(default=None, gt=0, description="GiB of main memory")
    workers_per_pod: int | None = Field(
        default=None, ge=1, le=4096, description="worker processes; null: one per GPU, or per core without GPUs"
    )
    hours: float | None = Field(
        default=None, gt=0, description="after which the place ends a job; null: as the place does by itself"
    )

    def overridden_by(self, other: "Resources | None") -> "Resources":
        """These, but where the other says something, that."""
        return self.model_copy(update=other.model_dump(exclude_none=True)) if other else self


def largest(asked: Iterable[Resources | None]) -> Resources | None:
    """The most that any of several studies asks for, of each quantity; None if none asks for anything."""
    given = [resources.model_dump(exclude_none=True) for resources in asked if resources]
    names = {name for values in given for name in values}
    most = {name: max(values[name] for values in given if name in values) for name in names}
    return Resources(**most) if most else None
