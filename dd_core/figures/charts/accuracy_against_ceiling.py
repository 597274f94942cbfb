"""Test accuracy of graph networks at best and at last epochs, between the majority baseline and the Bayes ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import Outcome, at_best_or_last, headline, name_of, outcomes, results_of, widest_arms
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, tidy
from dd_core.store.store import Store
from dd_core.study.study import Study

_MOST_ROWS, _ROW, _NAMED = 20, 60, 4
_SERIES = {"best": ("best epoch", style.BLUE), "last": ("last epoch", style.VERMILLION)}

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a row for each arm: a bar from baseline to ceiling, and above it every trial with its Wilson interval."""
    if study.data.graphs is None:
        return None
    results = results_of(study, connection)
    found = {at: outcomes(study, results, at) for at in _SERIES}
    at, told = at_best_or_last(study, results)
    if not told:
        return None
    _, left_out = drawn_arms(connection, study, "nsm_results")
    arms = list(told)[:_MOST_ROWS]
    names = {arm: name_of(study, arm) for arm in arms}
    leaks = [names[arm] for arm in arms if any(own[arm].num_leaks for own in found.values() if arm in own)]
    shown = {arm: told[arm] for arm in widest_arms(study, arms)[:_NAMED]}
    return style.finish(
        _panel(names, told, found),
        headline(names, shown, at),
        [
            *style.describe(study, list(dict.fromkeys(study.arms[arm].variant for arm in arms))),
            "Bar: from the majority baseline (grey end) to the Bayes ceiling (black end), the best to be expected",
            "Best epoch: that of the lowest validation loss. Intervals: Wilson's over the graphs, 95 %"
            + ("; thick: of means, at either end the wider of that and of Student's over trials" * (study.trials > 1)),
            f"Above the ceiling by more than chance explains, so that something leaks: {style.listed(leaks)}"
            if leaks
            else None,
            f"The first {_MOST_ROWS} of {len(told)} networks" if len(arms) < len(told) else None,
            left_out,
        ],
        characters=88,
    )


def _panel(
    names: Mapping[str, str], told: Mapping[str, Outcome], found: Mapping[str, Mapping[str, Outcome]]
) -> style.Panel:
    spans = [_span(names[arm], told[arm]) for arm in names]
    marks = [
        row for at, own in found.items() for arm in names if arm in own for row in _marks(names[arm], at, own[arm])
    ]
    ends = _ends([row[name] for row in (*spans, *marks) for name in ("low", "high") if row[name] is not None])
    scale = alt.Scale(domain=ends, nice=False, zero=False)
    title, axis = f"{next(iter(told.values())).split} accuracy", alt.Axis(format=".0%", tickCount=6)
    x, low = (alt.X(f"{name}:Q", scale=scale, title=title, axis=axis) for name in ("value", "low"))
    rows = list(names.values())
    side = alt.Axis(ticks=False, domain=False, labelLimit=220, labelPadding=8)
    y = alt.Y("name:N", sort=rows, scale=alt.Scale(domain=rows), title=None, axis=side)
    colour, shape = _encodings()
    place = alt.YOffset("place:Q", scale=alt.Scale(domain=[0, 1], range=[4, _ROW - 8]))
    bars = alt.Chart(style.data(spans)).encode(y=y)
    base = alt.Chart(style.data(marks)).encode(y=y, color=colour, yOffset=place)
    shown = [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("value", "low", "high")]
    names_shown = [
        "name:N",
        alt.Tooltip("low:Q", format=".1%", title="majority baseline"),
        alt.Tooltip("high:Q", format=".1%", title="Bayes ceiling"),
    ]
    layers = [
        bars.mark_bar(color="#E6E6E6", height=_ROW - 10).encode(x=low, x2="high:Q", tooltip=names_shown),
        bars.mark_tick(color=style.GREY, thickness=2, size=_ROW - 10).encode(x=low),
        bars.mark_tick(color=style.BLACK, thickness=2, size=_ROW - 10).encode(x=alt.X("high:Q", scale=scale)),
    ]
    for is_mean, stroke, size in ((False, 1.2, 16), (True, 2.8, 90)):
        own = base.transform_filter(f"datum.is_mean === {str(is_mean).lower()}")
        tooltip = ["name:N", "series:N", *shown, *([] if is_mean else ["trial:O", "epoch:Q", "collapse:N"])]
        layers += [
            own.mark_rule(strokeWidth=stroke, clip=True).encode(x=low, x2="high:Q"),
            own.mark_point(filled=True, size=size, opacity=1, stroke="white", strokeWidth=0.5).encode(
                x=x, shape=shape, tooltip=tooltip
            ),
        ]
    return alt.layer(*layers).properties(width=430, height=alt.Step(_ROW))


def _span(name: str, outcome: Outcome) -> Row:
    """From baseline to ceiling; an unknown ceiling leaves the baseline alone."""
    return {"name": name, "low": tidy(outcome.baseline), "high": tidy(outcome.ceiling)}


def _marks(name: str, at: str, outcome: Outcome) -> list[Row]:
    """Trials and below them their mean: best epochs in the upper half of a row, last ones in the lower."""
    common = {"name": name, "series": _SERIES[at][0]}
    start, num, mean = 0.5 * (at == "last"), len(outcome.trials), outcome.accuracy
    trials = [
        common | {"value": row["accuracy"], "low": row["accuracy_low"], "high": row["accuracy_high"], "is_mean": False}
        | {"trial": row["trial"], "epoch": row["epoch"], "collapse": row["collapse"]}
        | {"place": start + 0.3 * (i + 0.5) / num}
        for i, row in enumerate(outcome.trials)
        if num > 1
    ]  # fmt: skip
    both = {"value": mean.mean, "low": max(mean.low, 0.0), "high": min(mean.high, 1.0), "is_mean": True}
    place = {"place": start + (0.37 if num > 1 else 0.25)}
    return [{name: tidy(value) for name, value in row.items()} for row in (*trials, common | both | place)]


def _ends(values: Sequence[float]) -> list[float]:
    return [max(min(values) - 0.02, 0.0), min(max(values) + 0.02, 1.01)]


def _encodings() -> tuple[alt.Color, alt.Shape]:
    """Marks of best and last epochs, told apart by shape as well."""
    names, colours = [name for name, _ in _SERIES.values()], [colour for _, colour in _SERIES.values()]
    legend = alt.Legend(title=None, orient="top", columns=2, symbolOpacity=1, symbolSize=80)
    return (
        alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("series:N", scale=alt.Scale(domain=names, range=["diamond", "circle"]), legend=legend),
    )
