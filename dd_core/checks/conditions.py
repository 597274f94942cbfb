"""The tables of metrics and what is asked of their values. All SQL is constant; what varies are its parameters."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dd_core.checks.expected import Course, Expectations
from dd_core.study.study import Study


@dataclass(frozen=True)
class Source:
    """A table, what is asked of its values, and how its rows are spoken of. All SQL is constant.

    Attributes:
        table: name.
        unit: step or epoch, the column by which the rows of a trial and metric are told apart.
        preposition: before the unit, in a sentence.
        metric: SQL of the name of the metric a row is of; of tables with a column for each, a name for all of them.
        sound: the SQL condition on each value, by its name, in which ``{metric}`` stands for the row's.
        parameters: of these conditions.
        due: where a trial must have rows, by metric.
        by_monitors: whether values are those of monitors.
        begin_late: metrics that need no row before their first.
    """

    table: str
    unit: str
    preposition: str
    metric: str
    sound: Mapping[str, str]
    due: Callable[[Course], Mapping[str, np.ndarray]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    by_monitors: bool = False
    begin_late: Collection[str] = ()

    def places(self, course: Course, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and step of the rows at some positions."""
        if self.unit == "epoch":
            return positions, course.steps_at(positions)
        return course.epoch_of(positions), positions


def sources(study: Study, expected: Expectations) -> list[Source]:
    """The tables of metrics."""
    every_batch, every_evaluation = "every metric of training_batches", "every metric of training_evals"
    batches = Source(
        "training_batches",
        "step",
        "at",
        f"'{every_batch}'",
        {
            "train_error": _fraction("train_error"),
            "time": _finite("time", "> 0"),
            **{name: _not_negative(name) for name in ("train_loss", "learning_rate", "weight_decay")},
        },
        lambda course: {every_batch: expected.batches(course)},
    )
    monitors = Source(
        "training_monitors",
        "step",
        "after",
        "metric",
        {
            "{metric}": "isfinite(value) AND CASE "
            "WHEN metric IN ('validation_error', 'dormant_units') THEN value BETWEEN 0 AND 1 "
            "WHEN metric IN ('validation_loss', 'gradient_norm', 'weight_norm', 'largest_eigenvalue_residual', "
            "'spectral_density_tail', 'gradient_variance', 'residual_power', 'effective_rank', 'stable_rank') "
            "THEN value >= 0 ELSE true END",
            "standard_error of {metric}": f"standard_error IS NULL OR isnan(standard_error) OR "
            f"({_not_negative('standard_error')})",
        },
        expected.monitors,
        by_monitors=True,
        begin_late=expected.custom,
    )
    conditions, parameters = _evaluation_conditions(study)
    evaluations = Source(
        "training_evals",
        "epoch",
        "at",
        f"'{every_evaluation}'",
        conditions,
        lambda course: {every_evaluation: expected.evaluations(course)},
        parameters,
    )
    return [batches, monitors, evaluations]


def _finite(column: str, more: str) -> str:
    # A comparison alone is not enough: DuckDB may decide it from a file's statistics, which leave NaN out.
    return f"isfinite({column}) AND {column} {more}"


_not_negative = partial(_finite, more=">= 0")
_fraction = partial(_finite, more="BETWEEN 0 AND 1")


def _evaluation_conditions(study: Study) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Metrics of images that a variant lacks are null, or NaN in files of earlier versions."""
    variants, num_train, num_left_out = list(study.variants), study.num_train_images, study.num_left_out_images
    # Of a random subset all may be left out, so that a trial may lack what another has.
    num_noisy = {
        name: round(variant.label_noise * (num_train + num_left_out)) for name, variant in study.variants.items()
    }
    # A copy has the label of its source, right or wrong.
    num_copies = study.data.duplicates.exact + study.data.duplicates.near if study.data.duplicates else 0
    lacking = {
        "clean": [name for name in variants if num_noisy[name] + num_copies >= num_train],
        "noisy": [name for name in variants if num_noisy[name] <= num_left_out + num_copies],
        "val": variants if study.data.num_validation == 0 else [],
        "test": variants if study.num_test_images == 0 else [],
    }
    columns = {
        "clean": ("train_error_clean", "train_loss_clean"),
        "noisy": ("train_error_noisy", "train_loss_noisy"),
        "val": ("validation_error", "validation_loss"),
        "test": ("test_error", "test_loss"),
    }
    conditions = {"train_error": _fraction("train_error"), "train_loss": _not_negative("train_loss")}
    for images, (fraction, loss) in columns.items():
        for name, sound in ((fraction, _fraction(fraction)), (loss, _not_negative(loss))):
            is_absent = f"list_contains($lacking_{images}::VARCHAR[], variant) AND coalesce(isnan({name}), true)"
            conditions[name] = f"({is_absent}) OR ({sound})"
    return conditions, {f"lacking_{images}": names for images, names in lacking.items()}
