"""The widths that matter: the threshold, the peak, those drawn for all. Pure functions, and the query they need."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from dd_core.analysis.double_descent import Peak, peak
from dd_core.figures.drawing.selection import Selection, fetch
from dd_core.study.study import Arm, Study

# Nakkiran et al. 2019, Definition 1: the effective model complexity of a training procedure is the largest number of
# samples on which its expected training error is at most epsilon; they take epsilon = 0.1.
EPSILON = 0.1


@dataclass(frozen=True)
class Widths:
    """Means over trials of one variant at one epoch.

    Attributes:
        train_error: given labels, fraction, by k; of imported studies perhaps of no or few widths.
        test_error: fraction, by k, likewise.
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
        return self.peak.k if self.peak else max(self.test_error or self.train_error)


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


def shown_widths(ks: Sequence[int], threshold: int | None) -> dict[int, str]:
    """The widths that stand for all in figures with one panel for each, and what they are.

    Args:
        ks: the widths that have data.
        threshold: the interpolation threshold. If it is none of ``ks``, the nearest one between the ends (by ratio)
            takes its place.

    Returns:
        At most three widths, ascending, with ``narrowest``, ``threshold`` (``near the threshold``) or ``widest``.
    """
    if len(ks) == 1:
        return {ks[0]: "threshold" if ks[0] == threshold else "the only width"}
    names = {min(ks): "narrowest", max(ks): "widest"}
    if threshold is not None:
        between = [k for k in ks if k not in names]
        if threshold in ks:
            names[threshold] = "threshold"
        elif between:
            names[nearest(between, threshold)] = "near the threshold"
    return dict(sorted(names.items()))


def nearest(ks: Sequence[int], k: int) -> int:
    """Which of some widths has the ratio nearest to 1 to a given one; of two, the narrower."""
    return min(sorted(ks), key=lambda other: abs(math.log(other / k)))


def key_arm(study: Study, arms: Sequence[str], widths: Mapping[str, Widths]) -> Arm:
    """The arm worth a closer look: ``Widths.key_k`` of the first variant with wrong labels, or else the first variant.

    Args:
        study: has the arms.
        arms: keys of those that have data, at least one.
        widths: errors by variant; a variant without them is looked at where it is widest.
    """
    drawn = [study.arms[key] for key in arms]
    variants = list(dict.fromkeys(arm.variant for arm in drawn))
    variant = next((name for name in variants if study.variants[name].label_noise > 0), variants[0])
    ks = [arm.k for arm in drawn if arm.variant == variant]
    return Arm(variant, nearest(ks, widths[variant].key_k) if variant in widths else max(ks))


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
    found = {}
    for variant in study.variants:
        train, test = (
            {row["k"]: row[name] for row in rows if row["variant"] == variant and row[name] is not None}
            for name in ("train_error", "test_error")
        )
        if train or test:
            found[variant] = Widths(train, test)
    return found
