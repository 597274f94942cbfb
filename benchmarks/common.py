"""What the benchmark scripts share: interleaved repetitions, medians, the ``--json`` file, processes."""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def parse_arguments(description: str | None, flags: dict[str, str] | None = None) -> argparse.Namespace:
    """The options every benchmark has, and ``flags`` of its own: names with what they do."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repetitions, under two minutes")
    parser.add_argument("--json", type=Path, help='write {"ratios": {name: number}, ...} to this file')
    parser.add_argument("--repeats", type=int, help="repetitions that count; the default is 5 or more")
    for name, meaning in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    return parser.parse_args()


def interleaved(
    candidates: dict[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every candidate, run in turn A B A B ..., so that a drift of the machine hits all alike.

    ``clock`` may be ``time.process_time`` where all work is done on one thread of this process: others on the machine
    then hardly count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warm_up + repeats):
        for name, run in candidates.items():
            started = clock()
            run()
            if repeat >= warm_up:
                seconds[name].append(clock() - started)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def load_average() -> str:
    """What else the machine was doing, for people: others on its cores slow everything measured here."""
    return f"load average of the last minute {os.getloadavg()[0]:.1f}"


def write_json(path: Path | None, ratios: dict[str, float], **more: object) -> None:
    """Write the ratios if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps({"ratios": ratios, **more}, indent=1), encoding="utf-8")


class Crew:
    """Processes that each build the same candidates and run the one they are told to, all at the same time."""

    def __init__(self, size: int, prepare: Callable[[], None], make: Callable[[Any], dict[str, Callable[[], object]]]):
        """Start ``size`` processes; in each ``prepare`` is called once, and ``make`` for every setup."""
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, prepare, make))  # may have children: no daemon
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def build(self, setup: object) -> None:
        """Let every process make the candidates of a setup, and forget those of the setup before."""
        self._tell(("build", setup))

    def run(self, candidate: str) -> None:
        """Let every process run one, and wait for the last."""
        self._tell(("run", candidate))

    def _tell(self, message: tuple[str, object]) -> None:
        for pipe in self._pipes:
            pipe.send(message)
        for pipe in self._pipes:
            pipe.recv()

    def __enter__(self) -> "Crew":
        """Use it in a with statement: the processes leave at its end."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let them leave."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join()


def _serve(
    pipe: Connection, prepare: Callable[[], None], make: Callable[[Any], dict[str, Callable[[], object]]]
) -> None:
    prepare()
    candidates: dict[str, Callable[[], object]] = {}
    while True:
        try:
            verb, argument = pipe.recv()
        except EOFError:
            return
        if verb == "build":
            candidates.clear()  # before the next are made: they may own processes and much memory
            candidates = make(argument)
        else:
            candidates[argument]()
        pipe.send(None)
