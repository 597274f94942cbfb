"""Whether a network that learns one task after the other keeps its ability to learn, and what its units do."""

from collections import defaultdict
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.intervals import difference, over_trials
from dd_core.analysis.plasticity import Newest, begins_anew, newest_classes, plasticity_headline, reference_of
from dd_core.errors import DataMissingError
from dd_core.figures.charts.training_curves import thin
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch, has_view, tidy
from dd_core.figures.panels.task_lines import MOST_BANDS, band, boundaries, epoch_axis, one_width, series_colour
from dd_core.store.store import Store
from dd_core.study.study import Study

_WIDTH, _HEIGHT, _MOST_STEPS, _FEW = 300, 165, 120, 30
_METRICS = {
    "dormant_units": ("dormant units", "share of hidden units", ".0%"),
    "effective_rank": ("effective rank of features", "exp(entropy)", "~g"),
    "stable_rank": ("stable rank of features", "singular values for 99 %", "~g"),
}
_VALUES = """
    SELECT arm, trial, metric, step, value FROM rows
    WHERE list_contains($drawn, arm) AND list_contains($metrics, metric) AND isfinite(value) AND step IS NOT NULL
    ORDER BY arm, metric, step, trial
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw accuracy on the newest classes by task, and below and beside it what the plasticity monitor measured.

    Raises:
        DataMissingError: there is progress by class, but none at the end of a task.
    """
    if study.data.classes is None or not has_view(connection, "class_progress"):
        return None
    arms, left_out = drawn_arms(connection, study, "class_progress")
    if not arms:
        return None
    newest = newest_classes(study, connection)
    if not newest:
        raise DataMissingError("no task has ended yet with a checkpoint at its last epoch")
    names, notes = one_width(study, newest)
    shown = {arm: newest[arm] for arm in names}
    colour = series_colour(list(names.values()))
    monitored = _monitored(study, connection, names)
    panels = [_newest(shown, names, colour)]
    if len(shown) > 1:
        panels.append(_differences(shown, names, reference_of(study, shown), colour))
    panels += [_monitor(study, monitored[metric], metric, colour) for metric in _METRICS if metric in monitored]
    fresh = [name for name in names.values() if begins_anew(study.variants[name])]
    return style.finish(
        alt.concat(*panels, columns=style.columns_for(len(panels), 2), spacing={"column": 40, "row": 40}),
        plasticity_headline(study, shown),
        [
            "Newest classes: those that the task added, told from all classes seen, right at its end. "
            + (
                f"{fresh[0]} begins anew with every task: what a network without a past can learn"
                if fresh
                else "As further tasks have more classes to tell apart, a fall alone is no loss of plasticity"
            ),
            "Line: mean over trials"
            + ("; band: its" if len(shown) <= MOST_BANDS else "; bars: differences, trials paired, with the")
            + " 95 % interval (Student's t). Dashed: a task ends",
            *style.describe(study, list(names.values())),
            None if monitored else "Without plasticity monitors: dormant units and ranks were not measured",
            *notes,
            left_out,
        ],
        characters=96,
    )


def _newest(shown: dict[str, Newest], names: dict[str, str], colour: alt.Color) -> style.Panel:
    """Accuracy on the newest classes by task."""
    rows: list[dict[str, Any]] = []
    for arm, newest in shown.items():
        for task in newest.tasks:
            own = newest.at(task)
            ends = (own.low, own.high) if own.num_trials > 1 else (own.mean, own.mean)
            low, high = max(ends[0], 0.0), min(ends[1], 1.0)
            rows.append({"series": names[arm], "task": task, "value": own.mean, "low": low, "high": high})
    split = next(iter(shown.values())).split
    rows = [{name: tidy(value) for name, value in row.items()} for row in rows]
    last = max(row["task"] for row in rows)
    ticks = list(range(1, last + 1, -(-last // 10)))
    x = alt.X(
        "task:Q", scale=alt.Scale(domain=[1, max(last, 2)]), axis=alt.Axis(values=ticks, format="d"), title="task"
    )
    y = alt.Y(
        "value:Q", title=f"{split} accuracy", axis=alt.Axis(format=".0%", tickCount=5), scale=alt.Scale(zero=False)
    )
    tooltip = ["series:N", "task:Q", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("value", "low", "high"))]
    layers = band(alt.Chart(style.data(rows)), x, colour, y, tooltip, points=True, banded=len(shown) <= MOST_BANDS)
    above = style.heading(_WIDTH, "newest classes at the end of their task")
    return alt.layer(*layers, *above).properties(width=_WIDTH, height=_HEIGHT)


def _differences(shown: dict[str, Newest], names: dict[str, str], reference: str, colour: alt.Color) -> style.Panel:
    """How many points better or worse than the reference each arm is in the later tasks, with its interval."""
    rows = []
    for arm in shown:
        gap = shown[arm].minus(shown[reference])
        if arm != reference and gap.num_trials:
            points = {"gap": tidy(100 * gap.mean), "low": tidy(100 * gap.low), "high": tidy(100 * gap.high)}
            rows.append({"series": names[arm], **points, "text": difference(100 * gap.mean, 1)})
    axis = alt.Axis(ticks=False, domain=False, labelLimit=160, labelPadding=8)
    y = alt.Y("series:N", sort=[row["series"] for row in rows], title=None, axis=axis)
    values = [0.0, *(row[name] for row in rows for name in ("gap", "low", "high") if row[name] is not None)]
    scale = alt.Scale(domain=[max(min(values), -100) - 1, min(max(values), 100) + 1], nice=False)
    x = alt.X("gap:Q", scale=scale, title="difference of accuracies, points", axis=alt.Axis(format="+f", tickCount=5))
    base = alt.Chart(style.data(rows)).encode(y=y, color=colour)
    tooltip = ["series:N", *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("gap", "low", "high"))]
    known = "isValid(datum.low) && isValid(datum.high)"
    width = _WIDTH - 100
    aside = base.mark_text(align="left", fontSize=10).encode(
        x=alt.value(width + 5), text="text:N", color=alt.value(style.GREY)
    )
    return alt.layer(
        alt.Chart(style.data([{"gap": 0}])).mark_rule(color="#BBBBBB").encode(x=x),
        base.transform_filter(known).mark_rule(strokeWidth=2.5, clip=True).encode(
            x=alt.X("low:Q", scale=scale, title=x["title"]), x2="high:Q"
        ),
        base.mark_circle(size=60, opacity=1).encode(x=x, tooltip=tooltip),
        aside,
        *style.heading(width, f"later tasks, against {names[reference]}"),
    ).properties(width=width, height=_HEIGHT)  # fmt: skip


def _monitored(
    study: Study, connection: duckdb.DuckDBPyConnection, names: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """By metric the mean over trials and its interval, at some hundred steps of each arm."""
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in fetch(connection, study, "training_monitors", _VALUES, drawn=list(names), metrics=list(_METRICS)):
        values[row["metric"], row["arm"]][row["step"]].append(row["value"])
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (metric, arm), by_step in values.items():
        calendar = study.calendar(names[arm])
        for step in thin(list(by_step), _MOST_STEPS):
            own = over_trials(by_step[step])
            low, high = (own.low, own.high) if own.num_trials > 1 else (own.mean, own.mean)
            low, high = max(low, 0.0), min(high, 1.0) if metric == "dormant_units" else high
            row = {"series": names[arm], "epoch": float(calendar.time_of(step)), "value": own.mean}
            found[metric].append({name: tidy(v) for name, v in (row | {"low": low, "high": high}).items()})
    return found


def _monitor(study: Study, rows: list[dict[str, Any]], metric: str, colour: alt.Color) -> style.Panel:
    """One metric over epochs."""
    words, unit, form = _METRICS[metric]
    x = epoch_axis(study)
    y = alt.Y("value:Q", title=unit, axis=alt.Axis(format=form, tickCount=5), scale=alt.Scale(zero=False))
    tooltip = ["series:N", "epoch:Q", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("value", "low", "high"))]
    num = len({row["series"] for row in rows})
    base = alt.Chart(style.csv_data(rows))
    layers = band(base, x, colour, y, tooltip, points=len(rows) <= _FEW * num, banded=num <= MOST_BANDS)
    return alt.layer(*boundaries(study), *layers, *style.heading(_WIDTH, words)).properties(
        width=_WIDTH, height=_HEIGHT
    )
