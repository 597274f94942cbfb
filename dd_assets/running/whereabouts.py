"""Which process of which machine something runs in, and whether it is gone. No Dagster here."""

import contextlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

_ZOMBIE = "ended"  # instead of a start time: killed, and its parent has not asked for it yet


@dataclass(frozen=True)
class Whereabouts:
    """A process, so that it is told from all that had or will have its number.

    Attributes:
        host: name of the machine.
        machine: its id, since machines may share a name.
        namespace: in which the number counts; a container has its own.
        boot: when or as what the machine was last started.
        pid: number of the process.
        started: when the process began, in units of the operating system.
    """

    host: str
    machine: str
    namespace: str
    boot: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Whereabouts":
        """Where this process runs."""
        pid = os.getpid()
        return cls(
            host=platform.node(),
            machine=_text(Path("/etc/machine-id")),
            namespace=_namespace(),
            boot=_text(Path("/proc/sys/kernel/random/boot_id")) or _answer("sysctl", "-n", "kern.boottime"),
            pid=pid,
            started=_start_of(pid) or "",
        )

    @classmethod
    def read(cls, text: str) -> "Whereabouts | None":
        """What ``str`` has written; None of anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def is_of(self, other: "Whereabouts") -> bool:
        """Whether both lie where one can see the other, or could before the machine was started again."""
        return (self.host, self.machine, self.namespace) == (other.host, other.machine, other.namespace)

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False for one of another machine or container."""
        here = Whereabouts.here()
        if not self.is_of(here):
            return False
        if self.boot != here.boot:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's, who may be hidden from us
            pass
        start = _start_of(self.pid)
        return start is not None and start != self.started


def _start_of(pid: int) -> str | None:
    """When a process began; None where that cannot be told."""
    if not Path("/proc/self/stat").exists():
        return _answer("ps", "-o", "lstart=", "-p", str(pid)) or None
    # proc(5): the name, in brackets, may hold anything; then state, ..., and field 22, clock ticks since the boot.
    state, *fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() or [""]
    if state in ("Z", "X"):
        return _ZOMBIE
    return fields[18] if state else None


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _answer(*command: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
