"""Rows of the tables of graphs, from the evaluations of an arm."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dd_core.analysis.graphs.cycle import feature_variance
from dd_core.analysis.graphs.intervals import independent_graphs, p_above
from dd_core.analysis.graphs.measures import (
    Evaluated,
    best_with_wrong_labels,
    majority_label,
    measure,
    with_intervals,
)
from dd_core.data.graphs.load import load_problems
from dd_core.data.graphs.problems import Problems
from dd_core.data.trials import TrialData, trial_data
from dd_core.results.image_curves import SPLITS
from dd_core.study.graphs import GRAPH_VALUES
from dd_core.study.study import Arm, Study

Row = dict[str, Any]
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ArmEvaluations:
    """All evaluations of an arm in its present recipe.

    Attributes:
        study, arm: what was trained.
        rows: of ``image_progress``, one array for each column, all files together.
        attempts: last attempt at each trial, as in ``runs``; of a trial that is not there nothing is known.
    """

    study: Study
    arm: Arm
    rows: Rows
    attempts: Mapping[int, Row]

    @cached_property
    def problems(self) -> Problems:
        """Those that the study's variant learns."""
        data, nsm = self.study.data, self.study.variants[self.arm.variant].nsm
        assert data.graphs is not None and nsm is not None
        return load_problems(data.graphs, nsm.domain, self.study.seed, data.num_problems)

    @cached_property
    def places(self) -> "dict[tuple[int, int, str], np.ndarray]":
        """By trial, epoch and split where its rows are, in the order of ids; int64 each."""
        rows = self.rows
        order = np.lexsort((rows["image_id"], rows["split"], rows["epoch"], rows["trial"]))
        keys = np.stack([rows[name][order].astype(np.int64) for name in ("trial", "epoch", "split")])
        starts = np.flatnonzero(np.r_[True, (np.diff(keys) != 0).any(0)]) if len(order) else np.zeros(0, np.int64)
        own = np.split(order, starts[1:]) if len(order) else []
        return {
            (int(trial), int(epoch), SPLITS[split]): where
            for (trial, epoch, split), where in zip(keys[:, starts].T, own, strict=True)
        }

    @property
    def trials(self) -> list[int]:
        """Trials that have evaluations, ascending."""
        return sorted({trial for trial, _, _ in self.places})

    def epochs(self, trial: int, split: str) -> list[int]:
        """Evaluated epochs of a trial up to its end, ascending.

        A trial that stopped early is evaluated with the others until the last of them ends; its weights stay the same.
        """
        found = [epoch for one, epoch, of in self.places if (one, of) == (trial, split)]
        attempt = self.attempts.get(trial, {})
        end = attempt.get("end_epoch") if attempt.get("status") == "stopped early" else None
        return [epoch for epoch in found if end is None or epoch <= end]

    def best_epoch(self, trial: int, by_place: Mapping[tuple[int, int, str], Row], limit: int = 0) -> int | None:
        """That of lowest validation loss, up to a limit if one is given, and as for checkpoints never the untrained."""
        losses = {
            epoch: loss
            for epoch in self.epochs(trial, "validation")
            if 1 <= epoch <= (limit or epoch) and math.isfinite(loss := by_place[trial, epoch, "validation"]["loss"])
        }
        return min(losses, key=lambda epoch: losses[epoch]) if losses else None

    def data(self, trial: int) -> TrialData:
        """Split and labels of a trial."""
        return trial_data(self.study, self.arm.variant, trial)

    def evaluated(self, trial: int, epoch: int, split: str) -> Evaluated:
        """The graphs of an evaluation: training graphs with their given labels, others with the true ones."""
        where = self.places[trial, epoch, split]
        ids = self.rows["image_id"][where].astype(np.int64)
        values = {name: self.rows[name][where].astype(np.float64) for name in ("loss", *GRAPH_VALUES)}
        labels, best = self.problems.labels[ids], self.problems.best_probability[ids]
        if split == "train":
            data = self.data(trial)
            labels = data.train_labels[np.searchsorted(data.train_ids, ids)]
            best = best_with_wrong_labels(best, self.study.variants[self.arm.variant].label_noise)
        right = self.rows["correct"][where].astype(bool)
        return Evaluated(labels, right, **values, best_probability=best)

    def independent(self, trial: int, epoch: int, split: str) -> float:
        """How many graphs without common labels leave as much to chance as those of an evaluation."""
        ids = self.rows["image_id"][self.places[trial, epoch, split]].astype(np.int64)
        return independent_graphs(self.problems.best_probability[ids], self.problems.group[ids])

    def variance(self, trial: int, epoch: int, split: str) -> float:
        """Variance of the features of the nodes of these graphs: of fresh noise 1."""
        assert self.study.data.graphs is not None
        if self.study.data.graphs.features == "fresh":
            return 1.0
        is_own = np.zeros(self.problems.num_problems, bool)
        is_own[self.rows["image_id"][self.places[trial, epoch, split]]] = True
        return feature_variance(self.problems.features, self.problems.nodes[np.repeat(is_own, self.problems.num_nodes)])


def progress_of(arm: ArmEvaluations) -> list[Row]:
    """Rows of ``graph_progress``."""
    majority = {trial: majority_label(arm.data(trial).train_labels) for trial in arm.trials}
    rows, variances = [], {}
    for trial, epoch, split in arm.places:
        if (trial, split) not in variances:  # the same graphs at every epoch
            variances[trial, split] = arm.variance(trial, epoch, split)
        found = measure(arm.evaluated(trial, epoch, split), majority[trial], variances[trial, split])
        rows.append({"trial": trial, "epoch": epoch, "split": split, **found})
    if not rows:
        return []
    shares = ("num_graphs", "label_1_share", "accuracy", "accuracy_class_0", "accuracy_class_1")
    intervals = with_intervals({name: np.array([row[name] for row in rows], float) for name in shares})
    added = {name: values for name, values in intervals.items() if name not in shares}
    return [{**row, **{name: values[place] for name, values in added.items()}} for place, row in enumerate(rows)]


def results_of(arm: ArmEvaluations, progress: list[Row]) -> list[Row]:
    """Rows of ``nsm_results``: of every trial, by split, those at its best and at its last epoch."""
    by_place = {(row["trial"], row["epoch"], row["split"]): row for row in progress}
    rows = []
    for trial, result, epoch in _chosen(arm, by_place):
        attempt = arm.attempts.get(trial, {})
        about = {name: attempt.get(name) for name in ("status", "num_parameters")}
        for split in SPLITS:
            if (row := by_place.get((trial, epoch, split))) is not None:
                bounds = _against_bounds(row, arm.independent(trial, epoch, split))
                rows.append({**row, "result": result, **about, **bounds})
    return rows


def _chosen(arm: ArmEvaluations, by_place: Mapping[tuple[int, int, str], Row]) -> Iterator[tuple[int, str, int]]:
    """Trial, which of its epochs, and the epoch."""
    for trial in arm.trials:
        if (best := arm.best_epoch(trial, by_place)) is not None:
            yield trial, "best", best
        if epochs := arm.epochs(trial, "train"):
            yield trial, "last", epochs[-1]


def _against_bounds(row: Row, num_independent: float) -> Row:
    """Where an accuracy lies beside what is trivial and what is possible."""
    hits = round(row["accuracy"] * row["num_graphs"])
    is_seen = row["split"] == "train"
    p = math.nan if is_seen else p_above(hits, row["num_graphs"], row["bayes_ceiling"], num_independent)
    return {
        "above_baseline": row["accuracy"] - row["majority_baseline"],
        "above_ceiling": None if is_seen else bool(row["accuracy_low"] > row["bayes_ceiling"]),
        "p_above_ceiling": p,
    }
