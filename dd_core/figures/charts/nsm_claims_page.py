"""What was claimed of the published graph networks, what their authors said later, and what is measured here.

Every row is a claim: in words, as numbers on an axis, and as the verdict with its reason. The page has the same rows as
a table, too, which can be searched and copied.
"""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.graph_report import VERDICTS, claims_listed, claims_of, claims_sentence, name_of
from dd_core.analysis.graphs.published import PUBLISHED_WIDTH, unlike_published
from dd_core.figures.drawing import style
from dd_core.figures.drawing.log_axis import log_axis
from dd_core.figures.drawing.render import with_table
from dd_core.figures.drawing.selection import drawn_arms, has_view, tidy
from dd_core.store.store import Store
from dd_core.study.study import Study

_WIDTH, _ROW, _LINE, _TEXT, _VERDICT = 300, 62, 13, 270, 345
_SENTENCE, _WHY, _MOST_LINES = 48, 62, 3  # characters of a line, and lines
_ACCURACY, _DIFFERENCE = "accuracy", "difference of accuracies, or share of trials"
_FORMS = {_ACCURACY: ".0%", _DIFFERENCE: ".0%", "loss": ".3~r", "epochs": ".3~r"}
_SIGNS = {"holds": "\u2713 holds", "does not hold": "\u2717 does not hold", "cannot be told": "? cannot be told"}
_COLOURS = dict(zip(VERDICTS, (style.GREEN, style.VERMILLION, style.GREY), strict=True))
_SERIES = {
    "claimed": ("claimed", style.PURPLE, "triangle-up"),
    "later": ("later or elsewhere by the authors", style.ORANGE, "square"),
    "measured": ("measured here", style.BLACK, "circle"),
}

_TICKS = {"baseline": "majority baseline", "ceiling": "Bayes ceiling", "floor": "what dropped nodes alone give"}
_IN_POINTS = ("gain_over_earlier", "learns", "even_labels")
_BEYOND = {"at least": "\u2265 ", "at most": "\u2264 "}

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a block for each unit, in it a row for each claim."""
    if study.data.graphs is None or not has_view(connection, "nsm_claims"):
        return None
    _, left_out = drawn_arms(connection, study, "nsm_claims")
    claims = [
        {name: tidy(value) for name, value in row.items()} | {"who": name_of(study, row["arm"])}
        for row in claims_of(study, connection)
    ]
    if not claims:
        return None
    drawn = [row for row in claims if row["measured"] is not None or row["later"] is not None] or claims
    blocks = {
        words: rows
        for words in (*_FORMS, "seconds", "dollars")
        if (rows := [row for row in drawn if _axis_of(row) == words])
    }
    panels = [_block(words, rows, is_first=words == next(iter(blocks))) for words, rows in blocks.items()]
    held, refuted = (claims_listed(study, claims, verdict) for verdict in VERDICTS[:2])
    figure = style.finish(
        alt.vconcat(*panels, spacing=14),
        claims_sentence(claims),
        [
            f"Holds: {held or 'no claim'}",
            f"Does not hold: {refuted or 'no claim'}",
            *style.describe(study, list(dict.fromkeys(row["variant"] for row in claims))),
            *_unlike(study, claims),
            "Lines: 95 % intervals, here over trials and graphs, of the authors' shares over their graphs (Wilson). "
            "Ticks: majority baseline and Bayes ceiling; of a cycle loss what dropped nodes alone give, about",
            _undrawn(claims, drawn),
            left_out,
        ],
        characters=118,
        frame="bounds",  # texts stand left of the panels
    )
    return with_table(figure, *_table(claims))


def _unlike(study: Study, claims: Sequence[Row]) -> list[str]:
    """By arm what is not as it was published."""
    arms = {row["arm"]: row["who"] for row in claims}
    found = {
        who: ", ".join(unlike_published(study, study.arms[arm].variant, study.arms[arm].k)) for arm, who in arms.items()
    }
    if len(set(found.values())) == 1:
        (own,) = set(found.values())
        return [f"Unlike the published: {own}" if own else f"As published, k = {PUBLISHED_WIDTH}"]
    return [f"Unlike the published, {who}: {own or 'nothing'}" for who, own in found.items()]


def _undrawn(claims: Sequence[Row], drawn: Sequence[Row]) -> str | None:
    """A sentence about the claims that have no numbers to draw beside them."""
    shown = {(row["arm"], row["claim"]) for row in drawn}
    names = dict.fromkeys(row["claim"] for row in claims if (row["arm"], row["claim"]) not in shown)
    words = ", ".join(name.replace("_", " ") for name in names)
    return f"In the page's table alone, since nothing measures them: {words}" if names else None


def _axis_of(row: Row) -> str:
    """What the numbers of a claim are; fractions are accuracies or differences of these."""
    if row["unit"] != "fraction":
        return str(row["unit"])
    return _ACCURACY if row["claim"].startswith(_ACCURACY) else _DIFFERENCE


def _name(row: Row) -> str:
    return f"{row['who']}: {row['claim'].replace('_', ' ')}"


def _number(value: float | None, row: Row) -> str:
    unit = row["unit"]
    if value is None:
        return "\u2013"
    if unit == "fraction":
        return f"{100 * value:.1f} {'points' if row['claim'] in _IN_POINTS else '%'}"
    return f"{style.number(value, 3)}{' s' if unit == 'seconds' else ' $' if unit == 'dollars' else ''}"


def _claimed(row: Row) -> str:
    return _BEYOND.get(row["claimed_is"], "") + _interval(row, "claimed")


def _interval(row: Row, column: str) -> str:
    """What is claimed, was later or is measured here, with its interval."""
    middle, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if low is None or high is None:
        return _number(middle, row)
    return f"{_number(middle, row)} ({_number(low, row)} to {_number(high, row)})"


def _block(words: str, claims: Sequence[Row], *, is_first: bool) -> style.Panel:
    """The claims about one quantity: words left, numbers in the middle, verdicts right."""
    order = [_name(row) for row in claims]
    y = alt.Y("name:N", sort=order, scale=alt.Scale(domain=order), axis=None)
    points = [
        {"name": _name(row), "series": series, "value": row[column], "source": source}
        for row in claims
        for column, (series, *_) in _SERIES.items()
        if row[column] is not None
        for source in [row[{"claimed": "source", "later": "later_source", "measured": "measured_of"}[column]] or ""]
    ]
    spans = [
        {"name": _name(row), "series": series, "low": row[f"{column}_low"], "high": row[f"{column}_high"]}
        for row in claims
        for column, (series, *_) in _SERIES.items()
        if row[f"{column}_low"] is not None and row[f"{column}_high"] is not None
    ]
    ticks = [
        {"name": _name(row), "value": row[column], "what": what}
        for row in claims
        for column, what in _TICKS.items()
        if row[column] is not None and words in (_ACCURACY, "loss")
    ]
    values = [own[name] for own in (*points, *spans, *ticks) for name in ("value", "low", "high") if name in own]
    scale, axis = _scale(words, values)
    x, low = (alt.X(f"{name}:Q", scale=scale, axis=axis, title=words) for name in ("value", "low"))
    colour, shape = _encodings(shown=is_first)
    offset = alt.YOffset("series:N", scale=alt.Scale(domain=[words for words, *_ in _SERIES.values()], range=[18, 46]))
    tooltip = ["name:N", "series:N", alt.Tooltip("value:Q", format=".3~f"), "source:N"]
    separate = alt.Chart(style.data([{"name": name} for name in order])).mark_rule(color="#E4E4E4", yOffset=-_ROW / 2)
    layers = [
        separate.encode(y=y, x=alt.value(-_TEXT), x2=alt.value(_WIDTH + _VERDICT)),
        alt.Chart(style.data(ticks)).mark_tick(color=style.GREY, thickness=1.5, size=_ROW - 14).encode(
            x=x, y=y, tooltip=["name:N", "what:N", alt.Tooltip("value:Q", format=".3~f")]
        ),
        alt.Chart(style.data(spans)).mark_rule(strokeWidth=2.2).encode(
            x=low, x2="high:Q", y=y, yOffset=offset, color=colour
        ),
        alt.Chart(style.data(points)).mark_point(filled=True, size=65, opacity=1).encode(
            x=x, y=y, yOffset=offset, color=colour, shape=shape, tooltip=tooltip
        ),
        *_texts(claims, y),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=_WIDTH, height=alt.Step(_ROW))


def _scale(words: str, values: Sequence[float]) -> tuple[alt.Scale, alt.Axis]:
    if words == _ACCURACY:
        ends = [max(min(values) - 0.03, 0.0), min(max(values) + 0.03, 1.0)]
        return alt.Scale(domain=ends, nice=False, zero=False), alt.Axis(format=_FORMS[words], tickCount=6)
    if words not in _FORMS and min(values) > 0:
        return log_axis(values)
    return alt.Scale(zero=True), alt.Axis(format=_FORMS.get(words, "~g"), tickCount=6)


def _texts(claims: Sequence[Row], y: alt.Y) -> list[alt.Chart]:
    """The claim in words left of the panel, verdict and reason right of it."""
    rows = [
        {
            "name": _name(row),
            "who": row["who"],
            "sentence": _wrapped(row["sentence"], _SENTENCE),
            "verdict": _SIGNS[row["verdict"]],
            "numbers": f"{_claimed(row)} claimed, {_interval(row, 'later')} later, {_interval(row, 'measured')} here",
            "why": _wrapped(row["why"], _WHY),
            "key": row["verdict"],
        }
        for row in claims
    ]
    base = alt.Chart(style.data(rows)).encode(y=y)
    bold: dict[str, Any] = {"align": "left", "fontWeight": "bold", "fontSize": 11, "dy": -22}
    plain: dict[str, Any] = {"align": "left", "fontSize": 10, "lineBreak": "\n", "lineHeight": _LINE, "baseline": "top"}
    left, right = alt.value(-_TEXT), alt.value(_WIDTH + 12)
    verdicts = [
        base.transform_filter(f"datum.key === {json.dumps(key)}")
        .mark_text(**bold, color=colour)
        .encode(x=right, text="verdict:N")
        for key, colour in _COLOURS.items()
    ]
    return [
        base.mark_text(**bold).encode(x=left, text="who:N"),
        base.mark_text(**plain, dy=-13).encode(x=left, text="sentence:N"),
        *verdicts,
        base.mark_text(**plain, dy=-13).encode(x=right, text="why:N"),
    ]  # fmt: skip


def _wrapped(text: str, characters: int) -> str:
    lines = textwrap.wrap(text, characters, max_lines=_MOST_LINES, placeholder=" \u2026", break_on_hyphens=False)
    return "\n".join(lines)


def _encodings(*, shown: bool) -> tuple[alt.Color, alt.Shape]:
    names, colours, shapes = (list(column) for column in zip(*_SERIES.values(), strict=True))
    legend = alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1, symbolSize=70) if shown else None
    return (
        alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("series:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def _table(claims: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the page's table."""
    head = ["domain", "claim", "claimed", "where", "later or elsewhere by the authors", "where", "here (95 % interval)"]
    rows = [
        [
            row["who"],
            row["sentence"],
            _claimed(row),
            row["source"] or "",
            _interval(row, "later"),
            row["later_source"] or "",
            _interval(row, "measured"),
            row["measured_of"] or "",
            *(_number(row[name], row | {"claim": ""}) for name in _TICKS),
            _SIGNS[row["verdict"]],
            row["why"],
        ]
        for row in claims
    ]
    return [*head, "of what", *_TICKS.values(), "verdict", "why"], rows
