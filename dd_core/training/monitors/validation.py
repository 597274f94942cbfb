"""Loss and accuracy on the validation examples."""

import torch

from dd_core.study.monitors import ValidationMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor


class Validation(Monitor):
    """``loss_val_nats``, mean score, and ``acc_val``, fraction, of all validation examples with true targets.

    Where classes come one group after the other, of those of the classes seen.
    """

    metrics = tuple(ValidationMonitor.first_steps)

    @torch.no_grad()
    def measure(self, moment: Moment) -> Measurement:
        """Both (T,); a pass over the examples."""
        losses, hits, count = [], [], 0
        with self.stack.evaluating():
            for inputs, targets in self.stack.validation_batches(moment.epoch):
                outputs = self.stack.model(inputs)
                losses.append(self.stack.task.scores(outputs, targets).sum(0, dtype=torch.float64))
                right = self.stack.task.hits(outputs, targets)
                hits.append(right.sum(0))
                count += len(right)
        return {"loss_val_nats": torch.stack(losses).sum(0) / count, "acc_val": torch.stack(hits).sum(0) / count}
