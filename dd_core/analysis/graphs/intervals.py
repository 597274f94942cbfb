"""Intervals of shares, of one evaluation and of several trials, and how surely a share lies above another."""

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.special
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from dd_core.analysis.intervals import Estimate, over_trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def wilson(hits: "ArrayLike", totals: "ArrayLike") -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """95 % score interval of shares (Wilson 1927), float64 like ``hits``; NaN where there is nothing to count.

    It covers near 0 and 1, too, where accuracies of collapsed networks are (Brown, Cai, DasGupta 2001).
    """
    hits, totals = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    low, high = proportion_confint(hits, np.maximum(totals, 1), alpha=0.05, method="wilson")
    return np.where(totals > 0, low, np.nan), np.where(totals > 0, high, np.nan)


def effective_graphs(num_graphs: int, num_trials: int, num_problems: int) -> float:
    """How many different graphs a mean over trials says as much as, each of which has drawn its own of all problems.

    (sum m)^2 / sum m^2, where m trials have drawn a problem: those of one trial where all draw the same, those of all
    together where none is drawn twice. Expected are sum m = T n and sum m^2 = T n + T (T - 1) n^2 / P, since two trials
    have n^2 / P problems in common.

    Args:
        num_graphs: n of each trial.
        num_trials: T.
        num_problems: P that they are drawn of.
    """
    return num_trials * num_graphs / (1 + (num_trials - 1) * num_graphs / num_problems)


def share_over_trials(
    shares: "Sequence[float]", num_graphs: float, compared: "Sequence[float] | None" = None
) -> Estimate:
    """Mean share of some trials, above what it is compared with, with a 95 % interval: at either end the wider of two.

    Student's over trials knows how much splits and initialisations matter, but is no interval at all for one trial,
    and a point where all trials say the same, as collapsed ones do. Wilson's over graphs knows how few graphs there
    are, but takes trials for alike. Neither is enough, so neither end is narrower than either says.

    Args:
        shares: one for each trial, fractions; at least one.
        num_graphs: that the mean says as much as: ``effective_graphs``.
        compared: subtracted from each, exactly known; None: nothing.
    """
    away = np.zeros(len(shares)) if compared is None else np.asarray(compared, np.float64)
    found = over_trials(np.asarray(shares, np.float64) - away)
    mean = float(np.mean(shares))
    low, high = (end - away.mean() for end in wilson(mean * num_graphs, num_graphs))
    ends = float(np.fmin(low, found.low)), float(np.fmax(high, found.high))
    bounds = -away.mean(), 1 - away.mean()
    return Estimate(found.mean, max(float(bounds[0]), ends[0]), min(float(bounds[1]), ends[1]), found.num_trials)


def difference_over_trials(
    hits_1: "Sequence[int]", totals_1: "Sequence[int]", hits_0: "Sequence[int]", totals_0: "Sequence[int]"
) -> Estimate:
    """Mean over trials of the absolute difference of two shares, with a 95 % interval in 0 to 1.

    Student's over trials; of one trial, or where all say the same, Newcombe's (1998, method 10) of its difference.
    Trials without graphs of one label have none.
    """
    found, differences = [], []
    for a, n, b, m in zip(hits_1, totals_1, hits_0, totals_0, strict=True):
        if n and m:
            found.append((a, n, b, m))
            differences.append(abs(a / n - b / m))
    estimate = over_trials(differences)
    if not differences:
        return estimate
    low, high = estimate.low, estimate.high
    if not high > low:
        low, high = confint_proportions_2indep(*found[0], method="newcomb", compare="diff")
        low, high = (0.0, max(-low, high)) if low <= 0 <= high else sorted((abs(low), abs(high)))
    return Estimate(estimate.mean, max(0.0, float(low)), min(1.0, float(high)), estimate.num_trials)


def mean_over_trials(trials: "Sequence[NDArray[np.float64]]") -> Estimate:
    """Mean of some trials' means with a 95 % interval: Student's over trials, of one trial over its graphs."""
    estimate = over_trials([float(values.mean()) for values in trials if len(values)])
    if estimate.num_trials != 1:
        return estimate
    (values,) = (values for values in trials if len(values))
    over_graphs = over_trials(values)
    return Estimate(estimate.mean, over_graphs.low, over_graphs.high, 1)


def independent_graphs(best_probability: "NDArray[np.float64]", group: "NDArray[np.int64]") -> float:
    """How many graphs without groups leave as much to chance: their number over the design effect (Kish 1965).

    The best answers of a group are right or wrong together in the worst case. So the standard deviations of their hits
    add up within a group, and the variances of groups.

    Args:
        best_probability: float64 (N,), of label 1, given all that can be seen.
        group: int64 (N,), graphs of one group have one label.
    """
    variances = best_probability * (1 - best_probability)
    together = np.square(np.bincount(group, np.sqrt(variances))).sum()
    return float(len(group) * variances.sum() / together) if together else float(len(group))


def p_above(hits: int, total: int, ceiling: float, num_independent: float | None = None) -> float:
    """Probability of as large a share of hits, or a larger one, where each comes with probability ``ceiling``.

    One-sided and exactly binomial of independent hits; of a fraction of a graph its continuation, the incomplete beta
    function. Graphs' own best probabilities p differ, so hits are a sum of different coins; its variance is below that
    of equal ones (Hoeffding 1956), so this errs on the side of chance. NaN without graphs.

    Args:
        hits: of the graphs.
        total: number of graphs.
        ceiling: best accuracy that can be expected.
        num_independent: graphs that as much is left to chance of; None: all of them.
    """
    if not total or not math.isfinite(ceiling):
        return math.nan
    number = total if num_independent is None else num_independent
    right = hits * number / total
    return float(scipy.special.betainc(right, number - right + 1, min(1.0, ceiling))) if hits else 1.0
