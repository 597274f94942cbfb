"""What the parts of a page are made of: plain text in tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dd_core.words import duration

NOTHING = "-"  # in cells whose value is not known


@dataclass(frozen=True)
class Grid:
    """A table of plain text.

    Attributes:
        head: names of the columns; empty: the first column names the rows.
        rows: a cell for each column.
        numeric: indices of the columns that are aligned as numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()

    @classmethod
    def of_facts(cls, facts: Mapping[str, str]) -> "Grid":
        """Names and what is to be said of each, where there is anything."""
        return cls((), [(name, text) for name, text in facts.items() if text])


def shown(value: float | None, pattern: str = "{:.3g}") -> str:
    """A number by a pattern, or a dash where it is not known."""
    return NOTHING if value is None or not math.isfinite(value) else pattern.format(value)


def percent(fraction: float | None) -> str:
    """A fraction in percent, with one digit after the point."""
    return shown(None if fraction is None else 100 * fraction, "{:.1f} %")


def lasting(seconds: float | None) -> str:
    """A time for people, or a dash where it is not known."""
    return NOTHING if seconds is None or not math.isfinite(seconds) else duration(seconds)


def num_bytes(count: int) -> str:
    """A size in the unit in which it is a small number."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
