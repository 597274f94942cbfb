"""What sbatch says when it refuses a job, as one sentence that names the key to change."""

from dd_assets.compute.slurm import commands
from dd_assets.compute.slurm.commands import SlurmError
from dd_assets.compute.slurm.script import Submission
from dd_core.errors import UserError

_HINTS = {
    "invalid partition": "partition",
    "invalid account": "account",
    "invalid qos": "qos",
    "feature specification": "constraint",
    "reservation": "reservation",
    "generic resource": "gres",
    "time limit": "resources.hours",
    "unrecognized option": "options",
    "invalid option": "options",
}
_TOO_MUCH = ("node configuration", "memory specification", "processors")


def refusal(error: SlurmError, submission: Submission, settings_file: str) -> UserError:
    """The error to raise instead of sbatch's."""
    settings, wanted = submission.settings, submission.resources
    where = f"partition {settings.partition}" if settings.partition else "the default partition"
    said = str(error).removeprefix("sbatch: error: ")
    lowered = said.lower()
    key = next((key for words, key in _HINTS.items() if words in lowered), None)
    if key == "partition":
        names = ", ".join(commands.partitions())
        return UserError(
            f"this SLURM has no partition {settings.partition!r} (partition in {settings_file})"
            f"{f'; there are {names}' if names else ''}"
        )
    nodes = commands.largest_nodes(settings.partition)
    have = f"; its nodes have {nodes}" if nodes else ""
    if wanted.gpu and wanted.gpus_per_pod and key in ("gres", "constraint"):
        return UserError(
            f"no node of {where} has the GPU {wanted.gpu}, the only one that will do (gpu under resources), as often "
            f"as each pod asks for it ({_described_gpu(submission)}){have}; name another, or how this cluster calls it "
            f"under gpus in {settings_file}"
        )
    if key is None and any(words in lowered for words in _TOO_MUCH):
        other = ", or for another gpu, or say under gpus how this cluster calls it" if wanted.gpu else ""
        return UserError(
            f"no node of {where} has {_describe(submission)}, which each pod asks for{have}; ask for less under "
            f"resources in the study file or in {settings_file}{other}"
        )
    at = f"{key} in {settings_file}" if key else settings_file
    return UserError(f"SLURM refuses the job ({said}); check {at}")


def _described_gpu(submission: Submission) -> str:
    """As sbatch was asked for it: ``--gres=gpu:a100:8 --constraint=nvlink``."""
    return " ".join(option for option in submission.options() if option.startswith(("--gres", "--constraint")))


def _describe(submission: Submission) -> str:
    """What a pod asks for: ``8 GPUs (gpu:a100), 32 cores and 100 GiB``."""
    wanted = submission.resources
    parts = [f"{wanted.gpus_per_pod} GPUs ({submission.gpu.gres})"] if wanted.gpus_per_pod else []
    parts += [f"{wanted.cpus_per_pod} cores"]
    parts += [f"{wanted.memory_gib_per_pod:g} GiB"] if wanted.memory_gib_per_pod else []
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
