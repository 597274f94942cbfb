"""What somebody has who installed the wheel and has no checkout: the command, the library, and all files of both."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import termios
import threading
import zipfile
from pathlib import Path

import pytest
from support import PATIENCE, REPOSITORY, TINY, Lab, Result

SMALL = TINY.replace("[1, 2]", "[1]").replace("epochs: 24", "epochs: 2").replace("[0, 8, 16, 24]", "[0, 2]")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for package in ("dd_core", "dd_assets"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", "."],
        cwd=folder,
        check=True,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


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


class Installed:
    """An environment outside of the checkout that has the wheel, and the packages that it needs."""

    def __init__(self, folder: Path, wheel: Path):
        """The packages come from the environment that tests run in; its own copy of ours is not seen."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        python = folder / "venv/bin/python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python]
        seen = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # no checkout's own metadata
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, env=seen)
        (own,) = (folder / "venv/lib").glob("python*/site-packages")
        (own / "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        self.lab = Lab(folder / "lab", SMALL)
        self.bin, self.packages = python.parent, own

    def run(self, *command: str) -> Result:
        """In an empty folder, without anything of env.sh; on a terminal."""
        environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.lab.folder),
            "DD_ROOT": "results",
            "DD_STUDIES": str(self.lab.studies),
            "OMP_NUM_THREADS": "1",
        }
        return on_a_terminal([str(self.bin / command[0]), *command[1:]], self.lab.folder, environment)


@pytest.fixture
def installed(tmp_path: Path, wheel: Path) -> Installed:
    return Installed(tmp_path, wheel)


def test_the_wheel_has_every_file_of_the_two_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = wheel.parents[1]
    found = (path for package in ("dd_core", "dd_assets") for path in (source / package).rglob("*"))
    files = {str(path.relative_to(source)) for path in found if path.is_file()}
    assert inside == files
    assert {"dd_core/py.typed", "dd_assets/dagster.yaml", "dd_assets/studies/quickstart.yaml"} <= inside


def test_a_study_runs_from_the_wheel_alone_without_env_sh(installed: Installed) -> None:
    listed = installed.run("ddlab", "studies").succeeded().output
    assert "0 of 2" in next(line for line in listed.splitlines() if line.startswith("tiny "))
    done = installed.run("ddlab", "run", "tiny").succeeded()
    results = installed.lab.folder / "results"
    # A bar is drawn over and over on its line, of which the last is seen.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in done.output.rstrip().split("\n")]
    phases = [re.split(r"  +", line)[0] for line in lines if "100 % |" in line]
    assert phases == ["checkpoints", "tables and figures"], done.output
    assert "1 of 1 arm and 2 of 2 results done" in done.output
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
    places = installed.run("ddlab", "paths").succeeded().output
    for place in (results, results / "dagster", installed.packages / "dd_assets/studies", installed.lab.studies):
        assert f" {place} " in places
    code = "import dd_core; print(dd_core.__file__, len(dd_core.open().checkpoint('tiny').model().state_dict()) > 9)"
    said = installed.run("python", "-c", code).output.strip()
    assert said == f"{installed.packages / 'dd_core/__init__.py'} True"
