"""How the published checkpoints of incremental CIFAR-100 were trained, and how their curvature was computed."""

from typing import Any

# What is known of files that are called as the published code of incremental CIFAR calls them (Dohare et al. 2024).
PUBLISHED_DATA: dict[str, Any] = {
    "dataset": "cifar100",
    "standardisation": {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
}
PUBLISHED_SETTINGS: dict[str, Any] = {
    "architecture": "incremental_resnet18",
    "batch_size": 90,
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "step", "milestones": [60, 120, 160], "factor": 0.2},
}
PUBLISHED_CLASSES = (5, 5, 200)
# The published curvature: the gradient of a mean loss of 32 images, changed by h = 0.001.
PUBLISHED_CURVATURE: dict[str, Any] = {
    "estimators": ["top_directions", "finite_difference"],
    "finite_difference": {"steps": [0.001], "normalisation": "mean", "mean_batch_size": 32},
}
