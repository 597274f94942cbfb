"""What training asks of a task: which examples there are, what is learned from them, and what counts as right.

``TrialStack`` knows a task by these two protocols alone; ``dd_core.tasks.images`` is the first. Inputs and targets are
whatever the task's network takes and its losses are computed from: a tensor of images and one of labels there, a batch
of graphs and the targets of several heads elsewhere. B examples of T trials always come together.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dd_core.data.trials import TrialData

# A tensor whose first axis is the example, or what else the network takes. Only steps on tensors become CUDA graphs.
Inputs = Any
Outputs = Any
Targets = Any
# What is drawn for an epoch; its task alone looks inside.
Plan = Any


@dataclass(frozen=True)
class Splits:
    """The examples of an evaluation, one split after the other: training, validation, test, left out.

    Attributes:
        num_train, num_validation, num_test, num_left_out: of each trial.
    """

    num_train: int
    num_validation: int
    num_test: int
    num_left_out: int = 0

    @property
    def num_examples(self) -> int:
        """All of them."""
        return self.num_train + self.num_validation + self.num_test + self.num_left_out

    @property
    def validation(self) -> range:
        """Where the validation examples are."""
        return range(self.num_train, self.num_train + self.num_validation)


class Examples(Protocol):
    """The examples of some trials on one device. What is random of them is a function of (seed, trial, epoch).

    Attributes:
        num_train, num_validation: of each trial, over all epochs.
        data: split and given labels of each trial.
        whole: every example that an evaluation may ask for.
    """

    num_train: int
    num_validation: int
    data: list[TrialData]
    whole: Splits

    def plan(self, epoch: int) -> Plan:
        """What every trial sees in an epoch (1 is the first), and in which order."""
        ...

    def batch(self, plan: Plan, start: int, stop: int) -> tuple[Inputs, Targets]:
        """Examples ``start:stop`` of the epoch of a plan, augmented."""
        ...

    def at(self, positions: Tensor) -> tuple[Inputs, Targets]:
        """Training examples, not augmented, at ``positions`` among each trial's: int64 (B, T) on the device."""
        ...

    def splits(self, epoch: int) -> Splits:
        """What is evaluated after an epoch (0: before the first)."""
        ...

    def places(self, splits: Splits) -> np.ndarray:
        """Where the examples of an evaluation are among the whole, int64 (num_examples,)."""
        ...

    def evaluated(self, splits: Splits, start: int, stop: int) -> tuple[Inputs, Targets]:
        """Examples ``start:stop`` of an evaluation, not augmented.

        Training examples, and those left out of training, have their given targets, the others their true ones.
        """
        ...


class Task(Protocol):
    """What is learned, as functions of a stacked network's outputs, which must not wait for the device.

    Losses and scores are the better the lower, and never negative.
    """

    def restrict(self, num_classes: int) -> None:
        """Be about the first so many classes from now on, where classes come one group after the other."""
        ...

    def losses(self, outputs: Outputs, targets: Targets, dtype: torch.dtype | None = None) -> Tensor:
        """What training minimises: one value for every example and trial, (B, T).

        ``dtype``: what outputs are converted to before; None: nothing.
        """
        ...

    def scores(self, outputs: Outputs, targets: Targets) -> Tensor:
        """What evaluations and the validation monitor record as loss, (B, T)."""
        ...

    def hits(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Whether an example is right, bool (B, T); or the share of its targets that is."""
        ...

    def value(self, name: str, outputs: Outputs, targets: Targets) -> Tensor:
        """What else evaluations record of an example if a study asks for it (``evaluation.image_values``), (B, T)."""
        ...
