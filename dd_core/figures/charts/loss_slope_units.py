"""Slopes of the loss in bits against the same in nats: equal in log-log axes, 1.44 times as large in linear ones."""

import math
from typing import Any

import altair as alt
import duckdb

from dd_core.errors import DataMissingError
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import fetch
from dd_core.figures.panels.loss_slopes import SLOPE, Runs, read_runs
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

_SIZE = 250
# In SQL, as the values that figures draw have six digits.
_DIFFERENCE = "SELECT max(abs(alpha_early_bits - alpha_early)) AS largest FROM rows WHERE outcome = 'fitted'"


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel for each kind of axes.

    Raises:
        DataMissingError: there are runs, but none with an early slope.
    """
    runs = read_runs(connection, study)
    if not runs.rows:
        return None
    early = runs.having("alpha_early", "alpha_early_bits")
    linear = runs.having("alpha_early_linear", "alpha_early_linear_bits")
    if not early and not linear:
        raise DataMissingError(f"no run has a slope over the early window; {runs.endings()}")
    panels = []
    if early:
        words = (f"alpha_early, {SLOPE}", "log-log axes")
        panels.append(
            _panel(
                runs,
                early,
                ("alpha_early", "alpha_early_bits"),
                1.0,
                words,
                ("of the loss in nats", "of the loss in bits"),
            )
        )
    if linear:
        words = ("slope of epoch means", "linear axes")
        units = ("nats per epoch", "bits per epoch")
        names = ("alpha_early_linear", "alpha_early_linear_bits")
        panels.append(_panel(runs, linear, names, 1 / math.log(2), words, units))
    return style.finish(
        alt.hconcat(*panels, spacing=50),
        headline(early, fetch(connection, study, "loss_slopes", _DIFFERENCE)[0]["largest"], linear),
        [
            f"Point: a run, over epochs {study.loss_slopes.early[0]:g} to {study.loss_slopes.early[1]:g}; dashed: what "
            "must be, since a loss in bits is a loss in nats over ln\u00a02",
            *runs.describe(study),
        ],
        characters=74 if len(panels) > 1 else 50,
    )


def headline(early: list[dict[str, Any]], largest: float | None, linear: list[dict[str, Any]]) -> str:
    """One sentence: by how much the slopes differ from what they must be.

    Args:
        early: the runs with slopes in log-log axes.
        largest: largest difference of these between bits and nats.
        linear: the runs with slopes in linear axes.
    """
    parts = []
    if early and largest is not None:
        same = "the same" if largest < 1e-6 else "not the same"
        which = f"slopes of {counted(len(early), 'run')} are" if len(early) > 1 else "slope is"
        much = "" if largest == 0 else f" (largest difference {largest:.0e})"
        parts.append(f"in log-log axes the {which} {same} in bits and nats{much}")
    ratios = [row["alpha_early_linear_bits"] / row["alpha_early_linear"] for row in linear if row["alpha_early_linear"]]
    if ratios:
        low, high = f"{min(ratios):.4f}", f"{max(ratios):.4f}"
        times = low if low == high else f"{low} to {high}"
        which = "they are" if len(ratios) > 1 else "it is"
        exactly = f"1/ln\u00a02\u00a0=\u00a0{1 / math.log(2):.4f}"
        parts.append(f"in linear axes {which} {times} times as large in bits ({exactly})")
    sentence = "; ".join(parts) or "Slopes in bits and in nats"
    return sentence[0].upper() + sentence[1:]


def _panel(
    runs: Runs,
    rows: list[dict[str, Any]],
    names: tuple[str, str],
    ratio: float,
    words: tuple[str, str],
    units: tuple[str, str],
) -> style.Panel:
    """One slope in bits against the same in nats, and the line on which all must lie."""
    nats, bits = names
    values = [row[nats] for row in rows]
    margin = 0.06 * ((max(values) - min(values)) or abs(values[0]) or 1.0)
    ends = [min(values) - margin, max(values) + margin]
    axis = alt.Axis(tickCount=5, format="~g")
    across = alt.Scale(domain=ends, nice=False, zero=False)
    up = alt.Scale(domain=[ratio * end for end in ends], nice=False, zero=False)
    x = alt.X(f"{nats}:Q", title=units[0], scale=across, axis=axis)
    y = alt.Y(f"{bits}:Q", title=units[1], scale=up, axis=axis)
    line = alt.Chart(style.data([{nats: end, bits: ratio * end} for end in ends]))
    kept = [{name: row[name] for name in ("run", "family", nats, bits)} for row in rows]
    tooltip = ["run:N", alt.Tooltip(f"{nats}:Q", format=".4g"), alt.Tooltip(f"{bits}:Q", format=".4g")]
    points = alt.Chart(style.data(kept)).mark_circle(size=36, opacity=0.7)
    return alt.layer(
        line.mark_line(strokeDash=[4, 3], color=style.GREY, strokeWidth=1.2).encode(x=x, y=y),
        points.encode(x=x, y=y, color=runs.colour(runs.fitted), tooltip=tooltip),
        *style.heading(_SIZE, *words),
    ).properties(width=_SIZE, height=_SIZE)
