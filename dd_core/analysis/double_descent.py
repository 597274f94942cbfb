"""The double descent of a study in numbers: the curve over widths, its peak, and whether it is really there.

What terminal, report and figures say of a rise and a fall is computed here: a fall is that from the peak to the widest
network, not to whichever of the wider ones happens to be best.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

# An error that rises or falls by less than one point has no peak; nor a curvature by less than a tenth of a decade.
LEAST_RISE, LEAST_DECADES = 0.01, 0.1


@dataclass(frozen=True)
class Peak:
    """An interior maximum of a curve over widths, with the lowest value to its left and the value at the widest."""

    k: int
    value: float
    k_before: int
    before: float
    k_after: int
    after: float

    @property
    def prominence(self) -> float:
        """The smaller of rise and fall; negative where there is none of both."""
        return self.value - max(self.before, self.after)


def peak(values: Mapping[int, float], least: float = LEAST_RISE) -> Peak | None:
    """The most prominent interior maximum of a curve over k.

    Args:
        values: by k.
        least: by how much the curve must rise before the peak, and fall from it to the widest network.

    Returns:
        The k for which the smaller of rise and fall is largest, or None if the curve has no such peak.
    """
    ks = sorted(values)
    found = []
    for i, k in enumerate(ks[1:-1], start=1):
        before = min(ks[:i], key=values.__getitem__)
        found.append(Peak(k, values[k], before, values[before], ks[-1], values[ks[-1]]))
    best = max(found, key=lambda each: each.prominence, default=None)
    return best if best is not None and best.prominence >= least else None


def curvature_peak(values: Mapping[int, float]) -> Peak | None:
    """The peak of a curvature over k, in decades: it spans many.

    Args:
        values: by k; what is not positive has no logarithm and is left out.
    """
    return peak({k: math.log10(value) for k, value in values.items() if value > 0}, LEAST_DECADES)


def percent(error: float) -> str:
    """An error in words: ``20.7 %``."""
    return f"{100 * error:.1f} %"


def fold(decades: float) -> str:
    """A ratio in words: ``166-fold``, ``1.57-fold``."""
    return f"{float(f'{10**decades:.3g}'):,.12g}-fold"


@dataclass(frozen=True)
class WidthRow:
    """Means over trials at one width; errors as fractions, NaN where unknown.

    Attributes:
        k: width multiplier.
        trials: number of trials.
        train_error, train_loss, test_error, test_loss: means over trials.
        test_error_std: standard deviation over trials (n - 1), NaN for one trial.
        mean_trace: mean input curvature over images and trials, NaN if not computed.
    """

    k: int
    trials: int
    train_error: float
    train_loss: float
    test_error: float
    test_error_std: float
    test_loss: float
    mean_trace: float


_CURVES = """
    SELECT variant, epoch, k, count(*), avg(train_error), avg(train_loss), avg(test_error), stddev_samp(test_error),
        avg(test_loss), any_value(mean_trace)
    FROM training_evals
    LEFT JOIN (
        SELECT study, arm, epoch, avg(mean_trace) AS mean_trace FROM curvature WHERE subset = 'all' GROUP BY ALL
    ) USING (study, arm, epoch)
    WHERE study = $study AND (arm, epoch) IN (SELECT unnest($arms), unnest($epochs))
    GROUP BY variant, epoch, k ORDER BY k
"""


def width_curves(store: Store, study: Study) -> dict[str, tuple[int, list[WidthRow]]]:
    """The curve of every variant at the latest checkpoint epoch that all of its trained widths have.

    Returns:
        By variant that epoch and one row per width, or ``(0, [])`` if nothing is trained.
    """
    epochs: dict[str, dict[str, set[int]]] = {variant: {} for variant in study.variants}
    for checkpoint in trained_checkpoints(store, study):
        epochs[checkpoint.arm.variant].setdefault(checkpoint.arm.key, set()).add(checkpoint.epoch)
    latest = {v: max(set.intersection(*own.values()), default=0) if own else 0 for v, own in epochs.items()}
    curves: dict[str, tuple[int, list[WidthRow]]] = {variant: (epoch, []) for variant, epoch in latest.items()}
    asked = [(arm, latest[variant]) for variant, own in epochs.items() if latest[variant] for arm in own]
    if not asked:
        return curves
    arms, at = zip(*asked, strict=True)
    tables, within = ("curvature", "training_evals"), (study.name,)
    with contextlib.closing(connect(store, tables, within=within, epochs=set(at))) as connection:
        found = connection.execute(_CURVES, {"study": study.name, "arms": arms, "epochs": at}).fetchall()
    names = ("train_error", "train_loss", "test_error", "test_error_std", "test_loss", "mean_trace")
    for variant, _, k, trials, *values in found:
        numbers = (math.nan if value is None else value for value in values)
        curves[variant][1].append(WidthRow(k, trials, **dict(zip(names, numbers, strict=True))))
    return curves


@dataclass(frozen=True)
class Finding:
    """What the curve shows.

    Attributes:
        first_minimum: the width left of the peak with the smallest test error.
        peak: the width with the largest test error right of the narrowest minimum, before the widest.
        widest: the widest network.
        rise: test error at the peak minus that at the first minimum, fraction.
        fall: test error at the peak minus that at the widest, fraction.
        curvature_peak: the width at which mean curvature peaks, None if it has no peak or is unknown.
        curvature_fall: mean curvature there over that of the widest network, NaN without a peak.
    """

    first_minimum: WidthRow
    peak: WidthRow
    widest: WidthRow
    rise: float
    fall: float
    curvature_peak: WidthRow | None
    curvature_fall: float


def find_double_descent(rows: list[WidthRow]) -> Finding | None:
    """Locate minimum, peak and second descent; None for fewer than three widths with a test error.

    The peak is the interior width with the largest drop on both sides: it maximises min(rise, fall), where rise is
    counted from the smallest error at narrower widths. A monotone curve yields a rise or fall of at most 0.
    """
    by_k = {row.k: row for row in rows if not math.isnan(row.test_error)}
    top = peak({k: row.test_error for k, row in by_k.items()}, -math.inf)
    if top is None:
        return None
    curvature = curvature_peak({row.k: row.mean_trace for row in by_k.values() if not math.isnan(row.mean_trace)})
    return Finding(
        first_minimum=by_k[top.k_before],
        peak=by_k[top.k],
        widest=by_k[top.k_after],
        rise=top.value - top.before,
        fall=top.value - top.after,
        curvature_peak=None if curvature is None else by_k[curvature.k],
        curvature_fall=math.nan if curvature is None else 10 ** (curvature.value - curvature.after),
    )


def quickstart_check(rows: list[WidthRow]) -> tuple[bool, str]:
    """The regression check of the quickstart study on a two-trial mean: rise, fall and train error.

    Rise from k = 2 to the larger error of k = 4 and 6, and fall from there to the widest network, at least 3 points
    each; train error below 1 % from k = 6 on. Means of six trials rise by 6.9 points and fall by 6.8.
    """
    error = {row.k: 100 * row.test_error for row in rows}
    needed = {2, 4, 6, 12}
    if not needed <= set(error):
        return False, f"check: not possible, widths {sorted(needed - set(error))} are not trained"
    top = max(error[k] for k in (4, 6))
    rise = top - error[2]
    fall = top - error[max(error)]
    train = max(100 * row.train_error for row in rows if row.k >= 6)
    passed = rise >= 3 and fall >= 3 and train < 1
    text = (
        f"check: rise {rise:.1f} points (at least 3), fall {fall:.1f} points (at least 3), "
        f"largest train error at k >= 6 {train:.2f} % (below 1): {'passed' if passed else 'FAILED'}"
    )
    return passed, text
