"""Runs uv or pip, with words about how far it is: pip alone is silent for minutes where its output is no terminal."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import unquote

LOG = "set-up.log"
CPU_INDEX = ("--index-url", "https://download.pytorch.org/whl/cpu")  # pytorch.org, Get Started
_DOWNLOAD = re.compile(r"\s*Downloading (\S+\.(?:whl|gz|zip)) \(([\d.]+) (bytes|kB|MB|GB)\)")
_UNREACHABLE = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError")
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_PATIENCE = 10  # seconds, for an index that need not be there


class InstallError(Exception):
    """pip or uv has failed; the message is its last complaint."""


class Uv:
    """uv loads and unpacks many packages at a time, and says so by itself."""

    name = "uv"

    def __init__(self, venv: Path):
        """For the environment in this folder."""
        self._python = str(venv / "bin/python")

    def run(self, what: str, *arguments: str) -> None:
        """A command that uv and pip have in common.

        Raises:
            InstallError: uv has said why.
        """
        if subprocess.run(["uv", "pip", what, "--python", self._python, *arguments], check=False).returncode:
            raise InstallError("uv could not do it and says why above")

    def uninstall(self, names: Sequence[str]) -> None:
        """Remove packages that are there."""
        self.run("uninstall", *names)

    def install(
        self, batches: Sequence[Sequence[str]], *options: str, num_installed: Callable[[], int], total: int
    ) -> None:
        """Install packages; as `Pip.install`, but for the words."""
        self.run("install", "--no-deps", *options, *(package for batch in batches for package in batch))


class Pip:
    """Several pips side by side, each with a few packages: while one downloads, another unpacks."""

    name = "pip"

    def __init__(self, venv: Path):
        """For the environment in this folder; what pip says goes into a file there."""
        self._command = [str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        self._log, self._temporary = venv / LOG, venv / "downloads"  # /tmp is often a small disk in memory
        self._processes: list[subprocess.Popen[str]] = []
        self._doing: dict[int, Callable[[], str]] = {}
        self._loaded = 0.0

    def run(self, what: str, *arguments: str) -> None:
        """A command that uv and pip have in common.

        Raises:
            InstallError: pip has failed.
        """
        with self._without_downloads():
            self._run(0, what, *arguments)

    def uninstall(self, names: Sequence[str]) -> None:
        """Remove packages that are there."""
        self.run("uninstall", "--yes", *names)

    def has_cpu_build(self, version: str) -> bool:
        """Whether PyTorch's own index can be asked, and has this version for this Python."""
        options = ("--timeout", str(_PATIENCE), "--retries", "1", *CPU_INDEX)
        command = [*self._command, "index", "versions", "torch", *options]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return f"{version}+cpu" in re.split(r"[\s,]+", said)

    def install(
        self, batches: Sequence[Sequence[str]], *options: str, num_installed: Callable[[], int], total: int
    ) -> None:
        """Install packages. Python compiles their modules when it first loads them: most it never does.

        Args:
            batches: names with versions; a pip for each.
            *options: of pip.
            num_installed: counts how many of the environment's packages are there by now.
            total: how many there will be.

        Raises:
            InstallError: one pip has failed; the others were ended.
        """
        started, line, terminal = time.monotonic(), "", sys.stdout.isatty()
        with self._without_downloads(), ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
            arguments = ("install", "--no-deps", "--no-compile", "--progress-bar", "off", *options)
            pending: set[Future[None]] = {
                pool.submit(self._run, number, *arguments, *batch) for number, batch in enumerate(batches)
            }
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.5 if terminal else 5, return_when=FIRST_EXCEPTION)
                    line = self._tell(f"{num_installed()} of {total} packages", time.monotonic() - started, line)
                    for future in done:
                        future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in self._processes:
                    process.terminate()
                print(end="\n" if terminal else "", flush=True)
        print(f"  done in {time.monotonic() - started:.0f} s; {self._loaded / 1e6:.0f} MB were loaded", flush=True)

    @contextlib.contextmanager
    def _without_downloads(self) -> Iterator[None]:
        """Remove their folder in the end: a pip that ends would take it from under one that begins."""
        try:
            yield
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _run(self, number: int, *arguments: str) -> None:
        """One pip, with a folder of its own for what it downloads."""
        folder = self._temporary / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        said = []
        environment = {**os.environ, "TMPDIR": str(folder)}
        with (
            self._log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                [*self._command, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            ) as process,
        ):
            self._processes.append(process)
            for line in process.stdout or ():
                said.append(line)
                log.write(line)
                self._note(number, folder, line)
        self._doing.pop(number, None)
        shutil.rmtree(folder, ignore_errors=True)
        if process.returncode:
            raise InstallError(complaint(said))

    def _note(self, number: int, folder: Path, line: str) -> None:
        """Understand what one pip says that it does."""
        if found := download(line):
            path, size = folder / found[0], found[1]
            self._loaded += size
            self._doing[number] = lambda: f"loading {path.name.split('-')[0]}, {_share(path, size)}"
        elif line.startswith("Installing collected packages: "):
            names = line.partition(": ")[2].strip().split(", ")
            what = f"unpacking {names[0] if len(names) == 1 else f'{len(names)} packages'}"
            self._doing[number] = lambda: what

    def _tell(self, text: str, seconds: float, last: str) -> str:
        """Say how far it is: over and over on a terminal's line, else when it has changed."""
        text = "; ".join([text, *(doing() for _, doing in sorted(self._doing.copy().items()))])
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size().columns
            print("\r\033[K" + f"  {seconds:.0f} s: {text}"[: columns - 1], end="", flush=True)
        elif text != last:
            print(f"  {seconds:.0f} s: {text}", flush=True)
        return text


def _share(path: Path, size: float) -> str:
    """How much of a download is there; pip keeps it in a folder of its own until it is whole."""
    there = next((found.stat().st_size for found in path.parent.glob(f"*/{path.name}")), 0)
    return f"{min(there, size) / 1e6:.1f} of {size / 1e6:.1f} MB"


def download(line: str) -> tuple[str, float] | None:
    """The file and its size in bytes, if pip says that it downloads a package."""
    if found := _DOWNLOAD.match(line):
        return unquote(found[1].rpartition("/")[2]), float(found[2]) * _UNITS[found[3]]
    return None


def complaint(said: Sequence[str]) -> str:
    """The line that tells most about why pip has failed."""
    errors = [line.strip().removeprefix("ERROR: ") for line in said if line.startswith("ERROR:")] or [*said[-1:], ""][
        :1
    ]
    if full := [line for line in errors if "No space left" in line]:
        return full[0]
    unreachable = "the package index cannot be reached: " if _UNREACHABLE.search("".join(said)) else ""
    return unreachable + errors[-1].strip().rstrip(".")
