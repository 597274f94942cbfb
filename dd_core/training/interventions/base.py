"""What an intervention is: a small class that changes weights beside the optimiser's steps.

It is told what happens in training, by the methods of ``Intervention``, and does its part for every trial of a stack.
What it draws is a function of (seed, trial, step or task), and what it does to a trial does not depend on the others,
so that a training goes on to the bit after an interruption and a trial is what it would be alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dd_core.models.stacking import by_trial
from dd_core.study.recipe import Variant
from dd_core.study.study import Arm, Study

if TYPE_CHECKING:
    from dd_core.tasks.base import Inputs, Targets
    from dd_core.training.step import Stepper


class Trained(Protocol):
    """What an intervention may look at and change: the trials that share one network (``TrialStack``).

    Attributes:
        study, arm, variant: what is trained.
        trials: numbers of the trials, in the order of the network.
        device: where the network lives.
        model: the stacked network, at its initial weights when an intervention is made.
        stepper: has the optimiser.
    """

    study: Study
    arm: Arm
    variant: Variant
    trials: list[int]
    device: torch.device
    model: nn.Module
    stepper: "Stepper"

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, BatchNorm uses its running statistics and leaves them alone; autocast is off."""
        ...

    def training_examples(self, positions: Tensor) -> "tuple[Inputs, Targets]":
        """As of ``dd_core.training.monitors.base.Watched``."""
        ...


class Intervention:
    """Does nothing. Tasks and steps are counted from 1; a training without tasks is one task.

    Only ``before_update`` may become a part of a CUDA graph: it is arithmetic on tensors that stay where they are, the
    same at every step. All others are called between steps.
    """

    def __init__(self, stack: Trained):
        """Settings of the study file come as keyword arguments after the stack."""
        self.stack = stack
        self.num_trials = len(stack.trials)

    def begin_task(self, task: int) -> None:
        """Before the first step of every task but the first."""

    def before_update(self) -> None:
        """Between the backward pass and the optimiser's step, before gradients are clipped."""

    def after_step(self, step: int) -> None:
        """After every step of the optimiser."""

    def note_evaluation(self, position: int, accuracy: float) -> None:
        """After every regular evaluation, of each trial that still trains: its accuracy on validation images."""

    def end_task(self, task: int) -> None:
        """After the last epoch of every task that another follows."""

    def state(self) -> dict[str, Tensor]:
        """What must survive an interruption, as tensors on any device."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``, called on an intervention at its beginning."""


class Interventions:
    """All interventions of a stack, in the order in which they act."""

    def __init__(self, entries: dict[str, Intervention]):
        """``entries``: by their key in the study file."""
        self._entries = entries

    def __iter__(self) -> Iterator[Intervention]:
        """One after the other."""
        return iter(self._entries.values())

    @property
    def change_gradients(self) -> bool:
        """Whether any does something between the backward pass and the optimiser's step."""
        return any(type(each).before_update is not Intervention.before_update for each in self)

    def begin_task(self, task: int) -> None:
        """As ``Intervention.begin_task``."""
        for each in self:
            each.begin_task(task)

    def before_update(self) -> None:
        """As ``Intervention.before_update``."""
        for each in self:
            each.before_update()

    def after_step(self, step: int) -> None:
        """As ``Intervention.after_step``."""
        for each in self:
            each.after_step(step)

    def note_evaluation(self, position: int, accuracy: float) -> None:
        """As ``Intervention.note_evaluation``."""
        for each in self:
            each.note_evaluation(position, accuracy)

    def end_task(self, task: int) -> None:
        """As ``Intervention.end_task``."""
        for each in self:
            each.end_task(task)

    def state(self) -> dict[str, Tensor]:
        """The states of all, by name."""
        return {f"{name}.{key}": tensor for name, each in self._entries.items() for key, tensor in each.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        for name, each in self._entries.items():
            each.load_state({k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")})


def remembered(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, num_trials: int) -> Sequence[Tensor]:
    """What an optimiser remembers of every entry of a parameter, as views (T, n, ...); nothing before its first step.

    The number of steps, which Adam counts for a parameter as a whole, is not among them.
    """
    state = optimizer.state.get(parameter, {})
    return [
        by_trial(tensor, num_trials)
        for name, tensor in state.items()
        if name != "step" and isinstance(tensor, Tensor) and tensor.shape == parameter.shape
    ]


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, num_trials: int) -> None:
    """Let an optimiser be what it was before its first step, of a parameter of all trials."""
    for tensor in remembered(optimizer, parameter, num_trials):
        tensor.zero_()
    if "step" in optimizer.state.get(parameter, {}):
        optimizer.state[parameter]["step"].zero_()
