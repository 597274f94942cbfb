"""Several processes, each with its share of the images: sums and collections over all of them.

A process group is passed around explicitly; None stands for this process alone. Sums come out with the same bits on
every rank (each element is reduced in one place, then sent to all), and every rank does the same vector arithmetic
with them, so all ranks follow the same path.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from dd_core.errors import UserError

Group = dist.ProcessGroup


@contextmanager
def process_group(
    rank: int,
    num_ranks: int,
    init_method: str,
    *,
    device: torch.device | None = None,
    timeout_seconds: float = 1800,
) -> Iterator[Group]:
    """Join the default process group for a while: NCCL where the device is a GPU, gloo otherwise.

    Args:
        rank: of this process, 0 to num_ranks - 1.
        num_ranks: processes in all.
        init_method: where they meet, for example ``file:///shared/path`` or ``tcp://host:port``.
        device: of the tensors that will be reduced; default the CPU.
        timeout_seconds: after which a collective operation raises because another rank is gone.
    """
    backend = "nccl" if device is not None and device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=num_ranks, timeout=timeout)
    try:
        group = dist.group.WORLD
        assert group is not None
        yield group
    finally:
        dist.destroy_process_group()


def sum_over(group: Group | None, tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor (in place, and returned); all ranks give the same shape and dtype."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


@contextmanager
def agreeing(group: Group | None, device: torch.device) -> Iterator[None]:
    """Let all ranks leave the block in order, or all with a UserError: none waits for one that has given up.

    Raises:
        UserError: of this rank, or that another rank had one.
    """
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    num_failed = int(sum_over(group, torch.tensor([int(own is not None)], device=device)))
    if own is not None:
        raise own
    if num_failed:
        raise UserError(f"{num_failed} of the other ranks could not go on; see what they said")


def gather_over(group: Group | None, values: Tensor) -> Tensor:
    """The values (N_rank,) of all ranks one after the other, (sum of N_rank,); their numbers may differ."""
    if group is None:
        return values
    sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(group.size())]
    dist.all_gather(sizes, torch.tensor([len(values)], device=values.device), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.cat([values, values.new_zeros(longest - len(values))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
