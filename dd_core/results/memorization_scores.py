"""The rows of an arm in the tables of memorisation: scores, detection, truth, influence and agreement."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dd_core.analysis.memorization import agreement, scores, truth
from dd_core.analysis.memorization.confident_learning import out_of_fold, suspicion
from dd_core.analysis.memorization.detection import detect
from dd_core.analysis.memorization.ranks import as_numbers, as_ordered, is_measured
from dd_core.results.image_curves import ImageCurves
from dd_core.study.study import Arm, Study
from dd_core.tables.memorization import SCORES

Columns = dict[str, Any]
# Targets by what makes an image one of them.
TARGETS = ("wrong label", "exact duplicate", "near duplicate")


@dataclass
class Probes:
    """What was computed of checkpoints for the scores alone, by trial.

    Attributes:
        grand: of each trial the norm of the gradient in all weights by image id, mean over the early checkpoints.
        predictions: of each trial image ids and probabilities (images, classes) of those that it left out.
    """

    grand: dict[int, dict[int, float]] = field(default_factory=dict)
    predictions: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def scored(curves: ImageCurves, study: Study, arm: Arm) -> Columns:
    """Every score of the training images of a trial, float64 (images,); all NaN where nothing was recorded for it."""
    settings, values, epochs = study.memorization, curves.values, curves.epochs
    nothing = np.full(len(curves.image_ids), np.nan)
    found: Columns = dict.fromkeys(SCORES, nothing)
    losses, correct = values["loss"].astype(float), curves.correct
    found["csl"], found["final_loss"] = scores.total(losses), scores.final(losses)
    found["forgetting_events"] = scores.forgetting_events(correct)
    found["first_learned_epoch"] = scores.first_learned_epoch(correct, epochs)
    found["last_learned_epoch"] = scores.last_learned_epoch(correct, epochs)
    if study.variants[arm.variant].loss.name == "cross_entropy":
        found["confidence"] = scores.mean(scores.probabilities(losses))
    if "margin" in values:
        found["area_under_margin"] = scores.mean(values["margin"].astype(float))
    if "gradient_norm" in values:
        norms = values["gradient_norm"].astype(float)
        found["loss_sensitivity"] = scores.total(norms)
        found["learning_time"] = scores.learning_time(norms, epochs, settings.threshold)
        found["learning_time_code"] = scores.learning_time_code(norms)
    if "el2n" in values:
        # The first evaluation counts even where it comes later.
        early = epochs[:1].max(initial=settings.early or max(1, study.epochs // 10))
        found["el2n"] = scores.mean(values["el2n"][epochs <= early].astype(float))
    if "trace" in curves.curvatures:
        found["trace_sum"] = scores.total(curves.curvatures["trace"])
    if "fd_norm" in curves.curvatures:
        found["finite_difference_sum"] = scores.total(curves.curvatures["fd_norm"])
    return found


@dataclass
class ArmScores:
    """All trials of an arm that have not diverged.

    Attributes:
        longest: epochs that stand for never, one after the last evaluation.
    """

    study: Study
    arm: Arm
    trials: list[ImageCurves] = field(default_factory=list)
    columns: list[Columns] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)

    def add(self, curves: ImageCurves, probes: Probes) -> None:
        """Score a trial; of one that has diverged only its number is kept."""
        if curves.has_diverged:
            self.diverged.append(curves.trial)
            return
        columns = scored(curves, self.study, self.arm)
        if own := probes.grand.get(curves.trial):
            columns["grand"] = np.array([own.get(int(image), np.nan) for image in curves.image_ids])
        self.columns.append({**columns, "num_evaluations": scores.num_evaluations(curves.values["loss"])})
        # The curves themselves are not needed any more, and there may be many trials.
        curves.values.clear()
        curves.curvatures.clear()
        self.trials.append(curves)

    @property
    def longest(self) -> float:
        """One epoch after the last evaluation: stands for never."""
        return float(max(curves.epochs.max(initial=0) for curves in self.trials) + 1)

    def add_confident_learning(self, probes: Probes, num_classes: int) -> None:
        """Confident learning of every image by the predictions of the trials that left it out."""
        if not probes.predictions:
            return
        ids = self.image_ids
        predicted = np.full((len(self.trials), len(ids), num_classes), np.nan)
        is_in = np.ones((len(self.trials), len(ids)), bool)
        labels = np.full(len(ids), -1)
        for row, curves in enumerate(self.trials):
            labels[np.searchsorted(ids, curves.image_ids)] = curves.given_labels
            if curves.trial in probes.predictions:
                left_out, probabilities = probes.predictions[curves.trial]
                known = np.isin(left_out, ids)
                places = np.searchsorted(ids, left_out[known])
                predicted[row, places], is_in[row, places] = probabilities[known], False
        found = suspicion(labels, out_of_fold(predicted, is_in))
        for curves, columns in zip(self.trials, self.columns, strict=True):
            columns["confident_learning"] = found[np.searchsorted(ids, curves.image_ids)]

    @property
    def image_ids(self) -> np.ndarray:
        """All images that a trial is trained on, ascending."""
        return np.unique(np.concatenate([curves.image_ids for curves in self.trials]))

    @property
    def measured(self) -> list[str]:
        """The scores that any trial has."""
        return [score for score in SCORES if any(is_measured(columns[score]) for columns in self.columns)]


def score_rows(arm: ArmScores) -> Columns:
    """Columns of ``memorization``."""
    trials = arm.trials
    about = {
        "trial": np.concatenate([np.full(len(c.image_ids), c.trial) for c in trials]),
        "image_id": np.concatenate([c.image_ids for c in trials]),
        "true_label": np.concatenate([c.true_labels for c in trials]),
        "given_label": np.concatenate([c.given_labels for c in trials]),
        "is_noisy": np.concatenate([c.true_labels != c.given_labels for c in trials]),
        "copy_of": [None if np.isnan(v) else int(v) for c in trials for v in c.copy_of],
        "duplicate": np.concatenate([c.duplicate for c in trials]),
    }
    return about | {name: np.concatenate([own[name] for own in arm.columns]) for name in ("num_evaluations", *SCORES)}


def detection_rows(arm: ArmScores) -> list[Columns]:
    """Rows of ``memorization_detection``: every measured score for every target that the study has."""
    variant, copies = arm.study.variants[arm.arm.variant], arm.study.data.duplicates
    targets = (
        [TARGETS[0]] + [target for target, num in zip(TARGETS[1:], (copies.exact, copies.near), strict=True) if num]
        if copies
        else [TARGETS[0]]
    )
    rows = []
    for target in targets:
        kind = target.split()[0]
        hits = [c.true_labels != c.given_labels if kind == "wrong" else c.duplicate == kind for c in arm.trials]
        for score in arm.measured:
            own = [as_ordered(score, columns[score]) for columns in arm.columns]
            found = detect(own, hits, [c.image_ids for c in arm.trials], arm.study.memorization.num_bootstraps)
            rows.append(
                {
                    "target": target,
                    "label_noise": variant.label_noise,
                    "label_noise_kind": variant.label_noise_kind,
                    "score": score,
                    "num_images": len(hits[0]),
                    **vars(found),
                }
            )
    return rows


@dataclass(frozen=True)
class Membership:
    """Who was trained on what, and what was right at the end.

    Attributes:
        image_ids: int64 (images,), ascending: the pool that subsets are drawn from.
        is_in: bool (trials, images).
        is_right: float64 (trials, images), NaN unknown.
        test_ids: int64 (test images,).
        is_test_right: float64 (trials, test images).
    """

    image_ids: np.ndarray
    is_in: np.ndarray
    is_right: np.ndarray
    test_ids: np.ndarray
    is_test_right: np.ndarray


def membership_of(arm: ArmScores) -> Membership:
    """From what was evaluated last."""
    ids, test_ids = arm.image_ids, np.unique(np.concatenate([c.last_correct["test"][0] for c in arm.trials]))
    is_in = np.zeros((len(arm.trials), len(ids)), bool)
    is_right = np.full(is_in.shape, np.nan)
    is_test_right = np.full((len(arm.trials), len(test_ids)), np.nan)
    for row, curves in enumerate(arm.trials):
        is_in[row, np.searchsorted(ids, curves.image_ids)] = True
        for split in ("train", "left_out"):
            own, right = curves.last_correct[split]
            known = np.isin(own, ids)
            is_right[row, np.searchsorted(ids, own[known])] = right[known]
        own, right = curves.last_correct["test"]
        is_test_right[row, np.searchsorted(test_ids, own)] = right
    return Membership(ids, is_in, is_right, test_ids, is_test_right)


def truth_rows(arm: ArmScores, members: Membership) -> Columns:
    """Columns of ``memorization_truth``."""
    found = truth.memorization(members.is_in, members.is_right)
    labels = np.full((2, len(members.image_ids)), -1)
    for curves in arm.trials:
        labels[:, np.searchsorted(members.image_ids, curves.image_ids)] = curves.true_labels, curves.given_labels
    return {
        "image_id": members.image_ids,
        "true_label": labels[0],
        "given_label": labels[1],
        "is_noisy": labels[0] != labels[1],
        "source": "subsets",
        "num_in": found.num_in,
        "num_out": found.num_out,
        "correct_in": found.share_in,
        "correct_out": found.share_out,
        "memorization": found.value,
        "standard_error": found.standard_error,
    }


def influence_rows(arm: ArmScores, members: Membership) -> Columns:
    """Columns of ``memorization_influence``: the largest of each test image."""
    found = truth.strongest(members.is_in, members.is_test_right, arm.study.memorization.influences)
    shape = found.places.shape
    columns = {
        "image_id": members.image_ids[found.places],
        "test_image_id": np.broadcast_to(members.test_ids, shape),
        "influence": found.value,
        "standard_error": found.standard_error,
        "place": np.broadcast_to(np.arange(1, shape[0] + 1)[:, None], shape),
    }
    known = ~np.isnan(columns["influence"])
    return {name: values[known] for name, values in columns.items()}


def agreement_rows(arm: ArmScores, truths: dict[str, Membership | dict[int, float]]) -> list[Columns]:
    """Rows of ``memorization_agreement``: every measured score with every truth.

    Published estimates are of images with their true labels and no copies: with those no trial counts in which an image
    has another label or a copy. Confident learning is not compared with a truth measured by the same trials: 1 minus
    what those that left the image out give its label is nearly that truth itself.

    Args:
        arm: its scores.
        truths: by source the trials that it is measured by, or values by image id that were imported.
    """
    ids, rows = arm.image_ids, []
    # Trials whose network saw the image as the networks did that published estimates are of.
    is_as_published = np.zeros((len(arm.trials), len(ids)), bool)
    for row, curves in enumerate(arm.trials):
        has_copy = (curves.duplicate == "exact") | (curves.duplicate == "near")
        own = (curves.given_labels == curves.true_labels) & ~has_copy
        is_as_published[row, np.searchsorted(ids, curves.image_ids)] = own
    for score in arm.measured:
        values = np.full(is_as_published.shape, np.nan)
        for row, (curves, columns) in enumerate(zip(arm.trials, arm.columns, strict=True)):
            own = as_numbers(score, columns[score], arm.longest)
            values[row, np.searchsorted(ids, curves.image_ids)] = own
        for source, of in truths.items():
            if score == "confident_learning" and isinstance(of, Membership):
                continue  # of the very predictions whose share of right ones is half of this truth
            used = values if isinstance(of, Membership) else np.where(is_as_published, values, np.nan)
            measured = agreement.agree(_estimate(used, ids, of), len(arm.trials), arm.study.memorization.num_bootstraps)
            for images in ("all", "top"):
                row_of: Columns = {"source": source, "score": score, "images": images}
                for one in measured:
                    if one.images == images:
                        row_of |= {"num_images": one.num_images, one.measure: one.value}
                        row_of |= {f"{one.measure}_low": one.low, f"{one.measure}_high": one.high}
                rows.append(row_of)
    return rows


def _estimate(values: np.ndarray, ids: np.ndarray, of: Membership | dict[int, float]) -> agreement.Estimate:
    """Mean score and truth of every image, from how often each trial counts."""
    known, numbers = (~np.isnan(values)).astype(float), np.nan_to_num(values)
    if isinstance(of, dict):
        fixed = np.array([of.get(int(image), np.nan) for image in ids])
    else:
        seen = (~np.isnan(of.is_right)).astype(float)
        right = np.nan_to_num(of.is_right)
        sides = [(seen * side, right * side) for side in (of.is_in, ~of.is_in)]

    def estimate(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (weights @ numbers) / (weights @ known)
            if isinstance(of, dict):
                return score, fixed
            shares = [(weights @ hits) / (weights @ trials) for trials, hits in sides]
        return score, shares[0] - shares[1]

    return estimate
