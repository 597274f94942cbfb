"""Loss and accuracy on the validation images."""

import torch

from dd_core.study.monitors import ValidationMonitor
from dd_core.tasks.base import losses_of
from dd_core.training.monitors.base import Measurement, Moment, Monitor


class Validation(Monitor):
    """``loss_val_nats``, mean cross-entropy, and ``acc_val``, fraction: of all validation images, true labels."""

    metrics = tuple(ValidationMonitor.first_steps)

    @torch.no_grad()
    def measure(self, moment: Moment) -> Measurement:
        """Both (T,); a pass over the images."""
        losses, hits = [], []
        with self.stack.evaluating():
            for images, labels in self.stack.validation_batches():
                logits = self.stack.model(images)
                losses.append(losses_of(logits, labels).sum(0, dtype=torch.float64))
                hits.append((logits.argmax(2) == labels).sum(0))
        count = self.stack.num_validation
        return {"loss_val_nats": torch.stack(losses).sum(0) / count, "acc_val": torch.stack(hits).sum(0) / count}
