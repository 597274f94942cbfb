"""What a study has found so far, as text."""

import math

from dd_core.analysis.double_descent import (
    LEAST_RISE,
    Finding,
    WidthRow,
    find_double_descent,
    fold,
    percent,
    width_curves,
)
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted


def curve_table(rows: list[WidthRow], names: list[str] | None = None) -> str:
    """The curve as aligned text; errors in %, standard deviation over trials in brackets.

    ``names``: of the rows, where they are of several variants.
    """
    longest = max(map(len, names)) + 2 if names else 0
    lines = [" " * longest + "    k   train error   test error (sd)   train loss   test loss   mean curvature"]
    for name, row in zip(names or [""] * len(rows), rows, strict=True):
        spread = "      " if math.isnan(row.test_error_std) else f"({100 * row.test_error_std:4.1f})"
        trace = "             -" if math.isnan(row.mean_trace) else f"{row.mean_trace:14.3f}"
        lines.append(
            f"{name:{longest}}{row.k:5d} {100 * row.train_error:11.1f} % {100 * row.test_error:9.1f} % {spread} "
            f"{row.train_loss:12.3f} {row.test_loss:11.3f} {trace}"
        )
    return "\n".join(lines)


def sentence(finding: Finding, trials: int) -> str:
    """The finding in words and figures."""
    low, peak, wide = finding.first_minimum, finding.peak, finding.widest
    if min(finding.rise, finding.fall) < LEAST_RISE:
        ends = f"{percent(low.test_error)} at k = {low.k} to {percent(wide.test_error)} at k = {wide.k}"
        return f"No double descent: the test error goes from {ends}."
    text = (
        f"Test error (mean of {counted(trials, 'trial')}) falls to {percent(low.test_error)} at "
        f"k = {low.k}, rises to {percent(peak.test_error)} at k = {peak.k}, where the training error has come down "
        f"to {percent(peak.train_error)}, and falls again to {percent(wide.test_error)} at k = {wide.k}"
    )
    if finding.curvature_peak is not None:
        top, fall = finding.curvature_peak, fold(math.log10(finding.curvature_fall))
        text += f"; mean input curvature peaks at k = {top.k} ({top.mean_trace:.1f}) and falls {fall} to k = {wide.k}"
    return text + "."


def report(store: Store, study: Study) -> tuple[str, dict[str, list[WidthRow]]]:
    """Curve and finding of every variant.

    Returns:
        The text, and each variant's curve.
    """
    found = width_curves(store, study)
    curves = {variant: rows for variant, (_, rows) in found.items()}
    parts = []
    points: dict[int, dict[str, WidthRow]] = {}  # by epoch, of variants with one width: a grid has many
    for variant, (epoch, rows) in found.items():
        if not rows:
            parts.append(f"{variant}: nothing trained yet")
        elif len(rows) == 1 and len(study.variants) > 1:
            points.setdefault(epoch, {})[variant] = rows[0]
        else:
            parts += [f"{study.name}, {variant}, epoch {epoch}:", curve_table(rows)]
            finding = find_double_descent(rows)
            if finding is not None:
                parts.append(sentence(finding, rows[0].trials))
    for epoch, of_variants in points.items():
        parts += [f"{study.name}, epoch {epoch}:", curve_table(list(of_variants.values()), list(of_variants))]
    return "\n".join(parts), curves
