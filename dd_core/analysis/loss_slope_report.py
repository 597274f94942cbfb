"""What the loss curves of a study say, as text: H1, H2, and at which widths the early power law breaks."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import duckdb

from dd_core.analysis.loss_slopes.hypotheses import Campaign, answer_h1, answer_h2
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

_TABLES = ("loss_slopes", "loss_slope_fits")
# The rows of a study's present recipes, in SQL for ``query``.
CURRENT = "study = $study AND (arm, recipe) IN (SELECT unnest($arms), unnest($recipes))"


@dataclass(frozen=True)
class WidthBreak:
    """How the runs of a variant at one width bend after the early window, medians over those that do.

    A break within the window or before it is the end of burn-in, and no end of the power law.

    Attributes:
        k: width multiplier.
        num_runs: those with an early slope.
        num_broken: of which two power laws that part later are better than one, by AICc and effective sample size.
        epoch: where they part; None where none does.
        before, after: slopes there.
    """

    k: int
    num_runs: int
    num_broken: int
    epoch: float | None = None
    before: float | None = None
    after: float | None = None

    @property
    def is_broken(self) -> bool:
        """Whether most of them are."""
        return 2 * self.num_broken > self.num_runs


def rows_of(study: Study, connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The study's current rows of ``loss_slopes``, in the order of arms and trials."""
    return query(connection, study, f"SELECT * FROM loss_slopes WHERE {CURRENT} ORDER BY arm, trial")


def query(connection: duckdb.DuckDBPyConnection, study: Study, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """Rows of a constant query, which finds $study, $arms and $recipes (of these arms) among its parameters."""
    recipes = [study.recipe_hash(arm) for arm in study.arms.values()]
    given = {"study": study.name, "arms": list(study.arms), "recipes": recipes, **parameters}
    cursor = connection.execute(sql, given)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def breaks_by_width(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[WidthBreak]]:
    """For every variant of the study file (all points of its grid together) with several widths, how each bends.

    ``rows``: ``rows_of`` the study.
    """
    runs: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["alpha_early"] is not None:
            runs.setdefault(row["family"], {}).setdefault(row["k"], []).append(row)
    return {
        family: [_width_break(k, by_width[k]) for k in sorted(by_width)]
        for family, by_width in runs.items()
        if len(by_width) > 1
    }


def _width_break(k: int, rows: list[Mapping[str, Any]]) -> WidthBreak:
    broken = [row for row in rows if row["early_break_epoch"] is not None]
    if not broken:
        return WidthBreak(k, len(rows), 0)
    names = ("early_break_epoch", "early_break_slope_before", "early_break_slope_after")
    return WidthBreak(k, len(rows), len(broken), *(median(row[name] for row in broken) for name in names))


def break_sentence(family: str, widths: list[WidthBreak], early: tuple[float, float]) -> str:
    """At which widths the early power law lasts, flattens or steepens, in how many runs, where and how much."""
    clauses = []
    if whole := [width for width in widths if not width.is_broken]:
        num = sum(width.num_runs - width.num_broken for width in whole)
        clauses.append(f"lasts to the end in {num} of {_num_runs(whole)} runs {_at(whole, widths)}")
    broken = [width for width in widths if width.is_broken]
    for verb, steepens in (("flattens", False), ("steepens", True)):
        if own := [width for width in broken if ((width.after or 0) < (width.before or 0)) == steepens]:
            clauses.append(_break_clause(verb, own, widths))
    return f"{family}: the power law of epochs {early[0]:g} to {early[1]:g} {'; it '.join(clauses)}."


def _break_clause(verb: str, own: list[WidthBreak], widths: list[WidthBreak]) -> str:
    num = sum(width.num_broken for width in own)
    epochs = [width.epoch for width in own if width.epoch is not None]
    when = f"at epoch {min(epochs):.0f}" + (f" to {max(epochs):.0f}" if len(own) > 1 else "")
    ends = dict.fromkeys((own[0], own[-1]))
    slopes = " and ".join(f"from {width.before:.2f} to {width.after:.2f} at k = {width.k}" for width in ends)
    return f"{verb} in {num} of {_num_runs(own)} runs {_at(own, widths)}, {when}, where its slope goes {slopes}"


def _at(own: list[WidthBreak], widths: list[WidthBreak]) -> str:
    """Some of the widths in words: ``at k = 1, 2``, ``from k = 4 on``."""
    is_from = len(own) > 1 and own == widths[-len(own) :]
    return f"from k = {own[0].k} on" if is_from else f"at k = {', '.join(str(width.k) for width in own)}"


def _num_runs(widths: list[WidthBreak]) -> int:
    return sum(width.num_runs for width in widths)


def findings(store: Store, study: Study) -> list[str]:
    """Sentences about a study's loss curves; none where none is analysed."""
    with contextlib.closing(connect(store, _TABLES, within=(study.name,))) as connection:
        rows = rows_of(study, connection)
    if not rows:
        return []
    campaign = Campaign.from_rows(rows)
    sentences = [answer_h1(campaign, study.loss_slopes).sentence()]
    if len({row["arm"] for row in rows}) > 1:
        h2 = answer_h2(campaign, study.loss_slopes).sentence()
        is_test = all(row["validation_is_test"] for row in rows)
        sentences.append(h2.replace("best validation loss", "best test loss") if is_test else h2)
    early = study.loss_slopes.early
    return sentences + [break_sentence(family, widths, early) for family, widths in breaks_by_width(rows).items()]
