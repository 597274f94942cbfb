"""Whether what an image showed during a task tells how much of it is forgotten when new classes come."""

from collections import defaultdict
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.intervals import Estimate, over_trials, signed
from dd_core.analysis.memorization.sentences import PREDICTORS, boundary_sentence, forecasts, predictor_words
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch, tidy
from dd_core.figures.panels.task_lines import COLOURS, main_arms, one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

_PANEL, _FIFTHS, _ROW, _MOST_ARMS = 210, 240, 21, 3
_ROWS = """
    SELECT arm, trial, boundary, predictor, statistic, spearman, quintile_forgetting, num_images FROM rows
    WHERE list_contains($drawn, arm)
    QUALIFY dense_rank() OVER (PARTITION BY arm, trial, boundary ORDER BY until) = 1
    ORDER BY arm, predictor, statistic, boundary, trial
"""

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw rank correlations with forgetting by predictor, and what is forgotten by fifth of each predictor.

    Raises:
        DataMissingError: there are boundaries, but no correlation is defined.
    """
    arms, left_out = drawn_arms(connection, study, "boundary_forgetting")
    if not arms:
        return None
    names, notes = one_width(study, arms, len(arms))
    rows = fetch(connection, study, "boundary_forgetting", _ROWS, drawn=list(names))
    rows = [row for row in rows if row["spearman"] is not None]
    present = {row["arm"] for row in rows}
    known = {arm: name for arm, name in names.items() if arm in present}
    kept, others = main_arms(study, connection, known, _MOST_ARMS)
    shown = {names[arm]: [row for row in rows if row["arm"] == arm] for arm in kept}
    if not shown:
        raise DataMissingError("at no boundary can the change of loss be ordered by what images showed before")
    predictors = [name for name in PREDICTORS if any(row["predictor"] == name for own in shown.values() for row in own)]
    lines = {name: _line(own, predictors) for name, own in shown.items()}
    first, own = next(iter(shown.items()))
    num = len({row["boundary"] for row in own})
    return style.finish(
        style.lines_by_variant(lines),
        boundary_sentence(first, own),
        [
            "Forgetting: change of an image's loss from the end of a task to the first evaluation of the next, classes "
            f"that came before; {num} {'boundary' if num == 1 else 'boundaries'}",
            "Ticks: single boundaries, mean over trials; points: mean over boundaries, 95 % interval over trials "
            "(Student's t). Right: the statistic of each predictor that correlates most",
            *style.describe(study, list(shown)),
            others,
            *notes,
            left_out,
        ],
        characters=96,
    )


def _line(rows: list[Row], present: list[str]) -> alt.HConcatChart:
    """Correlations and quintile curves of one arm."""
    found = forecasts(rows)
    order = [predictor_words(*key) for key in found]
    domain = [PREDICTORS[name] for name in present]
    scale = alt.Scale(domain=domain, range=list(COLOURS[: len(present)]))
    colour = alt.Color("predictor:N", scale=scale, legend=style.line_legend(4))
    means = [
        {
            "predictor": PREDICTORS[predictor], "name": predictor_words(predictor, statistic), "text": signed(own.mean),
            "rho": tidy(own.mean), "low": tidy(own.low), "high": tidy(own.high),
        }
        for (predictor, statistic), own in found.items()
    ]  # fmt: skip
    single: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for row in rows:
        single[row["predictor"], row["statistic"], row["boundary"]].append(row["spearman"])
    points = [
        {
            "predictor": PREDICTORS[key[0]],
            "name": predictor_words(key[0], key[1]),
            "boundary": key[2],
            "rho": tidy(float(np.mean(own))),
        }
        for key, own in single.items()
    ]
    axis = alt.Axis(ticks=False, domain=False, labelLimit=200, labelPadding=8, grid=True)
    y = alt.Y("name:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=axis)
    ends = [row[end] for row in means for end in ("rho", "low", "high") if row[end] is not None]
    ends += [row["rho"] for row in points]
    x_scale = alt.Scale(domain=[max(-1, min([-0.1, *ends]) - 0.03), min(1, max([0.1, *ends]) + 0.03)], nice=False)
    x = alt.X("rho:Q", scale=x_scale, title="\u03c1 with the change of loss", axis=alt.Axis(tickCount=5, format=".1f"))
    tooltip = ["name:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("rho", "low", "high"))]
    base = alt.Chart(style.data(means)).encode(y=y, color=colour)
    known = "isValid(datum.low) && isValid(datum.high)"
    aside = base.mark_text(align="left", fontSize=10).encode(
        x=alt.value(_PANEL + 5), text="text:N", color=alt.value(style.GREY)
    )
    left = alt.layer(
        alt.Chart(style.data([{"rho": 0}])).mark_rule(color="#BBBBBB").encode(x=x),
        alt.Chart(style.data(points)).mark_tick(thickness=1.2, size=9, opacity=0.45).encode(
            x=x, y=y, color=colour, tooltip=["name:N", "boundary:Q", alt.Tooltip("rho:Q", format=".3f")]
        ),
        base.transform_filter(known).mark_rule(strokeWidth=2.5).encode(
            x=alt.X("low:Q", scale=x_scale, title=x["title"]), x2="high:Q"
        ),
        base.mark_circle(size=60, opacity=1).encode(x=x, tooltip=tooltip),
        aside,
        *style.heading(_PANEL, "rank correlation with forgetting"),
    ).properties(width=_PANEL, height=max(_ROW * len(order), 90))  # fmt: skip
    return alt.hconcat(left, _fifths(rows, found, colour, max(_ROW * len(order), 150)), spacing=90)


def _fifths(rows: list[Row], found: dict[tuple[str, str], Estimate], colour: alt.Color, height: int) -> style.Panel:
    """Mean change of loss by fifth of the best statistic of each predictor, with its interval over trials."""
    best: dict[str, str] = {}
    for predictor, statistic in found:
        best.setdefault(predictor, statistic)
    curves = []
    for predictor, statistic in best.items():
        by_trial: dict[int, list[list[float]]] = defaultdict(list)
        for row in rows:
            if (row["predictor"], row["statistic"]) == (predictor, statistic) and row["quintile_forgetting"]:
                by_trial[row["trial"]].append(row["quintile_forgetting"])
        for fifth in range(5):
            own = over_trials(float(np.mean([lists[fifth] for lists in trial])) for trial in by_trial.values())
            low, high = (own.low, own.high) if own.num_trials > 1 else (own.mean, own.mean)
            row = {
                "predictor": PREDICTORS[predictor],
                "name": predictor_words(predictor, statistic),
                "fifth": fifth + 1,
            }
            curves.append(row | {"change": tidy(own.mean), "low": tidy(low), "high": tidy(high)})
    axis = alt.Axis(values=[1, 2, 3, 4, 5], format="d")
    x_scale = alt.Scale(domain=[0.8, 5.2], nice=False)
    x = alt.X("fifth:Q", scale=x_scale, axis=axis, title="fifth of the predictor, lowest first")
    y = alt.Y("change:Q", title="mean change of loss, nats", axis=alt.Axis(tickCount=5), scale=alt.Scale(zero=True))
    base = alt.Chart(style.data(curves)).encode(x=x, color=colour)
    tooltip = ["name:N", "fifth:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("change", "low", "high"))]
    return alt.layer(
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("low:Q", title=y["title"]), y2="high:Q"),
        base.mark_line(strokeWidth=1.8).encode(y=y),
        base.mark_circle(size=45, opacity=1).encode(y=y, tooltip=tooltip),
        *style.heading(_FIFTHS, "what is forgotten"),
    ).properties(width=_FIFTHS, height=height)
