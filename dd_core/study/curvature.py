"""Which curvature a study wants of each image: typed, validated, without torch."""

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dd_core.study.curvature_names import step_name
from dd_core.study.yaml_files import Strict

HessianEstimator = Literal["exact", "top_directions", "double_backward"]
Estimator = Literal["exact", "top_directions", "double_backward", "finite_difference"]
# Of the values of top_directions alone: results of others, in the same files or not, stay current. Without a version
# images shared a few numbers of directions; in 2 each had as many as it needs; since 3 directions are ranked by the
# network's mean Jacobian where that pays.
_TOP_DIRECTIONS_VERSION = 3
# Rows of a trial that are worth a task of their own.
_SMALLEST_SHARD = 500


def _each_once(epochs: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(epochs)) < len(epochs):
        raise ValueError("an epoch is listed twice")
    return epochs


def _different_steps(steps: tuple[float, ...]) -> tuple[float, ...]:
    names = [step_name(step) for step in steps]
    if len(set(names)) < len(names):
        raise ValueError("a step is listed twice")
    return steps


class FiniteDifference(Strict):
    """The published definition: gradients compared between x and x + h r, r of random signs."""

    epochs: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)] | None
    ) = Field(default=None, description="checkpoint epochs to compute it at; null: all")
    steps: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=20), AfterValidator(_different_steps)
    ] = Field(default=(0.001, 1.0, 3.0), description="steps h in standardised pixels, each with its own columns")
    num_probes: int = Field(default=10, ge=2, le=1000, description="random directions per image")
    normalisation: Literal["per_step", "sum", "mean"] = Field(
        default="per_step",
        description="per_step: divided by h (norm) and h^2 (directional); sum: differences of the summed loss's "
        "gradient; mean: of the mean loss of mean_batch_size images, as published code computes it",
    )
    mean_batch_size: int | None = Field(default=None, ge=1, description="of normalisation mean")

    @model_validator(mode="after")
    def _batch_size_belongs_to_mean(self) -> "FiniteDifference":
        if (self.normalisation == "mean") != (self.mean_batch_size is not None):
            raise ValueError("normalisation mean needs mean_batch_size, and no other has one")
        return self


class CurvatureSettings(Strict):
    """What is computed of every training image at every checkpoint."""

    estimators: tuple[Estimator, ...] = Field(
        default=("exact",),
        description="one of exact, top_directions (many classes) and double_backward (networks that are not piecewise "
        "linear); and finite_difference if it is wanted",
    )
    logits: Literal["seen", "all"] = Field(
        default="seen",
        description="where classes come one group after the other: seen: the loss as it is trained, over the outputs "
        "of the classes seen; all: over all outputs, as published code computes it",
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="of the backward passes of exact and top_directions"
    )
    relative_error: float = Field(
        default=0.01, gt=0, lt=1, description="top_directions: standard error of the trace over the trace"
    )
    num_probes: int | None = Field(
        default=None, ge=1, le=1000, description="default 1 for top_directions, 10 for double_backward"
    )
    finite_difference: FiniteDifference = FiniteDifference()

    @model_validator(mode="after")
    def _one_hessian(self) -> "CurvatureSettings":
        hessian = [name for name in self.estimators if name != "finite_difference"]
        if len(hessian) != 1 or len(set(self.estimators)) < len(self.estimators):
            raise ValueError(
                "estimators: name exactly one of exact, top_directions and double_backward, and finite_difference "
                "once or not at all"
            )
        if hessian[0] == "double_backward" and self.precision == "bfloat16":
            raise ValueError("precision: bfloat16 has too few digits for double_backward")
        if hessian[0] == "double_backward" and self.num_probes == 1:
            raise ValueError("num_probes: double_backward needs at least 2, without which there is no standard error")
        return self

    @property
    def hessian_estimator(self) -> HessianEstimator:
        """The estimator of the input Hessian."""
        return next(name for name in self.estimators if name != "finite_difference")

    @property
    def objection_to_graphs(self) -> str:
        """Which setting is for images alone, ``key: reason``; empty if there is none."""
        if self.estimators != ("exact",):
            others = ", ".join(name for name in self.estimators if name != "exact")
            return f"estimators: of graphs there is exact alone, by double backward, not {others}"
        if self.precision == "bfloat16":
            return "precision: bfloat16 has too few digits to differentiate twice, which graphs need"
        for key in ("relative_error", "num_probes", "finite_difference"):
            if getattr(self, key) != type(self).model_fields[key].default:
                return f"{key}: belongs to estimators for images; of graphs there is exact alone"
        return ""

    def families(self, epoch: int) -> dict[str, dict[str, Any]]:
        """The groups of columns a checkpoint gets, each with what determines its values, as plain JSON values."""
        hessian: dict[str, Any] = {"estimator": self.hessian_estimator, "precision": self.precision}
        if self.hessian_estimator == "top_directions":
            hessian |= {"relative_error": self.relative_error, "num_probes": self.num_probes or 1}
            hessian |= {"version": _TOP_DIRECTIONS_VERSION}
        if self.hessian_estimator == "double_backward":
            hessian |= {"num_probes": self.num_probes or 10}
        families = {"hessian": hessian}
        epochs = self.finite_difference.epochs
        if "finite_difference" in self.estimators and (epochs is None or epoch in epochs):
            families["finite_difference"] = self.finite_difference.model_dump(mode="json", exclude={"epochs"})
        if self.logits == "all":
            families = {name: {**family, "logits": "all"} for name, family in families.items()}
        return families


def covers(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every group of columns wanted is there with the same settings."""
    return all(present.get(name) == settings for name, settings in wanted.items())


def shards(num_trials: int, num_images: int, multiple: int = 1, target: int = 5000) -> list[tuple[int, int]]:
    """Ranges of rows, trial after trial, that are computed on their own and can be resumed.

    They depend on the data alone, not on how many workers there are, so that any set of workers may go on. Small
    checkpoints are one range. Larger ones are cut within each trial, at multiples of ``multiple``, into equal pieces of
    at most ``target`` rows. Their number is a power of two, so that 8, 16, 32 or 64 GPUs have equally much to do, and
    as large as leaves 500 rows to each: 50,000 images are 64 pieces of 781 or 782, about what a GPU takes in one pass
    with ten classes. In smaller ones the beginning of each would count (see benchmarks/scaling.py).
    """
    if num_trials * num_images <= target:
        return [(0, num_trials * num_images)]
    batches, most = math.ceil(num_images / multiple), max(1, target // multiple)
    pieces = 1
    while batches > pieces * most or num_images >= 2 * pieces * _SMALLEST_SHARD:
        pieces *= 2
    pieces = min(pieces, batches)
    bounds = [min(batches * piece // pieces * multiple, num_images) for piece in range(pieces + 1)]
    return [
        (trial * num_images + start, trial * num_images + stop)
        for trial in range(num_trials)
        for start, stop in itertools.pairwise(bounds)
    ]
