"""Which classes a network has seen by which epoch, where they come one group after the other. Needs no torch.

Class-incremental training (Rebuffi et al. 2017; Dohare et al. 2024, "Loss of plasticity in deep continual learning")
begins with a few classes and adds more every so many epochs. A **task** is the time in which the classes stay the same;
tasks are counted from 1. The **rank** of a class is its place in the order in which classes come, from 0.
"""

import hashlib
import importlib
import os
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from dd_core.errors import UserError
from dd_core.study.yaml_files import Strict

# Files that are read where {trial} is in their name.
MOST_ORDERS = 1000
# NumPy is loaded only where there is such a file.
_READER = ("dd_core.data.class_schedule", "read_orders")


def _is_order(text: str) -> str:
    if text != "seed" and PurePath(text).suffix != ".npy":
        raise ValueError(f"seed, or the path of a .npy file that lists all classes, not {text!r}")
    return text


def path_of_order(order: str, trial: int) -> str:
    """The file that lists the classes of a trial."""
    return order.replace("{trial}", str(trial))


class FoundOrder(Strict):
    """What a file says.

    Attributes:
        sha256: of the file.
        classes: all, in the order in which they come.
    """

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    # From JSON or, as it is read beside a study file, from a list.
    classes: tuple[int, ...] = Field(strict=False)


class ClassSchedule(Strict):
    """Classes come one group after the other. Of every class a trial has equally many images in each split.

    ``seen`` and ``active`` differ at the last epoch of a task: the checkpoint of epoch 200 has been trained on the
    first task's classes alone, and those of the second are active from then on. Published code confuses them.
    """

    order: Annotated[str, AfterValidator(_is_order)] = Field(
        default="seed",
        json_schema_extra={"left_out_of_recipe": True},  # what the files say is in it instead
        description="seed: drawn for each trial from (seed, trial), the same for all variants; or a .npy file that "
        "lists all classes, beside the study file, for all trials, or with {trial} in its name one for each",
    )
    found: tuple[FoundOrder, ...] = Field(
        default=(),
        repr=False,  # a line for every trial
        strict=False,
        json_schema_extra={"left_out_of_recipe": True},
        description="what the files of orders say; filled in when the study is read, so that nobody needs them after",
    )
    first: int = Field(ge=1, description="classes of the first task")
    add: int = Field(ge=1, description="classes that every further task adds; the last may add fewer")
    every: int = Field(ge=1, description="epochs of a task; the last goes on to the end of the study")

    @model_validator(mode="before")
    @classmethod
    def _read_orders(cls, content: Any, info: ValidationInfo) -> Any:
        """Orders from files are part of the study once it has been read, as a path holds on one machine only."""
        order = content.get("order", "seed") if isinstance(content, dict) else None
        if info.context and isinstance(content, dict) and "found" in content:
            raise ValueError("found: is what the platform finds out, and not for study files")
        if not isinstance(order, str) or not order.endswith(".npy") or content.get("found"):
            return content
        folder = Path((info.context or {}).get("folder") or Path.cwd()).absolute()
        order = os.path.normpath(folder / Path(order).expanduser())
        module, function = _READER
        try:
            return {**content, "order": order, "found": getattr(importlib.import_module(module), function)(order)}
        except UserError as error:
            raise ValueError(f"order: {error}") from error

    def order_of(self, trial: int) -> tuple[int, ...] | None:
        """The classes in a trial's order, as a file lists them; None where the order is drawn."""
        if not self.found:
            return None
        return self.found[trial if "{trial}" in self.order else 0].classes

    def digest_of_orders(self, trials: int) -> str:
        """SHA-256 of the file that lists the classes, or of the SHA-256s of those of so many trials; empty: none."""
        if "{trial}" not in self.order:
            return self.found[0].sha256 if self.found else ""
        return hashlib.sha256("".join(order.sha256 for order in self.found[:trials]).encode()).hexdigest()

    def num_tasks(self, num_classes: int) -> int:
        """Tasks until all classes are there."""
        return 1 + max(0, -(-(num_classes - self.first) // self.add))

    def task_of(self, epoch: int, num_classes: int) -> int:
        """The task that an epoch belongs to, from 1; epoch 0 is before the first task and counts as its."""
        return min(max(0, epoch - 1) // self.every + 1, self.num_tasks(num_classes))

    def task_with(self, rank: int) -> int:
        """The task, from 1, that brings the class of a rank."""
        return 1 + max(0, -(-(rank + 1 - self.first) // self.add))

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
