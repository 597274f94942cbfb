"""What the end of an element means for its tasks: one owner for every failure."""

from enum import Enum

from dd_assets.compute.slurm.commands import NO_FILES, Element
from dd_core.jobs.exit_codes import DEFECTS, KILLED, NO_JOB_FILE, NOT_STARTED, TASKS_FAILED


class Verdict(Enum):
    """What is to be done about an element that ended while tasks of it have no outcome."""

    LOOK_AGAIN = "it says that all is told; a shared file system may show its files late"
    AGAIN = "once more, unless it gets no further that way"
    AGAIN_WITH_LESS_MEMORY = "once more with fewer images at a time"
    AGAIN_AT_ONCE = "once more, however often: it was taken away"
    STOPPED = "somebody wanted its end"
    BROKEN = "it would fail on every machine"


_BROKEN = {*DEFECTS, *NOT_STARTED, NO_JOB_FILE}


def judge(element: Element) -> Verdict:
    """What the end of an element asks for."""
    if element.state in ("CANCELLED", "DEADLINE", "REVOKED"):
        return Verdict.STOPPED
    if element.state in ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED"):
        return Verdict.AGAIN_AT_ONCE
    if element.state == "TIMEOUT":
        return Verdict.AGAIN
    if element.state == "OUT_OF_MEMORY" or KILLED in (element.signal + 128, element.exit_code):
        return Verdict.AGAIN_WITH_LESS_MEMORY
    if element.signal:
        return Verdict.BROKEN if element.signal == NO_FILES else Verdict.AGAIN
    if element.exit_code in (0, TASKS_FAILED):
        return Verdict.LOOK_AGAIN
    return Verdict.BROKEN if element.exit_code in _BROKEN else Verdict.AGAIN


# Reasons to wait that no waiting ends. Others, such as Resources or Priority, do pass.
_HOPELESS = {
    "AssociationTimeLimit", "BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit",
    "QOSTimeLimit",
}  # fmt: skip


def is_hopeless(reason: str) -> bool:
    """Whether an element that waits for this reason asks for more than it may ever have."""
    limits_one_job = reason.startswith(("QOSMax", "AssocMax", "QOSMin")) and "PerJob" in reason
    return reason in _HOPELESS or limits_one_job


def describe_reason(reason: str) -> str:
    """Why an element waits, for people."""
    words = {
        "Resources": "for free nodes",
        "Priority": "behind jobs of higher priority",
        "JobHeldUser": "until it is released (scontrol release)",
        "JobHeldAdmin": "until an administrator releases it",
        "Dependency": "for another job",
        "Reservation": "for its reservation to begin",
        "ReqNodeNotAvail": "for nodes that are down or reserved",
        "Licenses": "for licences",
    }
    return f"{words[reason]} ({reason})" if reason in words else f"for a reason that SLURM calls {reason}"
