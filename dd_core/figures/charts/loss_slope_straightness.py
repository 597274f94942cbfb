"""H1: which share of the loss curves is one straight line after burn-in, and what R^2 does not see of them."""

import math
from collections import Counter
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.loss_slopes.hypotheses import H1, StraightRuns, answer_h1
from dd_core.analysis.loss_slopes.knee import DECISIVE
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.panels.family_rows import BOX, family_rows, height
from dd_core.figures.panels.loss_slopes import Runs, read_runs
from dd_core.store.store import Store
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.study.study import Study
from dd_core.words import counted

_BINS = 30
_PANEL, _HEIGHT, _ALTERNATIVE = 340, 190, 190
_ALTERNATIVES = {
    "delta_aic_two_power": "two power laws",
    "delta_aic_offset": "power law with offset",
    "delta_aic_exponential": "exponential",
}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the histogram of R^2 and the share of straight runs by family, and below them differences of AICc.

    Raises:
        DataMissingError: there are runs, but none was fitted.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    straight = runs.having("r_squared")
    if not straight:
        raise DataMissingError(f"no run has an R\u00b2; {runs.endings()}")
    settings = study.loss_slopes
    answer = answer_h1(runs.campaign, settings)
    edges = bin_edges([row["r_squared"] for row in straight], settings.straight_r_squared)
    top = alt.hconcat(_histogram(runs, straight, edges, settings), _shares(runs, answer, settings), spacing=70)
    models = [name for name in _ALTERNATIVES if runs.having(name)]
    rows = [top]
    if models:
        below = [_differences(runs, name, first=i == 0) for i, name in enumerate(models)]
        rows.append(alt.hconcat(*below, spacing=64))
    low = sum(row["r_squared"] < edges[0] for row in straight)
    return style.finish(
        alt.vconcat(*rows, spacing=44).resolve_scale(color="independent"),
        headline(answer),
        [
            *unseen(answer),
            f"First bar: {counted(low, 'run')} with R\u00b2 below {edges[0]:.3g}" if low else None,
            f"Shares: of all runs, those without a fit included; bars: Wilson's 95 % intervals. {BOX}",
            "AICc by effective sample size; grey diamonds: medians when correlated points count as independent"
            if models
            else None,
            *runs.describe(study),
        ],
        characters=100,
    )  # fmt: skip


def bin_edges(values: list[float], threshold: float) -> np.ndarray:
    """Edges of ``_BINS`` equal bins up to 1, one of them at the threshold, that hold nineteen in twenty values."""
    lowest = float(np.quantile(values, 0.05))
    above = next((num for num in (15, 10, 6, 5, 3, 2) if 1 - _BINS * (1 - threshold) / num <= lowest), 1)
    first = max(1 - _BINS * (1 - threshold) / above, 0.0)
    return np.linspace(first, 1, _BINS + 1)


def headline(answer: H1) -> str:
    """The share of straight runs with its interval, and what that says about the shares that were asked for."""
    runs = answer.pooled
    verb = "is" if runs.num_straight == 1 else "are"
    sentence = (
        f"{runs.num_straight} of {counted(runs.num_runs, 'run')} ({_percent(runs)}) {verb} one straight line after "
        f"burn-in (R\u00b2 \u2265 {answer.threshold:g})"
    )
    met = {"yes": "is met", "no": "is not met"}
    by_verdict: dict[str, list[str]] = {}
    for share, verdict in answer.verdicts.items():
        by_verdict.setdefault(met.get(verdict, "is undecided"), []).append(f"{100 * share:g} %")
    asked = [f"H1 {words} for more than {' and '.join(shares)}" for words, shares in by_verdict.items()]
    return "; ".join([sentence, *asked])


def _percent(runs: StraightRuns) -> str:
    if runs.share is None or runs.interval is None:
        return "no share"
    low, high = (100 * end for end in runs.interval)
    return f"{100 * runs.share:.0f} %, 95 % interval {low:.0f} to {high:.0f} %"


def unseen(answer: H1) -> list[str | None]:
    """Lines about seeds that share a configuration, and about what R^2 does not see in straight runs."""
    runs, seen = answer.pooled, []
    if runs.clustered is not None and runs.clustered[0] < runs.clustered[1]:
        low, high = (100 * end for end in runs.clustered)
        seen.append(f"As seeds of one configuration are no independent runs, the interval is {low:.0f} to {high:.0f} %")
    if runs.share_of_fitted is not None and runs.num_fitted < runs.num_runs:
        seen.append(f"of the {runs.num_fitted} fitted runs {style.percent(runs.share_of_fitted)} are straight")
    hidden = [
        f"{style.percent(share) if share else 'none'} {what}"
        for share, what in (
            (answer.straight_but_bent, "are fitted decisively better by two power laws"),
            (answer.straight_but_exponential, "by an exponential"),
            (answer.straight_but_correlated, "have neighbouring residuals that correlate by more than 0.3"),
            (answer.straight_but_not_normal, "have residuals that are not normal (Q-Q below 0.98)"),
        )
        if share is not None
    ]
    first = "; ".join(seen)
    return [
        f"{first[0].upper()}{first[1:]}" if first else None,
        f"What R\u00b2 does not see: of the straight runs {style.listed(hidden)}" if hidden else None,
    ]


def _histogram(runs: Runs, rows: list[dict[str, Any]], edges: np.ndarray, settings: LossSlopeSettings) -> style.Panel:
    """Runs by R^2, families on each other."""
    position = np.clip(np.searchsorted(edges, [row["r_squared"] for row in rows], side="right") - 1, 0, _BINS - 1)
    counts = Counter(zip(position.tolist(), (row["family"] for row in rows), strict=True))
    sums: Counter[int] = Counter()
    bars = []
    for family in runs.families:
        for place in range(_BINS):
            if num := counts[place, family]:
                ends = {"low": float(edges[place]), "high": float(edges[place + 1])}
                bars.append({"family": family, "runs": num, "from": sums[place], "to": sums[place] + num, **ends})
                sums[place] += num
    scale = alt.Scale(domain=[float(edges[0]), 1], nice=False)
    x = alt.X(
        "low:Q",
        scale=scale,
        title="R\u00b2 of one straight line in log-log axes",
        axis=alt.Axis(format=".3~g", tickCount=6),
    )
    most = max(sums.values())
    axis = alt.Axis(values=list(range(0, most + 1, max(most // 5, 1))), format="d")
    y = alt.Y("from:Q", title="runs", axis=axis, scale=alt.Scale(domain=[0, 1.12 * most]))
    tooltip = ["family:N", "runs:Q", alt.Tooltip("low:Q", format=".4f"), alt.Tooltip("high:Q", format=".4f")]
    base = alt.Chart(style.data(bars)).mark_bar(stroke="white", strokeWidth=0.5)
    rule = alt.Chart(style.data([{"low": settings.straight_r_squared}])).encode(x=x)
    text = rule.mark_text(align="right", dx=-5, baseline="top", fontSize=11, color=style.GREY)
    return alt.layer(
        base.encode(x=x, x2="high:Q", y=y, y2="to:Q", color=runs.colour(rows), tooltip=tooltip),
        rule.mark_rule(color="black", strokeDash=[4, 3], strokeWidth=1.2),
        text.encode(y=alt.value(2), text=alt.value(f"{settings.straight_r_squared:g}")),
    ).properties(width=_PANEL, height=_HEIGHT)


def _shares(runs: Runs, answer: H1, settings: LossSlopeSettings) -> style.Panel:
    """The share of straight runs with its interval: all, and each family."""
    named = {"all runs": answer.pooled, **{name: answer.by_family[name] for name in runs.families}}
    if len(runs.families) == 1:
        named = {runs.families[0]: answer.pooled}
    rows = [
        {
            "name": name, "share": 100 * own.share, "low": 100 * own.interval[0], "high": 100 * own.interval[1],
            "text": f"{own.num_straight} of {own.num_runs}", "pooled": name == "all runs",
        }
        for name, own in named.items()
        if own.share is not None and own.interval is not None
    ]  # fmt: skip
    axis = alt.Axis(ticks=False, domain=False, labelLimit=200, labelPadding=8)
    y = alt.Y("name:N", sort=list(named), title=None, axis=axis)
    scale = alt.Scale(domain=[0, 100])
    x = alt.X("share:Q", scale=scale, title=f"runs with R\u00b2 \u2265 {settings.straight_r_squared:g}, %")
    asked = alt.Chart(style.data([{"share": 100 * share} for share in settings.straight_shares]))
    base = alt.Chart(style.data(rows)).encode(y=y)
    tooltip = ["name:N", *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("share", "low", "high"))]
    aside = base.mark_text(align="left", fontSize=10, color=style.GREY)
    width = 230
    return alt.layer(
        asked.mark_rule(color=style.GREY, strokeDash=[4, 3], strokeWidth=1.2).encode(x=x),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        base.mark_circle(size=60, opacity=1, color="black").encode(x=x, tooltip=tooltip),
        aside.encode(x=alt.value(width + 5), text="text:N"),
        *style.heading(width, "share of straight runs"),
    ).properties(width=width, height=max(30 * len(rows), _HEIGHT))


def _differences(runs: Runs, name: str, *, first: bool) -> style.Panel:
    """AICc of an alternative minus that of the power law, a row per family."""
    rows = [{"family": row["family"], "run": row["run"], "value": row[name]} for row in runs.having(name)]
    plain = runs.having(f"{name}_plain")
    medians = [
        {"family": family, "value": float(np.median(own))}
        for family in runs.families
        if (own := [row[f"{name}_plain"] for row in plain if row["family"] == family])
    ]
    values = [row["value"] for row in (*rows, *medians)]
    scale, axis = symlog(values)
    x = alt.X("value:Q", scale=scale, axis=axis, title="AICc minus that of one power law")
    zero = alt.Chart(style.data([{"value": 0}])).mark_rule(color=style.GREY, strokeDash=[4, 3]).encode(x=x)
    better = {
        family: f"{sum(value < -DECISIVE for value in own)} of {len(own)}"
        for family in runs.families
        if (own := [row["value"] for row in rows if row["family"] == family])
    }
    y = runs.family_axis(runs.fitted, labels=first)
    tooltip = ["family:N", alt.Tooltip("value:Q", format=".3g", title="median, points as independent")]
    diamonds = alt.Chart(style.data(medians)).mark_point(
        shape="diamond", size=70, filled=True, opacity=1, color="#8A8A8A", stroke="white", strokeWidth=0.8
    ).encode(x=x, y=y, tooltip=tooltip)  # fmt: skip
    layers = family_rows(runs, rows, x, _ALTERNATIVE, labels=first, right=("better:", better), below=[zero])
    above = style.heading(_ALTERNATIVE, _ALTERNATIVES[name])
    return alt.layer(*layers, diamonds, *above).properties(width=_ALTERNATIVE, height=height(runs))


def symlog(values: list[float]) -> tuple[alt.Scale, alt.Axis]:
    """A scale for differences of either sign over some decades, linear within \u00b110, and few ticks."""
    most = max(abs(value) for value in values)
    last = max(math.ceil(math.log10(max(most, 1))), 1)
    steps = [10**power for power in range(1, last + 1, 1 if last < 4 else 2)]
    ticks = [*(-step for step in reversed(steps)), 0, *steps]
    low, high = min(*values, -10) * 1.3, max(*values, 10) * 1.3
    kept = [tick for tick in ticks if low <= tick <= high]
    axis = alt.Axis(values=kept, format=",d", labelOverlap="greedy")
    return alt.Scale(type="symlog", constant=10, domain=[low, high], nice=False), axis
