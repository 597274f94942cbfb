"""One owner for every failure: what the end of an element asks for, as SLURM reports it."""

import pytest

from dd_assets.compute.slurm.commands import Element
from dd_assets.compute.slurm.verdict import Verdict, describe_reason, is_hopeless, judge


def element(state: str, status: int = 0) -> Element:
    """As squeue shows it; the status is that of wait(2)."""
    return Element.read(f"12|3|{state}|None|{status}|0|n1|/shared/data|with a bar/job.json|")


@pytest.mark.parametrize(
    ("state", "status", "verdict"),
    [
        ("COMPLETED", 0, Verdict.LOOK_AGAIN),
        ("FAILED", 42 << 8, Verdict.LOOK_AGAIN),
        ("FAILED", 1 << 8, Verdict.BROKEN),
        ("FAILED", 2 << 8, Verdict.BROKEN),
        ("FAILED", 78 << 8, Verdict.BROKEN),
        ("FAILED", 127 << 8, Verdict.BROKEN),
        ("FAILED", 4021, Verdict.BROKEN),  # as SLURM 22.05 reports a log that a node cannot open
        ("FAILED", 75 << 8, Verdict.AGAIN),
        ("FAILED", 143 << 8, Verdict.AGAIN),
        ("FAILED", 11, Verdict.AGAIN),
        ("TIMEOUT", 15, Verdict.AGAIN),
        ("TIMEOUT", 9, Verdict.AGAIN),
        ("FAILED", 9, Verdict.AGAIN_WITH_LESS_MEMORY),
        ("FAILED", 137 << 8, Verdict.AGAIN_WITH_LESS_MEMORY),
        ("OUT_OF_MEMORY", 0, Verdict.AGAIN_WITH_LESS_MEMORY),
        ("OUT_OF_MEMORY", 125, Verdict.AGAIN_WITH_LESS_MEMORY),
        ("NODE_FAIL", 9, Verdict.AGAIN_AT_ONCE),
        ("PREEMPTED", 15, Verdict.AGAIN_AT_ONCE),
        ("BOOT_FAIL", 0, Verdict.AGAIN_AT_ONCE),
        ("CANCELLED", 15, Verdict.STOPPED),
        ("CANCELLED", 9, Verdict.STOPPED),
        ("DEADLINE", 15, Verdict.STOPPED),
    ],
)
def test_what_an_end_asks_for(state: str, status: int, verdict: Verdict) -> None:
    assert element(state, status).has_ended
    assert judge(element(state, status)) is verdict


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "STAGE_OUT"])
def test_what_has_not_ended_is_alive(state: str) -> None:
    assert element(state).is_live
    assert not element(state).has_ended


def test_what_is_being_cleaned_up_after_is_neither_alive_nor_over() -> None:
    assert not element("COMPLETING").is_live
    assert not element("COMPLETING").has_ended


def test_a_line_of_the_queue_is_read_whole() -> None:
    assert element("FAILED", 42 << 8) == Element(
        12, 3, "FAILED", "None", 42, 0, 0, "n1", "/shared/data|with a bar/job.json"
    )
    assert Element.read("7|N/A|RUNNING|None|0|2|n[1-2]|x|").index == 0


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("PartitionTimeLimit", True),
        ("QOSMaxGRESPerJob", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpGRES", False),
        ("Resources", False),
        ("Priority", False),
        ("ReqNodeNotAvail", False),
        ("JobHeldUser", False),
    ],
)
def test_only_limits_of_a_single_job_are_hopeless(reason: str, hopeless: bool) -> None:
    assert is_hopeless(reason) is hopeless
    assert reason in describe_reason(reason)
