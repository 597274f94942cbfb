"""Tasks that several processes share: torchrun on this machine, or on this and its peers, followed like a crew."""

import os
import queue
import socket
import uuid
from collections.abc import Generator
from pathlib import Path

from dd_core.events import End, Event, Failed
from dd_core.jobs.job import Job
from dd_core.jobs.process import News, Process
from dd_core.store.store import write_text

# How often the ranks begin anew on all machines after one was lost; a new pod in the place of a lost one is counted.
_MOST_RESTARTS = 3
# Seconds a machine waits for its peers: they may still be in the queue for a GPU.
_JOIN_SECONDS = 1800
_END_SECONDS = 10.0


class PeersLostError(Exception):
    """The ranks ended before all tasks had: another machine is gone. What is finished is kept; trying again helps."""


def run_ranks(job: Job, folder: Path, halvings: int = 0) -> Generator[Event, None, None]:
    """Do all tasks of a job, one after the other, each by all ranks; yields their events, see ``run_crew``.

    Where ``job.places`` are several, this is one of them, and ``DD_RENDEZVOUS`` (host:port of the first) says where
    they meet. Only the machine with rank 0 hears of what finished.

    Args:
        job: ``divided``.
        folder: for the ranks' copy of the job file, on this machine.
        halvings: the ranks of this machine begin with 2^-halvings of the images at a time.

    Raises:
        PeersLostError: the ranks ended early, here with several places.
    """
    path = folder / f"{uuid.uuid4().hex}.json"
    write_text(path, job.model_dump_json())
    news: News = queue.Queue()
    arguments = ["dd_core.jobs.ranks.worker", "--launch", *_torchrun(job), "-m", "dd_core.jobs.ranks.worker", str(path)]
    # Workers of a restart would otherwise read the addresses of the lost ones (pytorch#135712).
    team = Process(0, arguments, news, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", DD_HALVINGS=str(halvings))
    numbers = {task.name: number for number, task in enumerate(job.tasks)}
    ended: set[int] = set()
    try:
        while (event := news.get()[1]) is not None:
            number = numbers[event.task]
            if number in ended:
                continue  # told once more after a restart
            yield event.of(event.task, number)
            if isinstance(event, End):
                ended.add(number)
            if isinstance(event, Failed) and not event.is_user_error:
                break  # a defect: the ranks are out of step
    finally:
        team.end(_END_SECONDS)
        path.unlink(missing_ok=True)
    left = {name: number for name, number in numbers.items() if number not in ended}
    is_defect = event is not None
    if left and len(job.places) > 1 and not is_defect:
        if team.has_succeeded:
            return  # rank 0, which speaks, is on another machine
        raise PeersLostError(f"torchrun {team.describe_end()}")
    for name, number in left.items():
        error = f"its ranks ended with it undone: torchrun {team.describe_end()}"
        yield Failed(task=name, number=number, error=error, is_user_error=True)


def _torchrun(job: Job) -> list[str]:
    """Arguments of torchrun before the program."""
    places = len(job.places)
    common = ["--nproc-per-node", str(job.ranks // places), "--max-restarts", str(_MOST_RESTARTS)]
    if places == 1:
        return ["--standalone", *common]
    rendezvous = os.environ["DD_RENDEZVOUS"]
    # The same request of another data root has the same name.
    own = f"{job.name}-{job.digest[:12]}"
    return [
        *common,
        *("--nnodes", str(places), "--rdzv-backend", "c10d", "--rdzv-id", own, "--rdzv-endpoint", rendezvous),
        *("--rdzv-conf", f"join_timeout={_JOIN_SECONDS}", "--local-addr", _address(rendezvous)),
    ]


def _address(rendezvous: str) -> str:
    """How the peers reach this machine: ``DD_ADDRESS``, else its name in the domain where they meet."""
    if given := os.environ.get("DD_ADDRESS"):
        return given
    host = rendezvous.rpartition(":")[0]
    if host in ("localhost", "127.0.0.1"):
        return host
    domain = host.partition(".")[2]
    return f"{socket.gethostname()}.{domain}" if domain else socket.gethostname()
