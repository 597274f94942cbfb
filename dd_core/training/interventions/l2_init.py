"""A penalty on the distance from the initial weights (L2 Init).

Kumar et al. 2023, "Maintaining Plasticity in Continual Learning via Regenerative Regularization", minimise the loss
plus strength times the squared Euclidean distance of all parameters from where they were drawn. So the gradient has
2 strength (w - w0) besides, before it is clipped; the losses that are recorded are without it. ``weight_decay`` of an
optimiser adds weight_decay w: it compares with twice the strength.
"""

import torch

from dd_core.training.interventions.base import Intervention, Trained


class L2Init(Intervention):
    """Initial weights are a function of the seed, which a network has when training begins or goes on: not stored."""

    def __init__(self, stack: Trained, strength: float):
        """``strength``: the factor of the squared distance."""
        super().__init__(stack)
        self._strength = strength
        self._parameters = list(stack.model.parameters())
        self._initial = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def before_update(self) -> None:
        """Add the penalty's gradient; arithmetic alone."""
        trained = [(p, p.grad, p0) for p, p0 in zip(self._parameters, self._initial, strict=True)]
        parameters, gradients, initial = zip(*((p, g, p0) for p, g, p0 in trained if g is not None), strict=True)
        torch._foreach_add_(gradients, torch._foreach_sub(parameters, initial), alpha=2 * self._strength)
