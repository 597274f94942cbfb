"""Many runs side by side: the columns of the table ``loss_slopes`` that hypotheses are about."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

_WORDS = ("study", "family", "arm", "status", "outcome", "estimator")


@dataclass(frozen=True)
class Campaign:
    """One entry a run, fitted or not: str (n,) objects, and float64 (n,) with NaN where unknown.

    Attributes are columns of ``loss_slopes`` of these names. A configuration is an arm of a study: its trials differ in
    their seed alone.
    """

    study: np.ndarray
    family: np.ndarray
    arm: np.ndarray
    status: np.ndarray
    outcome: np.ndarray
    estimator: np.ndarray
    k: np.ndarray
    trial: np.ndarray
    learning_rate: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    batch_size: np.ndarray
    label_noise: np.ndarray
    r_squared: np.ndarray
    residual_autocorrelation: np.ndarray
    residual_normality: np.ndarray
    delta_aic_exponential: np.ndarray
    delta_aic_two_power: np.ndarray
    delta_aic_offset: np.ndarray
    alpha_early: np.ndarray
    best_validation_loss: np.ndarray
    last_validation_loss: np.ndarray
    loss_at_early_stop: np.ndarray
    largest_eigenvalue_plateau_epoch: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Campaign":
        """A campaign from rows of the table; columns that a row lacks are unknown."""
        columns = {}
        for field in fields(cls):
            values = [row.get(field.name) for row in rows]
            if field.name in _WORDS:
                columns[field.name] = np.array(["" if value is None else str(value) for value in values], dtype=object)
            else:
                columns[field.name] = np.array([_number(value) for value in values], dtype=np.float64)
        return cls(**columns)

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.outcome)

    def __getitem__(self, runs: np.ndarray) -> "Campaign":
        """Some of them: bool (n,) or positions."""
        return Campaign(**{field.name: getattr(self, field.name)[runs] for field in fields(self)})

    @property
    def fitted(self) -> np.ndarray:
        """Which runs are: bool (n,)."""
        return self.outcome == "fitted"

    @property
    def unfinished(self) -> np.ndarray:
        """Which runs are not over, or broke off before their end: bool (n,)."""
        return np.isin(self.status.astype(str), ("running", "interrupted", "failed"))

    @property
    def configuration(self) -> np.ndarray:
        """int64 (n,), from 0: equal where runs differ in their seed alone."""
        names = np.array([f"{study}\n{arm}" for study, arm in zip(self.study, self.arm, strict=True)])
        return np.unique(names, return_inverse=True)[1] if len(names) else np.zeros(0, dtype=np.int64)

    @property
    def families(self) -> list[str]:
        """Their names, in order."""
        return sorted(set(self.family))


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan
