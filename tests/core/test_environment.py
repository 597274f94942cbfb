"""What `make setup` installs: each package stands in the right section of the lock file; each machine gets its own."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

from dd_core.machine.devices import gpu_in_vain
from environment.install import Environment, SetUp, batches, heed_signals, specifier, wanted
from environment.installers import InstallError, Pip, complaint, download
from environment.lock import linked_with_torch, read, sections_here
from environment.torch_build import choose, gpu_here

LOCK = read()
HAS_CUDA = any(text.startswith("nvidia-") for text in distribution("torch").requires or [])


def test_each_section_has_what_it_is_for_and_all_that_needs() -> None:
    """Of the dependencies in pyproject.toml, as the packages say themselves what they need."""
    here = sections_here()
    assert {name: set(LOCK[name]) for name in ("run", "dev")} == {name: here[name] for name in ("run", "dev")}
    assert {"torch", "dagster", "setuptools", "tensorboard"} <= here["run"]
    assert {"pytest", "marimo", "mkdocs-material"} <= here["dev"]
    assert sum(map(len, LOCK.values())) == len(set().union(*LOCK.values()))


@pytest.mark.skipif(not HAS_CUDA, reason="this build of PyTorch needs no libraries of CUDA")
def test_the_libraries_that_pytorch_cannot_be_imported_without_are_known() -> None:
    assert linked_with_torch({*LOCK["cuda"], *LOCK["gpu"]}) == set(LOCK["cuda"])
    if find_spec("triton"):
        assert set(LOCK["gpu"]) == sections_here()["gpu"]


@pytest.mark.parametrize(
    ("build", "platform", "has", "lacks", "version"),
    [
        ("cuda", "linux", {"triton", "nvidia-cublas"}, set(), ""),
        ("reduced", "linux", {"nvidia-cublas"}, {"triton"}, ""),
        ("cpu", "linux", set(), {"triton", "nvidia-cublas"}, "+cpu"),
        ("cpu", "darwin", set(), {"triton", "nvidia-cublas"}, ""),
        ("cuda", "darwin", set(), {"triton", "nvidia-cublas"}, ""),
    ],
)
def test_what_a_machine_needs(build: str, platform: str, has: set[str], lacks: set[str], version: str) -> None:
    run, everything = (wanted(LOCK, level, build, platform) for level in ("run", "all"))
    assert has | {"torch", "dagster"} <= set(run) < set(everything)
    assert not (lacks | {"pytest"}) & set(run)
    assert set(everything) - set(run) == set(LOCK["dev"])
    assert run["torch"] == LOCK["run"]["torch"] + version
    packages = [specifier(name, number) for name, number in everything.items()]
    assert f"torch==={LOCK['run']['torch']}{version}" in packages
    assert sorted(package for batch in batches(packages) for package in batch) == sorted(packages)


@pytest.mark.parametrize(
    ("before", "asked", "has_cuda", "gpu", "chosen"),
    [
        ({}, "", False, None, "cpu"),
        ({}, "", False, "a GPU", "cuda"),
        ({"torch": "cpu"}, "", False, "a GPU", "cuda"),  # it came later
        ({"torch": "cpu", "asked": True}, "", False, "a GPU", "cpu"),
        ({"torch": "cuda", "asked": True}, "", True, None, "cuda"),
        ({}, "", True, None, "cuda"),  # of an earlier version: what is there stays
        ({"torch": "cpu"}, "cuda", False, None, "cuda"),
        ({"torch": "cuda"}, "cpu", True, "a GPU", "cpu"),
    ],
)
def test_the_build_of_pytorch(
    before: dict[str, object], asked: str, has_cuda: bool, gpu: str | None, chosen: str
) -> None:
    assert choose(before, asked, has_cuda, lambda: gpu)[0] == chosen


def test_another_build_is_refused() -> None:
    with pytest.raises(SystemExit, match="DD_TORCH=rocm: it must be cpu or cuda"):
        choose({}, "rocm", False, lambda: None)


def test_a_gpu_is_found_without_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    card = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n", encoding="ascii")
    (card / "class").write_text("0x0c0330\n", encoding="ascii")
    assert gpu_here(tmp_path) is None, "its USB controller"
    (card / "class").write_text("0x030000\n", encoding="ascii")
    assert gpu_here(tmp_path) == "there is an NVIDIA GPU"


def test_whoever_gets_a_gpu_later_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "make setup DD_TORCH=cuda" in str(gpu_in_vain(None))
    assert gpu_in_vain("13.0") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_in_vain(None) is None


def test_a_package_that_was_being_unpacked_is_not_taken_for_whole(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    for name in ("half_a-1.0.dist-info", "whole_one-2.14.1+cpu.dist-info"):
        (site / name).mkdir(parents=True)
        (site / name / "METADATA").touch()
    (site / "whole_one-2.14.1+cpu.dist-info/RECORD").touch()
    environment = Environment(tmp_path)
    assert environment.installed() == {"whole-one": "2.14.1+cpu"}
    environment.forget_halves()
    assert [path.name for path in site.iterdir()] == ["whole_one-2.14.1+cpu.dist-info"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("  Downloading scipy-1.0-cp311-x86_64.whl (33.7 MB)\n", ("scipy-1.0-cp311-x86_64.whl", 33.7e6)),
        ("Downloading https://here.org/whl/torch-2.1%2Bcpu-x86.whl (1.2 GB)", ("torch-2.1+cpu-x86.whl", 1.2e9)),
        ("  Downloading scipy-1.0-cp311-x86_64.whl.metadata (60 kB)", None),
        ("Collecting scipy==1.0", None),
    ],
)
def test_what_pip_says_is_understood(line: str, found: tuple[str, float] | None) -> None:
    assert download(line) == found


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (["Collecting a", "ERROR: Could not find a version", "ERROR: No matching a."], "No matching a"),
        (["ERROR: [Errno 28] No space left on device", "ERROR: x"], "[Errno 28] No space left on device"),
        (["WARNING: NewConnectionError", "ERROR: No a"], "the package index cannot be reached: No a"),
        (["killed"], "killed"),
        ([], ""),
    ],
)
def test_a_failure_is_told_by_its_last_complaint(said: Sequence[str], error: str) -> None:
    assert complaint(said) == error


def test_a_pip_that_fails_ends_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Real pips, without a network: one looks for a package that no folder has."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    with pytest.raises(InstallError, match="No matching distribution found for nowhere==1"):
        Pip(tmp_path).install([["nowhere==1"]], "--no-index", num_installed=lambda: 3, total=4)
    assert "3 of 4 packages" in capfd.readouterr().out
    assert "nowhere==1" in (tmp_path / "set-up.log").read_text(encoding="utf-8")
    assert not (tmp_path / "downloads").exists()


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one build")
def test_pip_has_the_build_for_cpus_where_uv_knows_no_such_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a network: programs that answer as uv and pip would."""
    version = f"{LOCK['run']['torch']}+cpu"
    _script(tmp_path / "path/uv", "exit 2")
    said = f'case "$*" in *"index versions torch"*) echo "Available versions: {version}, 2.0.0+cpu";; esac'
    _script(tmp_path / "venv/bin/python", f'echo "$*" >> {tmp_path}/asked; {said}')
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.setenv("DD_TORCH", "cpu")
    environment = Environment(tmp_path / "venv")
    SetUp(environment, "run").run()
    out = capfd.readouterr().out
    assert "pip tries it instead" in out
    assert "its build for CPUs" in out
    assert "still smaller build" not in out
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert any("download.pytorch.org" in line and f"torch==={version}" in line for line in asked)
    assert environment.before()["build"] == "cpu"


def test_an_environment_whose_python_is_gone_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_TORCH", "cpu")
    monkeypatch.setenv("PATH", "")  # no uv
    for name in ("python", "pip"):
        _script(tmp_path / "bin" / name, "")
    environment = Environment(tmp_path)
    SetUp(environment, "run").run()
    assert SetUp(environment, "run").is_done()
    for folder in ("python3.1", f"python3.{sys.version_info.minor}"):
        (tmp_path / "lib" / folder).mkdir(parents=True)
    (tmp_path / "bin/python").unlink()
    (tmp_path / "bin/python").symlink_to(tmp_path / "gone")
    assert not SetUp(environment, "run").is_done()
    monkeypatch.setattr(sys, "executable", "/bin/true")  # for `-m venv`, which takes seconds
    environment.create()
    assert not (tmp_path / "bin/python").is_symlink()
    assert [path.name for path in (tmp_path / "lib").iterdir()] == [f"python3.{sys.version_info.minor}"]
    assert not environment.before()


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As by `nohup make quickstart`."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heed_signals()
        after = [signal.getsignal(number) for number in numbers]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert after == [signal.default_int_handler, signal.SIG_IGN]


def test_an_old_python_gets_a_sentence() -> None:
    code = "import sys; sys.version_info = (3, 10); import environment"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Python 3.11 or newer is needed; set PYTHON=...\n")
