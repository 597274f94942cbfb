"""The benchmarks for GPUs: what does not take one. Groups of tests, and what a process of pytest says of its own."""

import itertools
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.append(str(REPOSITORY / "benchmarks"))

from gpu import tests as section  # noqa: E402


def test_every_test_is_in_one_group_and_slow_ones_are_not_together() -> None:
    slow = [f"f.py::test_a[{section.COMPILES}-{number}]" for number in range(3)]
    alone, others = f"f.py::test_{section.ALONE}_on_a_gpu", [f"f.py::test_{number}" for number in range(7)]
    groups = section.groups_of([*others, *slow, alone], 3)
    assert sorted(itertools.chain(*groups.values())) == sorted([*others, *slow])
    assert [len(members) for members in groups.values()] == [2, 1, 3, 2, 2]
    assert not any(set(members) & set(slow) and set(members) & set(others) for members in groups.values())
    assert section.groups_of([alone], 3) == {}


FILE = """
import os, sys, time, pytest
pytestmark = pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2])
def test_right(n):
    print("noise::noise PASSED")
def test_wrong():
    assert 1 + 1 == 3, "arithmetic"
@pytest.mark.skipif(True, reason="")
def test_skipped(): pass
def test_last():
    {last}
def test_after(): pass
"""


@pytest.mark.parametrize(("last", "ended"), [("time.sleep(60)", "out of time"), ("pass", "exit 1")])
def test_a_group_says_what_did_not_pass_however_it_ends(
    last: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_made_up.py"
    file.write_text(FILE.format(last=last))
    monkeypatch.setattr(section, "ROOT", tmp_path)
    monkeypatch.setattr(section, "FILES", (file.name,))
    monkeypatch.setattr(section, "PYTEST", [*section.PYTEST, "-o", "markers=gpu"])
    tests = section.collected(120)
    assert len(tests) == 6
    group = section.Group("all", tests, tmp_path)
    deadline = time.monotonic() + 120
    while "test_last" not in group.file.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    *rows, count = group.rows(60 if last == "pass" else 1)
    failed = {row["test"]: row["error"] for row in rows if row["what"] == "failed"}
    unfinished = [row["test"].split("::")[1] for row in rows if row["what"] == "not ended"]
    if last == "pass":
        assert list(failed) == ["test_wrong"] and "arithmetic" in failed["test_wrong"] and unfinished == []
    else:  # its message was not printed yet
        assert failed == {tests[2]: ended} and unfinished == ["test_last", "test_after"]
    assert count["what"] == ended
    passed = 4 if last == "pass" else 2
    assert count["error"].startswith(f"1 failed, {passed} passed, 1 skipped of 6 in ")
