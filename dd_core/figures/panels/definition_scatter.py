"""The images of one arm: the trace of the input Hessian against the other definitions, and how far they rank alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import column_names, fetch
from dd_core.figures.drawing.zoom import zoomable
from dd_core.figures.panels.image_scores import ALONG_GRADIENT, GRADIENT_NORM, LOSS, TRACE, Definition, published
from dd_core.study.study import Checkpoint, Study

MAX_IMAGES, MAX_STEPS, COLUMNS, _PANEL, _DECADES = 1500, 6, 3, 200, 8
# A directional difference is drawn where it says something of the trace, and where a logarithmic axis has place for it.
LEAST_CORRELATION, MOST_NEGATIVE = 0.5, 0.1

# Fibonacci hashing: the same images in every run, from everywhere in the data set.
_SAMPLE = """
    SELECT is_noisy, {columns} FROM rows WHERE arm = $arm AND epoch = $epoch AND trial = 0
    ORDER BY (image_id::BIGINT * 2654435769) % 4294967296, image_id LIMIT $most
"""
_COUNTS = """
    SELECT count(*) AS num_images, bool_and(method = 'exact') AS is_exact {columns}
    FROM rows WHERE arm = $arm AND epoch = $epoch AND trial = 0
"""
# Spearman's: the correlation of mid-ranks.
_RANK_CORRELATION = """
    SELECT corr(x_rank, y_rank) AS correlation FROM (
        SELECT rank() OVER (ORDER BY x) + (count(*) OVER (PARTITION BY x) - 1) / 2.0 AS x_rank,
               rank() OVER (ORDER BY y) + (count(*) OVER (PARTITION BY y) - 1) / 2.0 AS y_rank
        FROM (SELECT {x} AS x, {y} AS y FROM rows WHERE arm = $arm AND epoch = $epoch AND trial = 0)
        WHERE isfinite(x) AND isfinite(y)
    )
"""


@dataclass(frozen=True)
class Scatter:
    """Trial 0 of one checkpoint.

    Attributes:
        checkpoint: whose images.
        images: at most ``MAX_IMAGES``, with ``is_noisy``, ``trace`` and the columns of ``shown``.
        num_images: how many there are.
        is_exact: whether the Hessian was computed exactly.
        shown: what is drawn against the trace.
        correlations: rank correlation over all images with the trace, and with the gradient norm, by column.
        hidden: directional differences that are not drawn, and the share of images at which each is negative.
        num_steps: how many steps h there are, some of which may not be drawn.
    """

    checkpoint: Checkpoint
    images: list[dict[str, Any]]
    num_images: int
    is_exact: bool
    shown: tuple[Definition, ...]
    correlations: dict[str, tuple[float | None, float | None]]
    hidden: dict[Definition, float]
    num_steps: int

    @property
    def has_differences(self) -> bool:
        """Whether finite differences are drawn."""
        return any(definition.is_published for definition in self.shown)

    def title(self) -> str:
        """One sentence on the rank correlations."""
        known = [(d.short, self.correlations[d.column][0]) for d in self.shown]
        listed = ", ".join(f"{_two_digits(value)} ({name})" for name, value in known if value is not None)
        what = "the published finite difference" if self.has_differences else "other scores"
        trace = "exact trace" if self.is_exact else "trace"
        return f"Rank correlation of {what} with the {trace} at k = {self.checkpoint.arm.k}: {listed or 'undefined'}"

    def note(self, examples: str) -> str:
        """What is drawn, in a sentence or two for the subtitle."""
        some = f"{len(self.images):,} of the {self.num_images:,} " if len(self.images) < self.num_images else ""
        text = f"Points: {some}training {examples} of {self.checkpoint.arm.key}, trial 0; rank correlation: Spearman's"
        text += f", over all {self.num_images:,}" if some else ""
        if self.has_differences:
            text += ". g: gradient of the loss in the input x, r: random signs"
        num_panels = sum(definition.column.startswith("fd_norm") for definition in self.shown)
        if self.num_steps > num_panels:
            text += f". {num_panels} of {self.num_steps} steps are drawn"
        if self.hidden:
            shares = _range([style.percent(share, 2) for share in sorted(self.hidden.values())])
            known = [self.correlations[definition.column][0] for definition in self.hidden]
            ranks = _range([_two_digits(value) for value in sorted(v for v in known if v is not None)])
            text += f". Not drawn: {next(iter(self.hidden)).axis}; negative at {shares} of these {examples}"
            text += f", rank correlation with the trace {ranks}" if ranks else ""
        return text


def read(
    connection: duckdb.DuckDBPyConnection, study: Study, checkpoint: Checkpoint, columns: Sequence[str]
) -> Scatter | None:
    """Read what is to be drawn.

    Args:
        connection: has the views.
        study: what to read.
        checkpoint: whose images.
        columns: of finite differences that the checkpoint has, without their standard errors.

    Returns:
        None if trial 0 has no images there.
    """
    where = {"arm": checkpoint.arm.key, "epoch": checkpoint.epoch}
    present = set(column_names(connection, "per_image_curvature"))
    available = [column for column in columns if column in present]
    directional = _some(published(available, study, "directional"))
    shares = "".join(f", avg(({d.column} < 0)::INT) AS {d.column}" for d in directional)
    counts = fetch(connection, study, "per_image_curvature", _COUNTS.format(columns=shares), **where)
    if not counts or not counts[0]["num_images"]:
        return None

    def correlation(x: Definition, y: Definition) -> float | None:
        query = _RANK_CORRELATION.format(x=x.column, y=y.column)
        found: float | None = fetch(connection, study, "per_image_curvature", query, **where)[0]["correlation"]
        return found

    norms = _some(published(available, study, "norm"))
    correlations = {d.column: (correlation(TRACE, d), correlation(GRADIENT_NORM, d)) for d in (*norms, *directional)}
    negative = {d: counts[0][d.column] or 0.0 for d in directional}
    hidden = {
        d: share
        for d, share in negative.items()
        if share > MOST_NEGATIVE or (correlations[d.column][0] or 0) < LEAST_CORRELATION
    }
    shown = tuple(d for d in (*norms, *directional) if d not in hidden)
    if not shown:
        shown = (LOSS, GRADIENT_NORM, ALONG_GRADIENT)
        correlations |= {d.column: (correlation(TRACE, d), correlation(GRADIENT_NORM, d)) for d in shown}
    names = ", ".join(dict.fromkeys(["trace", *(d.column for d in shown)]))
    sample = _SAMPLE.format(columns=names)
    images = fetch(connection, study, "per_image_curvature", sample, **where, most=MAX_IMAGES)
    return Scatter(
        checkpoint,
        images,
        counts[0]["num_images"],
        bool(counts[0]["is_exact"]),
        shown,
        correlations,
        hidden,
        len(published(available, study, "norm")),
    )


def panels(scatter: Scatter, has_noise: bool) -> alt.VConcatChart:
    """One panel for each definition, three in a row; finite differences of one kind share an axis."""
    names = {False: "right label" if has_noise else "all labels", True: "wrong label"}
    rows = [{**row, "images": names[row["is_noisy"]]} for row in scatter.images]
    rows.sort(key=lambda row: row["is_noisy"])  # the few wrong labels are drawn over the others
    columns = [definition.column for definition in scatter.shown]
    for column in {"trace", *columns}:
        style.for_log_axis(rows, [column], _DECADES)
    kinds: dict[str, list[Definition]] = {}
    for definition in scatter.shown:
        kind = definition.name.partition(",")[0]
        kinds.setdefault(kind if definition.is_published else "local", []).append(definition)
    colour = style.label_colour(rows, style.point_legend())
    points = style.csv_data([{key: row[key] for key in ("images", "trace", *columns)} for row in rows])
    lines = []
    for definitions in kinds.values():
        for start in range(0, len(definitions), COLUMNS):
            shared = [d.column for d in definitions] if definitions[0].is_published else None
            line = definitions[start : start + COLUMNS]
            lines.append(
                alt.hconcat(
                    *(_panel(scatter, rows, d, shared, first=i == 0, colour=colour) for i, d in enumerate(line)),
                    spacing=16 if shared else 24,
                )
            )
    return alt.vconcat(*lines, data=points, spacing=24)


def _panel(
    scatter: Scatter,
    rows: list[dict[str, Any]],
    definition: Definition,
    shared: list[str] | None,
    *,
    first: bool,
    colour: alt.Color,
) -> style.Panel:
    x_scale, x_axis = style.log_scale(rows, ["trace"])
    y_scale, y_axis = style.log_scale(rows, shared or [definition.column])
    labels = first or shared is None
    points = alt.Chart().mark_circle(size=14, opacity=0.55, clip=True, aria=False).encode(
        x=alt.X("trace:Q", scale=x_scale, title=style.TRACE, axis=alt.Axis(labelOverlap="greedy", **x_axis)),
        y=alt.Y(
            f"{definition.column}:Q", scale=y_scale, title=_title(definition) if labels else None,
            axis=alt.Axis(labels=labels, ticks=labels, labelOverlap="greedy", **y_axis),
        ),
        color=colour,
    )  # fmt: skip
    with_trace, with_gradient = scatter.correlations[definition.column]
    second = f"rank correlation: {_two_digits(with_trace)}"
    if definition.is_published:
        second += f" (gradient norm: {_two_digits(with_gradient)})"
    layers = [points, *style.heading(_PANEL, definition.short, second)]
    return zoomable(alt.layer(*layers).properties(width=_PANEL, height=_PANEL), definition.column)


def _title(definition: Definition) -> list[str]:
    """An axis title on as many lines as it needs."""
    lines = [f"{definition.axis},", definition.unit]
    return lines if len(definition.unit) > 10 else [" ".join(lines)]


def _two_digits(correlation: float | None) -> str:
    return "undefined" if correlation is None else f"{correlation:.2f}".replace("-0.00", "0.00").replace("-", "\u2212")


def _range(texts: list[str]) -> str:
    """The first and the last of some sorted numbers."""
    return " to ".join(dict.fromkeys([texts[0], texts[-1]])) if texts else ""


def _some(definitions: list[Definition]) -> list[Definition]:
    """At most ``MAX_STEPS`` of them, both ends included."""
    if len(definitions) <= MAX_STEPS:
        return definitions
    last = len(definitions) - 1
    return [definitions[round(i * last / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]
