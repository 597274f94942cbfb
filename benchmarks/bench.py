"""``make bench``: the benchmarks that take a few minutes in all, in one table with the machine and the date.

    python benchmarks/bench.py [SCRIPT ...]

Each script runs with ``--quick`` in a process of its own; what it prints goes to stderr, its ratios into the table,
which is Markdown as in README.md beside this file. A script that fails is said, and the others run. What an old machine
would say is found with ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`` in the environment.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from dd_core.machine.devices import device_name, num_cores
from dd_core.machine.processor import processor

HERE = Path(__file__).parent
# The others take longer with --quick too, or need a GPU.
QUICK = (
    "startup.py",
    "training.py",
    "together.py",
    "per_image_curvature.py",
    "hessian.py",
    "loss_slopes.py",
    "graphs.py",
    "monitors.py",
)
# From the newest; a machine that has one has those after it.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512, bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}


def this_machine() -> str:
    """Model, cores, instruction sets, what holds them back, the GPU, the version of PyTorch."""
    model, flags = processor()
    instructions = next((words for flag, words in _INSTRUCTIONS.items() if flag in flags.split()), "")
    held_back = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    settings = [f"{name}={os.environ[name]}" for name in held_back if name in os.environ]
    gpu = [] if device_name() == "cpu" else [device_name()]
    parts = [model, f"{num_cores()} cores", instructions, *settings, *gpu, f"torch {version('torch')}"]
    return ", ".join(part for part in parts if part)


def ratios_of(script: str) -> dict[str, float]:
    """Run a script and read its ratios; none where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ratios.json")
        command = [sys.executable, str(HERE / script), "--quick", "--json", str(path)]
        print(f"== {script}", file=sys.stderr, flush=True)
        started = time.monotonic()
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        print(f"== {script}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if done.returncode != 0 or not path.exists():
            print(f"{script} ended with exit code {done.returncode}", file=sys.stderr)
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8"))["ratios"])


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", default=QUICK, help="of this folder; default: the quick ones")
    scripts, today = parser.parse_args().scripts, datetime.date.today()
    print(f"{this_machine()}; {today.day} {today:%B %Y}\n\n| script | ratios |\n|---|---|", flush=True)
    failed = 0
    for script in scripts:
        ratios = ratios_of(script)
        failed += not ratios
        values = ", ".join(f"{key} {value:.3g}" for key, value in ratios.items())
        print(f"| `{script}` | {values or 'failed'} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
