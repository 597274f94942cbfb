"""Time and money spent on training, by width and by how it ended; when it was spent; how well it was predicted."""

import datetime
import itertools
from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import log_axis
from dd_core.figures.drawing.selection import drawn_arms
from dd_core.figures.panels.spending import Spending, headline, predicted, read_spending, remarks, unit_for
from dd_core.store.store import Store
from dd_core.study.study import Study

# What was lost stands out.
_ENDINGS = {
    "finished": style.GREEN,
    "stopped early": style.SKY,
    "diverged": style.PURPLE,
    "failed": style.VERMILLION,
    "interrupted": style.ORANGE,
}
_MOST_PANELS = 6
_MOST_LABELS = 12
_SMALL_PANEL = 190


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the time spent by width, one panel per variant; below it when, and predictions if there are any."""
    spending = read_spending(connection, study)
    if not spending.parts:
        return None
    _, left_out = drawn_arms(connection, study, "runs")
    variants = [name for name in study.variants if any(row["variant"] == name for row in spending.parts)]
    present = [status for status in _ENDINGS if any(row["status"] == status for row in spending.parts)]
    scale = alt.Scale(domain=present, range=[_ENDINGS[status] for status in present])
    colour = alt.Color("status:N", scale=scale, legend=style.point_legend(columns=5))
    rows = [_bars(spending, variants, study.all_widths, colour)]
    below = [panel for panel in (_over_time(spending, colour), _predictions(spending, colour)) if panel is not None]
    if len(below) == 1:
        below = [below[0].properties(width=style.WIDTH)]
    if below:
        rows.append(alt.hconcat(*below, spacing=60))
    return style.finish(
        alt.vconcat(*rows, spacing=34),
        headline(spending),
        [*style.describe(study, variants), *remarks(spending), left_out],
        characters=66 if len(variants) == 1 or len(variants) > _MOST_PANELS else 100,
    )


def _bars(spending: Spending, variants: Sequence[str], widths: Sequence[int], colour: alt.Color) -> Any:
    """A bar per width, in a panel per variant; of many variants a bar each."""
    size = spending.unit[1]

    def priced(column: str) -> list[str]:
        return [] if spending.cost is None else [column]

    rows = [
        {**row, "amount": row["seconds"] / size, "rank": list(_ENDINGS).index(row["status"])} for row in spending.parts
    ]
    if len(variants) > _MOST_PANELS:
        y = alt.Y("variant:N", sort=list(variants), title=None)
        bars = alt.Chart(style.data(rows)).mark_bar().encode(
            x=alt.X("sum(amount):Q", title=f"{spending.what}, all widths"), y=y, color=colour, order="rank:Q",
            tooltip=["variant:N", "status:N", alt.Tooltip("sum(amount):Q", format=".3g"), *priced("sum(cost):Q")],
        )  # fmt: skip
        return bars.properties(width=style.WIDTH)
    totals = [
        {
            "variant": variant,
            "k": k,
            "amount": sum(row["amount"] for row in own),
            "text": _label(own, spending.cost is not None),
        }
        for variant in variants
        for k in widths
        if (own := [row for row in rows if (row["variant"], row["k"]) == (variant, k)])
    ]
    scale = style.headroom(totals, "amount", 0.1 if spending.cost is None else 0.2)
    x = alt.X(
        "k:O",
        scale=alt.Scale(domain=list(widths)),
        axis=alt.Axis(labelAngle=0, labelOverlap="greedy"),
        title="width multiplier k",
    )
    y = alt.Y("amount:Q", title=spending.what, scale=scale)

    def panel(variant: str) -> style.Panel:
        bars = alt.Chart(style.data([row for row in rows if row["variant"] == variant])).mark_bar().encode(
            x=x, y=y, color=colour, order="rank:Q",
            tooltip=["k:O", "status:N", alt.Tooltip("amount:Q", format=".3g", title=spending.what), *priced("cost:Q")],
        )  # fmt: skip
        layers = [bars]
        if len(widths) <= _MOST_LABELS:
            text = alt.Chart(style.data([row for row in totals if row["variant"] == variant]))
            height = -3 if spending.cost is None else -15
            mark = text.mark_text(baseline="bottom", dy=height, fontSize=10, color=style.GREY, lineBreak="\n")
            layers.append(mark.encode(x=x, y=y, text="text:N"))
        return alt.layer(*layers).properties(width=style.WIDTH, height=230)

    return style.by_variant({variant: panel(variant) for variant in variants})


def _label(rows: list[dict[str, Any]], with_cost: bool) -> str:
    """The total of a bar, and its cost."""
    amount = style.number(sum(row["amount"] for row in rows))
    return f"{amount}\ncost {style.number(sum(row['cost'] or 0.0 for row in rows))}" if with_cost else amount


def _over_time(spending: Spending, colour: alt.Color) -> style.Panel | None:
    """What was spent until when; None for a single attempt."""
    ended = [row for row in spending.attempts if row["seconds"] and row["ended"] is not None]
    if len(ended) < 2:
        return None
    sums = itertools.accumulate(row["seconds"] / spending.unit[1] for row in ended)
    rows = [{**row, "amount": amount} for row, amount in zip(ended, sums, strict=True)]
    first, last = (datetime.datetime.fromtimestamp(row["ended"] / 1000, datetime.UTC) for row in (ended[0], ended[-1]))
    times = {datetime.timedelta(minutes=10): "%H:%M:%S", datetime.timedelta(days=2): "%H:%M"}
    form = next((form for span, form in times.items() if last - first < span), "%d %b")
    axis = alt.Axis(format=form, labelOverlap="greedy", tickCount=4)
    title = f"end of the attempt, UTC, {'until' if first.date() < last.date() else 'on'} {last:%Y-%m-%d}"
    x = alt.X("ended:T", scale=alt.Scale(type="utc"), title=title, axis=axis)
    y = alt.Y("amount:Q", title=[f"{spending.what},", "cumulative"])
    base = alt.Chart(style.data(rows)).encode(x=x, y=y)
    line = base.mark_line(interpolate="step-after", color=style.GREY, strokeWidth=1.5)
    tooltip = ["arm:N", "attempt:Q", "status:N", alt.Tooltip("amount:Q", format=".3g", title=f"{spending.what} so far")]
    points = base.mark_circle(size=36, opacity=1).encode(color=colour, tooltip=tooltip)
    return alt.layer(line, points).properties(width=_SMALL_PANEL, height=170)


def _predictions(spending: Spending, colour: alt.Color) -> style.Panel | None:
    """Actual against predicted wall time of the attempts that ran to their end."""
    shown = predicted(spending)
    if not shown:
        return None
    unit, size = unit_for(max(row["wall_seconds"] for row in shown))
    rows = [
        {**row, "predicted": row["predicted_seconds"] / size, "actual": row["wall_seconds"] / size} for row in shown
    ]
    values = [row[name] for row in rows for name in ("predicted", "actual")]
    ends = [min(values) / 1.2, max(values) * 1.2]
    scale, axis = log_axis(ends)
    x = alt.X("predicted:Q", scale=scale, axis=axis, title=f"predicted wall time, {unit}")
    y = alt.Y("actual:Q", scale=scale, axis=axis, title=f"actual wall time, {unit}")
    diagonal = alt.Chart(style.data([{"predicted": end, "actual": end} for end in ends]))
    line = diagonal.mark_line(color=style.GREY, strokeDash=[4, 3], strokeWidth=1.2)
    points = alt.Chart(style.data(rows)).mark_circle(size=36, opacity=0.8)
    tooltip = ["arm:N", "attempt:Q", alt.Tooltip("predicted:Q", format=".3g"), alt.Tooltip("actual:Q", format=".3g")]
    layers = [line.encode(x=x, y=y), points.encode(x=x, y=y, color=colour, tooltip=tooltip)]
    return alt.layer(*layers).properties(width=_SMALL_PANEL, height=170)
