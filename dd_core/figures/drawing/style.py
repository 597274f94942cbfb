"""How all figures look: fonts, sizes, the colours of the things they show, titles, and the axes they share."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Self

import altair as alt

from dd_core.figures.drawing.log_axis import labels_of
from dd_core.study.architectures import label_of
from dd_core.study.study import Study

# Okabe & Ito 2008, distinguishable with every common colour blindness. One thing has one colour in all figures.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
TEST, TRAIN, RIGHT_LABEL, WRONG_LABEL, PUBLISHED = BLACK, GREEN, BLUE, VERMILLION, PURPLE
VALIDATION = ORANGE  # drawn only where nothing is known of test images
LARGEST_EIGENVALUE, WEIGHT_TRACE = ORANGE, SKY
GREY = "#595959"

# Arial is what browsers and the renderer's built-in Liberation Sans agree on in width, so text fits in both.
FONT = "Arial, Liberation Sans, Helvetica, sans-serif"
WIDTH = 460


# Vega would show the first row of a line or area wherever the pointer is: these have points with them instead.
_SHOWN_UNDER_THE_POINTER = ("bar", "circle", "image", "point", "rect", "rule", "square", "tick")
_BY_ENCODING = {"tooltip": {"content": "encoding"}}  # what a mark shows that says nothing else of itself
TOOLTIP_NUMBERS = ".5~r"
PAPER = "white"  # behind pictures; where a chart stands in a page, the page is what is seen behind it


Panel = alt.LayerChart | alt.FacetChart  # what Altair says properties() of a layered chart returns


class _Shared(alt.InlineData):
    """Data that copies of a chart share: Altair makes several of a chart in each layer, row and column of charts."""

    def __deepcopy__(self, memo: object) -> Self:
        return self


def data(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows as data of a chart; unlike a data frame they are passed on unchanged and have no row limit."""
    return _Shared(values=rows)


def csv_data(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Many rows as one CSV text: Altair copies and checks lists value by value, which takes seconds for thousands.

    Args:
        rows: at least one, all with the same keys; None becomes an empty field, which Vega reads as null.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    numbers = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    parse = {name: "number" if name in numbers else "string" for name in rows[0]}
    return _Shared(values=text.getvalue(), format=alt.CsvDataFormat(type="csv", parse=parse))


def describe(study: Study, variants: Sequence[str], epoch: int | None = None) -> list[str]:
    """The first lines of a subtitle: data set, wrong labels, architecture; trials, epoch."""
    used = [study.variants[name] for name in variants]
    noise = " / ".join(percent(share) for share in sorted({variant.label_noise for variant in used}))
    architecture = " / ".join(sorted({label_of(variant.architecture) for variant in used}))
    count = f"{study.data.num_train:,}" if study.data.num_train else "all"
    graphs = study.data.graphs
    title = study.data.title + ("" if graphs is None else f" (labels {graphs.labels.replace('_', ' ')})")
    trials = "1 trial" if study.trials == 1 else f"{study.trials} trials"
    when = "" if epoch is None else f" · epoch {epoch} of {study.epochs}"
    return [
        f"{title}, {count} training {study.data.examples}, {noise} of them mislabelled",
        f"{architecture} · {trials}{when}",
        *([] if study.width_unit == 1 else [f"Widths are fractions: k = 1 is a width of {study.width_unit:g}"]),
    ]


def percent(fraction: float, digits: int = 3) -> str:
    """A fraction as text, for example ``20 %`` or ``12.8 %``."""
    return f"{100 * fraction:.{digits}g} %"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence in a row: ``a``, ``a and b``, ``a, b and c``; at least one."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def finish(
    chart: Any, title: str, subtitle: Iterable[str | None], characters: int = 66, frame: Any = alt.Undefined
) -> alt.TopLevelMixin:
    """Give a chart its title, subtitle and the common configuration.

    Args:
        chart: any Altair chart; it becomes the top level.
        title: what is seen, one sentence.
        subtitle: lines; None is left out.
        characters: where lines are broken.
        frame: where they begin: default, with the first panel; bounds, with whatever stands farthest left.
    """
    heading = alt.TitleParams(text=wrap(title, characters), subtitle=wrap_lines(subtitle, characters), frame=frame)
    return dress(chart.properties(title=heading))


def wrap(title: str, characters: int = 66) -> list[str]:
    """Break a title into lines, but not within ``k = 4``, ``20 %`` or ``epoch 8``."""
    held = title.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%").replace("epoch ", "epoch\u00a0")
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(held, characters, break_on_hyphens=False)]


def wrap_lines(subtitle: Iterable[str | None], characters: int = 66) -> list[str]:
    """Break the lines of a subtitle, whose letters are smaller than those of a title of so many characters."""
    return [part for line in subtitle if line for part in wrap(line, round(characters * 1.4))]


def dress(chart: Any) -> alt.TopLevelMixin:
    """Apply the common configuration to a chart that has its title."""
    axis = alt.AxisConfig(
        labelFontSize=11, titleFontSize=12, titleFontWeight="normal", titlePadding=8,
        gridColor="#ECECEC", domainColor="#888888", tickColor="#888888", labelFlush=False,
    )  # fmt: skip
    configured = chart.configure(
        font=FONT,
        background="transparent",
        padding=14,
        axis=axis,
        axisQuantitative=alt.AxisConfig(labelOverlap="greedy", labelSeparation=5),
        tooltipFormat=alt.FormatConfig(numberFormat=TOOLTIP_NUMBERS),
        **dict.fromkeys(_SHOWN_UNDER_THE_POINTER, _BY_ENCODING),
        view=alt.ViewConfig(stroke=None, continuousWidth=WIDTH, continuousHeight=220),
        legend=alt.LegendConfig(
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=400, titleLimit=400
        ),
        header=alt.HeaderConfig(labelFontSize=12, titleFontSize=12, labelFontWeight="bold"),
        title=alt.TitleConfig(
            anchor="start", frame="group", fontSize=15, subtitleFontSize=11, subtitleColor=GREY, offset=14,
            subtitlePadding=6, lineHeight=19, subtitleLineHeight=15,
        ),
    )  # fmt: skip
    if not isinstance(configured, alt.TopLevelMixin):
        raise TypeError(f"not a top-level chart: {type(configured).__name__}")
    return configured


def is_wide(widths: Sequence[int]) -> bool:
    """Whether widths span so much that a linear axis would crowd the narrow ones."""
    return max(widths) >= 8 * min(widths)


def k_axis(widths: Sequence[int], *, labels: bool = True) -> alt.X:
    """The width axis: logarithmic if the range is wide, with a tick at every width while they fit."""
    if is_wide(widths):
        scale = alt.Scale(type="log", base=2, domain=[min(widths) / 1.07, max(widths) * 1.07], nice=False)
        powers = [k for k in widths if k & (k - 1) == 0]
        ticks = list(widths) if len(widths) <= 12 or len(powers) < 3 else powers
    else:
        scale = alt.Scale(domain=[min(widths) - 0.3, max(widths) + 0.3], nice=False, zero=False)
        ticks = list(widths) if len(widths) <= 20 else list(widths[:: -(-len(widths) // 20)])
    axis = alt.Axis(values=ticks, format="d", grid=True, labels=labels, labelOverlap="greedy", labelAngle=0)
    return alt.X("k:Q", scale=scale, axis=axis, title="width multiplier k" if labels else None)


def epoch_scale(last: int) -> tuple[alt.Scale, list[int]]:
    """An epoch scale that keeps epoch 0 and spreads the early ones (symlog), and its ticks."""
    ticks = [0]
    while 10 ** (len(ticks) // 3) <= last:
        ticks += [10 ** (len(ticks) // 3) * step for step in (1, 2, 5)]
    crowded = [tick for tick in ticks if 0.8 * last < tick]
    kept = [tick for tick in ticks if tick not in crowded]
    return alt.Scale(type="symlog", constant=1, domain=[0, last], nice=False), [*kept, last]


INPUT_CURVATURE = "nats per squared standardised pixel"
TRACE = ["trace of the input Hessian,", INPUT_CURVATURE]


def trace_title(study: Study) -> list[str]:
    """The axis of traces: of images in their pixels, of graphs in the features of their nodes."""
    return TRACE if study.data.examples == "images" else [TRACE[0], "nats per squared node feature"]


def loss_title(study: Study, variants: Iterable[str]) -> str:
    """The axis of losses that evaluations recorded of some variants."""
    words = {study.variants[variant].loss.words for variant in variants}
    title = words.pop() if len(words) == 1 else "loss"
    return f"{title}, nats" if title == "cross-entropy" else title


def number(value: float, digits: int = 2) -> str:
    """A number with so many digits that count, without exponent unless it is very small: ``170``, ``0.024``."""
    return f"{float(f'{value:.{digits}g}'):,.12g}"


_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def alike(values: Sequence[float]) -> list[str]:
    """Numbers in one form, to be compared: with as many decimals, or powers of ten if a positive one is very small.

    Of scores with both signs 0 is as near as any, so the largest decides about decimals alone.
    """
    sizes = [abs(value) for value in values if value]
    largest, smallest = max(sizes, default=1.0), min(sizes, default=1.0)
    if min(values, default=0.0) < 0:
        smallest = largest
    if smallest < 1e-4:
        pairs = [f"{value:.2e}".split("e") for value in values]
        powers = [str(int(power)).translate(_RAISED) for _, power in pairs]
        return [f"{own}\u00b710{power}" if float(own) else "0" for (own, _), power in zip(pairs, powers, strict=True)]
    decimals = max(2 - math.floor(math.log10(largest)), -math.floor(math.log10(smallest)), 0)
    while decimals and all(round(value, decimals) == round(value, decimals - 1) for value in values):
        decimals -= 1
    return [f"{value:,.{decimals}f}".replace("-", "\u2212") for value in values]


def numbers(**names: str) -> list[alt.Tooltip]:
    """Numbers shown under the pointer, by column: ``numbers(error="error, %")``.

    Args:
        **names: what each column is called.
    """
    return [alt.Tooltip(f"{column}:Q", format=",.4~r", title=name) for column, name in names.items()]


def log_scale(rows: list[dict[str, Any]], names: Sequence[str]) -> tuple[alt.Scale, dict[str, Any]]:
    """A logarithmic scale over whole decades, and axis settings that label just these."""
    values = [row[name] for row in rows for name in names if row[name] is not None] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    ticks = [10.0**power for power in range(low, high + 1)]
    return alt.Scale(type="log", domain=[ticks[0], ticks[-1]]), {"values": ticks, "labelExpr": labels_of(ticks)}


def for_log_axis(rows: list[dict[str, Any]], names: Sequence[str], decades: int = 10) -> str | None:
    """Lift values that a logarithmic axis cannot show (zero) or that would stretch it to its lower edge, in place.

    Args:
        rows: are changed.
        names: the columns on the axis.
        decades: how far below the largest value the axis may reach.

    Returns:
        A sentence for the subtitle if anything was lifted.
    """
    positive = [row[name] for row in rows for name in names if row[name] is not None and row[name] > 0]
    floor = max(min(positive), max(positive) / 10**decades) if positive else 1.0
    lifted = False
    for row in rows:
        for name in names:
            if row[name] is not None and row[name] < floor:
                row[name], lifted = floor, True
    return f"Values below {floor:.1g}, zero included, are drawn at {floor:.1g}" if lifted else None


ALL_LABELS = "all labels"
_SUBSETS = {"all": (ALL_LABELS, TRAIN), "clean": ("right label", RIGHT_LABEL), "noisy": ("wrong label", WRONG_LABEL)}


def by_label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table ``curvature`` without the subset "all" of variants that have wrong labels.

    Args:
        rows: have ``variant`` and ``subset``.

    Returns:
        The rows, each with its subset in words as ``images``.
    """
    noisy = {row["variant"] for row in rows if row["subset"] == "noisy"}
    kept = [row for row in rows if (row["subset"] == "all") != (row["variant"] in noisy)]
    return [{**row, "images": _SUBSETS[row["subset"]][0]} for row in kept]


def label_colour(rows: list[dict[str, Any]], legend: alt.Legend | None = None) -> alt.Color:
    """The colour of ``images``, the same in all panels that show a part of these rows; the legend has lines."""
    shown = [pair for pair in _SUBSETS.values() if any(row["images"] == pair[0] for row in rows)]
    scale = alt.Scale(domain=[name for name, _ in shown], range=[colour for _, colour in shown])
    return alt.Color("images:N", scale=scale, legend=legend or line_legend())


def line_legend(columns: int = 3) -> alt.Legend:
    """A legend of lines above the panels."""
    return alt.Legend(
        title=None, orient="top", columns=columns, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1
    )


def point_legend(columns: int = 3) -> alt.Legend:
    """A legend of points above the panels."""
    return alt.Legend(title=None, orient="top", columns=columns, symbolType="circle", symbolSize=60, symbolOpacity=1)


def threshold_rule(k: int | None, widths: Sequence[int], label: str | None = None) -> list[alt.Chart]:
    """Layers that mark the interpolation threshold, with a label at the top if one is given."""
    if k is None:
        return []
    base = alt.Chart(data([{"k": k}])).encode(x=alt.X("k:Q"))
    layers = [base.mark_rule(color=GREY, strokeDash=[4, 3], strokeWidth=1.2)]
    if label:
        right = k * k > min(widths) * max(widths) if is_wide(widths) else 2 * k > min(widths) + max(widths)
        text = base.mark_text(
            align="right" if right else "left", dx=-6 if right else 6, baseline="top", fontSize=11, color=GREY,
            lineBreak="\n",
        )  # fmt: skip
        layers.append(text.encode(alt.YValue(2), alt.TextValue(label)))
    return layers


def headroom(rows: list[dict[str, Any]], name: str, share: float) -> alt.Scale:
    """A scale from 0 with room for a label above the largest value."""
    highest = max((row[name] for row in rows if row[name] is not None), default=1)
    return alt.Scale(domain=[0, (1 + share) * highest or 1], nice=True)


def by_variant(panels: dict[str, Any]) -> Any:
    """One panel alone, or panels side by side, each under the name of its variant."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    titled = [
        panel.properties(title=alt.TitleParams(name, fontSize=12, anchor="start", offset=6))
        for name, panel in panels.items()
    ]
    return alt.concat(*titled, columns=3)


def lines_by_variant(lines: dict[str, alt.HConcatChart]) -> alt.VConcatChart:
    """Rows of panels below each other, each under the name of its variant if there are several."""
    if len(lines) == 1:
        return alt.vconcat(*lines.values())
    titled = [
        line.properties(title=alt.TitleParams(name, fontSize=12, anchor="start", offset=10))
        for name, line in lines.items()
    ]
    return alt.vconcat(*titled, spacing=30)


def columns_for(count: int, most: int) -> int:
    """In how many columns panels stand, about so many, so that none is alone in the last row."""

    def unfit(columns: int) -> tuple[bool, int, int]:
        is_orphan = count > columns and count % columns == 1
        return is_orphan, abs(columns - most), columns if count <= 2 * most else -columns

    return min((columns for columns in (most - 1, most, most + 1) if columns > 1), key=unfit)


def heading(width: int, text: str, second_line: str | None = None) -> list[alt.Chart]:
    """Layers that write a heading above a panel, at one height in a row of panels.

    A title would stand higher over the panel whose axis labels reach above it.
    """
    base = alt.Chart(data([{}])).encode(alt.XValue(width / 2))
    bold = base.mark_text(fontSize=12, fontWeight="bold", baseline="bottom")
    layers = [bold.encode(alt.YValue(-24 if second_line else -8), alt.TextValue(text))]
    if second_line:
        plain = base.mark_text(fontSize=11, color=GREY, baseline="bottom")
        layers.append(plain.encode(alt.YValue(-8), alt.TextValue(second_line)))
    return layers
