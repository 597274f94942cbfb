"""What this machine has, and how a worker uses it: cores, GPUs, memory. Needs no torch to import."""

import contextlib
import ctypes
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dd_core.words import counted

if TYPE_CHECKING:
    pass

_GPU_FOLDER = Path("/proc/driver/nvidia/gpus")


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
    """NVIDIA GPUs this process may use: CUDA_VISIBLE_DEVICES if set, else those whose device files are there.

    What the driver lists would be too many in a container that was given only some of a node's GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) if _GPU_FOLDER.is_dir() else 0


def gpu_in_vain(cuda: str | None) -> str | None:
    """What to tell somebody whose NVIDIA GPU PyTorch cannot use because it was installed for CPUs; None if all is well.

    Args:
        cuda: ``torch.version.cuda``.
    """
    if not num_gpus() or cuda is not None:
        return None
    is_checkout = (Path(__file__).parents[2] / "Makefile").exists()
    cure = "`make setup DD_TORCH=cuda` installs what is missing" if is_checkout else "install the CUDA build of PyTorch"
    return f"PyTorch was installed for CPUs, and an NVIDIA GPU is here: {cure}"


def device_name() -> str:
    """``cpu``, or the name of the first GPU in the driver's words, which are those of torch.cuda.get_device_name."""
    if not num_gpus():
        return "cpu"
    for path in sorted(_GPU_FOLDER.glob("*/information")):
        if model := re.search(r"^Model:\s*(.+?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE):
            return model[1]
    return "an unknown GPU"


def product_of(device: str) -> str:
    """A GPU's name as node labels of Kubernetes have it: ``NVIDIA A100-SXM4-40GB`` is ``NVIDIA-A100-SXM4-40GB``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-")


@dataclass(frozen=True)
class Machine:
    """What arms are trained on: its GPUs, or without any the cores of the CPU as one device.

    Attributes:
        device: ``cpu`` or the GPUs' name.
        num_gpus: all taken to be alike.
        num_cores: of the CPU.
        num_workers: how many workers the user wants (``DD_WORKERS``), or None.
        num_places: on a cluster, how many such machines there are; the other numbers are those of each.
    """

    device: str
    num_gpus: int
    num_cores: int
    num_workers: int | None = None
    num_places: int = 1

    @property
    def devices_per_place(self) -> int:
        """How many devices of a machine are used: all, unless the user wants fewer workers."""
        return min(self.num_gpus or 1, self.num_workers or self.num_gpus or 1)

    @property
    def num_devices(self) -> int:
        """How many devices are used in all."""
        return self.num_places * self.devices_per_place

    def workers_and_threads(self) -> tuple[int, int]:
        """How many workers each machine should run for work that takes a GPU or core each, and threads per worker."""
        workers = self.num_workers or self.num_gpus or self.num_cores
        return workers, max(1, self.num_cores // workers)

    def workers_per_device(self, per_gpu: int, recommended: int | None, num_arms: int) -> int:
        """How many arms should share a device: as the user wants, as the probe recommends, or by rule.

        Args:
            per_gpu: ``workers_per_gpu`` of the variant.
            recommended: by the resource probe on this kind of device, if it has run.
            num_arms: to be trained now; on GPUs fewer than there is room for get larger shares.
        """
        if self.num_workers:
            return -(-self.num_workers // self.devices_per_place)
        if not self.num_gpus:
            return recommended or self.num_cores
        return min(recommended or per_gpu, -(-num_arms // self.num_devices))

    def threads(self, workers_per_device: int) -> int:
        """CPU threads of each worker, so that no core is idle or fought over."""
        return max(1, self.num_cores // (workers_per_device * max(1, self.num_gpus)))

    def describe(self) -> str:
        """For people: ``the 2 cores of this CPU``, ``8 GPUs (NVIDIA H200)``, ``4 times 8 GPUs (NVIDIA H200)``."""
        if self.num_places > 1:
            return f"{self.num_places} times {replace(self, num_places=1).describe().removeprefix('the ')}"
        if self.num_gpus:
            devices = self.devices_per_place
            used = f"{devices} of " if devices < self.num_gpus else ""
            return f"{used}{counted(self.num_gpus, 'GPU')} ({self.device})"
        return f"the {self.num_cores} cores of this CPU" if self.num_cores > 1 else "the one core of this CPU"


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


def num_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this container, else on this machine."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            if count := re.search(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE):
                return int(count[1])
    return 0


def be_killed_first() -> None:
    """If the machine runs out of memory, let the kernel take this process and not the orchestrator."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
