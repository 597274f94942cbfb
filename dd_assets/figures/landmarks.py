"""Where a curve over widths has its threshold and its peak. Pure functions, and the query they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from dd_assets.figures.selection import Selection, fetch
from dd_core.studies import Study

# Nakkiran et al. 2019, Definition 1: the effective model complexity of a training procedure is the largest number of
# samples on which its expected training error is at most epsilon; they take epsilon = 0.1.
EPSILON = 0.1


@dataclass(frozen=True)
class Peak:
    """An interior maximum of a curve over widths, with the lowest values to its left and right."""

    k: int
    value: float
    k_before: int
    before: float
    k_after: int
    after: float


@dataclass(frozen=True)
class Widths:
    """Means over trials of one variant at one epoch.

    Attributes:
        train_error: given labels, fraction, by k.
        test_error: fraction, by k.
    """

    train_error: dict[int, float]
    test_error: dict[int, float]

    @property
    def threshold(self) -> int | None:
        """The interpolation threshold."""
        return threshold(self.train_error)

    @property
    def peak(self) -> Peak | None:
        """The peak of the test error."""
        return peak(self.test_error)

    @property
    def key_k(self) -> int:
        """The width worth a closer look: the threshold, else the peak of the test error, else the widest."""
        if self.threshold is not None:
            return self.threshold
        return self.peak.k if self.peak else max(self.test_error)


def threshold(train_error: Mapping[int, float]) -> int | None:
    """The interpolation threshold: the smallest k whose mean training error is at most ``EPSILON``.

    At that width the effective model complexity (Nakkiran et al. 2019, Definition 1, epsilon = 0.1) has reached the
    number of training images. The error is that of the whole training set against the labels as given, wrong ones
    included, without augmentation, averaged over trials at one epoch.

    Args:
        train_error: fraction, by k.

    Returns:
        k, or None if no width fits its labels.
    """
    return min((k for k, error in train_error.items() if error <= EPSILON), default=None)


def peak(values: Mapping[int, float], least: float = 0.01) -> Peak | None:
    """The most prominent interior maximum of a curve over k.

    Args:
        values: by k.
        least: by how much the curve must rise before the peak and fall after it.

    Returns:
        The k for which the smaller of rise and fall is largest, or None if the curve has no such peak.
    """
    ks = sorted(values)
    found: list[tuple[float, Peak]] = []
    for i, k in enumerate(ks[1:-1], start=1):
        before, after = min(ks[:i], key=values.__getitem__), min(ks[i + 1 :], key=values.__getitem__)
        prominence = values[k] - max(values[before], values[after])
        if prominence >= least:
            found.append((prominence, Peak(k, values[k], before, values[before], after, values[after])))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def errors_by_width(
    connection: duckdb.DuckDBPyConnection, study: Study, selection: Selection, epoch: int | None = None
) -> dict[str, Widths]:
    """Mean training and test error of the selected arms, by variant.

    Args:
        connection: has the views.
        study: what to read.
        selection: the arms.
        epoch: default, the selection's.
    """
    rows: Sequence[dict[str, Any]] = fetch(
        connection,
        study,
        "training_evals",
        """SELECT variant, k, avg(train_error) AS train_error, avg(test_error) AS test_error FROM rows
           WHERE epoch = $epoch AND list_contains($drawn, arm) GROUP BY variant, k ORDER BY variant, k""",
        epoch=selection.epoch if epoch is None else epoch,
        drawn=list(selection.arms),
    )
    usable = [row for row in rows if row["train_error"] is not None and row["test_error"] is not None]
    return {
        variant: Widths(
            {row["k"]: row["train_error"] for row in usable if row["variant"] == variant},
            {row["k"]: row["test_error"] for row in usable if row["variant"] == variant},
        )
        for variant in study.variants
        if any(row["variant"] == variant for row in usable)
    }
