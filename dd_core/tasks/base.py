"""What is learned, and how it is scored."""

from torch import Tensor
from torch.nn.functional import cross_entropy


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, T, C) logits and (B, T) labels, nats, (B, T)."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
