"""What columns and metrics were called before, and still are in files of earlier versions and while a network trains.

The tables have one rule (docs/queries.md). Training keeps its own names, which study files say (``metric: acc_val``)
and resume points hold; its values take the names of now when they become rows. Readers of tables translate what earlier
versions wrote: ``dd_core.tables.former`` in SQL and in Arrow. Imported and exported files have names of their own, in
``dd_core.exchange.columns``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Now:
    """What a former name is called now; its values are ``offset + factor * former``."""

    name: str
    offset: float = 0.0
    factor: float = 1.0

    @property
    def is_same(self) -> bool:
        """Whether the values are the same."""
        return (self.offset, self.factor) == (0.0, 1.0)

    def value(self, former: Any) -> Any:
        """A number or an array of them as it is called now; None stays None."""
        return former if former is None or self.is_same else self.offset + self.factor * former

    def former(self, value: Any) -> Any:
        """The reverse of ``value``."""
        return value if value is None or self.is_same else (value - self.offset) / self.factor


def _error(name: str) -> Now:
    """The fraction that is wrong, in place of the one that is right."""
    return Now(name, 1.0, -1.0)


_LOSS, _ERROR = Now("validation_loss"), _error("validation_error")
# Where several stand for the same, the first that is there counts.
NOW: dict[str, Now] = {
    "loss_train_nats": Now("train_loss"),
    "loss_train_bits": Now("train_loss", 0.0, math.log(2)),
    "acc_train": _error("train_error"),
    "lr": Now("learning_rate"),
    "loss_val_nats": _LOSS,
    "acc_val": _ERROR,
    "last_loss_val_nats": Now("last_validation_loss"),
    "last_acc_val": _error("last_validation_error"),
    "best_loss_val_nats": Now("best_validation_loss"),
    "best_acc_val": _error("best_validation_error"),
    "grad_norm": Now("gradient_norm"),
    "grad_var": Now("gradient_variance"),
    "lambda_max": Now("largest_eigenvalue"),
    "lambda_max_residual": Now("largest_eigenvalue_residual"),
    "lambda_min": Now("smallest_eigenvalue"),
    "lambda_min_residual": Now("smallest_eigenvalue_residual"),
    "hutch_trace": Now("hessian_trace"),
    "psd_tail": Now("spectral_density_tail"),
    "resid_power": Now("residual_power"),
    "final_train_loss": Now("last_train_loss"),
    "final_val_ce": Now("last_validation_loss"),
    "best_val_ce": Now("best_validation_loss"),
    "best_val_epoch": Now("best_validation_epoch"),
    "val_is_test": Now("validation_is_test"),
    "lambda_plateau_epoch": Now("largest_eigenvalue_plateau_epoch"),
    "lambda_max_early": Now("largest_eigenvalue_early"),
}
# Names that are values, of training_monitors.metric and of runs.best_by: metrics of the platform's monitors, and the
# learning rate of imported epochs. Every other name there is a researcher's own, and stays.
METRICS = {
    name: NOW[name]
    for name in (
        *("loss_val_nats", "acc_val", "lr", "grad_norm", "grad_var", "lambda_max", "lambda_max_residual"),
        *("hutch_trace", "psd_tail", "resid_power"),
    )
}
_STANDARD_ERROR = re.compile(r"(fd_(?:norm|directional)_h\d+(?:p\d+)?)_se")


def now(name: str) -> Now:
    """What a column or metric is called now: as it is, if it has no other name."""
    if found := _STANDARD_ERROR.fullmatch(name):
        return Now(f"{found[1]}_standard_error")
    return NOW.get(name, Now(name))


def metric_now(name: str) -> Now:
    """What a metric of a monitor is called now; one of a researcher's own, ``acc_train`` too, as it is."""
    return METRICS.get(name, Now(name))


def as_now(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns or numbers under the names of now, with their values."""
    return {now(name).name: now(name).value(values) for name, values in columns.items()}
