"""Which optimiser steps belong to which epoch of a trial. Needs nothing but Python.

Whoever turns epochs into steps, or steps into epochs, asks a ``Calendar``: training, monitors, checks and figures. That
all epochs have equally many steps is known in this module alone.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

# A number, or an array of whole numbers.
Count = TypeVar("Count", int, "np.ndarray")


@dataclass(frozen=True)
class Calendar:
    """The steps of a trial that goes through its training examples once an epoch, batch by batch.

    Epochs and steps are counted from 1. A time is a number of epochs since the beginning: step 5 of epochs of 10 steps
    ends at 1/2.

    Attributes:
        num_examples: that a trial sees in an epoch.
        batch_size: of all steps of an epoch but its last, which may have fewer.
    """

    num_examples: int
    batch_size: int

    @property
    def _steps(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def examples_of(self, epoch: int) -> int:
        """Examples that a trial sees in an epoch."""
        return self.num_examples

    def steps_of(self, epoch: int) -> int:
        """Steps in an epoch."""
        return self._steps

    def steps_before(self, epoch: Count) -> Count:
        """Steps done before an epoch begins."""
        return (epoch - 1) * self._steps

    def steps_after(self, epoch: Count) -> Count:
        """Steps done when an epoch has ended; of a trial's last epoch, all its steps."""
        return self.steps_before(epoch + 1)

    def epoch_of(self, step: Count) -> Count:
        """The epoch that a step belongs to."""
        return (step - 1) // self._steps + 1

    def batch_of(self, step: int) -> tuple[int, int]:
        """Start and stop of a step's batch among the examples of its epoch."""
        epoch = self.epoch_of(step)
        start = (step - self.steps_before(epoch) - 1) * self.batch_size
        return start, min(start + self.batch_size, self.examples_of(epoch))

    def examples_within(self, num_steps: int) -> int:
        """Examples that a trial sees in its first steps."""
        if num_steps == 0:
            return 0
        whole = sum(map(self.examples_of, range(1, self.epoch_of(num_steps))))
        return whole + self.batch_of(num_steps)[1]

    def steps_until(self, time: float) -> float:
        """Steps, and a part of one, that are done at a time."""
        return time * self._steps

    def time_of(self, step: int) -> Fraction:
        """When a step ends."""
        epoch = self.epoch_of(step)
        return epoch - 1 + Fraction(step - self.steps_before(epoch), self.steps_of(epoch))

    def step_at(self, time: Fraction) -> int:
        """The step in which a time above 0 comes."""
        epoch = math.ceil(time)
        return self.steps_before(epoch) + math.ceil((time - epoch + 1) * self.steps_of(epoch))
