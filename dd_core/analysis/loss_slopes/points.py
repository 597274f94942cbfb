"""The points that lines are fitted to: every step, or means over bins of equal width in log time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from dd_core.analysis.loss_slopes.errors import correlation_time, effective_sample_size


@dataclass(frozen=True)
class Points:
    """Points of a loss curve, ascending in time; all (n,) float64.

    A point is the mean over its steps of step, log step and log loss, each by itself: of a curve that is straight in
    semi-log or log-log axes, its points then lie on that same line.

    Attributes:
        time: mean step.
        log_time: mean of log step.
        log_loss: mean of log loss.
        count: steps it stands for.
        weight: of its squared residual, with a geometric mean of 1.
        adaptive: whether fits are to find the weights, see ``variance_power``.
    """

    time: np.ndarray
    log_time: np.ndarray
    log_loss: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    adaptive: bool = False

    def __len__(self) -> int:
        """Number of points."""
        return len(self.time)

    def __getitem__(self, part: slice) -> "Points":
        """Some of them."""
        time, log_time, log_loss = self.time[part], self.log_time[part], self.log_loss[part]
        return Points(time, log_time, log_loss, self.count[part], self.weight[part], self.adaptive)

    def weighted(self, power: float) -> "Points":
        """The same with weights count^power, which are final."""
        if not len(self):
            return self
        return replace(self, weight=np.exp(power * (np.log(self.count) - np.log(self.count).mean())), adaptive=False)


def make_points(step: np.ndarray, loss: np.ndarray, num_bins: int | None, fewest: int = 1) -> Points:
    """Points of steps (n,) ascending and losses (n,) positive; ``num_bins`` None: one for each step.

    ``fewest``: steps of a bin; smaller bins join the next.

    Bins divide log time from half a step before the first to half a step after the last evenly; empty ones have no
    point. Without bins the last tenth of a power law's decade holds as many steps as all before it.
    """
    time, log_time, log_loss = step.astype(np.float64), np.log(step), np.log(loss)
    if num_bins is None or len(step) <= 1:
        return Points(time, log_time, log_loss, np.ones(len(step)), np.ones(len(step)))
    edges = np.geomspace(step[0] - 0.5, step[-1] + 0.5, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], time, side="left")
    start = _wide_enough(np.flatnonzero(np.diff(bins, prepend=-1)), len(step), fewest)
    count = np.diff(np.append(start, len(step))).astype(np.float64)
    means = [np.add.reduceat(values, start) / count for values in (time, log_time, log_loss)]
    return Points(means[0], means[1], means[2], count, np.ones(len(count)))


def _wide_enough(start: np.ndarray, num: int, fewest: int) -> np.ndarray:
    """Where bins begin when those of fewer than so many steps join the next; the last joins the one before."""
    if fewest <= 1:
        return start
    kept, next_start = [0], fewest
    for place in start:
        if place >= next_start and num - place >= fewest:
            kept.append(int(place))
            next_start = place + fewest
    return np.array(kept)


def smooth_residuals(log_time: np.ndarray, log_loss: np.ndarray, root_weight: np.ndarray, degree: int) -> np.ndarray:
    """What a polynomial in log time leaves over, (n,), times the roots of the weights: noise, whatever the trend is."""
    x = 2 * (log_time - log_time[0]) / max(log_time[-1] - log_time[0], 1e-12) - 1
    design = root_weight[:, None] * np.polynomial.chebyshev.chebvander(x, min(degree, len(x) // 6))
    y = root_weight * log_loss
    return np.asarray(y - design @ np.linalg.lstsq(design, y, rcond=None)[0])


def memory_of(step: np.ndarray, loss: np.ndarray) -> int:
    """Steps after which a loss is another draw: the correlation time around a smooth curve, rounded.

    At most a hundredth of all steps, where noise and trend cannot be told apart. 1 where a thousandth of the loss is
    all that is left: that is no noise, but what the smooth curve misses.
    """
    if len(step) < 100:
        return 1
    residuals = smooth_residuals(np.log(step), np.log(loss), np.ones(len(step)), 16)
    return 1 if residuals.std() < 1e-3 else min(round(correlation_time(residuals)), len(step) // 100)


@dataclass(frozen=True)
class Sampling:
    """How points are made.

    Attributes:
        num_bins: of equal width in log time; None: every step is a point.
        weights: ``variance``: each model finds how the variance of its residuals depends on the steps of a bin;
            ``equal``: every point counts as much.
    """

    num_bins: int | None = 200
    weights: Literal["variance", "equal"] = "variance"

    def points(self, step: np.ndarray, loss: np.ndarray) -> Points:
        """Points of steps (n,) ascending and losses (n,) positive; bins hold at least ``memory_of`` steps.

        Narrower ones would be alike at the beginning and independent at the end, which no error minds.
        """
        points = make_points(step, loss, self.num_bins, memory_of(step, loss) if self.num_bins is not None else 1)
        return replace(points, adaptive=self.weights == "variance" and self.num_bins is not None)


def variance_power(residuals: np.ndarray, count: np.ndarray) -> float:
    """The g from 0 to 1 with which residuals, (n,), most likely have variances proportional to count^-g.

    Maximum likelihood of normal residuals with multiplicative heteroscedasticity (Harvey 1976), to 0.05. Where noise of
    single steps is all that is left, g is near 1; where the model does not fit, or steps are alike over a whole bin,
    near 0, and late points do not outvote early ones.

    With equal weights a third of straight lines with white noise would have a decisive break, as a few bins of single
    steps make most of the sum of squares.
    """
    powers = np.linspace(0, 1, 21)
    relative = np.log(count) - np.log(count).mean()
    spread = (residuals**2 * np.exp(powers[:, None] * relative)).mean(1)
    return float(powers[np.argmin(spread)])


Fitted = TypeVar("Fitted")


def with_its_weights(
    points: Points, fit: Callable[[Points], Fitted], residuals: Callable[[Fitted], np.ndarray]
) -> Fitted:
    """Fit a model with the weights that its own residuals ask for: first with equal ones, then once more."""
    first = fit(points)
    if not points.adaptive or first is None or np.ptp(points.count) == 0:
        return first
    return fit(points.weighted(variance_power(residuals(first), points.count)))


def independent_points(points: Points) -> float:
    """How many independent points these are worth: over the correlation time around a smooth curve.

    Not around a model: where it does not fit, its residuals are alike for that, and no model would ever be refuted.
    """

    def residuals(weighted: Points) -> np.ndarray:
        return smooth_residuals(weighted.log_time, weighted.log_loss, np.sqrt(weighted.weight), 9)

    def plain(weighted: Points) -> tuple[np.ndarray, np.ndarray]:
        found = residuals(weighted)
        return found, found / np.sqrt(weighted.weight)

    return effective_sample_size(with_its_weights(points, plain, lambda pair: pair[1])[0])
