"""A real SLURM on this machine's loopback: munge, a controller and two nodes with two pretended GPUs each.

Everything lies in one folder and listens on ports of its own, so that nothing in /etc is needed or touched.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODES = ("n1", "n2")
_PATIENCE = 60.0

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/spool/controller
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,sched_interval=1
MpiDefault=none
ReturnToService=2
KillWait=1
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=localhost Port={first} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=localhost Port={second} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=lab Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1,n2 MaxTime=1 State=UP
"""


def missing_programs() -> list[str]:
    """Which of SLURM's programs are not installed here."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """The daemons, and the environment in which SLURM's commands reach them."""

    def __init__(self, folder: Path):
        """Write the configuration."""
        self.folder = folder
        for name in ("etc", "run", "log", "dev", "munge", *(f"spool/{part}" for part in ("controller", *NODES))):
            (folder / name).mkdir(parents=True, mode=0o700 if name == "munge" else 0o755)
        key = folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for number in range(2):
            self._pretended_gpu(folder / "dev" / f"nvidia{number}")
        controller, first, second = _free_ports(3)
        values = {"folder": folder, "user": getpass.getuser()}
        text = _CONFIGURATION.format(controller=controller, first=first, second=second, **values)
        self._write("slurm.conf", text)
        self._write("gres.conf", f"NodeName=n1,n2 Name=gpu File={folder}/dev/nvidia[0-1]\n")
        self._write("cgroup.conf", "CgroupAutomount=no\n")
        self.environment = {
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def _write(self, name: str, text: str) -> None:
        (self.folder / "etc" / name).write_text(text, encoding="utf-8")

    def _pretended_gpu(self, path: Path) -> None:
        """A device file; SLURM looks at nothing but its existence."""
        with contextlib.suppress(PermissionError):
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
            return
        path.touch()

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        folder, configuration = self.folder, self.environment["SLURM_CONF"]
        self._start(
            *("munged", "--foreground", f"--socket={folder}/run/munge.sock", f"--key-file={folder}/munge/munge.key"),
            *(f"--pid-file={folder}/run/munged.pid", f"--seed-file={folder}/munge/seed", "--force"),
        )
        self._await(lambda: (folder / "run" / "munge.sock").is_socket(), "munged")
        self._start("slurmctld", "-D", "-c", "-f", configuration)
        for node in NODES:
            self._start("slurmd", "-D", "-f", configuration, "-N", node)
        self._await(lambda: self.run("sinfo", "-h", "-o", "%T") == "idle", "idle nodes")

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{program}.out").open("ab") as log:
            # A session of its own: Ctrl-C in a terminal is for the tests, which stop the daemons in their order.
            self._processes.append(
                subprocess.Popen(
                    [shutil.which(program, path=self.environment["PATH"]) or program, *arguments],
                    env={**os.environ, **self.environment},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _await(self, condition, what: str) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text(errors="replace")[-3000:] for p in (self.folder / "log").iterdir())
                raise RuntimeError(f"SLURM does not start: no {what} after {_PATIENCE:.0f} s\n{logs}")
            time.sleep(0.05)

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints, both streams together."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=30, check=False
        )
        return (done.stdout + done.stderr).strip()

    def stop(self) -> None:
        """End all jobs, then the daemons, nodes first."""
        self.run("scancel", "--user", getpass.getuser())
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that is up for as long as the context lasts."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
