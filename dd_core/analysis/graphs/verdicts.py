"""Whether a claim holds, by the interval of what was measured, with one sentence why."""

import math
from dataclasses import dataclass

from dd_core.analysis.graphs.claims import Claim
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
    if claim.quantity == "learning" and measured.ceiling <= 0.5:
        return FAILS, "the labels do not depend on the graphs, so that there is nothing to learn: the ceiling is 50 %"
    if found is None or not math.isfinite(found.low):
        one = "" if found is None else f"one trial measured {_number(claim, found.mean)} and has no interval"
        word, words = UNKNOWN, one or measured.why_not
    else:
        span = f"{_number(claim, found.low)} to {_number(claim, found.high)}"
        word, words = _by_interval(claim, found), f"measured {_number(claim, found.mean)} ({span})"
    if claim.quantity == "balance" and found is not None and measured.num_collapsed == found.num_trials:
        word = FAILS
    if word == UNKNOWN and claim.quantity == "accuracy" and claim.claimed > measured.ceiling:
        word = FAILS  # by chance more graphs may be right, and others less often the next time
    return word, f"{words}{_beside(claim, measured)}{_later(claim)}"


def _by_interval(claim: Claim, found: Estimate) -> str:
    if claim.claimed_is == "at most":
        return HOLDS if found.high <= claim.claimed else FAILS if found.low > claim.claimed else UNKNOWN
    if claim.claimed_is == "at least":
        return HOLDS if found.low >= claim.claimed else FAILS if found.high < claim.claimed else UNKNOWN
    if claim.claimed > found.high or (claim.claimed_is == "value" and claim.claimed < found.low):
        return FAILS
    if claim.claimed < found.low:
        return HOLDS
    # Whoever measures badly enough finds everything possible.
    narrow = _NARROW if claim.unit == "fraction" else 1.0
    return HOLDS if (found.high - found.low) / 2 <= narrow else UNKNOWN


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
    if claim.later_decides and claim.later is not None and not 1 / _FACTOR <= claim.later / claim.claimed <= _FACTOR:
        ratio = claim.claimed / claim.later
        return FAILS, (
            f"the authors themselves measured {_number(claim, claim.later)}, {ratio:.0f} times less, on the same kind "
            f"of GPU{here}"
        )
    return UNKNOWN, (f"it takes an A100 to tell{here}" if found is not None else f"{measured.why_not}{_later(claim)}")


def _beside(claim: Claim, measured: Measured) -> str:
    """What else a reader must know to judge."""
    if claim.quantity == "cycle_loss" and measured.floor > claim.claimed:
        return f", and no network of this kind comes below {measured.floor:.2f}"
    if claim.quantity == "balance" and measured.num_collapsed:
        number = measured.num_collapsed
        return f", and {number} {'trial has' if number == 1 else 'trials have'} collapsed to one label"
    if claim.quantity in ("accuracy", "gain") and math.isfinite(measured.ceiling):
        baseline, ceiling = 100 * measured.baseline, 100 * measured.ceiling
        return f", where always saying one label gives {baseline:.1f} % and the best that can be is {ceiling:.1f} %"
    return ""


def _later(claim: Claim) -> str:
    if claim.quantity == "best_epoch":
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
