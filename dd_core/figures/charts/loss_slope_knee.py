"""When burn-in ends, by three definitions, and when the largest Hessian eigenvalue settles, against that."""

import math
import statistics
from typing import Any

import altair as alt
import duckdb

from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.panels.family_rows import BOX, family_rows, height
from dd_core.figures.panels.loss_slopes import Runs, read_runs
from dd_core.store.store import Store
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.study.study import Study
from dd_core.words import counted

_PANEL, _SQUARE, _BELOW = 200, 250, 200
# What the authors of the campaign expected of the knee, epochs.
_EXPECTED = (3, 8)
_COLUMNS = {"break": "knee_epoch_break", "aic": "knee_epoch", "loss": "knee_epoch_at_loss"}


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw boxes by family in a panel per definition, and below them the timing of curvature if it was measured.

    Raises:
        DataMissingError: there are runs, but none was fitted.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    if not runs.fitted:
        raise DataMissingError(f"no run has a knee; {runs.endings()}")
    last = math.ceil(max(row["last_epoch"] for row in runs.fitted))
    panels = [_boxes(runs, study.loss_slopes, name, last, first=i == 0) for i, name in enumerate(_COLUMNS)]
    rows: list[Any] = [alt.hconcat(*panels, spacing=56)]
    knee = _COLUMNS[study.loss_slopes.knee]
    timed = [{**row, "knee": row[knee]} for row in runs.having("largest_eigenvalue_plateau_epoch", knee)]
    if timed:
        rows.append(alt.hconcat(_timing(runs, timed, last), _delays(runs, timed), spacing=110))
    return style.finish(
        alt.vconcat(*rows, spacing=40).resolve_scale(color="independent"),
        headline(runs, study.loss_slopes, timed),
        [
            f"{BOX}; at the right: runs without such a knee. "
            f"Grey: epochs {_EXPECTED[0]} to {_EXPECTED[1]}, which the campaign's authors expected",
            f"Slopes over the whole straight segment begin at the knee by {words(study.loss_slopes)}",
            None if timed else "The largest eigenvalue of the Hessian never settles, or was not measured",
            *runs.describe(study),
        ],
        characters=100,
    )  # fmt: skip


def words(settings: LossSlopeSettings, knee: str | None = None) -> str:
    """A definition of the knee; default, the one in the settings."""
    return {
        "break": "two segments",
        "aic": "AIC",
        "loss": f"loss at most {settings.burn_in_loss:g} nats",
    }[knee or settings.knee]


def headline(runs: Runs, settings: LossSlopeSettings, timed: list[dict[str, Any]]) -> str:
    """When burn-in ends by the settings' definition, and how much later curvature settles."""
    knees = [row[_COLUMNS[settings.knee]] for row in runs.having(_COLUMNS[settings.knee])]
    if not knees:
        return f"No run has a knee by {words(settings)}"
    of = counted(len(knees), "run") if len(knees) == len(runs.fitted) else f"{len(knees)} of {len(runs.fitted)} runs"
    sentence = f"Burn-in ends at epoch {spread(knees)} of {of} (by {words(settings)})"
    if timed:
        delays = [row["largest_eigenvalue_plateau_epoch"] - row["knee"] for row in timed]
        middle = statistics.median(delays)
        when = "later" if middle >= 0 else "earlier"
        sentence += f"; the largest eigenvalue settles {abs(middle):.2g} epochs {when} (median)"
        num_after = sum(delay > 0 for delay in delays)
        sentence += f", after it in {num_after} of {counted(len(delays), 'run')}"
    return sentence


def spread(values: list[float]) -> str:
    """The median, with the middle half of the values where there are some."""
    if len(values) < 4:
        return f"{statistics.median(values):.2g}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2g}, median (middle half {low:.2g} to {high:.2g})"


def _boxes(runs: Runs, settings: LossSlopeSettings, knee: str, last: int, *, first: bool) -> style.Panel:
    """Knees by one definition, a row per family."""
    name = _COLUMNS[knee]
    rows = [{"family": row["family"], "run": row["run"], "value": row[name]} for row in runs.having(name)]
    scale, ticks = style.epoch_scale(last)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(values=ticks, labelOverlap="greedy"), title="knee, epochs")
    never = _never(runs, name)
    band = alt.Chart(style.data([{"value": _EXPECTED[0], "high": min(_EXPECTED[1], last)}]))
    grey = [band.mark_rect(color="#ECECEC").encode(x=x, x2="high:Q")] if last > _EXPECTED[0] else []
    right = ("never:", never) if never else None
    layers = family_rows(runs, rows, x, _PANEL, labels=first, right=right, below=grey)
    above = style.heading(_PANEL, f"by {words(settings, knee)}")
    return alt.layer(*layers, *above).properties(width=_PANEL, height=height(runs))


def _never(runs: Runs, name: str) -> dict[str, str]:
    """How many of its runs have no value, by family."""
    found = {}
    for family in runs.families:
        own = [row[name] for row in runs.fitted if row["family"] == family]
        if None in own:
            found[family] = f"{own.count(None)} of {len(own)}"
    return found


def _delays(runs: Runs, rows: list[dict[str, Any]]) -> style.Panel:
    """How much later than the knee the largest eigenvalue settles, a row per family."""
    delays = [
        {name: row[name] for name in ("family", "run")}
        | {"value": row["largest_eigenvalue_plateau_epoch"] - row["knee"]}
        for row in rows
    ]
    x = alt.X("value:Q", axis=alt.Axis(tickCount=6), title="epochs from the knee until it settles")
    zero = alt.Chart(style.data([{"value": 0}])).mark_rule(color=style.GREY, strokeDash=[4, 3]).encode(x=x)
    never = _never(runs, "largest_eigenvalue_plateau_epoch")
    right = ("never, or not measured:", never) if never else None
    layers = family_rows(runs, delays, x, _SQUARE, right=right, below=[zero])
    above = style.heading(_SQUARE, "largest eigenvalue of the Hessian")
    return alt.layer(*layers, *above).properties(width=_SQUARE, height=height(runs, _BELOW))


def _timing(runs: Runs, rows: list[dict[str, Any]], last: int) -> style.Panel:
    """When the largest eigenvalue settles against the knee; on the dashed line both come at once."""
    scale, ticks = style.epoch_scale(last)
    axis = alt.Axis(values=ticks, labelOverlap="greedy")
    x = alt.X("knee:Q", scale=scale, axis=axis, title="knee, epochs")
    y = alt.Y(
        "largest_eigenvalue_plateau_epoch:Q", scale=scale, axis=axis, title=["largest eigenvalue", "settles, epochs"]
    )
    ends = [{"knee": end, "largest_eigenvalue_plateau_epoch": end} for end in (0, last)]
    line = alt.Chart(style.data(ends)).mark_line(strokeDash=[4, 3], color=style.GREY, strokeWidth=1.2)
    names = ("run", "family", "knee", "largest_eigenvalue_plateau_epoch")
    points = alt.Chart(style.data([{name: row[name] for name in names} for row in rows]))
    tooltip = ["run:N", alt.Tooltip("knee:Q", format=".3g", title="knee")]
    tooltip.append(alt.Tooltip("largest_eigenvalue_plateau_epoch:Q", format=".3g", title="settles"))
    return alt.layer(
        line.encode(x=x, y=y),
        points.mark_circle(size=36, opacity=0.7).encode(x=x, y=y, color=runs.colour(runs.fitted), tooltip=tooltip),
    ).properties(width=_SQUARE, height=height(runs, _BELOW))
