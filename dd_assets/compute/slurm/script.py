"""What is handed to sbatch: options and a script, by pure functions. Every word of it but ``setup`` is quoted."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from dd_assets.compute.slurm.settings import GpuProduct, SlurmSettings
from dd_core.jobs.job import Job
from dd_core.study.resources import Resources

# Where several nodes meet: a port below those that systems give away, different for jobs that share a node.
_PORT = "$((20000 + SLURM_JOB_ID % 10000))"
_ADDRESS = """$(scontrol show node --oneliner "$SLURMD_NODENAME" | tr ' ' '\\n' | sed -n 's/^NodeAddr=//p')"""


@dataclass(frozen=True)
class Submission:
    """One job for SLURM.

    Attributes:
        job: with its ``places``.
        settings: of the cluster.
        resources: of each pod, nothing left open that matters here: ``pods``, ``gpus_per_pod``, ``cpus_per_pod``.
        root: data root as the nodes know it, a path or an address.
        job_file: relative to the root.
        comment: by which the job is recognised in the queue.
        events: folder of the events files; None where the root is no file system.
        logs: folder of what pods print, on a file system that the nodes share.
    """

    job: Job
    settings: SlurmSettings
    resources: Resources
    root: str
    job_file: str
    comment: str
    events: Path | None
    logs: Path

    @property
    def is_together(self) -> bool:
        """Whether its machines are one allocation, which computes each task together."""
        return self.job.ranks > 1

    @property
    def num_elements(self) -> int:
        """Elements of the job array; one where there is none."""
        return 1 if self.is_together else len(self.job.places)

    @property
    def gpu(self) -> GpuProduct:
        """How to ask for the GPUs that are wanted; ``gres`` is named."""
        product = self.resources.gpu if self.resources.gpus_per_pod else None
        if product is None:
            return GpuProduct(gres=self.settings.gres)
        known = self.settings.gpus.get(product, GpuProduct(gres=f"gpu:{product}"))
        return known if known.gres else known.model_copy(update={"gres": self.settings.gres})

    def log(self, index: int) -> Path:
        """What the pod of that index prints."""
        return self.logs / ("slurm.log" if self.is_together else f"slurm-{index}.log")

    def options(self) -> list[str]:
        """The options of sbatch, each one word."""
        settings, wanted, gpu = self.settings, self.resources, self.gpu
        features = [feature for feature in (settings.constraint, gpu.constraint) if feature]
        num_places = len(self.job.places)
        options: dict[str, str | int | float | bool | None] = {
            "job-name": self.job.name,
            "comment": self.comment,
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": "&".join(f"({one})" if len(features) > 1 and "|" in one else one for one in features) or None,
            "reservation": settings.reservation,
            "nodes": num_places if self.is_together else 1,
            "ntasks-per-node": 1,
            "cpus-per-task": wanted.cpus_per_pod,
            "gres": f"{gpu.gres}:{wanted.gpus_per_pod}" if wanted.gpus_per_pod else None,
            "mem": f"{math.ceil(wanted.memory_gib_per_pod * 1024)}M" if wanted.memory_gib_per_pod else None,
            "time": math.ceil(wanted.hours * 60) if wanted.hours else None,
            "array": None if self.is_together else self._array(num_places),
            "output": _literal(self.log(0)) if self.is_together else f"{_literal(self.logs)}/slurm-%a.log",
            "open-mode": "append",
            "chdir": str(self.logs),
            "requeue" if settings.requeue else "no-requeue": True,
            **settings.options,
        }
        return [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in options.items()
            if value is not None and value is not False
        ]

    def _array(self, num_places: int) -> str:
        limit = f"%{self.settings.max_running}" if self.settings.max_running else ""
        return f"0-{num_places - 1}{limit}"

    def script(self) -> str:
        """The batch script."""
        lines = [
            "#!/bin/bash",
            f"# {self.job.name}: {len(self.job.tasks)} tasks on {len(self.job.places)} machines.",
            *self.settings.setup,
            f"export DD_ROOT={shlex.quote(self.root)}",
            # A pod that was started again would otherwise meet its predecessor's addresses.
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ]
        pod = shlex.join([self.settings.python, "-m", "dd_core.jobs.pod", self.job_file])
        if self.is_together:
            # Since 22.05 srun does not take over what sbatch was told of cores.
            cores = f"--cpus-per-task={self.resources.cpus_per_pod}"
            lines += [
                f'export DD_RENDEZVOUS="{_ADDRESS}:{_PORT}"',
                # Each machine knows its own number only there.
                f"exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 {cores} bash -c "
                + shlex.quote(f"exec {pod}{self._events_option('$SLURM_NODEID')}"),
            ]
        else:
            lines.append(f"exec {pod}{self._events_option('$SLURM_ARRAY_TASK_ID')}")
        return "\n".join(lines) + "\n"

    def _events_option(self, place: str) -> str:
        if self.events is None:
            return ""
        return f' --events {shlex.quote(str(self.events))}/"{place}".jsonl'


def _literal(path: Path) -> str:
    """A path in which sbatch replaces nothing."""
    return str(path).replace("%", "%%")
