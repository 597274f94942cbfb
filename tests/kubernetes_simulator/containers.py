"""A container: one command run as a real process, in its own namespaces where this machine allows it.

Isolated (root only): own mounts (an overlay over this machine's root, writes thrown away), host name, process ids,
IPC and a /dev/shm of 64 MiB, as containerd gives; the network is the machine's. What lies on this machine's disk can
still be read: a missing volume shows as a missing path only where the path does not exist outside.
Plain: no mounts, no host names. Both die with their creator, however it dies.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .environment import Mount

_CGROUP = "kubernetes-simulator-"
_KILLED = 128 + signal.SIGKILL
# The kernel kills the first process of the container when the thread that started it ends, and with it the others.
_LEASH = ["nice", "-n", "10", "setpriv", "--pdeathsig", "KILL"]


@dataclass
class Log:
    """Lines with their times in nanoseconds, strictly increasing: clients tell lines apart by them."""

    lines: list[tuple[int, bytes]] = field(default_factory=list)
    closed: bool = False

    def append(self, line: bytes) -> None:
        """Add a line, now."""
        last = self.lines[-1][0] if self.lines else 0
        self.lines.append((max(time.time_ns(), last + 1), line))


class Container:
    """Runs once. ``reason`` and ``exit_code`` may be set beforehand by whoever kills it for a stated reason."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: Log, working_folder: str | None = None):
        """Nothing is inherited from this process but what ``environment`` says."""
        self.argv, self.environment, self.log = argv, environment, log
        self.working_folder = working_folder
        self.exit_code: int | None = None
        self.reason: str | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, folder: Path, hostname: str, mounts: list[Mount], isolate: bool, memory: int | None) -> int:
        """Run to the end and return the exit code (128 + n when killed by signal n)."""
        limit = _MemoryLimit(memory)
        try:
            script = [f"echo 0 > {limit.folder}/cgroup.procs"] if limit.folder else []
            if isolate:
                script += _isolation(folder, hostname, mounts, self.working_folder or "/")
                kinds = ["--mount", "--uts", "--pid", "--ipc"]
            else:
                script += ['exec "$@"']
                kinds = _plain_namespaces()
            namespaces = ["unshare", *kinds, "--fork", "--kill-child"] if kinds else []
            self._process = process = await asyncio.create_subprocess_exec(
                *_LEASH, *namespaces, "/bin/sh", "-ec", "\n".join(["exec 2>&1", *script]), "sh", *self.argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=self.environment, cwd=None if isolate else self.working_folder, start_new_session=True, limit=2**26,
            )  # fmt: skip
            assert process.stdout is not None and process.stderr is not None
            reading = asyncio.create_task(self._read(process.stdout))
            complaint = await process.stderr.read()  # of unshare: the container's own errors go where its output goes
            code = await process.wait()
            if b"sigprocmask" in complaint:  # util-linux 2.38 cannot end itself by the SIGKILL that ended its child
                code = _KILLED
            code = 128 - code if code < 0 else code
            self.signal(signal.SIGKILL)
            await asyncio.wait([reading], timeout=1)
            reading.cancel()
            if limit.num_kills() and code == _KILLED:
                self.reason = self.reason or "OOMKilled"
        finally:
            self.log.closed = True
            self.signal(signal.SIGKILL)
            limit.remove()
        return code if self.exit_code is None else self.exit_code

    async def _read(self, output: asyncio.StreamReader) -> None:
        while line := await output.readline():
            self.log.append(line.rstrip(b"\n"))

    def signal(self, number: int) -> None:
        """To the container's first process; SIGKILL to every one of them."""
        if self._process is None:
            return
        processes = _descendants(self._process.pid) if self._process.returncode is None else []
        if not _plain_namespaces():
            processes.insert(0, self._process.pid)  # else that is unshare, which waits for the first process
        for pid in processes if number == signal.SIGKILL else processes[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _descendants(pid: int) -> list[int]:
    """All processes below this one, parents first."""
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _isolation(folder: Path, hostname: str, mounts: list[Mount], working_folder: str) -> list[str]:
    """Shell lines that build the container's view of the file system and step into it."""
    own = folder / secrets.token_hex(4)
    upper, work, root = own / "upper", own / "work", own / "root"
    for part in (upper, work, root):
        part.mkdir(parents=True)
    lines = [
        "mount --make-rprivate /",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount --rbind /sys {root}/sys",
        f"mount -t tmpfs -o size=64m shm {root}/dev/shm",
    ]
    everything = sorted([*mounts, *_hidden_by(mounts)], key=lambda mount: len(Path(mount.target).parts))
    for source, target, read_only in everything:  # resolved inside: /var/run is a link to /run
        lines.append(f'T="{root}$(chroot {root} readlink -m {shlex.quote(target)})"')
        if source.is_dir():
            lines.append('mkdir -p "$T"')
        else:
            lines.append('mkdir -p "$(dirname "$T")"; [ -e "$T" ] || touch "$T"')
        lines.append(f'mount --bind {shlex.quote(str(source))} "$T"')
        if read_only:
            lines.append('mount -o remount,ro,bind "$T"')
    step_in = 'cd "$1" && shift && exec "$@"'
    lines.append(f"hostname {shlex.quote(hostname[:63])}")
    lines.append(f'exec chroot {root} /bin/sh -c {shlex.quote(step_in)} sh {shlex.quote(working_folder)} "$@"')
    return lines


def _hidden_by(mounts: list[Mount]) -> list[Mount]:
    """What images are made of, Python and this repository, where it lies below a mount: it must stay visible."""
    made_of = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]}
    targets = [Path(mount.target) for mount in mounts]
    return [Mount(path, str(path), True) for path in made_of if any(path.is_relative_to(t) for t in targets)]


@functools.cache
def _plain_namespaces() -> list[str]:
    """Own process ids, so that no process of a container outlives it; nothing where the machine forbids it."""
    for kinds in (["--pid"], ["--user", "--map-current-user", "--pid"]):
        tried = subprocess.run(["unshare", *kinds, "--fork", "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return kinds
    return []


@functools.cache
def can_isolate() -> bool:
    """Whether an isolated container really starts here."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    folder = Path("/dev/shm") / f"kubernetes-simulator-{os.getpid()}-{secrets.token_hex(4)}"
    script = "\n".join(_isolation(folder, "probe", [], "/"))
    kinds = ["--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child"]
    try:
        tried = subprocess.run(["unshare", *kinds, "sh", "-ec", script, "sh", "true"], capture_output=True, check=False)
        return tried.returncode == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Clear away what simulators left behind that were killed: folders and cgroups with their process id."""
    cgroups = Path("/sys/fs/cgroup")
    for folder in [*folders, *cgroups.glob(f"{_CGROUP}*"), *cgroups.glob(f"memory/{_CGROUP}*")]:
        if not Path(f"/proc/{folder.name.removeprefix(_CGROUP).split('-')[0]}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir() if cgroups in folder.parents else shutil.rmtree(folder)


class _MemoryLimit:
    """A cgroup (v1 or v2) with a memory limit; nothing where cgroups cannot be written."""

    def __init__(self, num_bytes: int | None):
        """None: no limit."""
        self.folder: Path | None = None
        for parent, limit in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
            folder = Path("/sys/fs/cgroup") / parent / f"{_CGROUP}{os.getpid()}-{secrets.token_hex(4)}"
            if num_bytes is None or self.folder or not (folder.parent / "cgroup.procs").exists():
                continue
            with contextlib.suppress(OSError):
                folder.mkdir()
                self.folder = folder
                (folder / limit).write_text(str(num_bytes))

    def num_kills(self) -> int:
        for name in ("memory.oom_control", "memory.events"):
            if self.folder and (self.folder / name).exists():
                words = (self.folder / name).read_text().split()
                return int(words[words.index("oom_kill") + 1])
        return 0

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if self.folder:
                self.folder.rmdir()
