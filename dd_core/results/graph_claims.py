"""Rows of ``nsm_claims``: claims about the published networks beside what an arm measured."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dd_core.analysis.graphs.claims import EARLIER_CAUSAL, Claim, claims_of
from dd_core.analysis.graphs.cycle import cycle_loss
from dd_core.analysis.graphs.intervals import (
    difference_over_trials,
    effective_graphs,
    mean_over_trials,
    share_over_trials,
)
from dd_core.analysis.graphs.measures import best_constant
from dd_core.analysis.graphs.verdicts import Measured, interval_of, verdict
from dd_core.analysis.intervals import Estimate, over_trials
from dd_core.results.graph_rows import ArmEvaluations, Row
from dd_core.words import counted

_By = Mapping[tuple[int, int, str], Row]


def claims_rows(arm: ArmEvaluations, progress: list[Row], attempts: list[Row]) -> list[Row]:
    """A row for every claim about the arm's domain; none of labels of which nothing was claimed.

    Accuracies are those of test graphs, which nothing was chosen by; without such, of validation graphs as theirs are.

    Args:
        arm: its evaluations.
        progress: the rows of ``graph_progress``.
        attempts: the rows of ``runs``, one for each trial and attempt.
    """
    graphs, nsm = arm.study.data.graphs, arm.study.variants[arm.arm.variant].nsm
    assert graphs is not None and nsm is not None
    if graphs.labels != "as_published":
        return []
    by_place = {(row["trial"], row["epoch"], row["split"]): row for row in progress}
    rows = []
    for claim in claims_of(nsm.domain):
        measured, measured_of = _Measuring(arm, by_place, attempts, claim).measure()
        word, why = verdict(claim, measured)
        estimate = measured.estimate or Estimate(math.nan, math.nan, math.nan, 0)
        is_accuracy = claim.quantity in ("accuracy", "gain", "learning")
        about = ("sentence", "source", "claimed", "claimed_is", "later", "later_source", "unit")
        claimed, later = (
            interval_of(share, of) for share, of in ((claim.claimed, claim.claimed_of), (claim.later, claim.later_of))
        )
        rows.append(
            {
                "claim": claim.key,
                **{name: getattr(claim, name) for name in about},
                **dict(zip(("claimed_low", "claimed_high"), claimed, strict=True)),
                **dict(zip(("later_low", "later_high"), later, strict=True)),
                "measured": estimate.mean,
                "measured_low": estimate.low,
                "measured_high": estimate.high,
                "measured_of": measured_of or None,
                "baseline": measured.baseline if is_accuracy else math.nan,
                "ceiling": measured.ceiling if is_accuracy else math.nan,
                "floor": measured.floor if claim.quantity == "cycle_loss" else math.nan,
                "verdict": word,
                "why": why,
            }
        )
    return rows


class _Measuring:
    """What an arm measured of one claim."""

    def __init__(self, arm: ArmEvaluations, by_place: _By, attempts: list[Row], claim: Claim):
        self._arm, self._by_place, self._attempts, self._claim = arm, by_place, attempts, claim
        graphs = arm.study.data.graphs
        assert graphs is not None
        self._split = "test" if graphs.num_test else "validation"

    def measure(self) -> tuple[Measured, str]:
        """It, and of what it is, in words."""
        quantity = self._claim.quantity
        if quantity == "nothing here":
            return Measured(None, "nothing here measures it"), ""
        rows = self._rows()
        if rows and quantity in ("seconds", "dollars"):
            return self._of_machine(len(rows))
        # What can be expected does not depend on how long it was trained.
        any_epoch = rows or [row for (_, _, split), row in self._by_place.items() if split == self._split]
        measured = Measured(
            self._estimate(rows) if rows else None,
            self._why_not(),
            baseline=_mean([best_constant(row) for row in any_epoch]),
            ceiling=_mean([row["bayes_ceiling"] for row in any_epoch]),
            floor=_mean([row["cycle_loss_floor"] for row in any_epoch]),
            num_collapsed=sum(row["collapse"] != "none" for row in rows),
        )
        return measured, self._words(rows) if rows else ""

    def _rows(self) -> list[Row]:
        """The last evaluation not later than the claim, of every trial that has gone as far."""
        found = []
        for trial in self._arm.trials:
            status = self._arm.attempts.get(trial, {}).get("status")
            epochs = self._arm.epochs(trial, self._split)
            has_ended = status == "stopped early" and self._arm.study.epochs >= self._claim.epochs
            if status == "diverged" or not epochs or (epochs[-1] < self._claim.epochs and not has_ended):
                continue
            limit = self._claim.epochs or epochs[-1]
            if reached := [epoch for epoch in epochs if epoch <= limit]:
                found.append(self._by_place[trial, reached[-1], self._split])
        return found

    def _why_not(self) -> str:
        if self._claim.quantity == "best_epoch" and not any(of == "validation" for _, _, of in self._by_place):
            return "no validation graphs tell which epoch is best"
        longest = max((epoch for _, epoch, _ in self._by_place), default=0)
        if self._claim.epochs > longest:
            return f"trained for {longest} epochs here, and the claim is about {self._claim.epochs}"
        return f"no trial has {self._split} graphs and an end other than divergence"

    def _estimate(self, rows: list[Row]) -> Estimate | None:
        quantity = self._claim.quantity
        if quantity == "collapse":
            return Estimate(sum(row["collapse"] != "none" for row in rows) / len(rows), math.nan, math.nan, len(rows))
        if quantity == "balance":
            ones = [round(row["label_1_share"] * row["num_graphs"]) for row in rows]
            zeros = [row["num_graphs"] - one for row, one in zip(rows, ones, strict=True)]
            hits = [[_hits(row, label, own) for row, own in zip(rows, totals, strict=True)]
                    for label, totals in ((1, ones), (0, zeros))]  # fmt: skip
            return difference_over_trials(hits[0], ones, hits[1], zeros)
        if quantity == "cycle_loss":
            graphs = [self._arm.evaluated(row["trial"], row["epoch"], self._split) for row in rows]
            return mean_over_trials([cycle_loss(own.cycle_loss_1, own.cycle_loss_2) for own in graphs])
        if quantity == "best_epoch":
            return self._best_epochs(rows)
        compared = {
            "accuracy": [0.0] * len(rows),
            "gain": [EARLIER_CAUSAL] * len(rows),
            "learning": [best_constant(row) for row in rows],
        }[quantity]
        num_graphs = effective_graphs(rows[0]["num_graphs"], len(rows), self._arm.study.data.num_problems)
        return share_over_trials([row["accuracy"] for row in rows], num_graphs, compared)

    def _best_epochs(self, rows: list[Row]) -> Estimate | None:
        """Those of lowest validation loss up to the claim's; what lies between two evaluations may be better still."""
        trials = [row["trial"] for row in rows]
        best = [self._arm.best_epoch(trial, self._by_place, self._claim.epochs) for trial in trials]
        found = over_trials(best)
        if not found.num_trials:
            return None
        epochs = [0] + [epoch for epoch in self._arm.epochs(trials[0], "validation") if epoch <= self._claim.epochs]
        between = max(int(np.diff(epochs).max()) - 1, 0)
        low, high = max(1.0, found.low - between), min(float(self._claim.epochs), found.high + between)
        return found if math.isnan(found.low) else Estimate(found.mean, low, high, found.num_trials)

    def _num_graphs(self, rows: list[Row]) -> int:
        """Different graphs: trials that share some count them once."""
        ids = [self._arm.rows["image_id"][self._arm.places[row["trial"], row["epoch"], self._split]] for row in rows]
        return len(np.unique(np.concatenate(ids)))

    def _words(self, rows: list[Row]) -> str:
        epochs = sorted({row["epoch"] for row in rows})
        span = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
        trials = counted(len(rows), "trial")
        if self._claim.quantity == "best_epoch":
            return f"lowest validation loss within {self._claim.epochs} epochs, {trials}"
        return f"{span}, {self._num_graphs(rows)} {self._split} graphs, {trials}"

    def _of_machine(self, num_trials: int) -> tuple[Measured, str]:
        """Seconds, or the price, of one network for as many epochs as the claim is about."""
        column = "seconds" if self._claim.quantity == "seconds" else "cost"
        spent, trained, devices = 0.0, 0, set()
        per_attempt: dict[int, list[Row]] = {}
        for row in self._attempts:
            per_attempt.setdefault(row["attempt"], []).append(row)
        for rows in per_attempt.values():
            value, first, last = rows[0][column], rows[0]["first_epoch"], rows[0]["last_epoch"]
            # Of a lost attempt nobody knows how many epochs its time was for.
            is_lost = any(row["status"] in ("running", "interrupted", "failed") for row in rows)
            if is_lost or value is None or last is None:
                continue
            spent += value
            ends = [last if row["end_epoch"] is None else row["end_epoch"] for row in rows]
            trained += sum(max(0, end - first) for end in ends)
            devices.add(rows[0]["device"])
        if trained <= 0:
            return Measured(None, "no price is known here" if column == "cost" else "no attempt has told its time"), ""
        value = spent / trained * self._claim.epochs
        estimate = Estimate(value, math.nan, math.nan, num_trials)
        device = " and ".join(sorted(devices))
        return Measured(estimate, device=device), f"{self._claim.epochs} epochs of one network on {device}"


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _hits(row: Row, label: int, total: int) -> int:
    accuracy: Any = row[f"accuracy_class_{label}"]
    return round(accuracy * total) if total else 0
