"""How memorisation itself is distributed over images with right and with wrong labels."""

from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.memorization.sentences import labels_sentence
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch_exact
from dd_core.figures.panels.task_lines import one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

_HEIGHT, _BINS, _MOST_ARMS = 130, 25, 4
_GROUPS = {False: "right label", True: "wrong label"}
# A source of its own for every arm: the study's measurement, or else the first that was imported.
_ROWS = """
    SELECT arm, source, is_noisy, list(memorization) AS found, list(standard_error) AS errors FROM rows
    WHERE list_contains($drawn, arm) AND isfinite(memorization) GROUP BY arm, source, is_noisy
    ORDER BY arm, source <> 'subsets', source, is_noisy
"""

Values = dict[bool, np.ndarray]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a histogram for each variant, right and wrong labels apart."""
    arms, left_out = drawn_arms(connection, study, "memorization_truth")
    if not arms:
        return None
    names, notes = one_width(study, arms, _MOST_ARMS)
    values: dict[str, Values] = {}
    sources: dict[str, str] = {}
    errors: list[float] = []
    for row in fetch_exact(connection, study, "memorization_truth", _ROWS, drawn=list(names)):
        name = names[row["arm"]]
        if sources.setdefault(name, row["source"]) == row["source"]:
            values.setdefault(name, {})[row["is_noisy"]] = np.array(row["found"])
            errors += [error for error in row["errors"] if error is not None]
    if not values:
        return None
    shown = {name: values[name] for name in names.values() if name in values}
    panels = [_panel(name if len(shown) > 1 else None, own, last=i == len(shown) - 1)
              for i, (name, own) in enumerate(shown.items())]  # fmt: skip
    first = next(iter(shown))
    return style.finish(
        alt.vconcat(*panels, spacing=14),
        labels_sentence(shown[first], first if len(shown) > 1 else None),
        [
            "Memorisation: P[right | in training] \u2212 P[right | left out] (Feldman & Zhang 2020), "
            + ("over trials on random subsets" if sources[first] == "subsets" else f"imported from {sources[first]}"),
            f"Median standard error of an image: {np.median(errors):.2f}" if errors else None,
            "Intervals of means: over images (Student's t); all images share the same trials",
            *style.describe(study, list(shown)),
            *notes,
            left_out,
        ],
        characters=80,
    )


def _panel(name: str | None, values: Values, *, last: bool) -> style.Panel:
    """Shares of the images of each kind by bins of memorisation."""
    lowest = min(-0.2, *(float(own.min()) for own in values.values()))
    edges = np.linspace(np.floor(10 * lowest) / 10, 1, _BINS + 1)
    rows: list[dict[str, Any]] = []
    for noisy, own in values.items():
        counts, _ = np.histogram(np.clip(own, edges[0], 1), edges)
        for i, count in enumerate(counts.tolist()):
            ends = {"from": round(float(edges[i]), 4), "to": round(float(edges[i + 1]), 4)}
            share = float(f"{count / len(own):.4g}")
            rows.append({"images": _GROUPS[noisy], "count": count, "share": share, "zero": 0, **ends})
    means = [{"images": _GROUPS[noisy], "mean": float(f"{own.mean():.4g}")} for noisy, own in values.items()]
    shown = [noisy for noisy in (False, True) if noisy in values]
    colours = {False: style.RIGHT_LABEL, True: style.WRONG_LABEL}
    scale = alt.Scale(domain=[_GROUPS[noisy] for noisy in shown], range=[colours[noisy] for noisy in shown])
    colour = alt.Color("images:N", scale=scale, legend=style.line_legend() if len(shown) > 1 else None)
    x_scale = alt.Scale(domain=[float(edges[0]), 1], nice=False)
    x = alt.X("from:Q", scale=x_scale, title="memorisation" if last else None, axis=alt.Axis(labels=last, tickCount=7))
    y = alt.Y(
        "share:Q", stack=None, title=["share of images", "with such labels"], axis=alt.Axis(format="%", tickCount=4)
    )
    base = alt.Chart(style.data(rows)).encode(color=colour)
    tooltip = ["images:N", "from:Q", "to:Q", "count:Q", alt.Tooltip("share:Q", format=".1%")]
    layers = [
        base.mark_rect(opacity=0.45).encode(x=x, x2="to:Q", y=y, y2="zero:Q", tooltip=tooltip),
        alt.Chart(style.data(means))
        .mark_rule(strokeWidth=2, strokeDash=[5, 3])
        .encode(x=alt.X("mean:Q", scale=x_scale), color=colour),
    ]
    if name:
        layers += style.heading(style.WIDTH, name)
    return alt.layer(*layers).properties(width=style.WIDTH, height=_HEIGHT)
