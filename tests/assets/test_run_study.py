"""A whole study by whoever has no checkout, and so no env.sh, but an installed package."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from support import PATIENCE, REPOSITORY, TINY, Lab, Result

SMALL = TINY.replace("[1, 2]", "[1]").replace("epochs: 24", "epochs: 2").replace("[0, 8, 16, 24]", "[0, 2]")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab", SMALL)


def on_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> Result:
    """Run a command whose standard streams are a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        timer = threading.Timer(3 * PATIENCE, process.kill)
        timer.start()
        output = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody has it open any more
            while part := os.read(ours, 2**16):
                output += part
        timer.cancel()
    os.close(ours)
    return Result(process.returncode, output.decode())


def test_a_study_runs_from_the_package_alone_without_env_sh(lab: Lab) -> None:
    source = lab.folder / "site-packages"  # what a wheel holds, and nothing beside it
    for package in ("dd_core", "dd_assets"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(lab.folder),
        "PYTHONPATH": str(source),
        "DD_ROOT": "results",
        "DD_STUDIES": str(lab.studies),
        "OMP_NUM_THREADS": "1",
    }
    done = on_a_terminal([sys.executable, "-m", "dd_assets.run_study", "tiny"], lab.folder, environment).succeeded()
    results = lab.folder / "results"
    # A bar is drawn over and over on its line, of which the last is seen.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in done.output.rstrip().split("\n")]
    phases = [re.split(r"  +", line)[0] for line in lines if "100 % |" in line]
    assert phases == ["checkpoints", "curvature", "tables and figures"], done.output
    assert "1 of 1 arm done" in done.output
    assert "dagster - " not in done.output and "SupersessionWarning" not in done.output
    (log,) = (results / "dagster/run_study").glob("tiny-*.log")
    assert str(log) in done.output
    assert f"done: 2 checkpoints of tiny below {results}/checkpoints/tiny\n" in log.read_text(encoding="utf-8")
    assert lines[-1].strip() == (results / "reports/tiny.html").as_uri()
    assert (results / "reports/tiny.html").is_file()
    assert (results / "checkpoints/tiny/plain.k001/0002.safetensors").is_file()
    assert (results / "figures/training_curves/tiny.html").is_file()
    assert (results / "dagster/dagster.yaml").is_file(), "the runs are recorded where the UI looks"
    assert list((results / "dagster/history").glob("*.db"))
