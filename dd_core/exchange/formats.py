"""The public forms of metric files: one record each, recognised by the keys of the header.

A form says what its own names mean, how it counts epochs, and whether its accuracies are in percent. Names that every
system understands alike (``val_acc``, ``Train Loss``) are read by their words, in ``columns``, whatever the form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dd_core.errors import UserError
from dd_core.exchange.columns import STEP_FILE_KEYS, meaning_of, place_of, plain

_Keys = dict[str, str]  # plain name -> name as in the file
WANDB_SEPARATOR = " - "
WANDB_BOUNDS = ("__MIN", "__MAX")
_BARE_ACCURACIES = ("acc", "accuracy", "categorical_accuracy", "sparse_categorical_accuracy", "binary_accuracy")


@dataclass(frozen=True)
class Format:
    """One form.

    Attributes:
        name: for ``--format``.
        description: what writes such files, and how they are read.
        fits: whether the keys are those of the form.
        names: what its own names are called here, by plain name.
        first_epoch: number of the first epoch of training in its files.
        percent: whether its accuracies are in percent.
        is_exact: whether its names are this project's, and every other name is that of a metric.
        has_runs: whether a column is a run.
    """

    name: str
    description: str
    fits: Callable[[_Keys], bool]
    names: Mapping[str, str] = field(default_factory=dict)
    first_epoch: int = 1
    percent: bool = False
    is_exact: bool = False
    has_runs: bool = False


def _is_timm(keys: _Keys) -> bool:
    return {"epoch", "train_loss", "eval_loss"} <= set(keys) and any(key.startswith("eval_top") for key in keys)


def _is_wandb(keys: _Keys) -> bool:
    runs = [name for name in keys.values() if WANDB_SEPARATOR in name]
    return len(runs) >= max(1, len(keys) - 1)


def _is_keras(keys: _Keys) -> bool:
    has_validation = any(name in keys and f"val_{name}" in keys for name in _BARE_ACCURACIES)
    told_apart = any(key.startswith(("train", "test")) for key in keys)
    return "step" not in keys and not told_apart and ("loss" in keys or has_validation)


def _is_lightning(keys: _Keys) -> bool:
    if not {"epoch", "step"} <= set(keys) or set(keys) & {"loss_train_nats", "loss_val_nats", "acc_train"}:
        return False
    words = ("train", "val", "test")
    told = (meaning_of(name, has_steps=True, once_an_epoch=True) for key, name in keys.items() if key.startswith(words))
    return any(meaning is not None and meaning.table == "training_evals" for meaning in told)


FORMATS = {
    form.name: form
    for form in (
        Format(
            "lab",
            "metric_exports of this project; names are taken as they are",
            lambda keys: set(STEP_FILE_KEYS) <= set(keys.values()) and not {"seed", "variant"} & set(keys),
            is_exact=True,
        ),
        Format(
            "wandb",
            "a chart's CSV from Weights & Biases: a column for each run, '<run> - <metric>'; --runs says how runs are "
            "called, __MIN and __MAX are left out",
            _is_wandb,
            has_runs=True,
        ),
        Format(
            "timm",
            "summary.csv of pytorch-image-models: eval_ is the test set; percent, epochs from 0",
            _is_timm,
            {"eval_loss": "test_loss", "eval_top1": "test_acc"},
            first_epoch=0,
            percent=True,
        ),
        Format(
            "ultralytics",
            "results.csv of a classifier: metrics/accuracy_top1 is of the validation set",
            lambda keys: "metrics_accuracy_top1" in keys,
            {"metrics_accuracy_top1": "val_acc"},
        ),
        Format(
            "lightning",
            "metrics.csv of Lightning's CSVLogger: steps and epochs, both from 0; a test after training is of the last "
            "epoch",
            _is_lightning,
            first_epoch=0,
        ),
        Format(
            "keras",
            "History or CSVLogger of Keras: loss and accuracy are of the training set, val_ of validation; epochs from "
            "0",
            _is_keras,
            {"loss": "train_loss", **dict.fromkeys(_BARE_ACCURACIES, "train_acc")},
            first_epoch=0,
        ),
        Format(
            "nsm",
            "train_loss, val_loss and accuracy, which is of the validation set",
            lambda keys: {"train_loss", "val_loss", "accuracy"} <= set(keys),
            {"accuracy": "val_acc"},
        ),
        Format("plain", "any other; names are understood by their words", lambda keys: True),
    )
}


def recognised(keys: tuple[str, ...], path: object, *, is_export: bool, asked: str | None = None) -> Format:
    """The form of a file.

    Args:
        keys: of its header, or all that its objects have.
        path: for messages.
        is_export: whether the manifest of an export lies beside it.
        asked: the name of a form that the user says it is.

    Raises:
        UserError: there is no such form, or the file has other keys than it.
    """
    plain_keys = {plain(key) or key: key for key in keys if key}
    plain_keys = {("step" if place_of(key) == "step" else key): name for key, name in plain_keys.items()}
    if asked is None:
        return next(form for form in FORMATS.values() if (is_export and form.is_exact) or form.fits(plain_keys))
    if asked not in FORMATS:
        raise UserError(f"there is no format {asked}; there are {', '.join(FORMATS)}")
    form = FORMATS[asked]
    if not form.is_exact and not form.fits(plain_keys):
        raise UserError(f"{path}: is not of the format {asked} ({form.description}); it has {shown(keys)}")
    return form


def shown(keys: tuple[str, ...] | list[str]) -> str:
    """Some keys for a message."""
    return ", ".join(keys) if len(keys) <= 12 else f"{', '.join(keys[:12])} and {len(keys) - 12} others"
