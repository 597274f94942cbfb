"""What a SLURM cluster wants to be told: a YAML file named by ``DD_SLURM``. What it may contain: docs/slurm.md."""

import os
import re
from pathlib import Path

from pydantic import Field, field_validator

from dd_core.study.resources import Resources
from dd_core.study.yaml_files import Strict, read_mapping, validated

_GRES = r"^[\w.:-]+$"
# What the platform itself says to sbatch; a second value would contradict it.
_OWN_OPTIONS = {
    "array", "chdir", "comment", "cpus-per-task", "error", "gres", "input", "job-name", "mem", "no-requeue",
    "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "time", "wait", "wrap",
}  # fmt: skip
# Options that have a key of their own in the settings.
_OWN_KEYS = {"partition", "account", "qos", "constraint", "reservation"}


class GpuProduct(Strict):
    """How a cluster is asked for one product of GPU."""

    gres: str | None = Field(default=None, pattern=_GRES, description="gpu:a100; null: gres of the settings")
    constraint: str | None = Field(default=None, description="features of its nodes, beside those of the settings")


class SlurmSettings(Strict):
    """How jobs are submitted, with what, and how they are followed."""

    partition: str | None = Field(default=None, description="null: the cluster's default; so for the next four")
    account: str | None = None
    qos: str | None = None
    constraint: str | None = Field(default=None, description="features that nodes must have, for example h100")
    reservation: str | None = None
    resources: Resources = Field(
        default=Resources(), description="what a study may override; a pod is one array element, on one node"
    )
    gres: str = Field(default="gpu", pattern=_GRES, description="what GPUs are called: gpu, gpu:a100")
    gpus: dict[str, GpuProduct] = Field(
        default={},
        description="how to ask for the products that resources.gpu names; one that is not here is a type of gres, "
        "gpu:NAME",
    )
    device: str | None = Field(
        default=None, description="name of those GPUs in torch's words, for forecasts: NVIDIA A100-SXM4-80GB"
    )
    setup: tuple[str, ...] = Field(default=(), description="lines of bash before Python starts: modules, activation")
    python: str = Field(default="python", min_length=1, description="the interpreter on the nodes")
    options: dict[str, str | int | float | bool] = Field(
        default={}, description="more options of sbatch by their long names: {exclude: n7, exclusive: true}"
    )
    max_running: int | None = Field(default=None, ge=1, description="elements of a job that run at the same time")
    requeue: bool = Field(default=True, description="let SLURM start preempted elements again")
    logs: Path | None = Field(
        default=None, description="a shared folder for what pods print; null: beside the job on the data root"
    )
    poll_seconds: float = Field(default=5.0, gt=0, description="how often SLURM is asked for the state of a job")
    pending_patience_seconds: float | None = Field(
        default=None, gt=0, description="a job of which nothing has run for so long is given up; null: never"
    )

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        for name in options:
            if name in _OWN_KEYS:
                raise ValueError(f"{name} has a key of its own, beside options")
            if name in _OWN_OPTIONS:
                raise ValueError(f"{name} is set by the platform itself")
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ValueError(f"{name!r} is no long option of sbatch; write exclude, not --exclude or -x")
        return options

    @field_validator("setup")
    @classmethod
    def _are_lines(cls, setup: tuple[str, ...]) -> tuple[str, ...]:
        if any("\n" in line or "\0" in line for line in setup):
            raise ValueError("each entry is one line")
        return setup

    @field_validator("logs")
    @classmethod
    def _is_absolute(cls, logs: Path | None) -> Path | None:
        if logs is not None and not logs.is_absolute():
            raise ValueError("must be an absolute path, the same on every node")
        return logs


def settings_path() -> Path | None:
    """The file that ``DD_SLURM`` names; None where nothing is set."""
    text = os.environ.get("DD_SLURM", "")
    return Path(text).expanduser() if text else None


def read_settings(path: Path | None) -> SlurmSettings:
    """Read a settings file; without one, everything is as the cluster has it by default.

    Raises:
        UserError: it cannot be read, or a key is wrong; the sentence names file and key.
    """
    if path is None:
        return SlurmSettings()
    return validated(path, SlurmSettings, read_mapping(path, "a settings file (DD_SLURM)", may_be_empty=True))
