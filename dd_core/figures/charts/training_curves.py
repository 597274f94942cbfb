"""Error and loss of one arm against epoch: test images, rightly labelled and mislabelled training images.

The arm shown first is the one at the interpolation threshold; the page offers all others in a list.
"""

import json
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON, errors_by_width
from dd_core.figures.drawing.selection import fetch, select
from dd_core.figures.drawing.zoom import zoomable
from dd_core.figures.panels.task_lines import boundaries
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study

_TEST, _RIGHT, _WRONG = "test", "training, right label", "training, wrong label (error against the label given)"
_VALIDATION = "validation"
_ALL = "training"  # of imported studies, which do not tell right labels from wrong ones
MAX_EPOCHS = 120

_SPLITS = f"""
    SELECT arm, epoch, '{_TEST}' AS split, test_error AS error, test_loss AS loss FROM rows
    UNION ALL SELECT arm, epoch, '{_RIGHT}', train_error_clean, train_loss_clean FROM rows
    UNION ALL SELECT arm, epoch, '{_WRONG}', train_error_noisy, train_loss_noisy FROM rows
    UNION ALL SELECT arm, epoch, '{_VALIDATION}', validation_error, validation_loss FROM rows
    WHERE arm NOT IN (SELECT arm FROM rows WHERE coalesce(test_error, test_loss) IS NOT NULL
                      GROUP BY arm HAVING count(DISTINCT epoch) > 1)
    UNION ALL SELECT arm, epoch, '{_ALL}', train_error, train_loss FROM rows
    WHERE NOT coalesce(isfinite(train_error_clean), false)
"""
# Over trials; a study without wrong labels has no value for them, and an imported one may lack errors or losses.
_CURVES = f"""
    SELECT arm, epoch, split,
           100 * avg(error) AS error, 100 * min(error) AS error_low, 100 * max(error) AS error_high,
           avg(loss) AS loss, min(loss) AS loss_low, max(loss) AS loss_high,
           (count(*) OVER (PARTITION BY arm, split) = 1)::INTEGER AS is_alone
    FROM (
        SELECT arm, epoch, split, if(isfinite(error), error, NULL) AS error, if(isfinite(loss), loss, NULL) AS loss
        FROM ({_SPLITS})
    ) WHERE (error IS NOT NULL OR loss IS NOT NULL) AND list_contains($epochs, epoch)
    GROUP BY arm, epoch, split ORDER BY arm, split, epoch
"""
_MILESTONES = f"""
    SELECT arm, split, min(epoch) FILTER (error <= $epsilon) AS learned, min(error) AS lowest,
           arg_min(epoch, (error, epoch)) AS lowest_at, arg_max(error, epoch) AS last, max(epoch) AS last_at
    FROM (SELECT arm, epoch, split, avg(error) AS error FROM ({_SPLITS}) WHERE isfinite(error) GROUP BY ALL)
    GROUP BY ALL
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw error and loss against epoch for the arm at the threshold, with the other arms a choice away."""
    selection = select(connection, study, "training_evals")
    if selection is None:
        return None
    widths = errors_by_width(connection, study, selection)
    epochs = [row["epoch"] for row in fetch(connection, study, "training_evals", "SELECT DISTINCT epoch FROM rows")]
    curves = fetch(connection, study, "training_evals", _CURVES, epochs=thin(epochs))
    if not curves:
        return None
    default = selection.arms[0]  # of losses alone
    if widths:
        variant, found = next(iter(widths.items()))
        default = Arm(variant, found.key_k).key
    rules = boundaries(study) if study.data.classes is not None else []
    milestones = fetch(connection, study, "training_evals", _MILESTONES, epsilon=EPSILON)
    headlines = {
        arm: style.wrap(headline(study, arm, [row for row in milestones if row["arm"] == arm]))
        for arm in selection.arms
    }
    choice = alt.param(name="arm", value=default, bind=alt.binding_select(options=list(selection.arms), name="arm: "))
    title = alt.TitleParams(
        text=alt.ExprRef(f"({json.dumps(headlines)})[arm]"),
        subtitle=style.wrap_lines(
            [
                *style.describe(study, list(dict.fromkeys(study.arms[key].variant for key in selection.arms))),
                ("" if rules else f"Learned: mean error at most {style.percent(EPSILON)}. ")
                + "Line: mean of trials; band: lowest to highest",
                "Dashed: a task ends, and its classes are joined by further ones" if rules else None,
                selection.note(study),
            ]
        ),
    )
    return style.dress(
        _panels(curves, max(epochs), style.loss_title(study, study.variants), rules)
        .add_params(choice)
        .properties(title=title)
    )


def thin(epochs: list[int], most: int = MAX_EPOCHS) -> list[int]:
    """At most about so many of the epochs, spread as on the figure's axis, first and last included."""
    ordered = sorted(epochs)
    if len(ordered) <= most:
        return ordered
    ratio = (ordered[-1] + 1) / (ordered[0] + 1)
    wanted = [(ordered[0] + 1) * ratio ** (i / (most - 1)) - 1 for i in range(most)]
    kept, position = set(), 0
    for target in wanted:
        while position + 1 < len(ordered) and abs(ordered[position + 1] - target) <= abs(ordered[position] - target):
            position += 1
        kept.add(ordered[position])
    return sorted(kept | {ordered[-1]})


def headline(study: Study, arm_key: str, milestones: list[dict[str, Any]]) -> str:
    """One sentence about when the arm learns what; where classes come by tasks, about the errors at the end.

    Errors of different tasks are of different classes: the lowest of all would be that of the fewest.
    """
    arm = study.arms[arm_key]
    name = f"At k = {arm.k}" if len(study.variants) == 1 else f"{arm.variant} at k = {arm.k}:"
    by_split = {row["split"]: row for row in milestones}

    def learned(split: str) -> str:
        epoch, last = by_split[split]["learned"], by_split[split]["last_at"]
        if epoch is None:
            return "never" if last >= study.epochs else f"not by epoch {last}"
        return f"by epoch {epoch}"

    parts = []
    if study.data.classes is not None and milestones:
        end = max(row["last_at"] for row in milestones)
        order = [split for split in (_TEST, _VALIDATION, _RIGHT, _WRONG, _ALL) if split in by_split]
        errors = [f"{style.percent(by_split[own]['last'])} ({own})" for own in order if by_split[own]["last_at"] == end]
        return f"{name} the error on all classes seen is {style.listed(errors)} at epoch {end}"
    if _RIGHT in by_split:
        parts.append(f"right labels are learned {learned(_RIGHT)}")
    if _WRONG in by_split:
        parts.append(f"wrong ones {learned(_WRONG)}")
    if _ALL in by_split:
        parts.append(f"training labels are learned {learned(_ALL)}")
    for split in (_TEST, _VALIDATION):
        if split in by_split:
            row = by_split[split]
            parts.append(f"{split} error is lowest ({style.percent(row['lowest'])}) at epoch {row['lowest_at']}")
    return f"{name} {', '.join(parts or ['the losses against the epoch'])}"


def _panels(curves: list[dict[str, Any]], last_epoch: int, loss_title: str, rules: list[alt.Chart]) -> alt.VConcatChart:
    present = {row["split"] for row in curves}
    colours = {
        _TEST: style.TEST,
        _VALIDATION: style.VALIDATION,
        _RIGHT: style.RIGHT_LABEL,
        _WRONG: style.WRONG_LABEL,
        _ALL: style.TRAIN,
    }
    shown = {split: colour for split, colour in colours.items() if split in present}
    colour = alt.Color(
        "split:N",
        scale=alt.Scale(domain=list(shown), range=list(shown.values())),
        legend=style.line_legend(),
    )
    scale, ticks = style.epoch_scale(last_epoch)

    def panel(value: str, title: str, height: int, *, last: bool) -> style.Panel:
        x = alt.X("epoch:Q", scale=scale, axis=alt.Axis(values=ticks, labels=last), title="epoch" if last else None)
        y_scale = alt.Scale(domain=[0, 100]) if value == "error" else alt.Scale(zero=True)
        base = alt.Chart().transform_filter("datum.arm == arm").encode(x=x, color=colour)
        band = base.mark_area(opacity=0.18).encode(
            y=alt.Y(f"{value}_low:Q", title=title, scale=y_scale), y2=f"{value}_high:Q"
        )
        line = base.mark_line(strokeWidth=2).encode(y=alt.Y(f"{value}:Q", title=title))
        shown = {value: title, f"{value}_low": "lowest trial", f"{value}_high": "highest trial"}
        point = base.mark_circle(size=42, opacity=alt.expr("datum.is_alone == 1 ? 1 : 0")).encode(
            y=alt.Y(f"{value}:Q", title=title), tooltip=["split:N", "epoch:Q", *style.numbers(**shown)]
        )
        layers = alt.layer(*rules, band, line, point).properties(width=style.WIDTH, height=height)
        return zoomable(layers, value)

    measured = [value for value in ("error", "loss") if any(row[value] is not None for row in curves)]
    titles = {"error": ("error, %", 220), "loss": (loss_title, 170)}
    return alt.vconcat(
        *(panel(value, *titles[value], last=value == measured[-1]) for value in measured),
        data=style.csv_data(curves),
        spacing=14,
    )
