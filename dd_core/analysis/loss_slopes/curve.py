"""A loss curve as it is analysed: steps in order, each once, losses that have a logarithm; and what was left out.

What is wrong with a curve is said here, by an outcome from a fixed list and a sentence; nothing here raises.
"""

from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 10
SMALLEST_LOSS = 2.0**-31  # nats; the mean of 128 losses in float32 knows nothing smaller, so it is zero
_SAME = 1e-9  # relative; recorded losses have seven digits


@dataclass(frozen=True)
class Curve:
    """A cleaned loss curve.

    Attributes:
        step: int64 (n,), ascending, from 1.
        loss: float64 (n,), positive, nats.
        steps_per_epoch: optimiser steps of an epoch.
        num_steps: losses there were.
        outcome: ``fitted`` if it can be, otherwise why not.
        reason: sentences on what is wrong or was left out; empty if nothing is.
    """

    step: np.ndarray
    loss: np.ndarray
    steps_per_epoch: float
    num_steps: int
    outcome: str
    reason: tuple[str, ...]

    @property
    def num_left_out(self) -> int:
        """Losses that are not in ``loss``."""
        return self.num_steps - len(self.step)

    @property
    def epoch(self) -> np.ndarray:
        """Time at the end of each step, epochs."""
        return self.step / self.steps_per_epoch

    def window(self, first: float, last: float) -> slice:
        """The steps of a window: those after ``first`` and up to ``last`` epochs."""
        edges = np.array([first, last]) * self.steps_per_epoch
        start, stop = np.searchsorted(self.step, edges + 1e-6, side="right")
        return slice(int(start), int(stop))

    def mean_of_epoch(self, number: float) -> float:
        """Mean loss of an epoch, counted from 1; NaN without a loss."""
        losses = self.loss[self.window(number - 1, number)]
        return float(losses.mean()) if len(losses) else float("nan")

    def epoch_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the epochs that have a loss, from 1, and their mean losses, (E,) each."""
        number = np.ceil(self.step / self.steps_per_epoch - 1e-9).astype(np.int64)
        numbers, start = np.unique(number, return_index=True)
        if not len(numbers):
            return numbers, np.zeros(0)
        return numbers, np.add.reduceat(self.loss, start) / np.diff(np.append(start, len(number)))


def clean_curve(
    step: np.ndarray, loss: np.ndarray, steps_per_epoch: float, largest_loss: float, status: str = "finished"
) -> Curve:
    """Put a recorded curve in order.

    A step that is recorded again counts as it was recorded last, as a resumed training goes back to its checkpoint.
    Where more than half of the losses contradict another of the same step, nobody knows which steps they are of.

    Args:
        step: (n,), numbers of optimiser steps from 1, in any order.
        loss: (n,), nats, with anything in it.
        steps_per_epoch: positive.
        largest_loss: nats; losses above are left out.
        status: of the training; ``diverged`` is believed.

    Returns:
        The curve; with ``outcome`` other than ``fitted`` it holds whatever could be used.
    """
    step, loss = np.asarray(step, dtype=np.float64).ravel(), np.asarray(loss, dtype=np.float64).ravel()
    num_steps, reason = len(loss), []
    if not (np.isfinite(steps_per_epoch) and steps_per_epoch > 0):
        empty = np.zeros(0)
        return Curve(
            empty.astype(np.int64), empty, np.nan, num_steps, "no losses", ("The length of an epoch is unknown.",)
        )
    valid = np.isfinite(step) & (step >= 1)
    if not valid.all():
        reason.append(f"{_losses(int((~valid).sum()))} of no step from 1 on left out.")
    step, loss = step[valid].astype(np.int64), loss[valid]
    if (np.diff(step) < 0).any():
        reason.append("Steps were not in order and have been sorted.")
    step, loss, num_twice, num_contradictions = _each_once(step, loss)
    if num_twice:
        reason.append(f"{_losses(num_twice)} of steps that are there again left out: the last one counts.")
    recorded = loss
    finite = np.isfinite(loss)
    positive = finite & (loss >= SMALLEST_LOSS)
    kept = positive & (loss <= largest_loss)
    for num, what in (
        (int((~finite).sum()), "not finite"),
        (int((finite & ~positive).sum()), "not positive"),
        (int((positive & ~kept).sum()), f"above {largest_loss:g} nats"),
    ):
        if num:
            reason.append(f"{_losses(num)} {what} left out.")
    outcome, why = _judge(recorded, kept, num_contradictions, largest_loss, status)
    sentences = ((why,) if why else ()) + tuple(reason)
    return Curve(step[kept], loss[kept], float(steps_per_epoch), num_steps, outcome, sentences)


def _losses(num: int) -> str:
    return "1 loss" if num == 1 else f"{num} losses"


def _each_once(step: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Steps ascending with the loss recorded last, how many were dropped, and how many of these differed from it."""
    order = np.argsort(step, kind="stable")
    step, loss = step[order], loss[order]
    last = np.append(np.diff(step) != 0, True) if len(step) else np.zeros(0, dtype=bool)
    of_step = loss[last][np.cumsum(last) - last]  # the loss that counts for each entry's step
    with np.errstate(invalid="ignore"):
        same = (np.abs(loss - of_step) <= _SAME * np.abs(of_step)) | (loss == of_step)
    same |= np.isnan(loss) & np.isnan(of_step)
    return step[last], loss[last], int((~last).sum()), int((~same).sum())


def _judge(
    loss: np.ndarray, kept: np.ndarray, num_contradictions: int, largest_loss: float, status: str
) -> tuple[str, str]:
    """Outcome and sentence of losses in order, of which some are kept."""
    finite = np.isfinite(loss)
    if status == "diverged":
        return "diverged", "The training diverged."
    if not len(loss):
        return "no losses", "There are no batch losses."
    if num_contradictions >= len(loss):
        return (
            "steps not ascending",
            "Steps contradict each other: half of the losses or more have another of the same step.",
        )
    if not finite.any():
        return "not finite", "No loss is finite."
    if not finite[-1]:
        end = int(np.flatnonzero(finite)[-1]) + 1
        return "diverged", f"No loss is finite after the first {end} recorded."
    if 2 * finite.sum() < len(loss):
        return "not finite", "Most losses are not finite."
    used = loss[finite]
    if 2 * (used < SMALLEST_LOSS).sum() > len(used):
        return "not positive", "Most losses are not positive, and have no logarithm."
    end_level = float(np.median(used[-max(1, len(used) // 10) :]))
    if end_level > largest_loss and end_level > used[0]:
        return "diverged", f"The loss ends at {end_level:.3g} nats, above {used[0]:.3g} where it began."
    losses = loss[kept]
    if len(losses) < FEWEST_POINTS:
        return "too few points", f"{_losses(len(losses))} can be used, at least {FEWEST_POINTS} are needed."
    if np.ptp(losses) <= _SAME * losses.max():
        return "constant loss", f"Every loss is {losses[0]:.6g} nats."
    return "fitted", ""
