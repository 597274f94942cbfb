"""Logarithmic axes of small panels: when one is worth it, what lies below it, and few round numbers on it."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

_MOST_DECADES = 8
_LABEL = "datum.value >= 0.001 && datum.value < 100000 ? format(datum.value, ',~g') : format(datum.value, '~e')"


def is_worth_it(values: Sequence[float]) -> bool:
    """Whether nine in ten values are positive, and these span a decade or more."""
    positive = [value for value in values if value > 0]
    return 10 * len(positive) >= 9 * len(values) and bool(positive) and max(positive) >= 10 * min(positive)


def clip(rows: list[dict[str, Any]], value: str, bounds: Sequence[str]) -> int:
    """Lift what a logarithmic axis cannot show, or what would stretch it too far, to its lower end, in place.

    Args:
        rows: are changed.
        value: the column whose positive values the axis is made for, some eight decades at most.
        bounds: columns that may reach below it.

    Returns:
        How many rows had their value lifted.
    """
    positive = [row[value] for row in rows if row[value] > 0]
    floor = max(0.8 * min(positive), max(positive) / 10**_MOST_DECADES)
    lifted = sum(row[value] < floor for row in rows)
    for row in rows:
        row.update({name: max(row[name], floor) for name in (value, *bounds)})
    return lifted


def log_axis(values: Sequence[float]) -> tuple[alt.Scale, alt.Axis]:
    """A scale that just holds positive values, and an axis with round numbers on it."""
    low, high = min(values) / 1.1, max(values) * 1.1
    axis = alt.Axis(values=log_ticks(low, high), labelExpr=_LABEL, labelOverlap="greedy")
    return alt.Scale(type="log", domain=[low, high], nice=False), axis


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, about as many as a small axis can label."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(ticks) >= 3:
            break
    return ticks if len(ticks) > 1 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers at equal distances, for a range in which logarithms hardly bend."""
    power = math.floor(math.log10((high - low) / 2))
    step = next(step for step in (5, 2, 1) if step * 10.0**power <= (high - low) / 2) * 10.0**power
    first = math.ceil(low / step)
    return [float(f"{number * step:.12g}") for number in range(first, math.floor(high / step) + 1)]
