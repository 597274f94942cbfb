"""What decides which kernels PyTorch chooses on a CPU: the processor, the version, settings. Needs no torch to import.

Whatever is found out about a machine by trying is kept for each of these, in the user's cache folder and not at the
data root, which machines share.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

_SETTINGS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY")


@functools.cache
def processor() -> tuple[str, str]:
    """Model and instruction sets of the CPU, in the words of /proc/cpuinfo where there is one."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        if flags:
            return model[1].strip() if model else platform.machine(), flags[1]
    return platform.processor() or platform.machine(), ""


def kind_of_machine(question: int, *conditions: str | int) -> str:
    """A digest of all of it, of the version of the question that is asked, and of what else its answer depends on."""
    settings = [os.environ.get(name, "") for name in _SETTINGS]
    machine = [question, *processor(), version("torch"), *settings, *conditions]
    return hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
