"""All that an evaluation of some graphs says: the columns ``MEASURES`` of the tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.analysis.auroc import auroc
from dd_core.analysis.graphs.calibration import calibration_error
from dd_core.analysis.graphs.collapse import best_1_share, collapse, prediction_entropy
from dd_core.analysis.graphs.cycle import cycle_loss, cycle_loss_floor
from dd_core.analysis.graphs.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluated:
    """N graphs, and what a network says of them; at least one.

    Attributes:
        labels: int64 (N,), 0 or 1: those that it is judged by.
        is_right: bool (N,), the more probable label is this.
        probability: float64 (N,), that it gives to label 1.
        loss: float64 (N,), cross-entropy, nats.
        cycle_loss_1, cycle_loss_2: float64 (N,), mean squared error of the reconstruction of each level.
        kept_share: float64 (N,), of the nodes, by both poolings.
        pooling_entropy: float64 (N,), 0 to 1.
        best_probability: float64 (N,), of label 1, given all that can be seen: that of the labels judged by.
    """

    labels: "NDArray[np.int64]"
    is_right: "NDArray[np.bool_]"
    probability: "NDArray[np.float64]"
    loss: "NDArray[np.float64]"
    cycle_loss_1: "NDArray[np.float64]"
    cycle_loss_2: "NDArray[np.float64]"
    kept_share: "NDArray[np.float64]"
    pooling_entropy: "NDArray[np.float64]"
    best_probability: "NDArray[np.float64]"

    @property
    def predicted(self) -> "NDArray[np.int64]":
        """The more probable label, int64 (N,)."""
        return np.where(self.is_right, self.labels, 1 - self.labels)


def measure(graphs: Evaluated, majority: int, variance: float) -> dict[str, float | str]:
    """The columns ``MEASURES`` without intervals, which ``with_intervals`` adds to many at once.

    Args:
        graphs: of one evaluation and split.
        majority: the label that is more frequent in training.
        variance: of the nodes' features.
    """
    labels, is_right, predicted = graphs.labels, graphs.is_right, graphs.predicted
    accuracies = [_share(is_right[labels == label]) for label in (0, 1)]
    predicted_1, label_1 = _share(predicted == 1), _share(labels == 1)
    best = graphs.best_probability
    return {
        "num_graphs": len(labels),
        "label_1_share": label_1,
        "accuracy": _share(is_right),
        "accuracy_class_0": accuracies[0],
        "accuracy_class_1": accuracies[1],
        "balanced_accuracy": sum(accuracies) / 2,
        "class_balance_delta": abs(accuracies[1] - accuracies[0]),
        "auroc": auroc(graphs.probability, labels == 1),
        "loss": float(graphs.loss.mean()),
        "calibration_error": calibration_error(graphs.probability, predicted, is_right),
        "predicted_1_share": predicted_1,
        "largest_share": max(predicted_1, 1 - predicted_1),
        "prediction_entropy": prediction_entropy(predicted_1),
        "collapse": collapse(predicted_1, label_1, accuracies[0], accuracies[1], best_1_share(best, labels)),
        "cycle_loss_1": float(graphs.cycle_loss_1.mean()),
        "cycle_loss_2": float(graphs.cycle_loss_2.mean()),
        "cycle_loss": float(cycle_loss(graphs.cycle_loss_1, graphs.cycle_loss_2).mean()),
        "kept_share": float(graphs.kept_share.mean()),
        "cycle_loss_floor": cycle_loss_floor(graphs.kept_share, variance),
        "pooling_entropy": float(graphs.pooling_entropy.mean()),
        "majority_baseline": _share(labels == majority),
        "bayes_ceiling": float(np.maximum(best, 1 - best).mean()),
    }


def with_intervals(columns: "dict[str, NDArray[np.float64]]") -> "dict[str, NDArray[np.float64]]":
    """Columns of many evaluations with the Wilson intervals of the three accuracies; arrays of one length."""
    ones = columns["num_graphs"] * columns["label_1_share"]
    totals = {"": columns["num_graphs"], "_class_0": columns["num_graphs"] - np.rint(ones), "_class_1": np.rint(ones)}
    found = dict(columns)
    for label, total in totals.items():
        name = f"accuracy{label}"
        hits = np.rint(np.nan_to_num(columns[name]) * total)
        found[f"{name}_low"], found[f"{name}_high"] = wilson(hits, total)
    return found


def best_with_wrong_labels(best_probability: "NDArray[np.float64]", label_noise: float) -> "NDArray[np.float64]":
    """Probability that the given label is 1, where a share of all labels are the other one, float64 (N,)."""
    return best_probability * (1 - label_noise) + (1 - best_probability) * label_noise


def best_constant(row: "Mapping[str, Any]") -> float:
    """The better of the two accuracies of always saying one label, as far as it is not chance: at most the ceiling.

    Labels that are even in all are not so in a split, where the label that was more frequent in training may be rarer.

    Args:
        row: with ``majority_baseline``, one of the two, and ``bayes_ceiling``, which may be None.
    """
    better = max(row["majority_baseline"], 1 - row["majority_baseline"])
    return better if row["bayes_ceiling"] is None else min(better, row["bayes_ceiling"])


def majority_label(labels: "NDArray[np.int64]") -> int:
    """The label that is more frequent, 1 where they are even."""
    return int(2 * (labels == 1).sum() >= len(labels))


def _share(values: "NDArray[np.bool_]") -> float:
    return float(values.mean()) if len(values) else float("nan")
