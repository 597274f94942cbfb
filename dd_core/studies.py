"""What a study is: typed, validated, hashable descriptions read from one YAML file.

Belongs here: the words of the platform (study, variant, arm, checkpoint), their keys, and the recipe hash that ties
every stored result to what produced it. Does not belong here: anything that needs torch, or touches results on disk.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from dd_core.curvature_settings import CurvatureSettings, shards
from dd_core.errors import StudyError, UserError
from dd_core.hessian_settings import HessianSettings
from dd_core.strict import Strict

# Part of every recipe hash. Raise it when a change to models, data or training alters the weights of the same study.
TRAINER_VERSION = "1"

# Keys appear in Dagster partition keys ("arm|epoch", ranges "a...b"), in file names and in hive paths: no bars, commas,
# brackets, dots (the dot separates variant and k) or slashes.
_VARIANT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_STUDY_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NUM_DIGITS = 1797
# DuckDB reads a folder called study=null as no value at all.
_RESERVED_STUDY_NAMES = {"tables", "figures", "default", "broken_studies", "curvature", "warehouse", "null"}


def _added(default: Any, **settings: Any) -> Any:
    """A key that did not exist when the first results were made: at its default it leaves their recipe as it was."""
    return Field(default=default, json_schema_extra={"left_out_of_recipe_at_default": True}, **settings)


class Data(Strict):
    """The data set and its split. Images are standardised per channel by the training set's mean and deviation."""

    dataset: Literal["digits", "cifar10", "cifar100"]
    num_train: int | None = Field(
        default=None,
        ge=2,
        description="Training images. digits: every trial draws its own, the rest is the test set. CIFAR: a subset "
        "drawn per trial from the official training set; null takes all of it.",
    )


class Augmentation(Strict):
    """Random shift (padding with the background, raw value 0) and flip, drawn anew for every image and epoch."""

    shift_x: int = Field(default=0, ge=0, description="largest horizontal shift, pixels")
    shift_y: int = Field(default=0, ge=0, description="largest vertical shift, pixels")
    flip: bool = Field(default=False, description="mirror left and right with probability 1/2")


class Optimizer(Strict):
    """torch.optim.Adam, AdamW or SGD with its settings."""

    name: Literal["adam", "adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(
        default=0.0, ge=0, description="as in torch.optim: an L2 penalty, for adamw decoupled from the gradient"
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd only")
    nesterov: bool = _added(False, description="sgd with momentum only")
    betas: tuple[float, float] = _added((0.9, 0.999), description="adam and adamw only, each from 0 to below 1")
    decay_all: bool = _added(
        True, description="false: weight decay spares biases and the parameters of normalisation layers"
    )
    clip_norm: float | None = _added(
        None, gt=0, description="largest norm of each trial's gradient over all its parameters; null: not clipped"
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_optimizer(self) -> "Optimizer":
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd; {self.name} has betas")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        if self.name == "sgd" and self.betas != (0.9, 0.999):
            raise ValueError("betas belong to adam and adamw; sgd has momentum")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: each must lie from 0 to below 1, not {list(self.betas)}")
        return self


class Schedule(Strict):
    """The learning rate of every step, as a multiple of the optimiser's.

    constant; cosine to ``final`` over all steps after ``warmup_epochs`` of linear warm-up; step: times ``factor`` at
    the end of every epoch in ``milestones``; inverse_sqrt: 1 / sqrt(1 + floor(t / period)) at step t.
    """

    name: Literal["constant", "cosine", "step", "inverse_sqrt"] = "constant"
    period: int = Field(default=512, ge=1, description="inverse_sqrt only, steps")
    warmup_epochs: float = _added(0.0, ge=0, description="linear from 0, before any schedule")
    final: float = _added(0.0, ge=0, le=1, description="cosine only, multiple of the learning rate at the end")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = _added((), description="step only, ascending epochs")
    factor: float = _added(0.1, gt=0, lt=1, description="step only")

    @model_validator(mode="after")
    def _settings_belong_to_the_schedule(self) -> "Schedule":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones belong to step, which needs at least one")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, not {list(self.milestones)}")
        for field, owner in {"final": "cosine", "factor": "step"}.items():
            if self.name != owner and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} belongs to {owner}, not to {self.name}")
        return self


class Variant(Strict):
    """One training recipe; with a width k it is an arm."""

    architecture: Literal["preact_resnet18", "preact_resnet10", "cnn5"]
    label_noise: float = Field(
        default=0.0, ge=0, lt=1, description="share of training labels replaced by another class"
    )
    batch_size: int = Field(ge=1)
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()


class Evaluation(Strict):
    """When the whole training and test sets are evaluated, and for which of these the per-image values are kept."""

    every: int = Field(default=1, ge=1, description="epochs; checkpoint epochs are always evaluated")
    image_progress: Literal["evaluations", "checkpoints"] = "evaluations"


def _unique(values: tuple[int, ...]) -> tuple[int, ...]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"listed twice: {', '.join(map(str, repeated))}")
    return tuple(sorted(values))


Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=999)], ...], Field(min_length=1), AfterValidator(_unique)]
Epochs = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_unique)]


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

    name: str
    description: str = Field(min_length=1)
    data: Data
    variants: dict[str, Variant] = Field(min_length=1)
    widths: Widths
    trials: int = Field(ge=1, le=100)
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(ge=1, le=9999)
    checkpoints: Epochs
    evaluation: Evaluation = Evaluation()
    curvature: CurvatureSettings = CurvatureSettings()
    hessian: HessianSettings = HessianSettings()

    @model_validator(mode="after")
    def _is_possible(self) -> "Study":
        if not _STUDY_NAME.fullmatch(self.name) or self.name in _RESERVED_STUDY_NAMES:
            raise ValueError(
                f"name: {self.name!r} must match {_STUDY_NAME.pattern} and not be one of the platform's own"
            )
        for variant in self.variants:
            if not _VARIANT_NAME.fullmatch(variant):
                raise ValueError(
                    f"variants.{variant}: a name is lower-case letters and digits joined by single hyphens"
                )
        if self.checkpoints[-1] > self.epochs:
            raise ValueError(f"checkpoints: epoch {self.checkpoints[-1]} is beyond the last epoch, {self.epochs}")
        difference = self.curvature.finite_difference
        for where, epochs in (("hessian", self.hessian.epochs), ("curvature.finite_difference", difference.epochs)):
            unknown = sorted(set(epochs or ()) - set(self.checkpoints))
            if unknown:
                raise ValueError(f"{where}.epochs: there is no checkpoint at epoch {', '.join(map(str, unknown))}")
        num_train = self.data.num_train
        for name, variant_ in self.variants.items():
            schedule = variant_.schedule
            if schedule.warmup_epochs >= self.epochs:
                raise ValueError(
                    f"variants.{name}.schedule.warmup_epochs: {schedule.warmup_epochs:g} is not before the last epoch, "
                    f"{self.epochs}"
                )
            if schedule.milestones and schedule.milestones[-1] >= self.epochs:
                raise ValueError(
                    f"variants.{name}.schedule.milestones: epoch {schedule.milestones[-1]} is not before the last "
                    f"epoch, {self.epochs}"
                )
            size = variant_.batch_size
            if num_train is not None and size > num_train:
                raise ValueError(
                    f"variants.{name}.batch_size: {size} images in a batch but only {num_train} to train on"
                )
            # The last stage of a ResNet leaves one pixel of a digit, and BatchNorm needs two values to normalise.
            is_narrow = self.data.dataset == "digits" and variant_.architecture != "cnn5"
            if is_narrow and (size == 1 or (num_train or _NUM_DIGITS) % size == 1):
                raise ValueError(
                    f"variants.{name}.batch_size: with {size} the last batch of an epoch would be a single image, "
                    "which BatchNorm cannot normalise; choose another size"
                )
        return self

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms by key, in the order of the file: variants, then widths."""
        arms = (Arm(variant, k) for variant in self.variants for k in self.widths)
        return {arm.key: arm for arm in arms}

    @property
    def num_train_images(self) -> int:
        """Training images of each trial."""
        return self.data.num_train or {"digits": _NUM_DIGITS, "cifar10": 50_000, "cifar100": 50_000}[self.data.dataset]

    @property
    def curvature_ranges(self) -> list[tuple[int, int]]:
        """The ranges of rows (a row is an image of a trial) that per-image curvature is computed in."""
        # The published mean loss couples the images of a batch, so no range may cut one.
        multiple = self.curvature.finite_difference.mean_batch_size or 1
        return shards(self.trials, self.num_train_images, multiple)

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
            raise UserError(
                f"study {self.name} has no checkpoint {key!r}; arms are {_span(list(self.arms))}, "
                f"epochs {_span(list(self.epoch_keys))}"
            )
        return Checkpoint(arm, int(epoch))

    def recipe(self, arm: Arm) -> dict[str, Any]:
        """Everything that changes the weights of an arm, as plain JSON values.

        The number of epochs is part of it only where the schedule depends on it, so a constant-rate study can be
        prolonged without training again; which epochs are kept or evaluated is not.
        """
        variant = self.variants[arm.variant]
        return {
            "trainer_version": TRAINER_VERSION,
            "data": _recipe_of(self.data),
            "variant": _recipe_of(variant),
            "k": arm.k,
            "trials": self.trials,
            "seed": self.seed,
            "horizon_epochs": self.epochs if variant.schedule.name == "cosine" else None,
        }

    def recipe_hash(self, arm: Arm) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the recipe."""
        text = json.dumps(self.recipe(arm), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _recipe_of(model: BaseModel) -> dict[str, Any]:
    """All keys and values as plain JSON, without added keys at their defaults."""
    content: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value, extra = getattr(model, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("left_out_of_recipe_at_default") and value == field.default:
            continue
        content[name] = _recipe_of(value) if isinstance(value, BaseModel) else value
    return content


def _span(values: list[str]) -> str:
    return ", ".join(values) if len(values) <= 12 else f"{values[0]}, {values[1]}, … {values[-1]}"


def read_study(path: Path) -> Study:
    """Read and validate one study file.

    Raises:
        StudyError: with the file and, where there is one, the path of the offending key.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except YAMLError as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise StudyError(f"{path}: not valid YAML{where} ({reason})") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a study is a mapping of keys to values, not {type(content).__name__}")
    try:
        text = json.dumps({"name": path.stem, **content})
    except (TypeError, ValueError) as error:  # dates and the like; a list that contains itself
        raise StudyError(f"{path}: only numbers, text, lists and mappings belong in a study ({error})") from error
    try:
        study = Study.model_validate_json(text)
    except ValidationError as error:
        raise StudyError(f"{path}: {describe_problems(error)}") from error
    if study.name != path.stem:
        raise StudyError(f"{path}: name: is {study.name!r}, but the file is called {path.stem!r}; leave the key out")
    return study


def describe_problems(error: ValidationError) -> str:
    """All problems of a file in one line, each with the path of its key."""
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = f" (got {given!r})" if isinstance(given, int | float | str | bool) else ""
        parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(parts)


@dataclass(frozen=True)
class Catalogue:
    """The studies found, and for each file that could not be used the reason."""

    studies: dict[str, Study]
    errors: dict[Path, str]

    def get(self, name: str) -> Study:
        """The study of that name.

        Raises:
            UserError: there is none, or its file has an error.
        """
        if name in self.studies:
            return self.studies[name]
        for path, reason in self.errors.items():
            if path.stem == name:
                raise StudyError(reason)
        raise UserError(f"there is no study {name!r}; there are {', '.join(sorted(self.studies)) or 'none'}")


def read_studies(folders: Iterable[Path]) -> Catalogue:
    """Read every ``*.yaml`` of the folders; a file with an error does not keep the others from loading.

    Of two files with the same name the first is taken and the second is reported as an error.
    """
    studies: dict[str, Study] = {}
    errors: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            errors[folder] = f"{folder}: the folder of study files does not exist"
            continue
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            try:
                if path.stem in studies:
                    raise StudyError(f"{path}: there is a study {path.stem!r} already; rename this file")
                studies[path.stem] = read_study(path)
            except StudyError as error:
                errors[path] = str(error)
    return Catalogue(studies, errors)
