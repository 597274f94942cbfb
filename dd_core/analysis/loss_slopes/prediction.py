"""Predicting the end of a run from its beginning, for configurations that were not seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dd_core.analysis.loss_slopes.correlation import draw_groups


@dataclass(frozen=True)
class Prediction:
    """Leave-one-configuration-out errors of predicting a column by straight lines.

    Attributes:
        root_mean_square: by predictor, in the target's unit; ``mean``: the others' mean, without any predictor.
        mean_absolute: the same of absolute errors.
        gain: mean squared error of ``alpha_early`` minus that of ``loss``; negative: the slope predicts better.
        gain_low: lower end of its 95 % bootstrap interval over configurations.
        gain_high: upper end.
        num_runs: that have everything.
        num_configurations: that these are of.
        why: why there is nothing; empty if there is.
    """

    root_mean_square: Mapping[str, float]
    mean_absolute: Mapping[str, float]
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    num_runs: int
    num_configurations: int
    why: str = ""


def left_out_errors(features: np.ndarray, target: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Errors (n,) of least squares on (n, c) features and a constant, each run predicted without its whole group.

    By the block form of the leave-one-out identity, e_G = (I - H_GG)^-1 r_G: one fit instead of one for each group.
    """
    scale = features.std(0)
    features = (features - features.mean(0)) / np.where(scale > 0, scale, 1)
    design = np.hstack([np.ones((len(target), 1)), features])
    inverse = np.linalg.pinv(design.T @ design)
    residuals = target - design @ (inverse @ (design.T @ target))
    errors = np.empty(len(target))
    for group in range(int(groups.max()) + 1):
        rows = np.flatnonzero(groups == group)
        hat = design[rows] @ inverse @ design[rows].T
        errors[rows] = np.linalg.lstsq(np.eye(len(rows)) - hat, residuals[rows], rcond=None)[0]
    return errors


def predict(
    alpha: np.ndarray, loss: np.ndarray, target: np.ndarray, configuration: np.ndarray, num_samples: int
) -> Prediction:
    """Predict the target, (n,), from the early slope and from the log of the loss at the same epoch.

    Args:
        alpha: (n,) float64.
        loss: (n,), nats.
        target: (n,), nats.
        configuration: int (n,).
        num_samples: of the bootstrap.
    """
    known = np.isfinite(alpha) & np.isfinite(loss) & np.isfinite(target) & (loss > 0)
    alpha, loss, target = alpha[known], np.log(loss[known]), target[known]
    groups = np.unique(configuration[known], return_inverse=True)[1]
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    if num_groups < 4:
        why = f"{num_groups} configurations are too few to leave one out."
        return Prediction({}, {}, None, None, None, len(target), num_groups, why)
    features = {
        "mean": np.zeros((len(target), 0)),
        "alpha_early": alpha[:, None],
        "loss": loss[:, None],
        "both": np.stack([alpha, loss], 1),
    }
    errors = {name: left_out_errors(columns, target, groups) for name, columns in features.items()}
    difference = errors["alpha_early"] ** 2 - errors["loss"] ** 2
    weights = draw_groups(groups, num_samples)
    gains = weights @ difference / weights.sum(1)
    low, high = np.percentile(gains, [2.5, 97.5])
    return Prediction(
        {name: float(np.sqrt((e**2).mean())) for name, e in errors.items()},
        {name: float(np.abs(e).mean()) for name, e in errors.items()},
        float(difference.mean()),
        float(low),
        float(high),
        len(target),
        num_groups,
    )
