"""The cycle loss of a hierarchy that pools, and what the nodes that it drops alone give."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the levels count in the cycle loss.
LEVELS = (0.7, 0.3)
# Mean square of the lower half of many sums of 64 squared normal numbers, over that of all.
LEAST_OF_CHOSEN = 0.86


def cycle_loss_floor(kept_share: "NDArray[np.float64]", variance: float) -> float:
    """Mean over graphs of .7 times the share of nodes that either pooling drops, times the features' variance.

    The way down starts at the top: a node that the first or the second pooling drops comes back through layers that
    look at one node alone, so that all such nodes get the same features, one constant for each pooling. Their mean
    squared error is about the variance of the features: 1 for the published noise. The second level's features
    are the network's own, and may vary as little as it likes: its floor is unknown and counts as 0.

    It is no strict bound: it supposes that pooling does not choose nodes by their features. Of 64 normal numbers a
    choice of the nodes that are nearest to 0 lowers it to ``LEAST_OF_CHOSEN``; of fixed features, nodes of few kinds
    may be alike.

    Args:
        kept_share: float64 (N,), share of each graph's nodes that both poolings keep.
        variance: of the features, mean over their coordinates.
    """
    return float(LEVELS[0] * variance * (1 - kept_share).mean())


def cycle_loss(level_1: np.ndarray, level_2: np.ndarray) -> np.ndarray:
    """.7 of the first level and .3 of the second, the like."""
    return LEVELS[0] * level_1 + LEVELS[1] * level_2


def feature_variance(features: "NDArray[np.float32]", nodes: "NDArray[np.int64]") -> float:
    """Variance of the features over some nodes, mean over coordinates.

    Args:
        features: float32 (R, F), of each kind of node.
        nodes: int64 (M,), the kind of each node.
    """
    counts = np.bincount(nodes, minlength=len(features)).astype(np.float64)
    weights = counts / counts.sum()
    values = features.astype(np.float64)
    mean = weights @ values
    return float((weights @ (values - mean) ** 2).mean())
