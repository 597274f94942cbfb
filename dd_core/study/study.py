"""What a study is: typed, validated, hashable descriptions; ``dd_core.study.files`` reads them from YAML.

Belongs here: the words of the platform (study, variant, arm, checkpoint), their keys, and the recipe hash that ties
every stored result to what produced it. Does not belong here: anything that needs torch, or touches results on disk.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from dd_core.errors import UserError
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.calendar import Calendar
from dd_core.study.classes import ClassSchedule
from dd_core.study.curvature import CurvatureSettings, shards
from dd_core.study.graphs import GENERATOR_VERSION, GRAPH_VALUES
from dd_core.study.hessian import HessianSettings
from dd_core.study.loss_slopes import LossSlopeSettings
from dd_core.study.memorization import MemorizationSettings
from dd_core.study.monitors import MonitorSettings
from dd_core.study.own_code import is_own_code, source_digest
from dd_core.study.possible import (
    LONGEST_STUDY_NAME,
    check_classes,
    check_data,
    check_keys,
    check_limits,
    check_variant,
    has_room,
)
from dd_core.study.possible_graphs import check_graphs
from dd_core.study.recipe import Data, Variant, recipe_of
from dd_core.study.resources import Resources
from dd_core.study.widths import Widths, unique
from dd_core.study.yaml_files import Strict
from dd_core.words import meant, nearest

# Part of every recipe hash. Raise it when a change to models, data or training alters the weights of the same study.
TRAINER_VERSION = "1"

# Keys appear in Dagster partition keys ("arm|epoch", ranges "a...b"), in file names and in hive paths: no bars, commas,
# brackets, dots (the dot separates variant and k) or slashes.
_STUDY_NAME = re.compile(r"[a-z][a-z0-9_]*")
# DuckDB reads a folder called study=null as no value at all.
_RESERVED_STUDY_NAMES = {
    "none",
    "tables",
    "figures",
    "default",
    "broken_studies",
    "curvature",
    "warehouse",
    "null",
    "tensorboard",
}


class Evaluation(Strict):
    """When the whole training and test sets are evaluated, and for which of these the per-image values are kept."""

    every: int = Field(default=1, ge=1, description="epochs; checkpoint epochs are always evaluated")
    image_progress: Literal["evaluations", "checkpoints"] = Field(
        default="evaluations",
        description="of which evaluations values of single images are kept: all; or those at checkpoints and the first "
        "after classes were added",
    )
    image_values: tuple[Literal["margin", "el2n", "gradient_norm"], ...] = Field(
        default=(), description="per-image values that are kept beside loss and correctness, for memorisation scores"
    )


Epochs = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(unique)]


@dataclass(frozen=True, order=True)
class Arm:
    """A variant at one width; all its trials train together."""

    variant: str
    k: int

    @property
    def key(self) -> str:
        """For example ``s-core.k008``."""
        return f"{self.variant}.k{self.k:03d}"


@dataclass(frozen=True, order=True)
class Checkpoint:
    """The weights of all trials of one arm after ``epoch`` epochs (0: the initialisation)."""

    arm: Arm
    epoch: int

    @property
    def key(self) -> str:
        """The Dagster partition key, for example ``s-core.k008|0200``."""
        return f"{self.arm.key}|{self.epoch:04d}"


class Study(Strict):
    """One question. Its name is the name of its file."""

    name: str = Field(description="that of the file, without .yaml; not a key of it")
    description: str = Field(min_length=1, description="the question, in one or two sentences")
    imported: bool | Literal["weights"] = Field(
        default=False,
        description="nothing is trained: true: metrics of another system (dd_assets.import_metrics); weights: its "
        "checkpoints (dd_assets.import_checkpoints)",
    )
    data: Data
    variants: dict[str, Variant] = Field(min_length=1, description="training recipes by name")
    widths: Widths = Field(description="values of k; of variants that do not name their own, and needed only for these")
    width_unit: float = Field(
        default=1.0, gt=0, description="imported only: the width that k = 1 stands for, where widths are fractions"
    )
    trials: int = Field(ge=1, description="random seeds of each arm, which differ in everything that is drawn")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="with a trial's number, what all that is drawn follows from"
    )
    epochs: int = Field(ge=1, le=9999, description="passes over the training images")
    checkpoints: Epochs = Field(description="epochs after which the weights are kept; 0: as initialised")
    evaluation: Evaluation = Evaluation()
    keep_best: int = Field(
        default=3, ge=0, le=100, description="checkpoints of each trial kept beside these, by lowest loss_val_nats"
    )
    monitors: MonitorSettings = MonitorSettings()
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0, description="for costs in the table runs; null: DD_PRICE_PER_GPU_HOUR, or no costs"
    )
    curvature: CurvatureSettings = CurvatureSettings()
    hessian: HessianSettings = HessianSettings()
    loss_slopes: LossSlopeSettings = LossSlopeSettings()
    memorization: MemorizationSettings = MemorizationSettings()
    resources: Resources | None = Field(
        default=None, description="what its jobs ask for on a cluster; null: what the settings of the cluster say"
    )
    _first_trial: int = PrivateAttr(default=0)
    _whole: "Study | None" = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_possible(self) -> "Study":
        if not _STUDY_NAME.fullmatch(self.name) or self.name in _RESERVED_STUDY_NAMES:
            raise ValueError(
                f"name: {self.name!r} must match {_STUDY_NAME.pattern} and not be one of the platform's own"
            )
        has_room(self.name, LONGEST_STUDY_NAME, "name")
        check_keys(self)
        if self.imported is True:
            return self  # how it was trained is not for us to refuse
        check_limits(self)
        for name, variant in self.variants.items():
            self.variants[name] = _with_source(f"variants.{name}", variant)
        check_graphs(self)
        check_data(self)
        check_classes(self)
        for name in self.variants:
            check_variant(self, name)
        return self

    @property
    def has_checkpoints(self) -> bool:
        """Whether it has weights, trained here or imported: all studies but those of imported metrics."""
        return self.imported is not True

    @property
    def comes_by(self) -> str:
        """How its checkpoints come to be there, for sentences: ``train it``, ``import it``."""
        return "import it" if self.imported else "train it"

    def part(self, trials: range) -> "Study":
        """This study with only the trials of these numbers; what is random of a trial depends on its number alone."""
        part = self.model_copy(update={"trials": len(trials)})
        part._first_trial, part._whole = trials.start, self.whole
        return part

    @property
    def whole(self) -> "Study":
        """The study that this is a part of, or itself."""
        return self._whole or self

    @property
    def first_trial(self) -> int:
        """The number of its first trial; above 0 only in a part."""
        return self._first_trial

    @property
    def trial_numbers(self) -> range:
        """The numbers of its trials; with the seed they determine all randomness."""
        return range(self.first_trial, self.first_trial + self.trials)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms by key, in the order of the file: variants, then widths."""
        arms = (Arm(name, k) for name in self.variants for k in self.widths_of(name))
        return {arm.key: arm for arm in arms}

    def widths_of(self, variant: str) -> tuple[int, ...]:
        """The values of k that a variant is trained at, ascending."""
        return self.variants[variant].widths or self.widths

    @property
    def all_widths(self) -> tuple[int, ...]:
        """The values of k of all arms, ascending."""
        return tuple(sorted({arm.k for arm in self.arms.values()}))

    @property
    def families(self) -> dict[str, str]:
        """For every variant the one of the study file that it comes from: itself, or one with a grid."""
        return {name: variant.family or name for name, variant in self.variants.items()}

    @property
    def num_train_images(self) -> int:
        """Images that each trial is trained on, over all epochs.

        Raises:
            UserError: it is a data set of others, of which nobody has said how many.
        """
        return self.data.num_trained(self._num_pool_images)

    @property
    def num_left_out_images(self) -> int:
        """Training images of each trial that it is not trained on, so that others show what they are worth."""
        return self._num_pool_images - self.num_train_images

    @property
    def _num_pool_images(self) -> int:
        """What trials are trained on, or draw a share of."""
        if self.data.num_train is None and not self.data.is_known:
            raise UserError(
                f"{self.name}: how many training images {self.data.dataset} has is not known; say it in the study "
                "file, as data.num_train"
            )
        if self.data.num_train is None and self.data.classes is not None:
            return self.data.record.num_classes * self.data.images_of_each_class[0]
        return self.data.num_train or self.data.record.num_train - self.data.num_validation

    @property
    def num_test_images(self) -> int:
        """Test images of each trial: the data set's own, or those that are left."""
        record = self.data.record
        if self.data.graphs is not None:
            return self.data.graphs.num_test
        if self.data.classes is not None:
            return record.num_classes * self.data.images_of_each_class[2]
        return record.num_test or record.num_train - self._num_pool_images - self.data.num_validation

    @property
    def num_evaluated_images(self) -> int:
        """Images of each trial in an evaluation: of all splits."""
        return self._num_pool_images + self.data.num_validation + self.num_test_images

    @property
    def image_values(self) -> tuple[str, ...]:
        """What is kept of single examples beside loss and correctness: what is asked for, and of graphs all."""
        return (*self.evaluation.image_values, *(GRAPH_VALUES if self.data.graphs is not None else ()))

    def num_classes_at(self, epoch: int) -> int:
        """Classes that are evaluated after an epoch: all, or where they come one group after the other, those seen."""
        classes, count = self.data.classes, self.data.record.num_classes
        return count if classes is None else classes.evaluated(epoch, count)

    def num_images_evaluated_at(self, epoch: int) -> int:
        """Images of each trial, of all splits, that are evaluated after an epoch."""
        if self.data.classes is None:
            return self.num_evaluated_images
        return self.num_evaluated_images // self.data.record.num_classes * self.num_classes_at(epoch)

    def num_seen_images(self, epoch: int) -> int:
        """Training images of each trial that are evaluated after an epoch: the first of ``TrialData.train_ids``."""
        if self.data.classes is None:
            return self.num_train_images
        return self.num_train_images // self.data.record.num_classes * self.num_classes_at(epoch)

    def calendar(self, variant: str) -> Calendar:
        """Which steps of a variant's trials belong to which epoch.

        Raises:
            UserError: as ``num_train_images``.
        """
        size, classes, num_classes = self.variants[variant].batch_size, self.data.classes, self.data.record.num_classes
        if classes is None:
            return Calendar(self.num_train_images, size)
        of_class = self.num_train_images // num_classes
        return _growing_calendar(of_class, size, num_classes, classes.first, classes.add, classes.every)

    def keeps_images(self, epoch: int) -> bool:
        """Whether values of single images are kept of the evaluation after an epoch."""
        if self.evaluation.image_progress == "evaluations" or epoch in self.checkpoints:
            return True
        # What new classes make forgotten shows at the first evaluation that follows.
        return self.num_classes_at(epoch) > self.num_classes_at(max(0, epoch - self.evaluation.every))

    def seen_and_active(self, epoch: int) -> tuple[int, int] | tuple[None, None]:
        """Classes that were trained on by the end of an epoch, and in the next one; None where all always are."""
        classes, count = self.data.classes, self.data.record.num_classes
        return (None, None) if classes is None else (classes.seen(epoch, count), classes.active(epoch, count))

    def curvature_ranges(self, epoch: int) -> list[tuple[int, int]]:
        """The ranges of rows that per-image curvature is computed in; a row is an image of a trial that it has seen."""
        # The published mean loss couples the images of a batch, so no range may cut one.
        multiple = self.curvature.finite_difference.mean_batch_size or 1
        return shards(self.trials, self.num_seen_images(epoch), multiple)

    @property
    def hessian_epochs(self) -> tuple[int, ...]:
        """The checkpoint epochs at which the Hessian in the weights is looked at."""
        return self.hessian.epochs or self.checkpoints[-1:]

    @cached_property
    def epoch_keys(self) -> tuple[str, ...]:
        """The epoch half of the partition keys, four digits each."""
        return tuple(f"{epoch:04d}" for epoch in self.checkpoints)

    def iter_checkpoints(self) -> Iterator[Checkpoint]:
        """All checkpoints, arm by arm."""
        return (Checkpoint(arm, epoch) for arm in self.arms.values() for epoch in self.checkpoints)

    def checkpoint(self, key: str) -> Checkpoint:
        """Parse a partition key.

        Raises:
            UserError: no such arm or epoch in this study.
        """
        arm_key, _, epoch = key.partition("|")
        arm = self.arms.get(arm_key)
        if arm is None or epoch not in self.epoch_keys:
            arm_key, epoch = nearest(arm_key, self.arms) or "", epoch.zfill(4)
            known = f"did you mean '{arm_key}|{epoch}'? " if arm_key and epoch in self.epoch_keys else ""
            raise UserError(
                f"study {self.name} has no checkpoint {key!r}; {known}arms are {_span(list(self.arms))}, "
                f"epochs {_span(list(self.epoch_keys))}"
            )
        return Checkpoint(arm, int(epoch))

    def recipe(self, arm: Arm) -> dict[str, Any]:
        """Everything that changes the weights of an arm, as plain JSON values.

        The number of epochs is part of it only where the schedule depends on it, so a constant-rate study can be
        prolonged without training again; which epochs are kept or evaluated is not, unless early stopping or the
        schedule look at evaluations.
        """
        variant = self.variants[arm.variant]
        if self.imported:  # not the number of trials: the next one may be imported tomorrow
            seed = {"seed": self.seed} if self.imported == "weights" else {}  # it draws the split
            unit = {} if self.width_unit == 1 else {"width_unit": self.width_unit}
            about = {"data": self._data_recipe, "variant": recipe_of(variant), "k": arm.k}
            return {"imported": self.imported, **about, **seed, **unit}
        watched = {"evaluation_every": self.evaluation.every} if variant.watched_metrics else {}
        return {
            **watched,
            "trainer_version": TRAINER_VERSION,
            "data": self._data_recipe,
            "variant": recipe_of(variant),
            "k": arm.k,
            "trials": self.trials,
            **({"first_trial": self.first_trial} if self.first_trial else {}),
            "seed": self.seed,
            "horizon_epochs": self.epochs if variant.schedule.name == "cosine" else None,
        }

    @property
    def _data_recipe(self) -> dict[str, Any]:
        """That of the data; of orders of classes from files, what the files say."""
        content, classes = recipe_of(self.data), self.data.classes
        digest = classes.digest_of_orders(self.whole.trials) if classes else ""
        if self.data.graphs is not None:
            content["graphs"]["generator_version"] = GENERATOR_VERSION
        return content | ({"classes": {**content["classes"], "order_sha256": digest}} if digest else {})

    def recipe_hash(self, arm: Arm) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the recipe."""
        text = json.dumps(self.recipe(arm), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_source(path: str, variant: Variant) -> Variant:
    """The variant with the digests of its architecture's and its loss' source, where these are the user's own code."""
    name, loss = variant.architecture, variant.loss
    if name not in ARCHITECTURES and not is_own_code(name):
        known = " or ".join(map(repr, ARCHITECTURES))
        own = f"or module:function of your own (got {name!r}){meant(name, ARCHITECTURES)}"
        raise ValueError(f"{path}.architecture: Input should be {known} {own}")
    if is_own_code(name) and variant.architecture_sha256 is None:
        variant = variant.model_copy(update={"architecture_sha256": _source_digest(f"{path}.architecture", name)})
    if is_own_code(loss.name) and loss.sha256 is None:
        loss = loss.model_copy(update={"sha256": _source_digest(f"{path}.loss.name", loss.name)})
        variant = variant.model_copy(update={"loss": loss})
    return variant


def _source_digest(path: str, name: str) -> str:
    try:
        return source_digest(name)
    except UserError as error:
        raise ValueError(f"{path}: {error}") from error


def _span(values: list[str]) -> str:
    return ", ".join(values) if len(values) <= 12 else f"{values[0]}, {values[1]}, … {values[-1]}"


@lru_cache(maxsize=256)
def _growing_calendar(of_class: int, batch_size: int, num_classes: int, first: int, add: int, every: int) -> Calendar:
    """The calendar of tasks with so many images of each class; kept, since jobs ask for it thousands of times."""
    classes = ClassSchedule(first=first, add=add, every=every)
    begin, *further = (
        (epoch, of_class * classes.evaluated(epoch, num_classes)) for epoch in classes.first_epochs(num_classes)
    )
    return Calendar(begin[1], batch_size, tuple(further))
