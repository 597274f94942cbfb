"""Everything that only a GPU can tell, in one call that ends in time: the gpu tests, then measurements by their value.

``python benchmarks/on_gpu.py --minutes 8 --out FOLDER`` writes ``DEVICE.json`` (every row measured) and ``DEVICE.md``
(the table) there, row after row, so that a machine which goes away leaves what it had. Sections that were measured on
that device before and are not asked for now stay in the file. Each section is a process of its own: one that crashes,
or runs out of memory or time, costs the others nothing. Sections are modules of ``gpu`` with ``run(clock, small)``,
which yields rows (``stacks:float32``: with an argument); ``small`` asks for sizes that a CPU manages, to try the script
there.

Neither Dagster nor a data set is needed: CIFAR-10 is made up (``setups``). Everything else is as in a real training.
"""

import argparse
import importlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Section and its share of the time, in order of value.
SECTIONS = {
    "tests": 0.2,
    "sanitized": 0.2,
    "convolutions": 0.2,
    "training": 0.2,
    "monitors": 0.12,
    "quickstart": 0.12,
    "hessian": 0.1,
    "curvature": 0.16,
    "graphs": 0.16,
    "training:rest": 0.16,
    "compiled": 0.12,
    "workers": 0.1,
    "stacks:bfloat16": 0.16,
    "stacks:float32": 0.12,
}
# These ask for right or wrong, not for times, and run side by side.
UNTIMED = ("tests", "sanitized", "convolutions")


class Clock:
    """The time a section has."""

    def __init__(self, seconds: float):
        """Starts now."""
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def machine() -> dict[str, Any]:
    """What was measured on."""
    import torch

    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def run_section(name: str, seconds: float, small: bool) -> None:
    """Print a section's rows as lines of JSON; an error is a row, too."""
    clock = Clock(seconds)
    try:
        module, _, argument = name.partition(":")
        run = importlib.import_module(f"gpu.{module}").run
        for row in run(clock, small, *filter(None, [argument])):
            print(json.dumps(row), flush=True)
            if clock.left < 0:
                print(json.dumps({"what": "out of time"}), flush=True)
                return
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        print(json.dumps({"what": "failed", "error": f"{type(error).__name__}: {error}", "trace": text}), flush=True)


class Results:
    """Rows by section, on disk after each."""

    def __init__(self, folder: Path):
        """Into that folder."""
        about = machine()
        name = re.sub(r"[^a-z0-9]+", "-", about.get("gpu", "no gpu").lower())
        self.file = folder / f"{name}.json"
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(self.file.read_text(encoding="utf-8"))["sections"] if self.file.exists() else {}
        self.content = {"machine": about, "sections": before}

    def begin(self, section: str) -> None:
        """Forget what it said before."""
        self.content["sections"].pop(section, None)

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Keep a row and say it."""
        shown = {key: value for key, value in row.items() if key != "trace"}
        with self._lock:
            self.content["sections"].setdefault(section, []).append(row)
            print(f"{section:10s} " + "  ".join(f"{k}={_short(v)}" for k, v in shown.items()), flush=True)
            self.write()

    def write(self) -> None:
        """The JSON and the table."""
        self.file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        self.file.with_suffix(".md").write_text(self.table(), encoding="utf-8")

    def table(self) -> str:
        """Markdown, a section's rows, in one table where they have the same columns."""
        about = self.content["machine"]
        name = f"{about.get('gpu', 'no GPU')}, torch {about['torch']}"
        lines = [f"# Measured on {name}", "", "Written by `benchmarks/on_gpu.py`.", ""]
        for section, rows in self.content["sections"].items():
            lines += [f"## {section}", ""]
            shown = [{key: value for key, value in row.items() if key != "trace"} for row in rows]
            for columns, alike in itertools.groupby(shown, key=tuple):
                lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
                lines += ["| " + " | ".join(_short(row[column]) for column in columns) + " |" for row in alike] + [""]
        return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")[:300]


def follow(section: str, seconds: float, small: bool, results: Results) -> None:
    """Run a section in a process of its own and keep its rows; it is ended a little after its time."""
    results.begin(section)
    command = [sys.executable, str(HERE / "on_gpu.py"), "--section", section, "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path[1:]])}
    process = subprocess.Popen(
        [*command, *(["--small"] if small else [])], stdout=subprocess.PIPE, text=True, env=environment
    )
    killer = subprocess.Popen(["sh", "-c", f"sleep {seconds + 15:.0f}; kill -9 {process.pid} 2>/dev/null"])
    assert process.stdout is not None
    for line in process.stdout:
        try:
            results.add(section, json.loads(line))
        except ValueError:
            print(line, end="", flush=True)
    status = process.wait()
    killer.kill()
    if status:
        results.add(section, {"what": "ended", "error": f"exit status {status}"})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="default %(default)s")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="these sections alone")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; the default where there is no GPU")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        run_section(arguments.section, arguments.seconds, arguments.small)
        return
    started = time.monotonic()
    results = Results(arguments.out)
    print(results.content["machine"], flush=True)
    small = arguments.small or "gpu" not in results.content["machine"]
    asked = [name for name in SECTIONS if not arguments.only or name in arguments.only]
    untimed = [name for name in asked if name in UNTIMED]
    steps = [untimed, *([name] for name in asked if name not in untimed)] if untimed else [[name] for name in asked]
    shares = [max(SECTIONS[name] for name in step) for step in steps]
    for number, step in enumerate(steps):
        # What the sections before did not use is everybody's.
        left = 60 * arguments.minutes - (time.monotonic() - started)
        seconds = left * shares[number] / sum(shares[number:])
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda section, s=seconds: follow(section, s, small, results), step))
    results.write()
    print(results.table())


if __name__ == "__main__":
    main()
