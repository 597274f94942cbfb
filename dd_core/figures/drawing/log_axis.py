"""Logarithmic axes of small panels: when one is worth it, what lies below it, and few round numbers on it."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

_MOST_DECADES, _MOST_TICKS = 8, 6
# Numbers that are read as easily as powers of ten.
_PLAIN = (0.001, 100_000)
_DIGITS = "['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹']"
_POWER = "floor(log(datum.value) / LN10 + 1e-9)"


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
    ticks = log_ticks(low, high)
    axis = alt.Axis(values=ticks, labelExpr=labels_of(ticks), labelOverlap="greedy")
    return alt.Scale(type="log", domain=[low, high], nice=False), axis


def labels_of(ticks: Sequence[float]) -> str:
    """A Vega expression for the labels of an axis: all of them plain numbers, or all powers of ten.

    Args:
        ticks: positive; ``0.01`` and ``3`` are written like this, ``0.00003`` makes all powers: ``3·10⁻⁵``.
    """
    if all(_PLAIN[0] <= tick < _PLAIN[1] for tick in ticks):
        return "format(datum.value, ',~g')"
    power = f"({_POWER})"
    factor = f"format(datum.value / pow(10, {power}), '.3~g')"
    tens = f"(abs{power} > 9 ? {_DIGITS}[floor(abs{power} / 10)] : '')"
    exponent = f"({power} < 0 ? '⁻' : '') + {tens} + {_DIGITS}[abs{power} % 10]"
    return f"({factor} === '1' ? '' : {factor} + '·') + '10' + {exponent}"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, about as many as a small axis can label."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(ticks) >= 3:
            break
    if steps == (1,) and len(ticks) > _MOST_TICKS:  # else Vega would leave out some, at uneven distances
        ticks = ticks[:: -(-len(ticks) // _MOST_TICKS)]
    return ticks if len(ticks) > 1 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers at equal distances, for a range in which logarithms hardly bend."""
    power = math.floor(math.log10((high - low) / 2))
    step = next(step for step in (5, 2, 1) if step * 10.0**power <= (high - low) / 2) * 10.0**power
    first = math.ceil(low / step)
    return [float(f"{number * step:.12g}") for number in range(first, math.floor(high / step) + 1)]
