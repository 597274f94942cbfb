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
from dd_core.figures.drawing.log_axis import is_worth_it, log_axis
from dd_core.figures.drawing.selection import drawn_arms, fetch, has_view, tidy
from dd_core.figures.panels.task_lines import boundaries, epoch_axis, one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

_WIDTH, _AGES, _HEIGHT, _MOST_EPOCHS, _MOST_ARMS = 400, 170, 210, 80, 3

# The order of classes is a trial's, whatever it is trained with.
_RANKS = """
    SELECT DISTINCT variant, trial, true_label, class_rank FROM images
    WHERE study = $study AND split = 'train' AND class_rank IS NOT NULL ORDER BY ALL
"""
_EPOCHS = "SELECT list(DISTINCT epoch ORDER BY epoch) AS epochs FROM rows WHERE list_contains($drawn, arm)"
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
    names, notes = one_width(study, arms)
    means = _means(study, connection, list(names))
    if not means:
        return None
    drawn = dict(list(names.items())[:_MOST_ARMS])
    shown = [arm for arm in drawn if any(row["arm"] == arm for row in means)]
    lines = {names[arm]: _line(study, [row for row in means if row["arm"] == arm]) for arm in shown}
    return style.finish(
        style.lines_by_variant(lines),
        headline(study, names[shown[0]], [row for row in means if row["arm"] == shown[0]]),
        [
            "Left: mean over trials, a line for the classes of each task, dark: the first. Dashed: a task ends. Right: "
            "at the last checkpoint, with 95 % intervals over trials (Student's t)",
            *style.describe(study, [names[arm] for arm in shown]),
            None if len(shown) == len(names) else f"Variants: the first {len(shown)} of {len(names)}",
            *notes,
            left_out,
        ],
        characters=96,
    )


def headline(study: Study, name: str, rows: list[dict[str, Any]]) -> str:
    """The ratio of the curvature at the oldest classes to that at the newest, at the last checkpoint."""
    epoch, by_task = _at_the_end(rows)
    first, last = min(by_task), max(by_task)
    if first == last:
        return f"{name}: only the classes of the first task have been seen by epoch {epoch}"
    pairs = [(by_task[first][trial], by_task[last][trial]) for trial in by_task[first] if trial in by_task[last]]
    if not all(old > 0 and new > 0 for old, new in pairs):
        gap = over_trials(old - new for old, new in pairs)
        return (
            f"{name}: at epoch {epoch} the mean curvature at the first task's classes differs from that at the newest "
            f"by {gap.words(2)}"
        )
    logs = over_trials(math.log(old / new) for old, new in pairs)
    ratio = Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.num_trials)
    said = {
        1: f"{ratio.words(1)} times as curved at images of the first task's classes as at the newest",
        -1: f"{Estimate(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low, ratio.num_trials).words(1)} times as curved at "
        "images of the newest classes as at the first task's",
        0: f"not surely more or less curved at images of the first task's classes than at the newest: {ratio.words(1)} "
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


def _line(study: Study, rows: list[dict[str, Any]]) -> alt.HConcatChart:
    """Both panels of one arm."""
    groups: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["epoch"]].append(row["trace"])
    points = [
        {"task": task, "epoch": epoch, "trace": tidy(sum(values) / len(values))}
        for (task, epoch), values in sorted(groups.items())
    ]
    end, by_task = _at_the_end(rows)
    last = max(by_task)
    ages = []
    for task, values in sorted(by_task.items()):
        own = over_trials(values.values())
        low, high = (own.low, own.high) if own.num_trials > 1 else (own.mean, own.mean)
        found = {"task": task, "age": last - task, "trace": own.mean, "low": low, "high": high}
        ages.append({name: tidy(value) for name, value in found.items()})
    scale, axis, floor = _axis([row["trace"] for row in points])
    for row in ages:
        row["low"] = max(row["low"], floor)
    y = alt.Y("trace:Q", scale=scale, axis=axis, title=["mean " + style.TRACE[0], style.TRACE[1]])
    tasks = alt.Scale(domain=[1, 1.15 * max(last, 2)], scheme="viridis")
    legend = alt.Legend(title="task of the classes", orient="right", format="d", gradientLength=120, tickCount=5)
    colour = alt.Color("task:Q", scale=tasks, legend=legend)
    tooltip = ["task:Q", "epoch:Q", alt.Tooltip("trace:Q", format=".4g")]
    base = alt.Chart(style.csv_data(points)).encode(x=epoch_axis(study), y=y, color=colour, detail="task:N")
    over_epochs = alt.layer(
        *boundaries(study),
        base.mark_line(strokeWidth=1.8),
        base.mark_circle(size=22, opacity=1).encode(tooltip=tooltip),
        *style.heading(_WIDTH, "classes of each task"),
    ).properties(width=_WIDTH, height=_HEIGHT)
    ticks = list(range(0, last, -(-last // 8)))
    x = alt.X(
        "age:Q",
        axis=alt.Axis(values=ticks, format="d"),
        title="tasks since they came",
        scale=alt.Scale(nice=False, padding=12),
    )
    aged = alt.Chart(style.data(ages)).encode(x=x, color=colour)
    no_title = alt.Axis(values=axis["values"], labels=False) if "values" in axis.to_dict() else alt.Axis(labels=False)
    by_age = alt.layer(
        aged.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale, axis=no_title, title=None), y2="high:Q"),
        aged.mark_circle(size=60, opacity=1).encode(
            y=alt.Y("trace:Q", scale=scale, axis=no_title, title=None),
            tooltip=["task:Q", "age:Q", *(alt.Tooltip(f"{n}:Q", format=".4g") for n in ("trace", "low", "high"))],
        ),
        *style.heading(_AGES, f"at epoch {end}, by age"),
    ).properties(width=_AGES, height=_HEIGHT)  # fmt: skip
    return alt.hconcat(over_epochs, by_age, spacing=20)


def _axis(values: list[float]) -> tuple[alt.Scale, alt.Axis, float]:
    """A logarithmic axis where it is worth it, and the lowest value that it can show."""
    if is_worth_it(values) and min(values) > 0:
        scale, axis = log_axis([min(values) / 1.5, max(values) * 1.5])
        return scale, axis, min(values) / 1.6
    return alt.Scale(nice=True), alt.Axis(format="~g", tickCount=5), -math.inf
