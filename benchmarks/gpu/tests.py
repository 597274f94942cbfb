"""Do the tests marked ``gpu`` pass?"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every test that failed, with the end of its message, and one that counts."""
    files = ["tests/core/test_gpu.py", "tests/core/test_monitors.py", "tests/core/test_probe.py"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    command += ["-o", "addopts=", "--durations=6", "--tb=short", "-q", *files]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(clock.left - 5, 5), check=False
        )
        output, ended = done.stdout, f"exit {done.returncode}"
        if done.returncode > 1:
            output += done.stderr
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended = "out of time"
    for title, text in re.findall(r"^_{3,} (.*?) _{3,}\n(.*?)(?=^_{3,}|^={3,})", output, re.MULTILINE | re.DOTALL):
        errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
        yield {"what": "failed", "test": title, "error": " ".join(errors)[:600], "trace": text[-3000:]}
    last = output.strip().splitlines()[-12:] if output.strip() else ["nothing was printed"]
    yield {"what": ended, "test": "all", "error": last[-1], "trace": "\n".join(last)}
