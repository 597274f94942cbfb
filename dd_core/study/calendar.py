"""Which optimiser steps belong to which epoch of a trial. Needs nothing but Python.

Whoever turns epochs into steps, or steps into epochs, asks a ``Calendar``: training, monitors, checks and figures. That
epochs may have different numbers of steps, and when, is known in this module alone.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

# A number, or an array of whole numbers.
Count = TypeVar("Count", int, "np.ndarray")


@dataclass(frozen=True)
class _Task:
    """A stretch of epochs that are alike.

    Attributes:
        first_epoch: of it, from 1.
        steps: of each of its epochs.
        steps_before: done when it begins.
    """

    first_epoch: int
    num_examples: int
    steps: int
    steps_before: int


@dataclass(frozen=True)
class Calendar:
    """The steps of a trial that goes through its training examples once an epoch, batch by batch.

    Epochs, steps and tasks are counted from 1. A time is a number of epochs since the beginning: step 5 of epochs of 10
    steps ends at 1/2.

    Attributes:
        num_examples: that a trial sees in an epoch of the first task.
        batch_size: of all steps of an epoch but its last, which may have fewer.
        growth: of every further task its first epoch and the examples of each of its epochs, in order.
    """

    num_examples: int
    batch_size: int
    growth: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _tasks(self) -> tuple[_Task, ...]:
        tasks: list[_Task] = []
        for first, examples in ((1, self.num_examples), *self.growth):
            last = tasks[-1] if tasks else None
            before = last.steps_before + (first - last.first_epoch) * last.steps if last else 0
            tasks.append(_Task(first, examples, -(-examples // self.batch_size), before))
        return tuple(tasks)

    def _task(self, epoch: int) -> _Task:
        return next(task for task in reversed(self._tasks) if epoch >= task.first_epoch or task.first_epoch == 1)

    @property
    def num_tasks(self) -> int:
        """Stretches of epochs with the same examples; 1 where all epochs are alike."""
        return len(self._tasks)

    @property
    def examples_of_tasks(self) -> tuple[int, ...]:
        """Examples of an epoch of each task."""
        return tuple(task.num_examples for task in self._tasks)

    def task_of(self, epoch: int) -> int:
        """The task that an epoch belongs to."""
        return self._tasks.index(self._task(epoch)) + 1

    def task_at(self, step: int) -> int:
        """The task that a step belongs to."""
        return bisect_left(self._tasks, step, key=lambda task: task.steps_before)

    def epochs_of(self, task: int, num_epochs: int) -> range:
        """The epochs of a task, in a training of so many."""
        starts = [own.first_epoch for own in self._tasks[task - 1 : task + 1]]
        return range(starts[0], min([*starts[1:], num_epochs + 1]))

    def ends_task(self, epoch: int) -> bool:
        """Whether a task ends with this epoch and another begins with the next."""
        return any(task.first_epoch == epoch + 1 for task in self._tasks[1:])

    def examples_of(self, epoch: int) -> int:
        """Examples that a trial sees in an epoch."""
        return self._task(epoch).num_examples

    def steps_of(self, epoch: int) -> int:
        """Steps in an epoch."""
        return self._task(epoch).steps

    def steps_before(self, epoch: Count) -> Count:
        """Steps done before an epoch begins."""
        steps = 0 * epoch
        for task, length in self._lengths():
            steps = steps + task.steps * _between(epoch - task.first_epoch, length)
        return steps

    def steps_after(self, epoch: Count) -> Count:
        """Steps done when an epoch has ended; of a trial's last epoch, all its steps."""
        return self.steps_before(epoch + 1)

    def epoch_of(self, step: Count) -> Count:
        """The epoch that a step belongs to."""
        epochs = 0 * step
        for task, length in self._lengths():
            begun = -(-(step - task.steps_before) // task.steps)
            epochs = epochs + _between(begun, length)
        return epochs

    def _lengths(self) -> Iterator[tuple[_Task, int | None]]:
        """Every task and its number of epochs; the last has no end."""
        for task, following in zip(self._tasks, (*self._tasks[1:], None), strict=True):
            yield task, None if following is None else following.first_epoch - task.first_epoch

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
        if not self.growth:
            return time * self.steps_of(1)
        epoch = math.floor(time) + 1
        return self.steps_before(epoch) + (time - epoch + 1) * self.steps_of(epoch)

    def time_of(self, step: int) -> Fraction:
        """When a step ends; the beginning is step 0."""
        epoch = self.epoch_of(max(step, 1))
        return epoch - 1 + Fraction(step - self.steps_before(epoch), self.steps_of(epoch))

    def step_at(self, time: Fraction) -> int:
        """The step in which a time above 0 comes."""
        epoch = math.ceil(time)
        return self.steps_before(epoch) + math.ceil((time - epoch + 1) * self.steps_of(epoch))


def _between(count: Count, most: int | None) -> Count:
    """No less than 0, and no more than ``most``."""
    if isinstance(count, int):
        return max(0, count if most is None else min(count, most))
    return count.clip(0, most)
