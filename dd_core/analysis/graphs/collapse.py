"""Whether a network has collapsed to one label, graded, and how even its predictions are."""

import math

import numpy as np

# One graph in a hundred.
_FULL = 0.99
_EXCESS = 0.2


def collapse(
    predicted_1_share: float,
    label_1_share: float,
    accuracy_0: float,
    accuracy_1: float,
    best_1_share: float = math.nan,
) -> str:
    """How far predictions have collapsed to one label: ``none``, ``partial`` or ``full``.

    full: the accuracy of a label is 0 exactly, which is all that the published check calls collapse, or one label is
    predicted for 99 % of the graphs. The published check depends on how many graphs there are: it passes a network that
    predicts 99.5 % of 400 graphs to be label 1, since one graph of label 0 is among the two others.

    partial: the label predicted most often is predicted for 20 points more than its share, or than the best classifier
    predicts it for, whichever is more. With even labels an excess of 20 points is a difference of the two labels'
    accuracies of 40 points: between what the authors of the published networks aim for (10) and what they call moderate
    collapse (50). By chance it needs four standard errors, even for 100 graphs. Of graphs that tell little the best
    classifier itself predicts the more frequent label more often than it is true, and is not to be blamed.

    Args:
        predicted_1_share: share of the graphs that label 1 is predicted for; the other label is 0.
        label_1_share: share of the graphs whose label it is.
        accuracy_0: of the graphs of label 0 the share predicted; NaN: there are none.
        accuracy_1: of label 1, likewise.
        best_1_share: share that the best classifier predicts label 1 for, undecided graphs as true; NaN: unknown.
    """
    is_1 = predicted_1_share >= 0.5
    largest = predicted_1_share if is_1 else 1 - predicted_1_share
    if accuracy_0 == 0 or accuracy_1 == 0 or largest >= _FULL:
        has_one_label = label_1_share in (0.0, 1.0)
        return "none" if has_one_label and is_1 == (label_1_share == 1) else "full"
    shares = [share for share in (label_1_share, best_1_share) if math.isfinite(share)]
    expected = max(share if is_1 else 1 - share for share in shares)
    return "partial" if largest - expected > _EXCESS else "none"


def best_1_share(best_probability: np.ndarray, labels: np.ndarray) -> float:
    """Share of graphs that the best classifier predicts label 1 for, where it is undecided as often as it is true.

    Within .02 of a half it counts as undecided: to say one label of all of these gains 2 points at most.

    Args:
        best_probability: float64 (N,), probability of label 1 given all that can be seen; at least one.
        labels: int64 (N,).
    """
    undecided = np.isclose(best_probability, 0.5, rtol=0, atol=0.02)
    return float(np.where(undecided, labels == 1, best_probability > 0.5).mean())


def prediction_entropy(predicted_1_share: float) -> float:
    """Entropy of the shares of two predicted labels, bits: 1 where they are even, 0 where all is one label."""
    shares = np.array([predicted_1_share, 1 - predicted_1_share])
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() + 0.0)
