"""Every further task begins with a network of new random weights: what can be learned without a past."""

import torch

from dd_core.models.build import build_trials
from dd_core.training.interventions.base import Intervention, forget


class NewNetwork(Intervention):
    """All parameters and buffers as a freshly initialised network has them; the optimiser forgets everything.

    The control of Dohare et al. 2024: what another network reaches less of in the same task, it has lost.
    """

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        """Draw a network of (seed, trial, task)."""
        stack = self.stack
        fresh = build_trials(stack.study, stack.arm, stack.trials, "new_network", task).state_dict()
        for name, tensor in stack.model.state_dict().items():
            tensor.copy_(fresh[name])
        for parameter in stack.model.parameters():
            forget(stack.stepper.optimizer, parameter, self.num_trials)
