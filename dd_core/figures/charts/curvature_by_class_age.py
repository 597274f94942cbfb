"""How curved the loss is at images of classes that came early and of those that came late, while further ones come."""

import math
from collections import defaultdict
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.intervals import Estimate, over_trials
from dd_core.analysis.plasticity import task_ends
from dd_core.figures.charts.training_curves import thin
from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import clip, is_worth_it, log_axis
from dd_core.figures.drawing.selection import drawn_arms, fetch, has_view, tidy
from dd_core.figures.panels.task_lines import boundaries, epoch_axis, main_arms, one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

_WIDTH, _AGES, _HEIGHT, _MOST_EPOCHS, _MOST_ARMS = 400, 170, 210, 80, 3

# A difference of mean traces below this is that of networks that have died.
_FLAT = 1e-6
# The order of classes is a trial's, whatever it is trained with.
_RANKS = """
    SELECT DISTINCT variant, trial, true_label, class_rank FROM images
    WHERE study = $study AND split = 'train' AND class_rank IS NOT NULL ORDER BY ALL
"""
# Before training the loss is next to flat, which would stretch a logarithmic axis for nothing.
_EPOCHS = """
    SELECT list(DISTINCT epoch ORDER BY epoch) AS epochs FROM rows WHERE list_contains($drawn, arm) AND epoch > 0
"""
# Images of unseen classes have no part in what was trained, whoever may have computed their curvature.
_MEANS = """
    SELECT arm, trial, epoch, task, avg(trace) AS trace, count(*) AS num_images FROM rows
    JOIN (SELECT unnest($variants) AS variant, unnest($trials) AS trial, unnest($classes) AS true_label,
                 unnest($tasks) AS task) USING (variant, trial, true_label)
    WHERE list_contains($drawn, arm) AND list_contains($epochs, epoch) AND isfinite(trace)
          AND task <= list_extract($last_task, epoch + 1)
    GROUP BY ALL ORDER BY arm, trial, epoch, task
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw mean curvature over epochs, a line for the classes of each task, and at the end by their age."""
    if study.data.classes is None or not has_view(connection, "per_image_curvature"):
        return None
    arms, left_out = drawn_arms(connection, study, "per_image_curvature")
    names, notes = one_width(study, arms, len(arms))
    means = _means(study, connection, list(names))
    if not means:
        return None
    present = {row["arm"] for row in means}
    known = {arm: name for arm, name in names.items() if arm in present}
    shown, others = main_arms(study, connection, known, _MOST_ARMS)
    title = headline(names[shown[0]], [row for row in means if row["arm"] == shown[0]])
    lines = {names[arm]: _line(study, [row for row in means if row["arm"] == arm]) for arm in shown}
    return style.finish(
        style.lines_by_variant({name: line for name, (line, _) in lines.items()}),
        title,
        [
            "Left: mean over trials, a line for the classes of each task, dark: the first. Dashed: a task ends. Right: "
            "points are means, ticks single trials",
            *(f"{name}: {note}" for name, (_, note) in lines.items() if note),
            *style.describe(study, [names[arm] for arm in shown]),
            others,
            *notes,
            left_out,
        ],
        characters=96,
    )


def headline(name: str, rows: list[dict[str, Any]]) -> str:
    """The ratio of the curvature at the oldest classes to that at the newest, at the last checkpoint."""
    epoch, by_task = _at_the_end(rows)
    first, last = min(by_task), max(by_task)
    if first == last:
        return f"{name}: only the classes of the first task have been seen by epoch {epoch}"
    pairs = [(by_task[first][trial], by_task[last][trial]) for trial in by_task[first] if trial in by_task[last]]
    if not all(old > 0 and new > 0 for old, new in pairs):
        gap = over_trials(old - new for old, new in pairs)
        largest = max(map(abs, (gap.mean, *((gap.low, gap.high) if gap.num_trials > 1 else ()))))
        if largest < _FLAT:
            return f"{name}: at epoch {epoch} the loss is flat at images of the first task's classes and of the newest"
        digits = 1 - math.floor(math.log10(largest))
        return (
            f"{name}: at epoch {epoch} the mean curvature at the first task's classes differs from that at the newest "
            f"by {gap.words(max(digits, 0))}"
        )
    logs = over_trials(math.log(old / new) for old, new in pairs)
    ratio = Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.num_trials)
    said = {
        1: f"{ratio.words(2)} times as curved at images of the first task's classes as at the newest",
        -1: f"{Estimate(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low, ratio.num_trials).words(2)} times as curved at "
        "images of the newest classes as at the first task's",
        0: f"not surely more or less curved at images of the first task's classes than at the newest: {ratio.words(2)} "
        "times",
    }
    return f"{name}: at epoch {epoch} the loss is {said[logs.sign]}"


def _means(study: Study, connection: duckdb.DuckDBPyConnection, drawn: list[str]) -> list[dict[str, Any]]:
    """Mean trace by arm, trial, epoch and the task in which the class came, at up to so many epochs."""
    classes = study.data.classes
    if classes is None or not drawn or not has_view(connection, "images"):
        return []
    ranks = connection.execute(_RANKS, {"study": study.name}).fetchall()
    epochs = fetch(connection, study, "per_image_curvature", _EPOCHS, drawn=drawn)[0]["epochs"] or []
    kept = sorted({*thin(epochs, _MOST_EPOCHS), *(end for end in task_ends(study) if end in epochs)})
    count = study.data.record.num_classes
    variants, trials, labels, of_class = map(list, zip(*ranks, strict=True)) if ranks else ([], [], [], [])
    return fetch(
        connection, study, "per_image_curvature", _MEANS, drawn=drawn,
        variants=variants, trials=trials, classes=labels, tasks=[classes.task_with(rank) for rank in of_class],
        epochs=kept, last_task=[classes.task_of(epoch, count) for epoch in range(study.epochs + 1)],
    )  # fmt: skip


def _at_the_end(rows: list[dict[str, Any]]) -> tuple[int, dict[int, dict[int, float]]]:
    """The last epoch, and by task and trial the mean trace then."""
    epoch = max(row["epoch"] for row in rows)
    by_task: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["epoch"] == epoch:
            by_task[row["task"]][row["trial"]] = row["trace"]
    return epoch, by_task


def _line(study: Study, rows: list[dict[str, Any]]) -> tuple[alt.HConcatChart, str | None]:
    """Both panels of one arm, and a sentence about what its axis cannot show."""
    groups: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["epoch"]].append(row["trace"])
    points = [
        {"task": task, "epoch": epoch, "trace": tidy(sum(values) / len(values))}
        for (task, epoch), values in sorted(groups.items())
    ]
    end, by_task = _at_the_end(rows)
    last = max(by_task)
    aged = [
        {"task": task, "age": last - task, "trial": trial, "trace": value}
        for task, values in sorted(by_task.items())
        for trial, value in values.items()
    ]
    ages = [
        {"task": row["task"], "age": last - row["task"], "trace": row["trace"]} for row in points if row["epoch"] == end
    ]
    scale, axis, note = _axis(points, [*points, *aged, *ages])
    y = alt.Y("trace:Q", scale=scale, axis=axis, title=["mean " + style.TRACE[0], style.TRACE[1]])
    legend = alt.Legend(title="task of the classes", orient="right", format="d", gradientLength=120, tickCount=5)
    colours = alt.Scale(domain=[1, 1.15 * max(last, 2)], scheme="viridis")
    colour = alt.Color("task:Q", scale=colours, legend=legend)
    tooltip = ["task:Q", "epoch:Q", alt.Tooltip("trace:Q", format=".4g")]
    base = alt.Chart(style.csv_data(points)).encode(x=epoch_axis(study), y=y, color=colour, detail="task:N")
    over_epochs = alt.layer(
        *boundaries(study),
        base.mark_line(strokeWidth=1.8),
        base.mark_circle(size=22, opacity=1).encode(tooltip=tooltip),
        *style.heading(_WIDTH, "classes of each task"),
    ).properties(width=_WIDTH, height=_HEIGHT)
    ticks = alt.Axis(values=list(range(0, last, -(-last // 8))), format="d")
    x = alt.X("age:Q", axis=ticks, title="tasks since they came", scale=alt.Scale(nice=False, padding=12))
    same = {name: value for name, value in axis.to_dict().items() if name in ("values", "tickCount")}
    unlabelled = alt.Y("trace:Q", scale=scale, axis=alt.Axis(labels=False, ticks=False, **same), title=None)
    tooltip = ["task:Q", "age:Q", alt.Tooltip("trace:Q", format=".4g")]
    trials = alt.Chart(style.data(aged)).mark_tick(orient="horizontal", thickness=1.5, size=12, opacity=0.7)
    means = alt.Chart(style.data(ages)).mark_circle(size=60, opacity=1)
    by_age = alt.layer(
        trials.encode(x=x, y=unlabelled, color=colour, tooltip=[*tooltip, "trial:Q"]),
        means.encode(x=x, y=unlabelled, color=colour, tooltip=tooltip),
        *style.heading(_AGES, f"at epoch {end}, by age"),
    ).properties(width=_AGES, height=_HEIGHT)
    return alt.hconcat(over_epochs, by_age, spacing=20), note


def _axis(means: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[alt.Scale, alt.Axis, str | None]:
    """An axis for both panels, logarithmic where that is worth it, and a sentence if means were lifted to its end."""
    if not is_worth_it([row["trace"] for row in means]):
        values = [row["trace"] for row in rows]
        return (
            alt.Scale(domain=[min(0, *values), max(values) or 1], nice=True),
            alt.Axis(format="~g", tickCount=5),
            None,
        )
    lifted = clip(means, "trace", ())
    floor = min(row["trace"] for row in means)
    for row in rows:
        row["trace"] = max(row["trace"], floor)
    scale, axis = log_axis([row["trace"] for row in rows])
    return scale, axis, f"{lifted} of {len(means)} means are below the axis and drawn at its end" if lifted else None
