"""Work in blocks that become smaller when memory runs out, instead of failing."""

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from dd_core.errors import UserError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
# What PyTorch's allocators and libraries say when they get no memory, beside torch.OutOfMemoryError.
_CPU_AND_LIBRARY_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")


# How often to halve what would be taken otherwise, because a process was killed for want of memory with that.
_halvings = 0


def set_halvings(count: int) -> None:
    """Let all that comes in this process begin with 2^-count of the images at a time."""
    global _halvings
    _halvings = count


def begin_with(size: int) -> int:
    """Items at a time to begin with, where ``size`` is as many as usual; at least one."""
    return max(1, size >> _halvings)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller block may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_AND_LIBRARY_MESSAGES)


def in_blocks(compute: Callable[[int, int, int], T], total: int, size: int) -> Iterator[T]:
    """Call ``compute`` on consecutive ranges that cover 0 to ``total``; out of memory halves them from there on.

    Args:
        compute: of (start, stop, size) with stop - start <= size: only the last range may be shorter than the present
            size, to which it can be padded. Called again from the same start when memory ran out.
        total: number of items.
        size: items per block to begin with.

    Yields:
        What ``compute`` returned, range after range.

    Raises:
        UserError: there is not enough memory for one item, or no size.
    """
    if size < 1:
        raise UserError(f"a batch must have at least one example, not {size}")
    start, given = 0, size
    size = begin_with(size)
    while start < total:
        stop = min(start + size, total)
        shortage = ""
        try:
            result = compute(start, stop, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = (str(error).strip() or type(error).__name__).splitlines()[0]
        # Only here, after the exception and with it the frames that hold the failed pass's tensors are gone.
        if not shortage:
            yield result
            start = stop
            continue
        if size == 1:
            raise UserError(
                f"out of memory even with 1 example per pass, after beginning with {given} ({shortage}); use a device "
                "with more memory or a smaller model"
            )
        size //= 2
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        _LOG.warning("out of memory with %d examples per pass, going on with %d", stop - start, size)


def reset_peak_memory(device: "torch.device") -> None:
    """Let ``peak_memory`` speak of what comes from now on.

    Freed memory that glibc has kept goes back first: what the task before needed is no part of the next one's peak.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.init()  # a process that has done nothing yet has no statistics to reset, and is refused
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5): resets VmHWM


def peak_memory(device: "torch.device") -> int:
    """Bytes: largest memory allocated on the GPU, or on a CPU the largest resident set, since the last reset."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def name_of(device: torch.device) -> str:
    """``cpu`` or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
