"""Whether a claim holds, by the interval of what was measured, with one sentence why."""

import math
from dataclasses import dataclass

from dd_core.analysis.graphs.claims import Claim
from dd_core.analysis.graphs.cycle import LEAST_OF_CHOSEN
from dd_core.analysis.graphs.intervals import wilson
from dd_core.analysis.intervals import Estimate

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
# Half of the interval of an accuracy that says something about a claim of some points: the claims are of 4 to 16.
_NARROW = 0.05
_DIFFERENCES = ("gain", "learning", "balance")
# How far apart times and prices may be, which have no interval.
_FACTOR = 2.0


@dataclass(frozen=True)
class Measured:
    """What was measured of a claim.

    Attributes:
        estimate: mean over trials and interval; None: nothing was, and ``why_not`` says why.
        why_not: a part of a sentence.
        baseline, ceiling, floor: where they apply, else NaN.
        device: it was measured on, of times and prices.
        num_collapsed: trials that have collapsed, wholly or in part.
    """

    estimate: Estimate | None
    why_not: str = ""
    baseline: float = math.nan
    ceiling: float = math.nan
    floor: float = math.nan
    device: str = ""
    num_collapsed: int = 0


def verdict(claim: Claim, measured: Measured) -> tuple[str, str]:
    """The verdict, and why: one sentence."""
    found = measured.estimate
    if claim.quantity in ("seconds", "dollars", "nothing here"):
        return _of_machines(claim, measured)
    # Of 2,858 published plans 1,450 have label 1: the ceiling is a little above a half, with nothing to learn.
    if claim.quantity == "learning" and measured.ceiling - max(measured.baseline, 0.5) < 0.01:
        return FAILS, (
            "the labels do not depend on the graphs, so that there is nothing to learn: the ceiling is "
            f"{100 * measured.ceiling:.1f} %"
        )
    if claim.quantity == "collapse" and found is not None:
        few = {0: HOLDS, found.num_trials: FAILS}.get(measured.num_collapsed, UNKNOWN)
        trials = "1 trial has" if found.num_trials == 1 else f"{found.num_trials} trials have"
        words = f"{measured.num_collapsed or 'none'} of {trials} collapsed to one label, wholly or in part"
        return few, f"{words}{_later(claim)}"
    if found is None or not math.isfinite(found.low):
        one = "" if found is None else f"one trial measured {_number(claim, found.mean)} and has no interval"
        word, words = UNKNOWN, one or measured.why_not
    else:
        span = f"{_number(claim, found.low)} to {_number(claim, found.high)}"
        word, words = _by_interval(claim, found), f"measured {_number(claim, found.mean)} ({span})"
    if claim.quantity == "accuracy" and claim.claimed > measured.ceiling and word != HOLDS:
        return FAILS, f"{_above_ceiling(claim, measured.ceiling)}; {words}{_later(claim)}"
    return word, f"{words}{_beside(claim, measured)}{_later(claim)}"


def interval_of(share: float | None, num_graphs: int) -> tuple[float, float]:
    """Wilson's interval of a share of so many graphs; NaN where either is unknown."""
    if share is None:
        return math.nan, math.nan
    low, high = wilson(round(share * num_graphs), num_graphs)
    return float(low), float(high)


def _above_ceiling(claim: Claim, ceiling: float) -> str:
    """A share of few graphs may be that by chance, and is then no false number, but nothing a network reaches."""
    text = f"{_number(claim, claim.claimed)} is above the best that can be expected, {_number(claim, ceiling)}"
    is_chance = interval_of(claim.claimed, claim.claimed_of)[0] <= ceiling
    return f"{text}, by chance of {claim.claimed_of} graphs" if is_chance else text


def _by_interval(claim: Claim, found: Estimate) -> str:
    """By the difference of both, whose interval is made of theirs as Newcombe's is (1998, method 10)."""
    if claim.claimed_is == "at most":
        return HOLDS if found.high <= claim.claimed else FAILS if found.low > claim.claimed else UNKNOWN
    if claim.claimed_is == "at least":
        return HOLDS if found.low >= claim.claimed else FAILS if found.high < claim.claimed else UNKNOWN
    low, high = interval_of(claim.claimed, claim.claimed_of) if claim.claimed_of else (claim.claimed, claim.claimed)
    difference = found.mean - claim.claimed
    below = math.hypot(found.mean - found.low, high - claim.claimed)
    above = math.hypot(found.high - found.mean, claim.claimed - low)
    if difference + above < 0 or (claim.claimed_is == "value" and difference - below > 0):
        return FAILS
    if difference - below > 0:
        return HOLDS
    # Whoever measures badly enough finds everything possible.
    narrow = _NARROW if claim.unit == "fraction" else 1.0
    return HOLDS if (below + above) / 2 <= narrow else UNKNOWN


def _of_machines(claim: Claim, measured: Measured) -> tuple[str, str]:
    """Times and prices, of which those of another machine say nothing."""
    found = measured.estimate
    here = f"; {_number(claim, found.mean)} here, on {measured.device}" if found is not None else ""
    if claim.quantity == "nothing here":
        return UNKNOWN, f"no table compares the same training with and without it{here}; it takes a GPU to tell"
    if found is not None and "A100" in measured.device:
        is_near = 1 / _FACTOR <= found.mean / claim.claimed <= _FACTOR
        word = "within" if is_near else "beyond"
        return (HOLDS if is_near else FAILS), f"measured {_number(claim, found.mean)}, {word} a factor of two{here}"
    words = f"it takes an A100 to tell{here}" if found is not None else measured.why_not
    return UNKNOWN, f"{words}{_later(claim)}"


def _beside(claim: Claim, measured: Measured) -> str:
    """What else a reader must know to judge."""
    if claim.quantity == "cycle_loss" and LEAST_OF_CHOSEN * measured.floor > claim.claimed:
        return f", and what the poolings drop alone gives about {measured.floor:.2f}"
    if claim.quantity in ("accuracy", "gain") and math.isfinite(measured.ceiling):
        baseline, ceiling = 100 * measured.baseline, 100 * measured.ceiling
        return f", where always saying one label gives {baseline:.1f} % and the best that can be is {ceiling:.1f} %"
    return ""


def _later(claim: Claim) -> str:
    is_told = claim.quantity in ("best_epoch", "collapse", "seconds", "dollars")
    if is_told and claim.later_source is not None:
        return f"; elsewhere: {claim.later_source}" if claim.later != claim.claimed else ""
    if claim.later is None:
        return ""
    return f"; its authors' later number is {_number(claim, claim.later)}"


def _number(claim: Claim, value: float) -> str:
    """With its unit."""
    text = {
        "fraction": f"{100 * value:.1f} {'points' if claim.quantity in _DIFFERENCES else '%'}",
        "loss": f"{value:.3f}",
        "epochs": f"epoch {value:.1f}",
        "seconds": f"{value:.0f} s",
        "dollars": f"${value:.2f}",
    }[claim.unit]
    return text.replace("-", "\u2212")
