"""What a monitor is: a small class that measures something of every trial of a stack while it trains.

A monitor sees the network between two optimiser steps. It must leave no trace: weights, gradients, BatchNorm statistics
and the global random state are after it what they were before, so that training gives the same bits with and without
it. And it must not wait for the device: results stay there as tensors, and the trainer fetches them when an epoch ends.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dd_core.data.trials import TrialData
    from dd_core.study.calendar import Calendar
    from dd_core.study.recipe import Variant
    from dd_core.study.study import Study
    from dd_core.tasks.base import Inputs, Targets, Task

# Of each metric one value per trial, (T,), or values and their standard errors.
Measurement = dict[str, Tensor | tuple[Tensor, Tensor]]


class Watched(Protocol):
    """What a monitor may look at: the trials that share one network (``TrialStack``).

    Attributes:
        study: what is trained.
        variant: the recipe of this arm, or of the first of several.
        trials: numbers of the trials, in the order of the network; several times over where several arms, which differ
            in settings of the optimiser alone, share it.
        data: their splits and labels.
        device: where the network lives.
        model: the stacked network; of images (B, T*channels, H, W) to (B, T, classes). Parameters and buffers are the
            trials' tensors, concatenated along dimension 0; ``.grad`` is the gradient of the last batch, clipped if the
            study says so.
        task: how its outputs are scored.
        num_train: training examples of each trial, over all tasks. In an epoch only the first
            ``calendar.examples_of(epoch)`` of them are there to be looked at.
        num_validation: validation examples of each trial.
        calendar: which optimiser steps belong to which epoch. Of an epoch's training examples there are
            ``calendar.examples_of(epoch)``, the first of each trial: all, or those of the classes seen.
    """

    study: "Study"
    variant: "Variant"
    trials: list[int]
    data: "list[TrialData]"
    device: torch.device
    model: nn.Module
    num_train: int
    num_validation: int
    task: "Task"
    calendar: "Calendar"

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, BatchNorm uses its running statistics and leaves them alone; autocast is off."""
        ...

    def training_examples(self, positions: Tensor) -> "tuple[Inputs, Targets]":
        """Training examples, not augmented, and their given targets; of images (B, T*channels, H, W) and labels (B, T).

        ``positions``: int64 (B, T) on the device, of each trial's examples among its training examples, in the order of
        ``TrialData.train_ids``.
        """
        ...

    def validation_batches(self, epoch: int) -> "Iterator[tuple[Inputs, Targets]]":
        """All validation examples of an epoch, batch by batch, as above, with true targets."""
        ...

    def losses(self, inputs: "Inputs", targets: "Targets", dtype: torch.dtype | None = None) -> Tensor:
        """What training minimises, of every example and trial, (B, T).

        Args:
            inputs: what the model takes.
            targets: of these.
            dtype: in which the loss is computed from the model's outputs; None: theirs.
        """
        ...


class Moment:
    """After which step a monitor looks.

    Attributes:
        step: optimiser steps done, from 1.
        epoch: that the step belongs to, from 1.
        loss: mean loss of the step's batch before the step, (T,), on the device.
    """

    def __init__(self, step: int, epoch: int, loss: Tensor, gradient_norms: Tensor | Callable[[], Tensor]):
        """``gradient_norms`` may be a function, called only if somebody asks."""
        self.step, self.epoch, self.loss = step, epoch, loss
        self._gradient_norms = gradient_norms

    @property
    def gradient_norms(self) -> Tensor:
        """Norms of the step's gradient over all parameters, before clipping, (T,), on the device."""
        if callable(self._gradient_norms):
            self._gradient_norms = self._gradient_norms()
        return self._gradient_norms


class Monitor:
    """Measures something of every trial, at the interval that the study sets.

    Attributes:
        metrics: the names under which values are recorded.
        watches_every_step: whether ``observe`` is to be called after every step.
        trials_in: by name of a tensor of ``state`` its dimension that counts the trials, where that is not the first.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    watches_every_step: ClassVar[bool] = False
    trials_in: ClassVar[Mapping[str, int]] = {}

    def __init__(self, stack: Watched):
        """Options of the study file come as keyword arguments after the stack."""
        self.stack = stack

    def observe(self, moment: Moment) -> None:
        """Take note of a step; called before ``measure`` where both are due. Must cost next to nothing."""

    def measure(self, moment: Moment) -> Measurement:
        """The metrics now, each (T,) on the device or a pair of values and standard errors; NaN where undefined.

        A metric that cannot be measured yet, as of too few steps, is left out.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What must survive an interruption, so that values after it are the same to the last bit."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``; an empty dictionary means the beginning of training."""
