"""What the benchmark scripts share: interleaved repetitions, medians, a table, and the ``--json`` file of ratios."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repetitions, under a minute")
    parser.add_argument("--json", type=Path, help='write {"ratios": {name: number}, ...} to this file')
    parser.add_argument("--repeats", type=int, help="repetitions that count; the default is 5 or more")
    return parser.parse_args()


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every candidate, run in turn A B A B ..., so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warm_up + repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def write_json(path: Path | None, ratios: dict[str, float], **more: object) -> None:
    """Write the ratios if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps({"ratios": ratios, **more}, indent=1), encoding="utf-8")
