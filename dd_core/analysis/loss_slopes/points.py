"""The points that lines are fitted to: every step, or means over bins of equal width in log time."""

from dataclasses import dataclass

import numpy as np


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
    """

    time: np.ndarray
    log_time: np.ndarray
    log_loss: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        """Number of points."""
        return len(self.time)

    def __getitem__(self, part: slice) -> "Points":
        """Some of them."""
        return Points(self.time[part], self.log_time[part], self.log_loss[part], self.count[part])


def make_points(step: np.ndarray, loss: np.ndarray, num_bins: int | None) -> Points:
    """Points of steps (n,) ascending and losses (n,) positive; ``num_bins`` None: one for each step.

    Bins divide log time from half a step before the first to half a step after the last evenly; empty ones have no
    point. Without bins the last tenth of a power law's decade holds as many steps as all before it.
    """
    time, log_time, log_loss = step.astype(np.float64), np.log(step), np.log(loss)
    if num_bins is None or len(step) <= 1:
        return Points(time, log_time, log_loss, np.ones(len(step)))
    edges = np.geomspace(step[0] - 0.5, step[-1] + 0.5, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], time, side="left")
    start = np.flatnonzero(np.diff(bins, prepend=-1))
    count = np.diff(np.append(start, len(step))).astype(np.float64)
    means = [np.add.reduceat(values, start) / count for values in (time, log_time, log_loss)]
    return Points(means[0], means[1], means[2], count)
