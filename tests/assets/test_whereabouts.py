"""A process is told from every other that had or will have its number."""

import dataclasses
import os
import subprocess
import sys

import pytest

from dd_assets.running.whereabouts import Whereabouts

TELL = "from dd_assets.running.whereabouts import Whereabouts; print(Whereabouts.here(), flush=True); input()"


def started() -> tuple["subprocess.Popen[str]", Whereabouts]:
    """A living process, and what it says of itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", TELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    found = Whereabouts.read(process.stdout.readline())
    assert found is not None and found.pid == process.pid
    return process, found


def test_a_living_process_is_not_gone_until_it_is_killed() -> None:
    process, found = started()
    with process:
        assert not found.is_gone()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert found.is_gone()
        process.wait()
        assert found.is_gone()


def test_this_process_says_the_same_when_it_is_read_again() -> None:
    here = Whereabouts.here()
    assert Whereabouts.read(str(here)) == here
    assert not here.is_gone()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "another"}, {"namespace": "pid:[1]"}])
def test_of_another_machine_or_container_nothing_is_known(change: dict[str, str]) -> None:
    assert not dataclasses.replace(Whereabouts.here(), pid=2**22 - 1, **change).is_gone()


def test_the_number_of_an_earlier_process_may_be_in_use_again() -> None:
    assert dataclasses.replace(Whereabouts.here(), started="1").is_gone()


def test_nothing_outlives_a_restart_of_the_machine() -> None:
    assert dataclasses.replace(Whereabouts.here(), boot="the one before").is_gone()


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "4711", '{"pid": 1}'])
def test_what_is_no_such_record_is_none(text: str) -> None:
    assert Whereabouts.read(text) is None
