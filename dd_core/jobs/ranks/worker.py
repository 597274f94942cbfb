"""``python -m dd_core.jobs.ranks.worker JOB``, started by torchrun: one of the processes that share the tasks of a job.

``python -m dd_core.jobs.ranks.worker --launch ...`` is torchrun itself with these arguments, but it ends when its
stdin is closed: its parent has died then, and the ranks should leave the GPUs.
"""

import functools
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from dd_core.errors import UserError
from dd_core.events import Event, Failed, Finished, Started
from dd_core.jobs.exit_codes import TRY_AGAIN
from dd_core.jobs.job import CheckpointTask, Job
from dd_core.jobs.worker import Events, defect, device_of, prepare_process
from dd_core.store.store import Store

# After which a collective operation gives up: a rank is gone, and torchrun will begin anew.
_TIMEOUT_SECONDS = float(os.environ.get("DD_RANK_TIMEOUT", "600"))
# How long a machine that has finished waits for the others, whose ranks leave in the same moment, when all is done.
_LEAVE_SECONDS = min(15.0, _TIMEOUT_SECONDS)


def main(path: Path) -> None:
    """Entry point of a rank."""
    import torch
    import torch.distributed as dist

    from dd_core.curvature.parameter_space.distributed import process_group, sum_over
    from dd_core.machine.memory import set_halvings

    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    events = Events()
    job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    prepare_process(job.threads)
    set_halvings(int(os.environ.get("DD_HALVINGS", "0")))  # after this machine ran out of memory
    device = device_of(int(os.environ["LOCAL_RANK"]))
    store = Store(job.root)

    def tell(event: Event) -> None:
        if rank == 0:
            events.emit(event)

    with process_group(rank, num_ranks, "env://", device=device, timeout_seconds=_TIMEOUT_SECONDS) as group:
        for task in job.tasks:
            assert isinstance(task, CheckpointTask)
            started = time.monotonic()
            tell(Started(task=task.name))
            try:
                task.compute(job.studies[task.study], store, device=device, group=group)
            except UserError as error:
                tell(Failed(task=task.name, error=str(error), is_user_error=True))
                continue
            except Exception as error:
                traceback.print_exc()
                if isinstance(error, dist.DistError) or _speaks_of_a_lost_peer(error):
                    os._exit(TRY_AGAIN)  # the group cannot be taken down in order any more
                events.emit(defect(task.name, error))
                os._exit(1)
            tell(Finished(task=task.name, seconds=time.monotonic() - started))
        # No rank leaves before the first has told of everything: its machine would count as finished, and nobody would
        # be there to begin anew with the others if one of them were lost.
        try:
            sum_over(group, torch.zeros(1, device=device)).item()
        except RuntimeError:
            os._exit(0 if rank == 0 else TRY_AGAIN)
    # Python's own way out aborts now and then, when a thread of PyTorch is still alive: torchrun takes that for a loss.
    sys.stderr.flush()
    os._exit(0)


def _speaks_of_a_lost_peer(error: Exception) -> bool:
    """Whether gloo raised it, which knows only RuntimeError, because the other end is gone."""
    words = ("gloo", "connection closed by peer", "connection reset", "connection refused", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _launch(arguments: list[str]) -> None:
    """Be torchrun.

    It waits five minutes for the other machines once its ranks have finished, without looking whether those begin anew
    because a rank of theirs was lost at the very end, and has no option for it. Where it leaves, it closes the
    rendezvous, and they end too.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher import api
    from torch.distributed.run import main as torchrun

    vars(api)["LocalElasticAgent"] = functools.partial(LocalElasticAgent, exit_barrier_timeout=_LEAVE_SECONDS)

    def end_with_stdin() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), 15)

    threading.Thread(target=end_with_stdin, daemon=True).start()
    torchrun(arguments)


if __name__ == "__main__":
    if sys.argv[1] == "--launch":
        _launch(sys.argv[2:])
    else:
        main(Path(sys.argv[1]))
