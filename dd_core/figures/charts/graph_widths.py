"""Test and training error of graph networks against width, where test errors are lowest in training and at its end.

Unlike ``double_descent_curve``, which has one epoch for all, it has the best and the last epoch of every trial, so that
trials that stop early are in it.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import outcomes, results_of, width_row
from dd_core.figures.charts.double_descent_curve import headline
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON, Widths
from dd_core.figures.drawing.selection import drawn_arms, shown_variants, tidy
from dd_core.figures.panels.graphs import rules
from dd_core.store.store import Store
from dd_core.study.study import Study

_FEWEST, _HEIGHT = 3, 250
_SPLITS = {"test": style.TEST, "training": style.TRAIN}
_DASHES = {"last epoch": [1, 0], "best epoch": [5, 3]}

_NAMES = {"test": "test", "train": "training"}

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel for each variant with three widths or more."""
    if study.data.graphs is None:
        return None
    _, left_out = drawn_arms(connection, study, "nsm_results")
    by_variant: dict[str, dict[int, list[Row]]] = {}
    for arm, rows in results_of(study, connection).items():
        by_variant.setdefault(study.arms[arm].variant, {})[study.arms[arm].k] = rows
    curves = {variant: by_k for variant, by_k in by_variant.items() if len(by_k) >= _FEWEST}
    if not curves:
        return None
    drawn, others = shown_variants(study, curves)
    found = {variant: widths_of(curves[variant], "last") for variant in drawn}
    panels = {variant: _panel(study, variant, curves[variant], found[variant]) for variant in drawn}
    title = "Test and training error of graph networks against width" + (", by variant" if len(drawn) > 1 else "")
    told = headline(found[drawn[0]], title) if len(drawn) == 1 else title
    return style.finish(
        style.by_variant(panels),
        told if told == title else f"At the last epoch {told[0].lower()}{told[1:]}{_at_best(curves[drawn[0]])}",
        [
            *style.describe(study, drawn),
            "Line: mean over trials; points: trials with 95 % Wilson intervals over their graphs",
            "Test graphs have true labels, training graphs the labels given",
            "Best epoch: that of the lowest validation loss. Level: test errors of always predicting the more frequent "
            "label, and the lowest to be expected; training error with the rule learned, and no wrong label",
            others,
            left_out,
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def widths_of(by_k: Mapping[int, Sequence[Row]], at: str) -> Widths:
    """Mean errors by width at the trials' best or last epochs."""
    rows = [row for k, results in sorted(by_k.items()) for row in width_row(results, k, at)]
    train = {row.k: row.train_error for row in rows if row.train_error == row.train_error}
    return Widths(train, {row.k: row.test_error for row in rows})


def _at_best(by_k: Mapping[int, Sequence[Row]]) -> str:
    """Whether the peak is there at the best epochs, too."""
    best = widths_of(by_k, "best")
    if len(best.test_error) < _FEWEST:
        return ""
    return f"; at the best epoch it peaks at k = {best.peak.k}" if best.peak else "; at the best epoch it has no peak"


def _panel(study: Study, variant: str, by_k: Mapping[int, Sequence[Row]], last: Widths) -> style.Panel:
    ks = sorted(by_k)
    means, points = [], []
    for at in ("last", "best"):
        widths = widths_of(by_k, at)
        for split, errors in (("test", widths.test_error), ("training", widths.train_error)):
            series = {"split": split, "at": f"{at} epoch"}
            means += [series | {"k": k, "error": tidy(error)} for k, error in errors.items()]
            points += [
                series
                | {"k": k, "error": tidy(1 - row["accuracy"]), "trial": row["trial"], "epoch": row["epoch"]}
                | {"low": tidy(1 - row["accuracy_high"]), "high": tidy(1 - row["accuracy_low"])}
                for k, rows in by_k.items()
                for row in rows
                if row["result"] == at and _NAMES.get(row["split"]) == split
            ]
    references = _references(study, {str(k): list(rows) for k, rows in by_k.items()})
    if noise := study.variants[variant].label_noise:
        references[f"wrong labels {style.percent(noise)}"] = noise
    highest = max(*(1 - row["accuracy"] for rows in by_k.values() for row in rows), *references.values())
    ends = (0.0, min(1.0, 1.2 * highest))
    scale, axis = alt.Scale(domain=list(ends), nice=False), alt.Axis(format=".0%", tickCount=6)
    x, y = style.k_axis(ks), alt.Y("error:Q", scale=scale, title="error", axis=axis)
    colour = alt.Color(
        "split:N", scale=alt.Scale(domain=list(_SPLITS), range=list(_SPLITS.values())), legend=style.line_legend()
    )
    dash = alt.StrokeDash(
        "at:N", scale=alt.Scale(domain=list(_DASHES), range=list(_DASHES.values())), legend=style.line_legend()
    )
    label = f"interpolation threshold: k = {last.threshold}\n(training error at most {style.percent(EPSILON)})"
    base = alt.Chart(style.data(means)).encode(x=x, y=y, color=colour)
    tooltip = ["split:N", "at:N", "k:Q", alt.Tooltip("error:Q", format=".1%")]
    layers = [
        *style.threshold_rule(last.threshold, ks, label),
        *rules(references, y, ends, style.WIDTH),
        alt.Chart(style.data(points)).mark_rule(opacity=0.35, clip=True).encode(
            x=x, y=alt.Y("low:Q", scale=scale, title="error", axis=axis), y2="high:Q", color=colour
        ),
        alt.Chart(style.data(points)).mark_circle(size=12, opacity=0.6).encode(
            x=x, y=y, color=colour, tooltip=[*tooltip, "trial:O", "epoch:Q"]
        ),
        base.mark_line(strokeWidth=2).encode(strokeDash=dash),
        base.mark_circle(size=42, opacity=1).encode(tooltip=tooltip),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=style.WIDTH, height=_HEIGHT)


def _references(study: Study, results: Mapping[str, list[Row]]) -> dict[str, float]:
    """Errors that nothing learned and all learned would have, mean over widths, and the share of wrong labels."""
    own = list(outcomes(study, results, "last").values())
    found: dict[str, float] = {}
    if own:
        baseline = statistics.mean(outcome.baseline for outcome in own)
        ceiling = statistics.mean(outcome.ceiling for outcome in own)
        found[f"majority {100 * (1 - baseline):.1f} %"] = tidy(1 - baseline)
        if ceiling == ceiling:
            found[f"lowest {100 * (1 - ceiling):.1f} %"] = tidy(1 - ceiling)
    return found
