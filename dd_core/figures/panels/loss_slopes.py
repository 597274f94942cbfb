"""What the figures of loss curves share: their runs, the colours of families, the words for what is not drawn."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import altair as alt
import duckdb

from dd_core.analysis.loss_slopes.campaign import Campaign
from dd_core.figures.drawing import style
from dd_core.figures.drawing.selection import drawn_arms, fetch_exact, tidy
from dd_core.study.study import Study
from dd_core.words import counted

# Of families in the order of the study; more of them share the last.
_COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK, style.GREY)
_MOST_NAMED = 16  # families in a legend
SLOPE = "d log loss / d log step"


@dataclass(frozen=True)
class Runs:
    """The runs of a study's present recipe, in the order of the study.

    Attributes:
        rows: of ``loss_slopes``; ``run`` is arm and trial in words, of what diverged ``is_diverged`` is true.
        campaign: the same in full precision, for what is counted and tested.
        left_out: a sentence about arms without rows, or None.
    """

    rows: list[dict[str, Any]]
    campaign: Campaign
    left_out: str | None

    @property
    def fitted(self) -> list[dict[str, Any]]:
        """The runs that have slopes."""
        return [row for row in self.rows if row["outcome"] == "fitted"]

    @property
    def families(self) -> list[str]:
        """Those that have runs, in the order of the study."""
        return list(dict.fromkeys(row["family"] for row in self.rows))

    @property
    def variants(self) -> list[str]:
        """Those that have runs, in the order of the study."""
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    def having(self, *names: str) -> list[dict[str, Any]]:
        """The fitted runs with a value in each of some columns."""
        return [row for row in self.fitted if all(row[name] is not None for name in names)]

    def colour(self, rows: Iterable[dict[str, Any]], *, named: bool = True) -> alt.Color:
        """The colour of ``family``, the same in all figures of the study; the legend names those of some rows."""
        shown = {row["family"] for row in rows}
        colours = [_COLOURS[min(i, len(_COLOURS) - 1)] for i in range(len(self.families))]
        pairs = [(name, colour) for name, colour in zip(self.families, colours, strict=True) if name in shown]
        scale = alt.Scale(domain=[name for name, _ in pairs], range=[colour for _, colour in pairs])
        has_legend = named and 1 < len(pairs) <= _MOST_NAMED
        return alt.Color("family:N", scale=scale, legend=style.point_legend(4) if has_legend else None)

    def family_axis(self, rows: Iterable[dict[str, Any]], *, labels: bool = True) -> alt.Y:
        """A row for each family that some rows have."""
        shown = {row["family"] for row in rows}
        names = [name for name in self.families if name in shown]
        axis = alt.Axis(labels=labels, ticks=False, domain=False, labelLimit=200, labelPadding=8)
        return alt.Y("family:N", sort=names, scale=alt.Scale(domain=names), title=None, axis=axis)

    def describe(self, study: Study) -> list[str | None]:
        """The last lines of a subtitle: data set and network, how the runs ended, what is left out."""
        return [*style.describe(study, self.variants), self.endings(), self.left_out]

    def endings(self) -> str:
        """How many runs there are and how many have no slopes, by reason."""
        others = Counter(row["outcome"] for row in self.rows if row["outcome"] != "fitted")
        late = sum(row["is_diverged"] for row in self.fitted)
        parts = [f"{len(self.fitted) or 'none'} fitted" + (f" (of these {late} diverged later)" if late else "")]
        parts += [f"{count} {outcome}" for outcome, count in others.most_common()]
        return f"{counted(len(self.rows), 'run')}: {', '.join(parts)}"


def read_runs(connection: duckdb.DuckDBPyConnection, study: Study) -> Runs:
    """The runs of all arms that have current rows."""
    order = {key: i for i, key in enumerate(study.arms)}
    found = fetch_exact(connection, study, "loss_slopes", "SELECT * FROM rows")
    found.sort(key=lambda row: (order[row["arm"]], row["trial"]))
    for row in found:
        row["run"] = f"{row['arm']}, trial {row['trial']}"
        row["family"] = row["family"] or row["variant"]
        row["is_diverged"] = "diverged" in (row["status"], row["outcome"])
    _, left_out = drawn_arms(connection, study, "loss_slopes")
    shown = [{name: tidy(value) for name, value in row.items()} for row in found]
    return Runs(shown, Campaign.from_rows(found), left_out)


def val_ce_title(rows: Iterable[dict[str, Any]]) -> str:
    """The axis of ``best_validation_loss``: of validation images, or without them of test images."""
    kinds = {bool(row["validation_is_test"]) for row in rows if row["best_validation_loss"] is not None}
    words = {frozenset({True}): "test", frozenset({False}): "validation"}.get(frozenset(kinds), "validation or test")
    return f"best {words} cross-entropy, nats"
