"""The output layer begins anew with every further task."""

import torch

from dd_core.errors import UserError
from dd_core.models.build import build_trials
from dd_core.models.last_linear import last_linear
from dd_core.training.interventions.base import Intervention, forget


class HeadReset(Intervention):
    """Weights and biases of the last linear layer as a freshly initialised network has them, for all classes.

    What the optimiser remembers of them is forgotten, as at the beginning; published code keeps the momentum.
    """

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        """Draw a network of (seed, trial, task), and take its last layer."""
        stack = self.stack
        positions = torch.zeros(2, self.num_trials, dtype=torch.int64, device=stack.device)
        with stack.evaluating():
            name = last_linear(stack.model, stack.training_examples(positions)[0])
        if not name:
            raise UserError(
                f"interventions.head_reset: {stack.variant.architecture} has no linear layer that gives its logits"
            )
        fresh = build_trials(stack.study, stack.arm, stack.trials, "new_head", task).get_submodule(name)
        own = stack.model.get_submodule(name)
        for parameter, new in zip(own.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(new)
            forget(stack.stepper.optimizer, parameter, self.num_trials)
