"""What the figures of the Hessian in the weights share: its rows, which trace is shown, and what the subtitle says."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import Widths, errors_by_width
from dd_core.figures.drawing.selection import Selection, fetch
from dd_core.study.study import Study

UNIT = "nats per squared weight"
LARGEST, TRACE = "largest eigenvalue", "trace"
_TRACES = (("trace", "exact"), ("trace_hutch_plus_plus", "Hutch++"), ("trace_hutchinson", "Hutchinson"))

_TRIALS = """
    SELECT arm, variant, k, epoch, trial, num_images, layers, largest_eigenvalue, trace,
           trace_hutch_plus_plus, trace_hutch_plus_plus_standard_error,
           trace_hutchinson, trace_hutchinson_standard_error,
           100 * gradient_overlap AS overlap, len(eigenvalues) AS num_eigenvalues
    FROM rows WHERE list_contains($epochs, epoch) ORDER BY variant, k, epoch, trial
"""


def trials(connection: duckdb.DuckDBPyConnection, study: Study, epochs: Sequence[int]) -> list[dict[str, Any]]:
    """Every trial at some epochs; ``trace`` is the best there is, ``error`` its standard error, ``method`` its name."""
    rows = fetch(connection, study, "hessian_spectra", _TRIALS, epochs=list(epochs))
    return [{**row, **_best_trace(row)} for row in rows]


def _best_trace(row: dict[str, Any]) -> dict[str, Any]:
    for column, method in _TRACES:
        if row[column] is not None:
            return {"trace": row[column], "error": row.get(f"{column}_standard_error") or 0.0, "method": method}
    return {"trace": None, "error": 0.0, "method": None}


def long(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per trial and quantity that there is, with its value and one standard error below and above it."""
    made = []
    for row in rows:
        for quantity, value, error in ((LARGEST, row["largest_eigenvalue"], 0.0), (TRACE, row["trace"], row["error"])):
            if value is not None:
                place = {key: row[key] for key in ("variant", "k", "epoch", "trial")}
                made.append(place | {"quantity": quantity, "value": value, "low": value - error, "high": value + error})
    return made


def means(long_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over trials of rows that ``long`` made."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    keys = ("variant", "k", "epoch", "quantity")
    for row in long_rows:
        groups[tuple(row[key] for key in keys)].append(row["value"])
    return [dict(zip(keys, key, strict=True)) | {"value": sum(v) / len(v)} for key, v in groups.items()]


def thresholds(connection: duckdb.DuckDBPyConnection, study: Study, selection: Selection) -> dict[str, Widths]:
    """Errors by width of all arms at the selection's epoch: few arms may have their Hessian analysed."""
    everything = Selection(tuple(study.arms), selection.epoch, (), ())
    return errors_by_width(connection, study, everything)


def about(study: Study, rows: list[dict[str, Any]]) -> str:
    """What the Hessian is of, for the subtitle."""
    numbers = sorted({row["num_images"] for row in rows})
    images = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    restricted = sorted({", ".join(row["layers"] or ()) for row in rows})
    weights = " / ".join(f"the weights of {layers}" if layers else "all weights" for layers in restricted)
    words = " / ".join(sorted({study.variants[row["variant"]].loss.words for row in rows}))
    return f"Hessian of the mean {words} of {images} training {study.data.examples} in {weights}"


def about_marks(rows: list[dict[str, Any]]) -> str:
    """What lines and points are and where the trace is from, for the subtitle."""
    text = "Line: mean over trials; points: trials"
    methods = [method for _, method in _TRACES if any(row["method"] == method for row in rows)]
    if methods:
        text += f". Trace: {', '.join(methods)}"
    if any(row["error"] > 0 for row in rows):
        text += "; bar: one standard error of a trial's estimate below and above it"
    return text


def colour(rows: list[dict[str, Any]]) -> alt.Color:
    """The colour of ``quantity``."""
    shown = {LARGEST: style.LARGEST_EIGENVALUE, TRACE: style.WEIGHT_TRACE}
    present = [name for name in (TRACE, LARGEST) if any(row["quantity"] == name for row in rows)]
    scale = alt.Scale(domain=present, range=[shown[name] for name in present])
    return alt.Color("quantity:N", scale=scale, legend=style.line_legend())


def layers(rows: list[dict[str, Any]], x: alt.X, y: alt.Y, colour: alt.Color, tooltip: list[str]) -> list[alt.Chart]:
    """Trials as points, estimates with their errors, the mean over trials as a line.

    Args:
        rows: as ``long`` makes them.
        x: the axis.
        y: of ``value``.
        colour: of ``quantity``.
        tooltip: what a point shows.
    """
    base = alt.Chart(style.data(rows)).encode(x=x, color=colour)
    middle = alt.Chart(style.data(means(rows))).encode(x=x, color=colour)
    made = [
        base.mark_circle(size=18, opacity=0.7).encode(y=y),
        middle.mark_line(strokeWidth=2).encode(y=y),
        middle.mark_circle(size=42, opacity=1).encode(y=y, tooltip=[*tooltip, alt.Tooltip("value:Q", format=".3g")]),
    ]
    if any(row["high"] > row["low"] for row in rows):
        made.insert(0, base.mark_rule(strokeWidth=1, opacity=0.8).encode(y=alt.Y("low:Q"), y2="high:Q"))
    return made
