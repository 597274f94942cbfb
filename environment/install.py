"""Bring .venv to what requirements.lock says: `python -m environment.install run`, or `all` with what developers need.

Quick where nothing is to be done. What an interrupted set-up has installed stays: the next one installs the rest.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environment.installers import CPU_INDEX, LOG, InstallError, Pip, Uv
from environment.lock import LOCK, ROOT, canonical, read
from environment.torch_build import choose, gpu_here

VENV = ROOT / ".venv"
_BATCH = 20
_TORCH = ("torch", "torchvision")
_REASONS = {
    "cuda": "PyTorch: its build for NVIDIA GPUs, since {why} (DD_TORCH=cpu: the one for CPUs, gigabytes smaller)",
    "cpu": "PyTorch: its build for CPUs, since {why} (DD_TORCH=cuda: the one for GPUs)",
    "reduced": "PyTorch: without what only GPUs use, since {why}; the still smaller build of PyTorch's own index is "
    "not to be had from here (DD_TORCH=cuda: with everything)",
}


class Environment:
    """A folder made by `python -m venv`, and what is installed in it."""

    def __init__(self, folder: Path):
        """The folder need not be there yet."""
        self.folder, self._stamp = folder, folder / ".installed"

    def works(self) -> bool:
        """Whether it can be used: its Python is a link, and dangles when the system's is replaced by a newer one."""
        return all(os.access(self.folder / "bin" / name, os.X_OK) for name in ("python", "pip"))

    def create(self) -> None:
        """Make it where there is none that works; what another version of Python had installed goes."""
        if self.works():
            return
        self._stamp.unlink(missing_ok=True)
        for link in self.folder.glob("bin/python*"):
            link.unlink()  # venv would keep it
        for path in self.folder.glob("lib/python3*"):
            if path.name != f"python3.{sys.version_info.minor}":
                shutil.rmtree(path)
        if subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=False).returncode:
            sys.exit(f"Error: {self.folder} cannot be made; Python says why above")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """`make ui` and `make watch` in two windows: the second waits for the first."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "set-up.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Waiting for another set-up of this environment to end", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def before(self) -> dict[str, Any]:
        """What the last complete set-up wrote down."""
        try:
            return dict(json.loads(self._stamp.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def write_down(self, state: dict[str, Any]) -> None:
        """For `before` of the next."""
        self._stamp.write_text(json.dumps(state) + "\n", encoding="utf-8")

    def installed(self) -> dict[str, str]:
        """Versions by name of all that is whole: pip and uv write RECORD last."""
        found = {}
        for path in self.folder.glob("lib/python3*/site-packages/*.dist-info/RECORD"):
            name, _, version = path.parent.name.removesuffix(".dist-info").partition("-")
            found[canonical(name)] = version
        return found

    def forget_halves(self) -> None:
        """What was being unpacked when somebody ended the last set-up; pip would take it for whole."""
        for path in self.folder.glob("lib/python3*/site-packages/*.dist-info"):
            if not (path / "RECORD").exists():
                shutil.rmtree(path)


def wanted(lock: dict[str, dict[str, str]], level: str, build: str, platform: str = sys.platform) -> dict[str, str]:
    """Versions by name.

    Args:
        lock: as by `environment.lock.read`.
        level: ``run`` or ``all``.
        build: of torch: ``cuda``; ``cpu``, of PyTorch's own index; ``reduced``, that of the package index without what
            only GPUs use.
        platform: elsewhere than on Linux there are no libraries of CUDA.
    """
    sections = ["run"] + ["dev"] * (level == "all")
    if platform == "linux":
        sections += {"cuda": ["cuda", "gpu"], "reduced": ["cuda"], "cpu": []}[build]
    return {name: version for section in sections for name, version in lock[section].items()} | (
        {name: f"{lock['run'][name]}+cpu" for name in _TORCH} if build == "cpu" and platform == "linux" else {}
    )


def specifier(name: str, version: str) -> str:
    """What pip is asked for: 2.14.1+cpu also counts as ``==2.14.1``, but is another build of PyTorch."""
    return f"{name}{'===' if name in _TORCH else '=='}{version}"


def batches(packages: Sequence[str]) -> list[list[str]]:
    """Large ones alone and first."""
    large = [name for name in packages if name.startswith(("torch==", "nvidia-", "triton="))]
    others = [name for name in packages if name not in large]
    return [[name] for name in large] + [others[start : start + _BATCH] for start in range(0, len(others), _BATCH)]


class SetUp:
    """One call: what there is, what there should be, and the way from one to the other."""

    def __init__(self, environment: Environment, level: str):
        """Level as of `wanted`."""
        self._environment, self._level, self._lock = environment, level, read()
        self._before, self._asked = environment.before(), os.environ.get("DD_TORCH", "")
        self._installed = environment.installed()
        has_cuda = all(name in self._installed for name in (*self._lock["cuda"], *self._lock["gpu"]))
        self._torch, self._why = choose(self._before, self._asked, has_cuda, gpu_here)
        text = LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()
        self._state = {
            "lock": hashlib.sha256(text).hexdigest(),
            "level": level,
            "torch": self._torch,
            "asked": bool(self._asked or self._before.get("asked")),
        }

    def is_done(self) -> bool:
        """Nothing is to be installed."""
        before = {key: self._before.get(key) for key in self._state}
        return self._environment.works() and before in (self._state, {**self._state, "level": "all"})

    def run(self) -> None:
        """Install what is missing, remove what only another build of torch needs.

        Raises:
            InstallError: as by pip; what was installed before stays.
        """
        self._environment.forget_halves()
        if shutil.which("uv"):
            try:
                return self._run(Uv(self._environment.folder))
            except InstallError as error:
                print(f"{error}; pip tries it instead", flush=True)
                self._installed = self._environment.installed()
        self._run(Pip(self._environment.folder))

    def _run(self, tool: Pip | Uv) -> None:
        build = self._build()
        want = wanted(self._lock, self._level, build)
        if self._why:
            print(_REASONS[build].format(why=self._why), flush=True)
        accelerator = (*self._lock["cuda"], *self._lock["gpu"])
        if superfluous := [name for name in accelerator if name in self._installed and name not in want]:
            print(f"Removing {len(superfluous)} packages that only another build of PyTorch needs", flush=True)
            tool.uninstall(superfluous)
        missing = [specifier(name, want[name]) for name in want if self._installed.get(name) != want[name]]
        if missing:
            print(f"Setting up {self._environment.folder.name} with {tool.name}: {len(missing)} packages", flush=True)
        of_cpu = [package for package in missing if package.endswith("+cpu")]
        others = [package for package in missing if package not in of_cpu]
        for group, options in (([of_cpu] if of_cpu else [], CPU_INDEX), (batches(others), ())):
            if group:
                tool.install(group, *options, num_installed=lambda: self._num_there(want), total=len(want))
        tool.run("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        there = self._environment.installed()
        all_there = all(there.get(name) == version for name, version in wanted(self._lock, "all", build).items())
        self._environment.write_down({**self._state, "level": "all" if all_there else self._level, "build": build})

    def _build(self) -> str:
        """Which of the three of `wanted`: as installed, else as to be had."""
        if self._torch == "cuda" or sys.platform != "linux":
            return self._torch
        locked, there = self._lock["run"]["torch"], self._installed.get("torch")
        if there == f"{locked}+cpu" or (
            (there != locked or self._asked) and Pip(self._environment.folder).has_cpu_build(locked)
        ):
            return "cpu"
        return "reduced"

    def _num_there(self, want: dict[str, str]) -> int:
        there = self._environment.installed()
        return sum(there.get(name) == version for name, version in want.items())


def heed_signals() -> None:
    """As for Ctrl-C: what was started ends, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)


def main(level: str) -> None:
    """As told on the command line."""
    environment = Environment(VENV)
    if SetUp(environment, level).is_done():
        return
    heed_signals()
    again = "what is installed stays, and the same command goes on from there"
    try:
        with environment.locked():
            environment.create()
            if not (set_up := SetUp(environment, level)).is_done():
                set_up.run()
    except InstallError as error:
        said = f"all that pip said is in {VENV.name}/{LOG}"
        sys.exit(f"Error: not everything could be installed: {error}. Mend that first; {again} ({said})")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted: {again}")


if __name__ == "__main__":
    main(*sys.argv[1:])
