"""Which classes a network has seen by which epoch, where they come one group after the other. Needs no torch.

Class-incremental training (Rebuffi et al. 2017; Dohare et al. 2024, "Loss of plasticity in deep continual learning")
begins with a few classes and adds more every so many epochs. A **task** is the time in which the classes stay the same;
tasks are counted from 1. The **rank** of a class is its place in the order in which classes come, from 0.
"""

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field

from dd_core.study.yaml_files import Strict


def _is_order(text: str) -> str:
    if text != "seed" and PurePath(text).suffix != ".npy":
        raise ValueError(f"seed, or the path of a .npy file that lists all classes, not {text!r}")
    return text


class ClassSchedule(Strict):
    """Classes come one group after the other. Of every class a trial has equally many images in each split.

    ``seen`` and ``active`` differ at the last epoch of a task: the checkpoint of epoch 200 has been trained on the
    first task's classes alone, and those of the second are active from then on. Published code confuses them.
    """

    order: Annotated[str, AfterValidator(_is_order)] = Field(
        default="seed",
        description="seed: drawn for each trial from (seed, trial), the same for all variants; or a .npy file that "
        "lists all classes, beside the study file, for all trials, or with {trial} in its name one for each",
    )
    first: int = Field(ge=1, description="classes of the first task")
    add: int = Field(ge=1, description="classes that every further task adds; the last may add fewer")
    every: int = Field(ge=1, description="epochs of a task; the last goes on to the end of the study")

    def num_tasks(self, num_classes: int) -> int:
        """Tasks until all classes are there."""
        return 1 + max(0, -(-(num_classes - self.first) // self.add))

    def task_of(self, epoch: int, num_classes: int) -> int:
        """The task that an epoch belongs to, from 1; epoch 0 is before the first task and counts as its."""
        return min(max(0, epoch - 1) // self.every + 1, self.num_tasks(num_classes))

    def classes_of(self, task: int, num_classes: int) -> int:
        """Classes of a task: those that it adds and all before."""
        return min(self.first + self.add * (task - 1), num_classes)

    def seen(self, epoch: int, num_classes: int) -> int:
        """Classes that the weights after an epoch have been trained on: 0 at the initialisation."""
        return self.classes_of(self.task_of(epoch, num_classes), num_classes) if epoch else 0

    def active(self, epoch: int, num_classes: int) -> int:
        """Classes that the next epoch is trained on: what seed code takes for those that were seen."""
        return self.classes_of(self.task_of(epoch + 1, num_classes), num_classes)

    def evaluated(self, epoch: int, num_classes: int) -> int:
        """Classes that are evaluated after an epoch: those seen, and at the initialisation those of the first task."""
        return self.seen(max(epoch, 1), num_classes)

    def first_epochs(self, num_classes: int) -> tuple[int, ...]:
        """The first epoch of every task, from 1."""
        return tuple(1 + self.every * task for task in range(self.num_tasks(num_classes)))
