"""What monitors measured while networks trained, one panel per metric: the narrowest, at the threshold, the widest."""

import math
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import EPSILON
from dd_core.figures.drawing.log_axis import clip, is_worth_it, log_axis
from dd_core.figures.drawing.selection import drawn_arms
from dd_core.figures.panels.monitor_curves import (
    headline,
    metrics_shown,
    read_curves,
    read_extremes,
    read_fitted,
    roles_by_variant,
    words_of,
)
from dd_core.store.store import Store
from dd_core.study.study import Study

_WIDTH, _HEIGHT, _COLUMNS = 215, 130, 3
# Curves with at most so many points show them.
_FEW = 25
_LINEAR = {"validation_error", "weight_norm"}

# Three of matplotlib's magma, light to dark as widths grow; distinguishable with every common colour blindness.
_ROLES = {
    "narrowest": "#FC8961",
    "near the threshold": "#B73779",
    "threshold": "#B73779",
    "the only width": "#B73779",
    "widest": "#3B0F70",
}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel per metric; the blocks of up to four variants stand below each other."""
    arms, left_out = drawn_arms(connection, study, "training_monitors")
    roles, others = roles_by_variant(connection, study, arms)
    drawn = [key for key in arms if study.arms[key].k in roles.get(study.arms[key].variant, {})]
    curves = read_curves(connection, study, drawn)
    metrics, not_drawn = metrics_shown({row["metric"] for row in curves})
    if not metrics:
        return None
    fitted = read_fitted(connection, study, drawn)
    for row in (*curves, *fitted):
        row["role"] = roles[row["variant"]][row["k"]]
        row["width"] = f"k = {row['k']}, {row['role']}" if len(roles) == 1 else row["role"]
    lifted = [_prepare(metric, [row for row in curves if row["metric"] == metric]) for metric in metrics]
    names = {row["width"]: _ROLES[row["role"]] for row in sorted(curves, key=lambda row: row["k"])}
    scale = alt.Scale(domain=list(names), range=list(names.values()))
    colour = alt.Color("width:N", scale=scale, legend=style.line_legend(columns=4))
    blocks = {variant: _block(study, variant, metrics, curves, fitted, colour) for variant in roles}
    return style.finish(
        _below_each_other(blocks, roles),
        headline(study, roles, read_extremes(connection, study, drawn)),
        [
            *style.describe(study, list(roles)),
            others,
            "Line: mean over trials; band: lowest to highest trial, of estimates one standard error beyond",
            f"Dashed: first epoch with training error at most {style.percent(EPSILON)}" if fitted else None,
            *lifted,
            f"Not drawn: {', '.join(not_drawn)}" if not_drawn else None,
            left_out,
        ],
        characters=100,
    )


def _prepare(metric: str, rows: list[dict[str, Any]]) -> str | None:
    """Decide whether a metric has a logarithmic axis; if so clip its rows to it, in place.

    Returns:
        A sentence for the subtitle if a mean had to be lifted.
    """
    is_log = metric not in _LINEAR and is_worth_it([row["value"] for row in rows])
    lifted = clip(rows, "value", ("low", "high")) if is_log else 0
    for row in rows:
        row["is_log"] = is_log
    return f"{metric}: {lifted} of {len(rows)} means are below the axis and drawn at its lower end" if lifted else None


def _block(
    study: Study,
    variant: str,
    metrics: list[str],
    curves: list[dict[str, Any]],
    fitted: list[dict[str, Any]],
    colour: alt.Color,
) -> alt.ConcatChart:
    """The panels of one variant."""
    own = [row for row in curves if row["variant"] == variant]
    last = math.ceil(max(row["epoch"] for row in own))
    scale, ticks = style.epoch_scale(last)
    x = alt.X("epoch:Q", scale=scale, axis=alt.Axis(values=ticks, labelOverlap="greedy"), title="epoch")
    rules = alt.Chart(style.data([row for row in fitted if row["variant"] == variant]))
    dashed = rules.mark_rule(strokeDash=[3, 3], strokeWidth=1.2, opacity=0.8).encode(x=x, color=colour)

    def panel(metric: str) -> style.Panel:
        rows = [row for row in own if row["metric"] == metric]
        words, unit = words_of(study, metric)
        if rows[0]["is_log"]:
            y_scale, axis = log_axis([row[name] for row in rows for name in ("value", "low", "high")])
        else:
            y_scale = alt.Scale(zero=False)
            axis = alt.Axis(format=".0%" if metric == "validation_error" else "~g", tickCount=5)
        y = alt.Y("value:Q", scale=y_scale, title=unit or None, axis=axis)
        columns = ("width", "epoch", "value", "low", "high")
        base = alt.Chart(style.csv_data([{name: row[name] for name in columns} for row in rows]))
        encoded = base.encode(x=x, color=colour)
        tooltip = [alt.Tooltip("width:N"), alt.Tooltip("epoch:Q"), *style.numbers(value=metric, low="low", high="high")]
        layers = [
            *([dashed] if fitted else []),
            encoded.mark_area(opacity=0.18).encode(
                y=alt.Y("low:Q", scale=y_scale, title=unit or None), y2=alt.Y2("high:Q")
            ),
            encoded.mark_line(strokeWidth=1.6).encode(y=y),
        ]
        are_few = len(rows) <= _FEW * len({row["k"] for row in rows})
        layers.append(encoded.mark_circle(size=22, opacity=1 if are_few else 0).encode(y=y, tooltip=tooltip))
        second = metric if words != metric else None
        return alt.layer(*layers, *style.heading(_WIDTH, words, second)).properties(width=_WIDTH, height=_HEIGHT)

    shown = [metric for metric in metrics if any(row["metric"] == metric for row in own)]
    columns = style.columns_for(len(shown), _COLUMNS)
    return alt.concat(*(panel(metric) for metric in shown), columns=columns, spacing={"column": 22, "row": 34})


def _below_each_other(blocks: dict[str, alt.ConcatChart], roles: dict[str, dict[int, str]]) -> Any:
    """The blocks of several variants, each under the variant's name and widths."""
    if len(blocks) == 1:
        return next(iter(blocks.values()))
    titled = []
    for variant, block in blocks.items():
        widths = ", ".join(f"k = {k} ({role})" for k, role in roles[variant].items())
        titled.append(block.properties(title=alt.TitleParams(f"{variant}: {widths}", fontSize=12, offset=34)))
    return alt.vconcat(*titled, spacing=46)
