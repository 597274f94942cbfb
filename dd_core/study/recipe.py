"""What a training recipe is made of: data and split, model, optimiser, schedule, precision, when to stop.

Everything here that changes the weights is part of the recipe hash (``dd_core.study.study``). Needs no torch.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from dd_core.errors import UserError
from dd_core.study.architectures import ARCHITECTURES, architecture_called
from dd_core.study.classes import ClassSchedule
from dd_core.study.datasets import DATASETS, DatasetRecord
from dd_core.study.graphs import NSM, Graphs
from dd_core.study.interventions import Interventions
from dd_core.study.monitors import names_a_class
from dd_core.study.own_data import DatasetName, OwnDataset
from dd_core.study.widths import Widths
from dd_core.study.yaml_files import Strict


def _added(default: Any, **settings: Any) -> Any:
    """A key that did not exist when the first results were made: at its default it leaves their recipe as it was."""
    return Field(default=default, json_schema_extra={"left_out_of_recipe_at_default": True}, **settings)


def _apart(default: Any, **settings: Any) -> Any:
    """A key that changes how fast or where something runs, and never a weight: no part of the recipe."""
    return Field(default=default, json_schema_extra={"left_out_of_recipe": True}, **settings)


# The name of somebody's network.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
LabelOrCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+:-]*$", max_length=200)]


class Duplicates(Strict):
    """Copies among the training images, drawn for each trial; original and copy both count as duplicates."""

    exact: int = Field(default=0, ge=0, description="copies, pixel by pixel")
    near: int = Field(default=0, ge=0, description="copies that are shifted by one or two pixels, and noisy")


class Standardisation(Strict):
    """What is subtracted from the pixels of each channel and what they are divided by, where the largest value is 1."""

    mean: tuple[float, ...] = Field(description="of each channel")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="of each channel")


class Data(Strict):
    """The data set and its split. Images are standardised per channel by the training set's mean and deviation."""

    dataset: DatasetName = Field(
        description="The name of one of DATASETS; images of your own: module:function, {npz: path} or {folder: path} "
        "(docs/data.md). Of a study that is imported, any name."
    )
    num_train: int | None = Field(
        default=None,
        ge=2,
        description="Training images, drawn per trial from the official ones; without an official test set (digits) "
        "the rest is tested on. null takes all that are not for validation.",
    )
    num_validation: int = _added(
        0,
        ge=0,
        description="Images with true labels, drawn per trial, that are neither trained on nor tested on: what early "
        "stopping, plateaus and the best checkpoints look at; from the images that num_train leaves.",
    )
    standardisation: Standardisation | None = _added(
        None, description="null: by mean and deviation of each trial's training images; of imported weights, as there"
    )
    classes: ClassSchedule | None = _added(
        None, description="Classes that come one group after the other; null: all are there from the beginning."
    )
    subset: float | None = _added(
        None,
        gt=0,
        lt=1,
        description="Share of these training images that each trial is trained on, drawn for each; the others are "
        "evaluated with their given labels, as split left_out. What an image is worth shows in the difference.",
    )
    duplicates: Duplicates | None = _added(
        None, description="Training images whose pixels and labels are replaced by those of other training images."
    )
    graphs: Graphs | None = _added(None, description="Of the data set nsm alone, which needs it: how graphs are made.")

    @property
    def record(self) -> DatasetRecord:
        """What is known of the data set.

        Raises:
            UserError: nothing is, since it is a name in a study that was imported.
        """
        if isinstance(self.dataset, OwnDataset):
            return self.dataset.record
        if self.dataset not in DATASETS:
            raise UserError(f"data.dataset: nothing is known here of a data set {self.dataset!r}")
        record = DATASETS[self.dataset]
        if self.graphs is not None:
            return dataclasses.replace(record, image_shape=(1, 1, self.graphs.num_features))
        return record

    def num_trained(self, num_images: int) -> int:
        """How many of so many training images each trial is trained on."""
        return num_images if self.subset is None else round(self.subset * num_images)

    @property
    def is_known(self) -> bool:
        """Whether it has a record."""
        return isinstance(self.dataset, OwnDataset) or self.dataset in DATASETS

    @property
    def images_of_each_class(self) -> tuple[int, int, int]:
        """Training, validation and test images of every class, where classes come one group after the other.

        Equally many of each: all that the rarest class has, unless the study says how many.

        Raises:
            UserError: how many the rarest class has is not known.
        """
        record = self.record
        if record.rarest is None:
            raise UserError(f"data.classes: how many images the rarest class of {record.name} has is not known")
        validation = self.num_validation // record.num_classes
        train = self.num_train // record.num_classes if self.num_train else record.rarest[0] - validation
        return train, validation, record.rarest[1] if record.num_test else record.rarest[0] - train - validation

    @property
    def title(self) -> str:
        """The data set's name, for figures."""
        return self.record.title if self.is_known else str(self.dataset)

    @property
    def num_problems(self) -> int:
        """Graphs that every trial splits; 0 of other data."""
        if self.graphs is None or self.num_train is None:
            return 0
        return self.num_train + self.num_validation + self.graphs.num_test

    @property
    def examples(self) -> str:
        """What there is many of, for figures: images or graphs; of data sets that are not known, images."""
        return self.record.examples if self.is_known else "images"


class ResizedCrop(Strict):
    """torchvision's RandomResizedCrop: a crop of random area and shape, enlarged to the whole image, bilinear."""

    scale: tuple[float, float] = Field(default=(0.08, 1.0), description="area of the crop, fraction of the image")
    ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="its width over its height, log-uniform")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> "ResizedCrop":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: must ascend from above 0 to at most 1, not {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1] <= 100:
            raise ValueError(f"ratio: must ascend from above 0 to at most 100, not {list(self.ratio)}")
        return self


class Augmentation(Strict):
    """Random shift (padding with the background, raw value 0) or crop, and flip, anew for every image and epoch."""

    shift_x: int = Field(default=0, ge=0, description="largest horizontal shift, pixels")
    shift_y: int = Field(default=0, ge=0, description="largest vertical shift, pixels")
    flip: bool = Field(default=False, description="mirror left and right with probability 1/2")
    resized_crop: ResizedCrop | None = _added(None, description="instead of shifts; {} takes torchvision's defaults")

    @model_validator(mode="after")
    def _one_kind_of_crop(self) -> "Augmentation":
        if self.resized_crop and (self.shift_x or self.shift_y):
            raise ValueError("resized_crop: takes the place of shift_x and shift_y; leave these out")
        return self


# What early stopping and plateaus may look at; the test set is for no decision.
WatchedMetric = Literal["loss_val_nats", "acc_val", "train_loss", "train_error"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class EarlyStopping(Strict):
    """End a trial whose metric has not improved for ``patience`` evaluations; its weights stay as they are then."""

    metric: WatchedMetric = Field(default="loss_val_nats", description="what has to improve")
    patience: int = Field(ge=1, description="evaluations (every evaluation.every epochs) without improvement")
    min_delta: float = Field(default=0.0, ge=0, description="an improvement must be larger than this")


class Optimizer(Strict):
    """torch.optim.Adam, AdamW or SGD with its settings."""

    name: Literal["adam", "adamw", "sgd"] = Field(description="as in torch.optim")
    learning_rate: float = Field(gt=0, description="the largest; the schedule multiplies it")
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
    the end of every epoch in ``milestones``; inverse_sqrt: 1 / sqrt(1 + floor(t / period)) at step t; plateau: times
    ``factor`` whenever a trial's ``metric`` has not improved for more than ``patience`` evaluations.
    """

    name: Literal["constant", "cosine", "step", "inverse_sqrt", "plateau"] = Field(
        default="constant", description="its form, see above"
    )
    period: int = Field(default=512, ge=1, description="inverse_sqrt only, steps")
    warmup_epochs: float = _added(0.0, ge=0, description="linear from 0, before any schedule")
    final: float = _added(0.0, ge=0, le=1, description="cosine only, multiple of the learning rate at the end")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = _added((), description="step only, ascending epochs")
    factor: float = _added(0.1, gt=0, lt=1, description="step and plateau only")
    metric: WatchedMetric = _added("loss_val_nats", description="plateau only, of the evaluation, for each trial")
    patience: int = _added(10, ge=0, description="plateau only, evaluations (every evaluation.every epochs)")
    threshold: float = _added(1e-4, ge=0, lt=1, description="plateau only, smallest relative improvement")
    smallest: float = _added(0.0, ge=0, lt=1, description="plateau only, smallest multiple of the learning rate")
    restarts: bool = _added(True, description="where classes come one group after the other: anew with every task")

    @model_validator(mode="after")
    def _settings_belong_to_the_schedule(self) -> "Schedule":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones belong to step, which needs at least one")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, not {list(self.milestones)}")
        plateau = {field: ("plateau",) for field in ("metric", "patience", "threshold", "smallest")}
        for field, owners in {"final": ("cosine",), "factor": ("step", "plateau"), **plateau}.items():
            if self.name not in owners and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} belongs to {' and '.join(owners)}, not to {self.name}")
        return self


# The losses of the platform, and what figures call them.
LOSSES = {"cross_entropy": "cross-entropy", "mean_squared_error": "mean squared error"}


class Loss(Strict):
    """What training minimises; see ``dd_core.tasks.losses`` for the formulas and docs/training.md for the columns."""

    name: str = Field(
        default="cross_entropy",
        description="one of LOSSES (mean_squared_error: of one-hot labels, mean over the classes), or a class of the "
        "user's own, module:Class",
    )
    label_smoothing: float = _added(
        0.0, ge=0, lt=1, description="cross_entropy only: share of the label that goes to all classes alike"
    )
    options: dict[str, Any] = _added({}, description="keyword arguments of a class of the user's own")
    sha256: str | None = _added(
        None, pattern="^[0-9a-f]{64}$", description="of the source of your own class; filled in when the study is read"
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_loss(self) -> "Loss":
        if self.name not in LOSSES and ":" not in self.name:
            raise ValueError(
                f"name: there are {' and '.join(LOSSES)}, or name a class of your own as package.module:Class, not "
                f"{self.name!r}"
            )
        if self.name not in LOSSES:
            names_a_class(self.name)
        if self.label_smoothing and self.name != "cross_entropy":
            raise ValueError(f"label_smoothing belongs to cross_entropy, not to {self.name}")
        if self.options and self.name in LOSSES:
            raise ValueError(f"options belong to a class of your own, not to {self.name}")
        return self

    @property
    def words(self) -> str:
        """What evaluations record of it, as figures call it: smoothing is a way to train and no part of that."""
        return LOSSES.get(self.name, self.name)


class Variant(Strict):
    """One training recipe; with a width k it is an arm.

    In a study file ``grid: {learning_rate: [0.05, 0.1]}`` beside these keys makes a variant of each value.
    """

    architecture: LabelOrCode = Field(
        description="of a study that is imported, any name; what is trained here: one of study/architectures.py, or "
        "module:function of your own (docs/architectures.md)"
    )
    network: dict[str, int | float | str | bool] = _added(
        {}, description="settings of the architecture beside its width, such as {norm: group}"
    )
    architecture_sha256: str | None = _added(
        None, pattern="^[0-9a-f]{64}$", description="of the source of your own; filled in when the study is read"
    )
    label_noise: float = Field(
        default=0.0, ge=0, lt=1, description="share of training labels replaced by another class"
    )
    label_noise_kind: Literal["symmetric", "pair_flip", "asymmetric"] = _added(
        "symmetric",
        description="symmetric: any other class; pair_flip: the next class; asymmetric: the class it is taken for, as "
        "the record of the data set says (label_noise is the share of all labels here too)",
    )
    batch_size: int = Field(ge=1, description="training images of a step; the last of an epoch may have fewer")
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    loss: Loss = _added(Loss(), description="cross-entropy by default")
    augmentation: Augmentation = Augmentation()
    interventions: Interventions = _added(Interventions(), description="none by default")
    nsm: NSM | None = _added(None, description="Of the architecture nsm alone, which needs it: domain and network.")
    early_stopping: EarlyStopping | None = _added(None, description="null: every trial trains to the last epoch")
    precision: Precision = _added(
        "float32",
        description="of matrix products and convolutions; weights, optimiser and BatchNorm statistics stay float32. "
        "tf32 is float32 on a CPU; bfloat16 and float16 are torch.autocast, float16 with gradient scaling",
    )
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = _added(
        None, description="mode of torch.compile for the network; reduce-overhead uses CUDA graphs. null: as it is"
    )
    workers_per_gpu: int = _apart(
        3, ge=1, le=16, description="arms that may share a GPU, unless the resource probe has found another number"
    )
    widths: Widths | None = _apart(None, description="values of k of this variant; null: those of the study")
    family: str = _apart("", description="the variant whose grid this comes from; filled in when the study is read")
    grid_values: dict[str, int | float | str | bool | None] = _apart(
        {}, description="what the grid varied, by column; filled in when the study is read"
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_architecture(self) -> "Variant":
        if self.architecture in ARCHITECTURES:
            record = ARCHITECTURES[self.architecture]
            if reason := record.refused_setting(self.network):
                raise ValueError(f"network.{reason}")
            wanted = record.without_defaults(self.network)
            self.network.clear()  # what says the default is the same recipe as what says nothing
            self.network.update(wanted)
        return self

    @property
    def is_stackable(self) -> bool:
        """Whether trials may share a network: not where each needs a learning rate or gradient scale of its own."""
        may_share = architecture_called(self.architecture).is_stackable
        return may_share and self.schedule.name != "plateau" and self.precision != "float16"

    @property
    def watched_metrics(self) -> dict[str, WatchedMetric]:
        """The metrics of evaluations that change the training, by the path of the key that names them."""
        watched: dict[str, WatchedMetric] = {}
        if self.schedule.name == "plateau":
            watched["schedule.metric"] = self.schedule.metric
        if self.early_stopping is not None:
            watched["early_stopping.metric"] = self.early_stopping.metric
        if self.interventions.best_weights:
            watched["interventions.best_weights"] = "acc_val"
        return watched


def recipe_of(model: BaseModel) -> dict[str, Any]:
    """All keys and values as plain JSON, without added keys at their defaults and those that change no weight."""
    content: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value, extra = getattr(model, name), field.json_schema_extra
        if isinstance(extra, dict) and (
            extra.get("left_out_of_recipe") or (extra.get("left_out_of_recipe_at_default") and value == field.default)
        ):
            continue
        content[name] = recipe_of(value) if isinstance(value, BaseModel) else value
    return content
