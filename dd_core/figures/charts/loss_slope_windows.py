"""How the window changes what a slope says: its correlation with the best validation loss, and its spread."""

from collections import defaultdict
from typing import Any

import altair as alt
import duckdb
import numpy as np

from dd_core.analysis.intervals import signed
from dd_core.analysis.loss_slopes.correlation import correlate
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import is_worth_it, log_axis
from dd_core.figures.drawing.selection import fetch
from dd_core.figures.panels.family_rows import BOX, family_rows, height
from dd_core.figures.panels.loss_slope_scatter import in_words
from dd_core.figures.panels.loss_slopes import Runs, read_runs, val_ce_title
from dd_core.store.store import Store
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.study.study import Study
from dd_core.words import counted

_CELL, _PANEL = (56, 34), 250
# Slopes of runs over windows; a rank correlation of fewer says nothing.
_FEWEST = 4
# The campaign's documents want alpha_early to move by less over its starts.
_STABLE = 0.02

# By first and last epoch: slope, best loss and arm of runs.
Windows = dict[tuple[float, float], list[tuple[float, float, str]]]

_SCAN = """
    SELECT arm, trial, first_epoch AS start, last_epoch AS stop, slope FROM rows
    WHERE segment = 'scan' AND model = 'power' AND isfinite(slope) ORDER BY ALL
"""


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw the heat map where there are runs enough, and the spread over starts where there is any.

    Raises:
        DataMissingError: there are runs, but nothing to draw of them.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    scan = fetch(connection, study, "loss_slope_fits", _SCAN)
    windows = by_window(scan, runs.having("best_validation_loss"))
    cells = correlations(windows)
    spread = runs.having("alpha_start_spread")
    panels: list[Any] = []
    if cells:
        panels.append(_heat_map(cells, study.loss_slopes.early, runs))
    elif scan:
        panels.append(_slopes(runs, scan))
    if spread:
        beside = [panels[0].height] if panels else []
        panels.append(_spread(runs, spread, *beside))
    if not panels:
        raise DataMissingError(f"no run has slopes over several windows; {runs.endings()}")
    starts = ", ".join(f"{start:g}" for start in study.loss_slopes.starts)
    return style.finish(
        alt.hconcat(*panels, spacing=60).resolve_scale(color="independent"),
        headline(cells, windows, study.loss_slopes, spread),
        [
            "Cell: Spearman's correlation of the slope over the window with the best loss, over runs; framed: the "
            "early window. Intervals: bootstrap over configurations. The best of many windows is too good by chance"
            if cells
            else "Too few runs have a validation or test loss to correlate slopes with it",
            f"Spread: standard deviation of a run's early slope over windows from epochs {starts}. {BOX}"
            if spread
            else None,
            *runs.describe(study),
        ],
        characters=100 if len(panels) > 1 else 66,
    )  # fmt: skip


def by_window(scan: list[dict[str, Any]], known: list[dict[str, Any]]) -> Windows:
    """Slope, best loss and arm of the runs that have both, by first and last epoch of the window.

    Args:
        scan: a row per run and window with its ``slope``.
        known: the runs with a ``best_validation_loss``.
    """
    losses = {(row["arm"], row["trial"]): row["best_validation_loss"] for row in known}
    windows: Windows = defaultdict(list)
    for row in scan:
        loss = losses.get((row["arm"], row["trial"]))
        if loss is not None:
            windows[row["start"], row["stop"]].append((row["slope"], loss, row["arm"]))
    return dict(sorted(windows.items()))


def correlations(windows: Windows) -> list[dict[str, Any]]:
    """Spearman's rank correlation of slope and best loss over runs.

    Returns:
        A row per window of ``_FEWEST`` runs or more with ``start``, ``stop``, ``rho`` and the number of ``runs``.
    """
    from scipy.stats import spearmanr

    made = []
    for (start, stop), found in windows.items():
        slopes, losses, _ = zip(*found, strict=True)
        if len(found) >= _FEWEST and len(set(slopes)) > 1 and len(set(losses)) > 1:
            rho = float(spearmanr(slopes, losses).statistic)
            made.append({"start": start, "stop": stop, "rho": rho, "runs": len(found)})
    return made


def headline(
    cells: list[dict[str, Any]], windows: Windows, settings: LossSlopeSettings, spread: list[dict[str, Any]]
) -> str:
    """Which window correlates most, how the early one compares, and how stable the early slope is."""
    parts = []
    if cells:
        best = max(cells, key=lambda cell: abs(cell["rho"]))
        parts.append(f"slope and best loss correlate most over {_in_words(best, windows, settings)}")
        own = next((cell for cell in cells if (cell["start"], cell["stop"]) == settings.early), None)
        if own is not None and own is not best:
            parts[0] += f"; over {_in_words(own, windows, settings)}"
    if spread:
        values = [row["alpha_start_spread"] for row in spread]
        stable = sum(value < _STABLE for value in values)
        number = f"{stable} of {counted(len(values), 'run')}"
        parts.append(f"over its starts the early slope moves by less than {_STABLE:g} in {number}")
    sentence = "; ".join(parts) or "Slopes over several windows"
    return sentence[0].upper() + sentence[1:]


def _in_words(cell: dict[str, Any], windows: Windows, settings: LossSlopeSettings) -> str:
    """A window with its correlation, the interval of that by bootstrap over configurations, and the number of runs."""
    slopes, losses, arms = zip(*windows[cell["start"], cell["stop"]], strict=True)
    groups = np.unique(arms, return_inverse=True)[1]
    found = correlate(np.array(slopes), np.array(losses), groups, "spearman", settings.bootstrap_samples)
    return f"epochs {cell['start']:g} to {cell['stop']:g}: {in_words(found)}, {counted(cell['runs'], 'run')}"


def _heat_map(cells: list[dict[str, Any]], early: tuple[float, float], runs: Runs) -> style.Panel:
    starts, stops = (sorted({cell[name] for cell in cells}) for name in ("start", "stop"))
    most = max(cell["runs"] for cell in cells)
    rows = [
        {
            **cell,
            "start": f"{cell['start']:g}", "stop": f"{cell['stop']:g}", "text": signed(cell["rho"]),
            "few": "" if cell["runs"] == most else f"n = {cell['runs']}",
            "early": (cell["start"], cell["stop"]) == early,
        }
        for cell in cells
    ]  # fmt: skip
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False)
    x = alt.X("stop:O", sort=[f"{stop:g}" for stop in stops], title="last epoch of the window", axis=axis)
    y = alt.Y("start:O", sort=[f"{start:g}" for start in starts], title="first epoch", axis=axis)
    kind = val_ce_title(runs.fitted).removesuffix(", nats")
    legend = alt.Legend(gradientLength=120, values=[-1, -0.5, 0, 0.5, 1], format=".1f")
    title = ["\u03c1 of slope and", kind]
    colour = alt.Color("rho:Q", scale=alt.Scale(scheme="redblue", domain=[-1, 1]), legend=legend, title=title)
    tooltip = ["start:O", "stop:O", alt.Tooltip("rho:Q", format=".3f"), "runs:Q"]
    base = alt.Chart(style.data(rows)).encode(x=x, y=y)
    ink = alt.condition("abs(datum.rho) > 0.7", alt.value("white"), alt.value("black"))
    below = base.transform_filter("datum.few !== ''").mark_text(fontSize=9, dy=9)
    layers = [
        base.mark_rect(stroke="white", strokeWidth=2).encode(color=colour, tooltip=tooltip),
        base.transform_filter("datum.early").mark_rect(fill=None, stroke="black", strokeWidth=2),
        base.mark_text(fontSize=11, dy=alt.expr("datum.few ? -5 : 0")).encode(text="text:N", color=ink),
        below.encode(text="few:N", color=ink),
    ]
    return alt.layer(*layers).properties(width=_CELL[0] * len(stops), height=_CELL[1] * len(starts))


def _slopes(runs: Runs, scan: list[dict[str, Any]]) -> style.Panel:
    """Slopes against the end of their window, a line per start: of few runs, or of runs without a validation loss."""
    sums: dict[tuple[float, float], list[float]] = defaultdict(list)
    for row in scan:
        sums[row["start"], row["stop"]].append(row["slope"])
    rows = [
        {"from": f"epoch {start:g}", "stop": stop, "slope": float(np.median(values)), "runs": len(values)}
        for (start, stop), values in sums.items()
    ]
    order = [f"epoch {start:g}" for start in sorted({start for start, _ in sums})]
    colour = alt.Color("from:O", sort=order, title="from", scale=alt.Scale(scheme="viridis"))
    x = alt.X("stop:Q", title="last epoch of the window", scale=alt.Scale(zero=False))
    y = alt.Y("slope:Q", title="slope, median over runs", scale=alt.Scale(zero=False))
    base = alt.Chart(style.data(rows)).encode(x=x, y=y, color=colour)
    dots = base.mark_circle(size=36, opacity=1)
    tooltip = ["from:O", "stop:Q", alt.Tooltip("slope:Q", format=".3f"), "runs:Q"]
    return alt.layer(base.mark_line(strokeWidth=2), dots.encode(tooltip=tooltip)).properties(width=300, height=200)


def _spread(runs: Runs, rows: list[dict[str, Any]], beside: int = 46) -> style.Panel:
    """How much the early slope moves with its first epoch, a row per family."""
    values = [row["alpha_start_spread"] for row in rows]
    kept = [{"family": row["family"], "run": row["run"], "value": row["alpha_start_spread"]} for row in rows]
    scale, axis = log_axis([*values, _STABLE]) if min(values) > 0 and is_worth_it([*values, _STABLE]) else (
        alt.Scale(zero=True), alt.Axis(tickCount=5)
    )  # fmt: skip
    x = alt.X("value:Q", scale=scale, axis=axis, title="standard deviation of the early slope")
    rule = alt.Chart(style.data([{"value": _STABLE}])).mark_rule(color=style.GREY, strokeDash=[4, 3]).encode(x=x)
    stable = {
        family: f"{sum(value < _STABLE for value in own)} of {len(own)}"
        for family in runs.families
        if (own := [row["value"] for row in kept if row["family"] == family])
    }
    layers = family_rows(runs, kept, x, _PANEL, right=(f"below {_STABLE:g}:", stable), below=[rule])
    above = style.heading(_PANEL, "spread over starts")
    return alt.layer(*layers, *above).properties(width=_PANEL, height=height(runs, beside))
