"""Do the tests marked ``gpu`` pass? In several processes side by side, as most of each is imports and small kernels."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
PYTEST += ["-o", "addopts="]
FILES = ("tests/core/test_gpu.py", "tests/core/test_monitors.py", "tests/core/test_probe.py")
# By a part of the name: what limits the memory of the GPU runs while nothing else does, and first, as it was never seen
# to pass; what compiles takes longer than all others together.
ALONE, COMPILES = "memory_that_runs_out", "reduce-overhead"


def collected(seconds: float) -> list[str]:
    """The tests' names."""
    command = [*PYTEST, "--collect-only", "-q", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not tests:
        raise RuntimeError(f"no test was collected: {(done.stdout + done.stderr)[-2000:]}")
    return tests


def groups_of(tests: list[str], number: int) -> dict[str, list[str]]:
    """Names of groups to their tests: those that compile in two, the others dealt out in turn."""
    compiling = [test for test in tests if COMPILES in test]
    others = [test for test in tests if COMPILES not in test and ALONE not in test]
    groups = {f"compiled {part + 1}": compiling[part::2] for part in range(2)}
    groups |= {f"others {part + 1}": others[part::number] for part in range(number)}
    return {name: members for name, members in groups.items() if members}


class Group:
    """A process of pytest with some of the tests."""

    def __init__(self, name: str, tests: list[str], folder: Path):
        """Start it; what it says goes to a file."""
        self.name, self.tests, self.started = name, tests, time.monotonic()
        self.file = folder / f"{name}.txt"
        command = [*PYTEST, "-v", "--tb=short", "--durations=0", *tests]
        with self.file.open("wb") as said:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def rows(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Wait at most so long; a row for every test that did not pass, and one that counts."""
        try:
            ended = f"exit {self.process.wait(max(seconds, 1))}"
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it started
            self.process.wait()
            ended = "out of time"
        output = self.file.read_text(encoding="utf-8", errors="replace")
        found = verdicts(output)
        explained = list(failures(output))
        yield from explained
        for test in self.tests:
            verdict = found.get(test, "not ended")
            if verdict == "not ended" or (verdict in ("FAILED", "ERROR") and not explained):  # pytest explains last
                yield {"what": verdict.lower(), "test": test, "error": ended, "trace": ""}
        counts = {word: list(found.values()).count(word) for word in sorted(set(found.values()))}
        said = ", ".join(f"{number} {word.lower()}" for word, number in counts.items()) or "nothing"
        slowest = re.findall(r"^ *([\d.]+)s (?:call|setup) +\S+::(.*)$", output, re.MULTILINE)[:4]
        trace = "\n".join(f"{duration} s {test}" for duration, test in slowest) or output[-2000:]
        taken = f"{said} of {len(self.tests)} in {time.monotonic() - self.started:.0f} s"
        yield {"what": ended, "test": self.name, "error": taken, "trace": trace}


def verdicts(output: str) -> dict[str, str]:
    """What each test that has ended came to."""
    return dict(re.findall(r"^(\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR)\b", output, re.MULTILINE))


def failures(output: str) -> Iterator[dict[str, Any]]:
    """A row with the end of its message for every test that failed."""
    for title, text in re.findall(r"^_{3,} (.*?) _{3,}\n(.*?)(?=^_{3,}|^={3,})", output, re.MULTILINE | re.DOTALL):
        errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
        yield {"what": "failed", "test": title, "error": " ".join(errors)[:600], "trace": text[-3000:]}


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every test that did not pass, and one for each group."""
    tests = collected(clock.left)
    alone = [test for test in tests if ALONE in test]
    with tempfile.TemporaryDirectory() as name:
        if alone:
            yield from Group("alone", alone, Path(name)).rows(clock.left / 2)
        groups = [Group(group, members, Path(name)) for group, members in groups_of(tests, 2 if small else 5).items()]
        for group in groups:
            yield from group.rows(clock.left - 3)
