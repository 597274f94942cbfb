"""Where burn-in ends, as a change point: the first break that two power laws ask for, if it is early enough."""

import math
from dataclasses import dataclass, replace

import numpy as np

from dd_core.analysis.loss_slopes.breaks import two_power_fit
from dd_core.analysis.loss_slopes.criteria import criteria
from dd_core.analysis.loss_slopes.fits import Errors, Fit, linear_fit
from dd_core.analysis.loss_slopes.knee import DECISIVE
from dd_core.analysis.loss_slopes.points import Points, independent_points


@dataclass(frozen=True)
class BurnIn:
    """A break that ends burn-in.

    Attributes:
        two: the two power laws that part there.
        before: points up to it.
        after: points from it on, up to the next break.
        later: step of that next break; None where there is none.
    """

    two: Fit
    before: Points
    after: Points
    later: float | None


def burn_in_break(points: Points, one: Fit, two: Fit | None, latest: float, errors: Errors) -> BurnIn | None:
    """The break that ends burn-in; None where two power laws are not better than one, or part too late.

    Where the best break of all lies too late it is another event (such as a step of the schedule), and the curve before
    it is asked, once: binary segmentation (Scott & Knott 1974) with two breaks. Asked on and on, every curve that bends
    smoothly towards its end gives an early break at last; a strong bend does so at the second. To look among early
    breaks alone would not do: where a curve bends late, each of them leaves less misfit than one line, the last one the
    least.

    Args:
        points: all.
        one: the power law through them.
        two: the two power laws through them, at their best break.
        latest: a break after this step is no burn-in.
        errors: of the slopes.
    """
    later = None
    for _ in range(2):
        if two is None or not is_better(points, one, two):
            break
        at = two.value["break_epoch"]
        place = int(np.searchsorted(points.log_time, math.log(at)))
        before, after = points[slice(place)], points[slice(place, None)]
        if at <= latest:
            return BurnIn(two, before, after, later)
        points, later = before, at
        one, two = linear_fit(points, "power", errors), two_power_fit(points, errors)
    return None


def is_better(points: Points, one: Fit, two: Fit) -> bool:
    """Whether two power laws are decisively better than one, by AICc and effective sample size."""
    size = independent_points(replace(points, adaptive=True))
    first, second = (criteria(fit.rss, len(points), fit.num_parameters, size).aicc for fit in (one, two))
    return second < first - DECISIVE
