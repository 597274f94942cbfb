"""What the tables of memorisation say, in words: for titles of figures and for reports. Pure functions on rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dd_core.analysis.intervals import Estimate, interval, over_trials, signed
from dd_core.tables.memorization import SCORES

Row = Mapping[str, Any]

WRONG_LABEL = "wrong label"
CHANCE = 0.5  # of AUROC
PREDICTORS = {"csl": "cumulative loss", "loss": "loss", "gradient_norm": "gradient norm", "trace": "curvature"}
# Feldman & Zhang 2020 count images from this memorisation on.
NOTABLE = 0.25


def words_of(score: str) -> str:
    """What people call a score."""
    return SCORES[score][0] if score in SCORES else score


def with_interval(row: Row, name: str) -> str:
    """A value of a table and its interval: ``0.95 (95 % interval 0.93 to 0.97)``."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    digits = digits_of(row[name])
    if low is None or high is None:
        return f"{signed(row[name], digits)} (no interval)"
    return f"{signed(row[name], digits)} (95 % interval {interval(low, high, digits)})"


def digits_of(value: float) -> int:
    """Two decimals, and three where two would make nearly all into all."""
    return 3 if value >= 0.985 else 2


def overlapping(best: Row, others: Sequence[Row], name: str) -> list[Row]:
    """The rows that the best one is not surely better than: their intervals reach into its own, or are not known."""
    floor = best[f"{name}_low"]
    return [row for row in others if floor is None or row[f"{name}_high"] is None or row[f"{name}_high"] >= floor]


def _not_surely(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f", not surely better than {words_of(rows[0]['score'])}{more}"


def detection_words(rows: Sequence[Row], what: str) -> str:
    """Which score finds a target best, how well, and which others may be as good.

    Args:
        rows: of ``memorization_detection`` of one arm and target, with an AUROC each; at least one.
        what: is found.
    """
    ranked = sorted(rows, key=lambda row: -row["auroc"])
    # One with a larger value may have an interval that reaches chance, and then says less.
    best = next((row for row in ranked if row["auroc_low"] is None or row["auroc_low"] > CHANCE), None)
    if best is not None:
        others = [row for row in ranked if row is not best]
        return f"{what}: {_area(best)}{_not_surely(overlapping(best, others, 'auroc'))}"
    if ranked[-1]["auroc_high"] < CHANCE:
        return f"{what}: no score surely, and they surely look less memorised by {_area(ranked[-1])}"
    return f"{what}: no score surely; at best {_area(ranked[0])}"


def _area(row: Row) -> str:
    return f"{words_of(row['score'])}, AUROC {with_interval(row, 'auroc')}"


def noise_words(row: Row) -> str:
    """Kind and rate of wrong labels: ``pair flip, 20 %``."""
    return f"{row['label_noise_kind'].replace('_', ' ')}, {100 * row['label_noise']:.3g} %"


def agreement_sentence(rows: Sequence[Row]) -> str:
    """Which score orders all images most as memorisation does, how well, and which others may do as well.

    Args:
        rows: of ``memorization_agreement`` of one arm and source.
    """
    known = (row for row in rows if row["images"] == "all" and row["spearman"] is not None)
    ranked = sorted(known, key=lambda row: -row["spearman"])
    if not ranked:
        return "How well scores agree with memorisation itself is not known"
    best, *others = ranked
    doubt = _not_surely(overlapping(best, others, "spearman"))
    name = words_of(best["score"])
    return (
        f"{name[0].upper()}{name[1:]} orders {best['num_images']:,} images most as memorisation itself does: "
        f"\u03c1 = {with_interval(best, 'spearman')}{doubt}"
    )


def labels_sentence(values: Mapping[bool, np.ndarray], name: str | None = None) -> str:
    """The mean memorisation of wrong labels against that of right ones, or of all where labels are of one kind.

    Args:
        values: memorisation of the images with right (False) and wrong (True) labels, (images,) each.
        name: of the variant, where there are several.
    """
    of = {noisy: over_trials(own.tolist()) for noisy, own in values.items()}
    said = {noisy: f"{signed(own.mean)} (95 % interval {interval(own.low, own.high)})" for noisy, own in of.items()}
    start, is_named = f"{name}: " if name else "", bool(name)
    if len(said) == 2:
        verb = "are memorised more than" if of[True].low > of[False].high else "are not surely memorised more than"
        subject = "wrong labels" if is_named else "Wrong labels"
        return f"{start}{subject} {verb} right ones: on average {said[True]} against {said[False]}"
    share = float(np.mean(np.concatenate(list(values.values())) >= NOTABLE))
    subject = "memorisation" if is_named else "Memorisation"
    return f"{start}{subject} is {next(iter(said.values()))} on average; {100 * share:.2g} % of images reach {NOTABLE}"


def forecasts(rows: Sequence[Row]) -> dict[tuple[str, str], Estimate]:
    """Mean rank correlation over boundaries by predictor and statistic, over trials; largest absolute value first.

    Intervals end at -1 and 1: Student's, of few trials, may go beyond what a correlation can be.

    Args:
        rows: of ``boundary_forgetting`` of one arm, with a rank correlation each.
    """
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row["predictor"], row["statistic"]][row["trial"]].append(row["spearman"])
    means = {key: over_trials(float(np.mean(own)) for own in by_trial.values()) for key, by_trial in values.items()}
    # NaN, which is no interval, stays: it is first in both.
    found = {key: replace(own, low=max(own.low, -1.0), high=min(own.high, 1.0)) for key, own in means.items()}
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1].mean)))


def predictor_words(predictor: str, statistic: str) -> str:
    """``mean curvature``, ``slope of loss``, ``cumulative loss``."""
    name = PREDICTORS.get(predictor, predictor)
    if statistic == "sum":
        return name
    return f"slope of {name}" if statistic == "slope" else f"{statistic} {name}"


def boundary_sentence(name: str, rows: Sequence[Row]) -> str:
    """The predictor that correlates most with forgetting at boundaries, in which direction and how surely.

    Args:
        name: of the variant.
        rows: as for ``forecasts``; at least one.
    """
    found = list(forecasts(rows).items())
    # Where nothing is sure the largest stands for all.
    (predictor, statistic), best = next((own for own in found if own[1].sign), found[0])
    verdict = {
        1: "what images showed before tells what is forgotten at a boundary",
        -1: "what images showed before tells what is forgotten at a boundary, less where there was more",
        0: "nothing that images showed before surely tells what is forgotten at a boundary",
    }[best.sign]
    most = "correlates most with it" if best == found[0][1] else "correlates most of those that surely do"
    return f"{name}: {verdict}; {predictor_words(predictor, statistic)} {most}, \u03c1 = {best.words(2)}"
