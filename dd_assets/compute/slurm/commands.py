"""SLURM's commands and what they answer: sbatch, squeue, scontrol, scancel. No shell, no tables made for people."""

import math
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from dd_core.errors import UserError

# States that do not change any more by themselves. Others wait, run, or are on the way from one to the other.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED",
    "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
# One line an element, a bar after each field; the comment, which may contain bars, comes last.
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "exit_code", "restartcnt", "NodeList", "Comment")
_FORMAT = ",".join(f"{name}:|" for name in _FIELDS)
# What SLURM says where a node cannot open the files of a job, instead of a signal.
NO_FILES = 53
_UNREACHABLE = re.compile(
    r"Unable to contact slurm|Socket timed out|Connection refused|slurmctld.*not respond|configuration source",
    re.IGNORECASE,
)
_SECONDS = 120.0


class SlurmError(UserError):
    """SLURM refused something; the message is its own."""


class UnreachableError(SlurmError):
    """SLURM's controller does not answer; whether it did what it was asked is not known."""


@dataclass(frozen=True)
class Element:
    """One element of a job array, or a whole job without an array, as the queue shows it.

    Attributes:
        job: number of the job.
        index: in the array; 0 without one.
        state: in SLURM's words, ``RUNNING``, ``OUT_OF_MEMORY``, ...
        reason: why it waits or failed, in SLURM's words; ``None`` (the word) where there is nothing to say.
        exit_code: of the script, 0 while it runs.
        signal: that ended the script, else 0.
        restarts: how often it went back into the queue.
        nodes: where it runs or ran last.
        comment: given when it was submitted.
    """

    job: int
    index: int
    state: str
    reason: str
    exit_code: int
    signal: int
    restarts: int
    nodes: str
    comment: str

    @classmethod
    def read(cls, line: str) -> "Element":
        """From a line of squeue in ``_FORMAT``."""
        job, index, state, reason, status, restarts, nodes, comment = line.split("|", len(_FIELDS) - 1)
        ended = int(status)  # as wait(2) gives it
        return cls(
            job=int(job),
            index=int(index) if index.isdigit() else 0,
            state=state,
            reason=reason,
            exit_code=ended >> 8 & 0xFF,
            signal=ended & 0x7F,
            restarts=int(restarts),
            nodes=nodes,
            comment=comment.removesuffix("|"),
        )

    @property
    def has_ended(self) -> bool:
        """Whether it will do nothing more unless it is put back into the queue."""
        return self.state in ENDED

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs, and is not just being cleaned up after."""
        return not self.has_ended and self.state != "COMPLETING"

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")

    @property
    def short_reason(self) -> str:
        """Why it waits, one word of SLURM's; empty where it says none: ``ReqNodeNotAvail, May be reserved``."""
        return "" if self.reason == "None" else self.reason.split(",")[0].strip()

    def describe_end(self) -> str:
        """How it ended: ``was out of memory``, ``ended with exit code 1``."""
        words = {
            "CANCELLED": "was cancelled",
            "DEADLINE": "reached its deadline",
            "NODE_FAIL": "lost its node",
            "BOOT_FAIL": "lost its node",
            "OUT_OF_MEMORY": "was out of memory",
            "PREEMPTED": "was preempted",
            "TIMEOUT": "reached its time limit",
        }
        if self.state in words:
            return words[self.state]
        if self.signal == NO_FILES:
            return "could not open its log"
        return f"was killed by signal {self.signal}" if self.signal else f"ended with exit code {self.exit_code}"


def submit(options: Iterable[str], script: str) -> int:
    """Submit a batch script; returns the number of the job.

    Raises:
        SlurmError: refused.
    """
    # "1234" or, where clusters are federated, "1234;cluster".
    return int(_call("sbatch", "--parsable", *options, script=script).strip().split(";")[0])


def elements(name: str) -> list[Element]:
    """All elements of this user's jobs of that name: waiting, running, and those that ended minutes ago."""
    answer = _call("squeue", "--noheader", "--array", "--me", "--states=all", f"--name={name}", f"--Format={_FORMAT}")
    return [Element.read(line) for line in answer.splitlines() if line.strip()]


def cancel(job: int) -> None:
    """End a job with all its elements; those that have ended already stay as they are."""
    _call("scancel", str(job))


def cancel_element(element: Element, is_array: bool) -> None:
    """End one element."""
    _call("scancel", _name(element, is_array))


def requeue(element: Element, is_array: bool) -> None:
    """Put an element, running or ended, back into the queue; SLURM lets it wait there for about two minutes."""
    _call("scontrol", "requeue", _name(element, is_array))


def begin_after(element: Element, is_array: bool, seconds: float) -> None:
    """Let an element that waits begin in so many seconds, instead of when SLURM would let it."""
    start = f"StartTime=now+{math.ceil(seconds)}"
    _call("scontrol", "update", f"JobId={_name(element, is_array)}", start)


def _name(element: Element, is_array: bool) -> str:
    return f"{element.job}_{element.index}" if is_array else str(element.job)


def accounted(job: int, index: int, is_array: bool) -> str:
    """The state that the accounting remembers for an element the queue has forgotten; empty where there is none."""
    which = f"{job}_{index}" if is_array else str(job)
    try:
        answer = _call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={which}", "--format=State")
    except SlurmError:
        return ""
    return answer.splitlines()[-1].split()[0] if answer.strip() else ""


def largest_nodes(partition: str | None) -> str:
    """What nodes of a partition have, for people: ``64 cores, 512000 MiB and gpu:8``."""
    where = [f"--partition={partition}"] if partition else []
    try:
        answer = _call("sinfo", "--noheader", *where, "--Format=CPUs:|,Memory:|,Gres:256")
    except SlurmError:
        return ""
    kinds = sorted({line.strip() for line in answer.splitlines() if line.strip()})
    rows = [kind.split("|", 2) for kind in kinds]
    return " or ".join(f"{cpus} cores, {mib} MiB and {gres.replace('(null)', 'no GPUs')}" for cpus, mib, gres in rows)


def partitions() -> list[str]:
    """Names of all partitions; none where SLURM does not say."""
    try:
        return sorted({line.strip() for line in _call("sinfo", "--noheader", "--format=%R").splitlines()})
    except SlurmError:
        return []


def _call(*command: str, script: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=script, env=_environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"there is no {command[0]} on this machine; run this on a login node of the SLURM cluster, or set "
            "DD_COMPUTE to another place"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{command[0]} has not answered for {_SECONDS:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    raise (UnreachableError if _UNREACHABLE.search(said) else SlurmError)(said)


def _environment() -> dict[str, str]:
    """What sbatch hands on to jobs: ours, but for Dagster's and for what an enclosing job says of itself."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("DAGSTER_", "SLURM_", "PMI"))
    }
