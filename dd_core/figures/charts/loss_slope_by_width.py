"""Slopes of the loss curve, and the epoch at which it breaks, against width, below the test error."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.intervals import signed
from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import Widths, errors_by_width
from dd_core.figures.drawing.selection import select, shown_variants
from dd_core.figures.panels.loss_slopes import SLOPE, Runs, read_runs
from dd_core.figures.panels.test_error import test_error_panels, test_errors
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

_EARLY, _FULL = "early slope", "slope from the knee on"
_KNEE, _END = "knee (end of burn-in)", "end of the early power law"
_COLOURS = {_EARLY: style.VERMILLION, _FULL: style.BLUE}
_BREAK_COLOURS = {_KNEE: style.GREY, _END: style.PURPLE}
_SLOPES = {_EARLY: "alpha_early", _FULL: "alpha_full"}
_BREAKS = {_KNEE: "knee_epoch_break", _END: "early_break_epoch"}  # one may be the other: the latter is drawn over it


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw them for the variants that have several widths; there are none in a campaign at one width.

    Raises:
        DataMissingError: a variant has runs at several widths, but no slopes.
    """
    runs = read_runs(connection, study)
    ks: dict[str, set[int]] = defaultdict(set)
    for row in runs.rows:
        ks[row["variant"]].add(row["k"])
    several = [variant for variant in runs.variants if len(ks[variant]) > 1]
    if not several:
        return None
    slopes = [row for row in _long(runs) if row["variant"] in several]
    if not slopes:
        raise DataMissingError(f"no run has a slope; {runs.endings()}")
    drawn, others = shown_variants(study, {row["variant"] for row in slopes})
    selection = select(connection, study, "training_evals")
    errors = test_errors(connection, study, selection) if selection else []
    widths = errors_by_width(connection, study, selection) if selection else {}
    breaks = _breaks(runs)
    colours = [_colour(rows, names) for rows, names in ((slopes, _COLOURS), (breaks, _BREAK_COLOURS))]
    panels = {
        variant: _panels(
            [row for row in slopes if row["variant"] == variant],
            [row for row in breaks if row["variant"] == variant],
            [row for row in errors if row["variant"] == variant and row["k"] in ks[variant]],
            widths[variant].threshold if variant in widths else None,
            colours,
        )
        for variant in drawn
    }
    early = study.loss_slopes.early
    title = "Slopes of the loss curve and its break against width, by variant"
    if len(drawn) == 1:
        own = [row for row in runs.having("alpha_early") if row["variant"] == drawn[0]]
        title = headline(own, widths.get(drawn[0])) or title
    return style.finish(
        style.by_variant(panels),
        title,
        [
            f"Early: epochs {early[0]:g} to {early[1]:g}. Line: mean over trials; points: trials, with 95 % intervals",
            "Breaks: where two power laws part that are better than one by more than 2 of AICc. The early power law "
            "ends at the first of them after its epochs",
            others,
            *runs.describe(study),
        ],
        characters=66 if len(panels) == 1 else 100,
    )


def _long(runs: Runs) -> list[dict[str, Any]]:
    """A row per run and slope that it has."""
    return [
        {
            **{key: row[key] for key in ("variant", "k", "run")},
            "what": name, "value": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"],
        }
        for name, column in _SLOPES.items()
        for row in runs.having(column)
    ]  # fmt: skip


def _breaks(runs: Runs) -> list[dict[str, Any]]:
    """A row per run and break that it has."""
    return [
        {
            **{key: row[key] for key in ("variant", "k", "run")},
            "what": name, "value": row[column],
            **{end: row.get(f"{column}_{end}") for end in ("low", "high")},
        }
        for name, column in _BREAKS.items()
        for row in runs.having(column)
    ]  # fmt: skip


def headline(rows: list[dict[str, Any]], widths: Widths | None) -> str | None:
    """One sentence about one variant: at which widths the early power law breaks, and how steep it is early.

    Args:
        rows: its runs with an early slope.
        widths: its errors, for the threshold.

    Returns:
        None if no run has an early slope.
    """
    early = means(rows, "alpha_early")
    if not early:
        return None
    threshold = widths.threshold if widths else None
    parts = [_where_it_breaks(rows, threshold)]
    if len(early) > 1:
        steepest, flattest = min(early, key=early.__getitem__), max(early, key=early.__getitem__)
        parts.append(
            f"the early slope is flattest at k = {flattest} ({spread(rows, flattest)}) and steepest at k = {steepest} "
            f"({spread(rows, steepest)})"
        )
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:]


def _where_it_breaks(rows: list[dict[str, Any]], threshold: int | None) -> str:
    """At which widths the early power law breaks after its window, and in how many runs."""
    near = "" if threshold is None else f" (interpolation threshold: k = {threshold})"
    ks = sorted({row["k"] for row in rows})
    breaks = means(rows, "early_break_epoch")
    broken = {k: sum(row["k"] == k and row["early_break_epoch"] is not None for row in rows) for k in ks}
    if not breaks:
        return f"the early power law breaks in none of {counted(len(rows), 'run')}{near}"
    epochs = [row["early_break_epoch"] for row in rows if row["early_break_epoch"] is not None]
    when = (
        f"at epoch {min(epochs):.2g} to {max(epochs):.2g}" if min(epochs) < max(epochs) else f"at epoch {epochs[0]:.2g}"
    )
    first = min(breaks)
    above, below = (sum(row["k"] >= first for row in rows), sum(row["k"] < first for row in rows))
    if below == 0 or sum(broken.values()) < above / 2:
        return f"the early power law breaks in {sum(broken.values())} of {counted(len(rows), 'run')}, {when}{near}"
    where = ", the interpolation threshold," if first == threshold else ""
    return (
        f"from k = {first}{where} on the early power law breaks {when}, in {sum(broken.values())} of "
        f"{counted(above, 'run')}, and in none of {below} below{'' if where else near}"
    )


def means(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Mean over trials of a column, by k; of widths that have any."""
    values: Mapping[int, list[float]] = defaultdict(list)
    for row in rows:
        if row[name] is not None:
            values[row["k"]].append(row[name])
    return {k: statistics.fmean(values[k]) for k in sorted(values)}


def spread(rows: list[dict[str, Any]], k: int) -> str:
    """The early slopes at a width: mean, and the lowest and highest end of their intervals."""
    own = [row for row in rows if row["k"] == k and row["alpha_early"] is not None]
    text = signed(statistics.fmean(row["alpha_early"] for row in own))
    ends = [end for row in own for end in (row["alpha_early_low"], row["alpha_early_high"]) if end is not None]
    return f"{text}, {signed(min(ends))} to {signed(max(ends))}" if ends else text


def _colour(rows: list[dict[str, Any]], names: dict[str, str]) -> alt.Color:
    """The colour of ``what``; the legend names those of some rows."""
    shown = [name for name in names if any(row["what"] == name for row in rows)]
    scale = alt.Scale(domain=shown, range=[names[name] for name in shown])
    return alt.Color("what:N", scale=scale, legend=style.line_legend())


def _panels(
    slopes: list[dict[str, Any]],
    breaks: list[dict[str, Any]],
    errors: list[dict[str, Any]],
    threshold: int | None,
    colours: list[alt.Color],
) -> alt.VConcatChart:
    ks = sorted({row["k"] for row in (*slopes, *breaks, *errors)})
    panels = [_curves(slopes, ks, threshold, colours[0], ["slope,", SLOPE], 210, last=not breaks)]
    if breaks:
        panels.append(_curves(breaks, ks, threshold, colours[1], ["break of the", "power law, epoch"], 130, last=True))
    stacked = alt.vconcat(*test_error_panels(errors, ks, threshold), *panels, spacing=14)
    return stacked.resolve_scale(color="independent")


def _curves(
    rows: list[dict[str, Any]],
    ks: list[int],
    threshold: int | None,
    colour: alt.Color,
    title: list[str],
    height: int,
    *,
    last: bool,
) -> style.Panel:
    """Trials as points with their intervals, the mean over trials as a line."""
    x = style.k_axis(ks, labels=last)
    scale = alt.Scale(zero=False)
    y = alt.Y("value:Q", title=title, scale=scale)
    base = alt.Chart(style.data(rows)).encode(x=x, color=colour)
    middle = [
        {"what": name, "k": k, "value": value}
        for name in dict.fromkeys(row["what"] for row in rows)
        for k, value in means([row for row in rows if row["what"] == name], "value").items()
    ]
    tooltip = ["run:N", "what:N", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("value", "low", "high"))]
    line = alt.Chart(style.data(middle)).encode(x=x, y=y, color=colour)
    return alt.layer(
        *style.threshold_rule(threshold, ks),
        base.mark_rule(strokeWidth=1, opacity=0.7).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_circle(size=24, opacity=0.8).encode(y=y, tooltip=tooltip),
        line.mark_line(strokeWidth=2),
        line.mark_circle(size=50, opacity=0).encode(tooltip=["what:N", "k:Q", *style.numbers(value="mean")]),
    ).properties(width=style.WIDTH, height=height)
