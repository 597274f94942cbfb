"""Does any convolution kernel touch memory that is not its own? Each kind once under NVIDIA's compute-sanitizer.

Through our ``Convolution``, so with what it avoids, in every precision, forward and backward; every tensor has an
allocation of its own. A kernel that reads too far is not seen by its results, only by a process that dies some day.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from dd_core.jobs.worker import prepare_process
from dd_core.models.stacking import Convolution
from gpu.timing import DEVICE, wait

BATCH, SIDE = 32, 16


def child() -> None:
    """Do every kind, saying before which one it is."""
    prepare_process(threads=1)
    shapes = [(c, c, 3, 1) for c in (4, 8, 1, 2, 16, 32)] + [(c, 2 * c, 3, 2) for c in (4, 8, 1, 2, 16)]
    shapes += [(c, 2 * c, 1, 2) for c in (4, 8, 2)] + [(3, 4, 3, 1), (3, 1, 3, 1), (3, 8, 3, 1)]
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for inputs, outputs, kernel, stride in shapes:
            for trials in (5, 3, 6, 7, 2, 8) if dtype == torch.bfloat16 else (5, 3):
                print(f"KIND {inputs}->{outputs} {kernel}x{kernel}/{stride} x{trials} {dtype}", flush=True)
                layer = Convolution(inputs, outputs, kernel, trials, stride=stride).to(DEVICE, dtype)
                layer = layer.to(memory_format=torch.channels_last)
                x = torch.randn(BATCH, trials * inputs, SIDE, SIDE, device=DEVICE, dtype=dtype)
                x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
                layer(x).sum().backward()
                wait()
    print("KIND none", flush=True)


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every kind with an error, and a count."""
    found = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    program = [sys.executable, "-c", "from gpu.sanitized import child; child()"]
    if small or found is None:
        yield {"what": "not run", "kind": "", "errors": 0, "first": "compute-sanitizer and a GPU are needed"}
        return
    process = subprocess.Popen(
        [found, "--tool", "memcheck", "--print-limit", "2000", "--show-backtrace", "no", *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    try:
        output, _ = process.communicate(timeout=max(clock.left - 5, 5))
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    kind, num_kinds, errors = "start", 0, {}
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("KIND "):
            kind, num_kinds = line[5:], num_kinds + 1
        elif "Invalid __" in line:
            told = " ".join(part.strip("= ") for part in lines[number : number + 2])[:200]
            errors.setdefault(kind, [told, 0])[1] += 1
    for name, (told, count) in errors.items():
        yield {"what": "touches foreign memory", "kind": name, "errors": count, "first": told}
    yield {"what": f"{num_kinds} kinds, until {kind}", "kind": "all", "errors": len(errors), "first": lines[-1][:200]}
