"""Norms of gradient and weights."""

from dd_core.models.stacking import by_trial
from dd_core.study.monitors import NormMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.optimization import joint_norms


class Norms(Monitor):
    """``grad_norm``, of the batch's gradient before clipping, and ``weight_norm`` after the step.

    Euclidean, over all parameters of a trial: weights, biases, and scale and shift of normalisation.
    """

    metrics = tuple(NormMonitor.first_steps)

    def __init__(self, stack: Watched):
        """Look at the parameters where they lie: optimisers and ``load_state`` change them in place."""
        super().__init__(stack)
        count = len(stack.trials)
        self._weights = [by_trial(parameter.detach(), count) for parameter in stack.model.parameters()]

    def measure(self, moment: Moment) -> Measurement:
        """Both (T,)."""
        return {"grad_norm": moment.gradient_norms, "weight_norm": joint_norms(self._weights)}
