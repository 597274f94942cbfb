"""Shrink and perturb (Ash & Adams 2020, "On Warm-Starting Neural Network Training")."""

from typing import Literal

import torch

from dd_core.data.randomness import torch_seed
from dd_core.models.stacking import by_trial
from dd_core.training.interventions.base import Intervention, Trained


class ShrinkAndPerturb(Intervention):
    """Every parameter times ``shrink`` plus Gaussian noise; buffers and the optimiser's memory stay.

    Dohare et al. 2024 add noise after every step and leave the shrinking to weight decay; Ash & Adams do both before
    new data. A trial's noise is one draw for all its parameters in order, on the device, so it is the same in any
    stack; a GPU draws other numbers than a CPU.
    """

    def __init__(self, stack: Trained, shrink: float, noise: float, at: Literal["steps", "tasks"]):
        """``noise``: standard deviation."""
        super().__init__(stack)
        self._shrink, self._deviation, self._at = shrink, noise, at
        self._weights = [by_trial(parameter.detach(), self.num_trials) for parameter in stack.model.parameters()]
        self._generator = torch.Generator(stack.device)

    def begin_task(self, task: int) -> None:
        """Act if it is time."""
        if self._at == "tasks":
            self._act(task)

    def after_step(self, step: int) -> None:
        """Act if it is time."""
        if self._at == "steps":
            self._act(step)

    @torch.no_grad()
    def _act(self, number: int) -> None:
        if self._shrink != 1:
            torch._foreach_mul_(self._weights, self._shrink)
        if self._deviation:
            sizes = [weights[0].numel() for weights in self._weights]
            drawn = self._weights[0].new_empty(self.num_trials, sum(sizes))
            for row, trial in zip(drawn, self.stack.trials, strict=True):
                self._generator.manual_seed(torch_seed(self.stack.study.seed, trial, "perturbation", number))
                row.normal_(generator=self._generator)
            noise = [part.view_as(own) for part, own in zip(drawn.split(sizes, 1), self._weights, strict=True)]
            torch._foreach_add_(self._weights, noise, alpha=self._deviation)
