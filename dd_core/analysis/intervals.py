"""A mean over trials with its interval, and intervals in words. Pure functions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.special


@dataclass(frozen=True)
class Estimate:
    """A mean over independent trials.

    Attributes:
        mean: over the trials; NaN without any.
        low: lower end of Student's 95 % interval; NaN for fewer than two trials.
        high: its upper end.
        num_trials: that have a value.
    """

    mean: float
    low: float
    high: float
    num_trials: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is on one side of 0, else 0; 0 without an interval, too."""
        return int(self.low > 0) - int(self.high < 0)

    def words(self, digits: int = 2, factor: float = 1.0, unit: str = "") -> str:
        """``4.1 % (95 % interval 3.2 to 5.0, 3 trials)``, with a minus sign of a figure's width."""
        middle = f"{signed(factor * self.mean, digits)}{unit}"
        if not math.isfinite(self.low):
            return f"{middle} (one trial, no interval)"
        low, high = sorted((factor * self.low, factor * self.high))
        return f"{middle} (95 % interval {interval(low, high, digits)}, {self.num_trials} trials)"


def over_trials(values: Iterable[float | None]) -> Estimate:
    """Mean of one value for each trial and Student's 95 % interval.

    Args:
        values: of independent trials; None and what is not finite is left out.
    """
    known = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    if len(known) < 2:
        return Estimate(float(known[0]) if len(known) else math.nan, math.nan, math.nan, len(known))
    mean, half = known.mean(), scipy.special.stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / math.sqrt(len(known))
    return Estimate(float(mean), float(mean - half), float(mean + half), len(known))


def signed(value: float, digits: int = 2) -> str:
    """A number with so many decimals and a minus sign of its width: ``−0.52``."""
    return f"{value:.{digits}f}".replace("-", "\u2212")


def difference(value: float, digits: int = 2) -> str:
    """The same with a sign in any case: ``+0.8``."""
    return f"{'+' if value >= 0 else ''}{signed(value, digits)}"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """The ends of an interval: ``−0.61 to −0.43``; of one that is not known, that it is not."""
    if low is None or high is None or low != low or high != high:
        return "no interval"
    return f"{signed(low, digits)} to {signed(high, digits)}"
