"""How well every score agrees with memorisation itself, in the three measures that papers report."""

from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.memorization.published import agreements
from dd_core.analysis.memorization.sentences import agreement_sentence, words_of
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch
from dd_core.figures.panels.memorization import INTERVALS, ROW, class_ages_line, source_line, whiskers
from dd_core.figures.panels.task_lines import one_width
from dd_core.store.store import Store
from dd_core.study.study import Study

_PANEL, _MOST_ARMS = 125, 3
_MEASURES = {
    "spearman": "Spearman's rank correlation",
    "pearson": "Pearson's correlation",
    "cosine": "cosine similarity",
}
_SERIES = {"all": "all images", "top": "the tenth memorised most"}
_PUBLISHED = {"all": "published, all", "top": "published, top 5,000"}
_COLOURS = (style.BLACK, style.SKY, style.PUBLISHED, style.ORANGE)
_ROWS = "SELECT * EXCLUDE (study, recipe) FROM rows WHERE list_contains($drawn, arm) ORDER BY ALL"

Row = dict[str, Any]


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw a panel for each measure, a line of panels for each variant and each source of the truth."""
    arms, left_out = drawn_arms(connection, study, "memorization_agreement")
    if not arms:
        return None
    names, notes = one_width(study, arms, _MOST_ARMS)
    rows = fetch(connection, study, "memorization_agreement", _ROWS, drawn=list(names))
    known = [row for row in rows if any(row[measure] is not None for measure in _MEASURES)]
    groups: dict[str, list[Row]] = {}
    several = len({row["source"] for row in known}) > 1
    for row in sorted(known, key=lambda row: (list(names).index(row["arm"]), row["source"])):
        name = names[row["arm"]] + (f", truth from {row['source']}" if several else "")
        groups.setdefault(name, []).append(row)
    if not groups:
        return None
    shown = dict(list(groups.items())[:_MOST_ARMS])
    first = next(iter(shown.values()))
    return style.finish(
        style.lines_by_variant({name: _line(own) for name, own in shown.items()}),
        agreement_sentence(first),
        [
            f"{INTERVALS}. Scores point so that more is more memorised; of the tenth memorised most little rank order "
            "is left to find",
            source_line("table 1, Inception on CIFAR-100; cosine is not about the means, so it is near 1 for any two "
                        "scores that vary little"),
            f"Truth: {_truth(first)}",
            *style.describe(study, [name for name in names.values() if any(own.startswith(name) for own in shown)]),
            *notes,
            None if len(shown) == len(groups) else f"Lines: the first {len(shown)} of {len(groups)}",
            class_ages_line(study),
            left_out,
        ],
        characters=78,
    )  # fmt: skip


def _truth(rows: list[Row]) -> str:
    if rows[0]["source"] == "subsets":
        return "P[right | in training] \u2212 P[right | left out] over trials on random subsets (Feldman & Zhang 2020)"
    return f"estimates imported from {rows[0]['source']}"


def _line(rows: list[Row]) -> alt.HConcatChart:
    """The panels of one variant, best rank correlation over all images first."""
    ranked = sorted(rows, key=lambda row: (row["images"] != "all", -(row["spearman"] or 0.0)))
    order = list(dict.fromkeys(words_of(row["score"]) for row in ranked))
    scores = {row["score"] for row in rows}
    series = [*_SERIES.values(), *_PUBLISHED.values()]

    def panel(measure: str, *, first: bool) -> style.Panel:
        points = [
            {
                "name": words_of(row["score"]), "series": _SERIES[row["images"]], "value": row[measure],
                "low": row[f"{measure}_low"], "high": row[f"{measure}_high"],
                "text": f"{row[measure]:.2f}".replace("-", "\u2212") if row["images"] == "all" else None,
            }
            for row in rows if row[measure] is not None
        ]  # fmt: skip
        published = [
            {"name": words_of(own.score), "series": _PUBLISHED[own.images], "value": getattr(own, measure)}
            for own in agreements()
            if own.score in scores and measure != "spearman"
        ]
        ends = [row[end] for row in points for end in ("value", "low") if row[end] is not None]
        lowest = min([0.0, *ends])
        scale = alt.Scale(domain=[lowest, 1], nice=True)
        x = alt.X("value:Q", scale=scale, title="agreement with memorisation", axis=alt.Axis(format=".1f", tickCount=4))
        lines = whiskers(
            points, published, x, order, _PANEL, labels=first, series=series, colours=_COLOURS, legend=True
        )
        zero = alt.Chart(style.data([{"value": 0}])).mark_rule(color="#BBBBBB").encode(x=x)
        above = style.heading(_PANEL, _MEASURES[measure])
        return alt.layer(zero, *lines, *above).properties(width=_PANEL, height=1.3 * ROW * len(order))

    return alt.hconcat(*(panel(measure, first=i == 0) for i, measure in enumerate(_MEASURES)), spacing=40)
