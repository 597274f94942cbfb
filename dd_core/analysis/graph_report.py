"""What a graph study says, as text: accuracy beside baseline and ceiling, collapse, claims, and the curve over widths.

An accuracy is a mean over trials with a 95 % interval, at either end the wider of Student's over trials and Wilson's
over their graphs. What it is compared with is known exactly: how frequent labels are, and how they come
about.
"""

import contextlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from dd_core.analysis.double_descent import LEAST_RISE, WidthRow, find_double_descent
from dd_core.analysis.graphs.claims import GENERAL
from dd_core.analysis.graphs.intervals import effective_graphs, share_over_trials
from dd_core.analysis.graphs.measures import best_constant
from dd_core.analysis.graphs.published import PUBLISHED_WIDTH
from dd_core.analysis.graphs.verdicts import FAILS, HOLDS, UNKNOWN
from dd_core.analysis.intervals import Estimate, difference, interval, over_trials
from dd_core.analysis.loss_slope_report import CURRENT, query
from dd_core.analysis.report import sentence as double_descent_sentence
from dd_core.store.store import Store
from dd_core.study.graphs import DOMAINS
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect

VERDICTS = (HOLDS, FAILS, UNKNOWN)
_BY_CHANCE = 0.01  # probability that a mean over trials without a leak is said to have one
_TABLES = ("nsm_results", "nsm_claims")
_ABOVE = {1: "above", 0: "not surely above or below", -1: "below"}
_AT = {"best": "at the best epoch", "last": "at the last epoch"}

_RESULTS = f"SELECT * FROM nsm_results WHERE {CURRENT} ORDER BY arm, split, trial"
_CLAIMS = f"SELECT * FROM nsm_claims WHERE {CURRENT}"


@dataclass(frozen=True)
class Outcome:
    """How well an arm does at its best or at its last epochs on the graphs of one split.

    Attributes:
        trials: its rows of ``nsm_results``, one for each trial.
        accuracy: fraction.
        above_baseline: accuracy minus ``baseline``, fraction.
        baseline: accuracy of the better of always saying one label, at most the ceiling, mean over trials.
        ceiling: best accuracy that can be expected, mean over trials; NaN if unknown.
    """

    trials: Sequence[Mapping[str, Any]]
    accuracy: Estimate
    above_baseline: Estimate
    baseline: float
    ceiling: float

    @property
    def split(self) -> str:
        """The split that is judged: test, or validation where there are no graphs to test on."""
        return str(self.trials[0]["split"])

    @property
    def collapsed(self) -> Counter[str]:
        """How many trials predict one label almost or quite alone, by grade."""
        return Counter(row["collapse"] for row in self.trials if row["collapse"] != "none")

    @property
    def num_leaks(self) -> int:
        """How many trials are right more often than chance explains where the ceiling is the truth."""
        limit = _BY_CHANCE / len(self.trials)
        return sum(row["p_above_ceiling"] is not None and row["p_above_ceiling"] < limit for row in self.trials)

    @property
    def gap(self) -> str:
        """How far it is above the baseline: ``+1.5 points, 95 % interval −1.0 to 4.0``."""
        own = self.above_baseline
        return f"{difference(100 * own.mean, 1)} points, 95 % interval {_interval(own)}"

    @property
    def verdict(self) -> str:
        """Whether it is above the baseline, by the interval."""
        return f"{_ABOVE[self.above_baseline.sign]} the majority baseline"


def results_of(study: Study, connection: duckdb.DuckDBPyConnection) -> dict[str, list[dict[str, Any]]]:
    """The study's current rows of ``nsm_results``, by arm in the study's order."""
    if study.data.graphs is None:
        return {}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in query(connection, study, _RESULTS):
        rows[row["arm"]].append(row)
    return {arm: rows[arm] for arm in study.arms if arm in rows}


def outcomes(study: Study, results: Mapping[str, list[dict[str, Any]]], at: str) -> dict[str, Outcome]:
    """What all arms reach at their ``best`` or ``last`` epochs, on test graphs or else those for validation."""
    found = {}
    for arm, rows in results.items():
        for split in ("test", "validation"):
            if trials := [row for row in rows if row["result"] == at and row["split"] == split]:
                found[arm] = _outcome(trials, study.data.num_problems)
                break
    return found


def at_best_or_last(study: Study, results: Mapping[str, list[dict[str, Any]]]) -> tuple[str, dict[str, Outcome]]:
    """What all arms reach at their best epochs, or with nothing to choose these by at their last ones, and which."""
    best = outcomes(study, results, "best")
    return ("best", best) if best else ("last", outcomes(study, results, "last"))


def _outcome(trials: list[dict[str, Any]], num_problems: int) -> Outcome:
    accuracies, baselines = [row["accuracy"] for row in trials], [best_constant(row) for row in trials]
    num_graphs = effective_graphs(trials[0]["num_graphs"], len(trials), num_problems)
    return Outcome(
        trials,
        share_over_trials(accuracies, num_graphs),
        share_over_trials(accuracies, num_graphs, baselines),
        over_trials(baselines).mean,
        over_trials(row["bayes_ceiling"] for row in trials).mean,
    )


def name_of(study: Study, arm: str) -> str:
    """What figures call an arm: its domain, with its variant and width where there are several of either."""
    variant, k = study.arms[arm].variant, study.arms[arm].k
    settings = {name: own.nsm for name, own in study.variants.items()}
    own = settings[variant]
    if own is None:
        return variant
    is_alone = sum(other is not None and other.domain == own.domain for other in settings.values()) == 1
    name = DOMAINS[own.domain] if is_alone else variant
    return f"{name}, k = {k}" if len(study.widths_of(variant)) > 1 else name


def claims_of(study: Study, connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Its current rows of ``nsm_claims``, of one arm of each variant, each claim of all domains in a row.

    It is the arm of the published width, or else the widest.
    """
    if study.data.graphs is None:
        return []
    rows = query(connection, study, _CLAIMS)
    told = [arm for arm in study.arms if any(row["arm"] == arm for row in rows)]
    published = {study.arms[arm].variant for arm in told if study.arms[arm].k == PUBLISHED_WIDTH}
    own = [arm for arm in told if study.arms[arm].variant not in published or study.arms[arm].k == PUBLISHED_WIDTH]
    arms = widest_arms(study, own)
    keys = list(dict.fromkeys(row["claim"] for row in rows))
    return sorted(
        (row for row in rows if row["arm"] in arms), key=lambda row: (keys.index(row["claim"]), arms.index(row["arm"]))
    )


def claims_sentence(claims: Sequence[Mapping[str, Any]]) -> str:
    """How many claims hold, do not hold and cannot be told; those about no domain count once."""
    verdicts = {(row["claim"], "" if row["claim"] in GENERAL else row["arm"]): row["verdict"] for row in claims}
    counts = Counter(verdicts.values())
    words = {"holds": "hold" if counts["holds"] != 1 else "holds", "does not hold": "do not hold"}
    if counts["does not hold"] == 1:
        words["does not hold"] = "does not hold"
    parts = [f"{counts[verdict] or 'none'} {words.get(verdict, verdict)}" for verdict in VERDICTS]
    return f"Of {len(verdicts)} claims about the published networks {parts[0]}, {parts[1]} and {parts[2]}"


def claims_listed(study: Study, claims: Sequence[Mapping[str, Any]], verdict: str) -> str:
    """The claims of a verdict in words, by arm: ``planning (cycle loss, seconds), causal inference (seconds)``."""
    by_arm: dict[str, list[str]] = defaultdict(list)
    for row in claims:
        if row["verdict"] == verdict:
            by_arm[name_of(study, row["arm"])].append(row["claim"].replace("_", " "))
    return ", ".join(f"{name} ({', '.join(own)})" for name, own in by_arm.items())


def findings(store: Store, study: Study) -> list[str]:
    """Sentences about a study of graphs; none of other studies, or where nothing was measured."""
    if study.data.graphs is None:
        return []
    with contextlib.closing(connect(store, _TABLES, within=(study.name,))) as connection:
        results = results_of(study, connection)
        at, found = at_best_or_last(study, results)
        last = outcomes(study, results, "last") if at == "best" else {}
        claims = claims_of(study, connection)
    sentences = [sentence(name_of(study, arm), found[arm], at, last.get(arm)) for arm in widest_arms(study, found)]
    sentences += over_widths(study, results)
    if claims:
        sentences.append(claims_sentence(claims))
        sentences += [f"Claims that hold: {held}" for held in [claims_listed(study, claims, "holds")] if held]
    return [f"{text}." for text in sentences]


def widest_arms(study: Study, arms: Iterable[str]) -> list[str]:
    """The widest of these arms of every variant, in their order."""
    given = list(arms)
    widest = {study.arms[arm].variant: arm for arm in sorted(given, key=lambda arm: study.arms[arm].k)}
    return [arm for arm in given if widest[study.arms[arm].variant] == arm]


def sentence(name: str, best: Outcome, at: str, last: Outcome | None) -> str:
    """Accuracy with its interval, beside baseline and ceiling, and collapse.

    Args:
        name: of the arm.
        best: what it reaches.
        at: ``best`` or ``last``, where that is.
        last: at the last epoch, if this is another.
    """
    own = best.accuracy
    trials = "1 trial" if own.num_trials == 1 else f"{own.num_trials} trials"
    text = (
        f"{name}: {best.split} accuracy {_AT[at]} is {100 * own.mean:.1f} % (95 % interval "
        f"{_interval(own)}, {trials}), {best.verdict} of {100 * best.baseline:.1f} % "
        f"({best.gap})"
    )
    if math.isfinite(best.ceiling):
        text += f"; at best {100 * best.ceiling:.1f} % can be expected"
    if last is not None:
        text += f"; at the last epoch it is {100 * last.accuracy.mean:.1f} %"
    text += "".join(f"; collapsed: {said}" for said in [collapse_words(best)] if said)
    if best.num_leaks:
        text += f"; {best.num_leaks} of {trials} above what chance explains: something leaks"
    return text


def _interval(estimate: Estimate) -> str:
    """An interval of fractions, in percent or points."""
    return interval(100 * estimate.low + 0.0, 100 * estimate.high + 0.0, 1)  # no minus zero


def headline(names: Mapping[str, str], found: Mapping[str, Outcome], at: str) -> str:
    """One sentence: which arms are above the majority baseline, by how much, and which are not.

    Args:
        names: by arm.
        found: of these arms, at least one.
        at: ``best`` or ``last`` epochs.
    """
    parts = []
    for sign in (1, 0, -1):
        own = {arm: outcome for arm, outcome in found.items() if outcome.above_baseline.sign == sign}
        if own:
            said = ", ".join(f"{names[arm]} ({outcome.gap})" for arm, outcome in own.items())
            parts.append(f"{next(iter(own.values())).verdict}: {said}")
    split = next(iter(found.values())).split
    return f"{split.capitalize()} accuracy {_AT[at]} is {'; '.join(parts)}"


def collapse_words(outcome: Outcome) -> str:
    """How many trials collapsed: ``1 of 3 trials, fully``; empty: none."""
    counts, num = outcome.collapsed, len(outcome.trials)
    total = sum(counts.values())
    if not total:
        return ""
    how = "fully" if counts["full"] == total else "partly" if not counts["full"] else f"{counts['full']} fully"
    return f"{total} of {num} {'trial' if num == 1 else 'trials'}, {how}"


def over_widths(study: Study, results: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """What the test error does over the widths of every variant with three or more, last and best epochs apart."""
    sentences = []
    for variant in study.variants:
        own = {study.arms[arm].k: rows for arm, rows in results.items() if study.arms[arm].variant == variant}
        for at in ("last", "best"):
            rows = [row for k in sorted(own) for row in width_row(own[k], k, at)]
            if (found := find_double_descent(rows)) is not None:
                told = double_descent_sentence(found, min(row.trials for row in rows)).removesuffix(".")
                if min(found.rise, found.fall) < LEAST_RISE:
                    told = "Test error has no peak of one point or more within these widths"
                sentences.append(f"{variant} over widths, {_AT[at]}: {told[0].lower()}{told[1:]}")
    return sentences


def width_row(results: Sequence[Mapping[str, Any]], k: int, at: str) -> list[WidthRow]:
    """The row of one width at its trials' best or last epochs; none where nothing was tested.

    Args:
        results: rows of ``nsm_results`` of one arm.
        k: its width.
        at: ``best`` or ``last``.
    """
    by_split = {
        split: [row for row in results if row["result"] == at and row["split"] == split] for split in ("train", "test")
    }
    tested, trained = by_split["test"], by_split["train"]
    if not tested:
        return []

    def mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
        return over_trials(row[name] for row in rows).mean

    spread = statistics.stdev(row["accuracy"] for row in tested) if len(tested) > 1 else math.nan
    return [
        WidthRow(
            k, len(tested), 1 - mean(trained, "accuracy"), mean(trained, "loss"), 1 - mean(tested, "accuracy"), spread,
            mean(tested, "loss"), math.nan,
        )
    ]  # fmt: skip
