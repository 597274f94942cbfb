"""What is wrong with a metric of a run, in words: ranges instead of lists, one sentence for all that share a fate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# The most ranges of steps that a sentence names; the table has them all.
_MOST_RANGES = 5


@dataclass(frozen=True)
class Gap:
    """Something wrong with one metric of one trial.

    Attributes:
        arm: key of the arm.
        trial: number of the trial.
        metric: name of the metric.
        problem: continues a sentence that begins with the metric's name and "is".
    """

    arm: str
    trial: int
    metric: str
    problem: str


def sentences(gaps: Iterable[Gap]) -> list[str]:
    """One sentence for all metrics and trials of an arm that have the same problem, in the order of the gaps."""
    metrics: dict[tuple[str, int, str], dict[str, None]] = {}
    for gap in gaps:
        metrics.setdefault((gap.arm, gap.trial, gap.problem), {})[gap.metric] = None
    trials: dict[tuple[str, tuple[str, ...], str], list[int]] = {}
    for (arm, trial, problem), names in metrics.items():
        trials.setdefault((arm, tuple(names), problem), []).append(trial)
    return [
        f"{arm} {_numbered('trial', numbers)}: {_listed(names)} {'is' if len(names) == 1 else 'are'} {problem}"
        for (arm, names, problem), numbers in trials.items()
    ]


def where(noun: str, positions: "np.ndarray", among: "np.ndarray") -> str:
    """Which positions, and how many of how many: ``steps 500 and 1000 to 2000 (4 of 40)``.

    Args:
        noun: step or epoch.
        positions: ascending, each one of ``among``.
        among: ascending. Positions that follow each other here are a range.
    """
    place = np.searchsorted(among, positions)
    ranges = np.split(positions, np.flatnonzero(np.diff(place) > 1) + 1)
    parts = [text for part in ranges[:_MOST_RANGES] for text in _range(part)]
    if len(ranges) > _MOST_RANGES:
        parts.append(f"{len(ranges) - _MOST_RANGES} more ranges up to {positions[-1]}")
    plural = "" if len(positions) == 1 else "s"
    return f"{noun}{plural} {_listed(parts)} ({len(positions)} of {len(among)})"


def _range(positions: "np.ndarray") -> list[str]:
    if len(positions) > 2:
        return [f"{positions[0]} to {positions[-1]}"]
    return [str(position) for position in positions]


def _numbered(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun} {numbers[0]}" if len(numbers) == 1 else f"{noun}s {_listed(list(map(str, numbers)))}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
