"""The columns of the tables, and the names under which files have them. The only place that knows both.

Two kinds of file. A step file (``metrics.csv``, ``metrics.jsonl``) has keys ``step`` and ``epoch``: batches, and
whatever was measured between two of them. An epoch file (``metrics_k{k}.jsonl``) has ``epoch`` but no ``step``:
evaluations of the whole training and test set. ``meaning_of`` understands the names of others by their words, in both.
"""

import functools
import math
import re
from dataclasses import dataclass, replace

from dd_core.study.former_names import METRICS, NOW, Now

# What the loss-slope campaign logs, in the order of its plan.
STEP_FILE_KEYS = (
    *("step", "epoch", "time", "lr", "wd", "loss_train_nats", "loss_train_bits", "acc_train"),
    *("loss_val_nats", "acc_val", "grad_norm", "weight_norm"),
    *("lambda_max", "hutch_trace"),
    *("psd_tail", "grad_var", "resid_power"),
    "checkpoint_size_mb",
)
# What the double-descent script logs; it has one trial, so the key ``trial`` is ours.
EPOCH_FILE_METRICS = ("train_error", "test_error", "train_loss", "test_loss")
EPOCH_FILE_KEYS = ("epoch", "k", "trial", *EPOCH_FILE_METRICS)

IN_NATS, IN_BITS = "loss_train_nats", "loss_train_bits"
PLACE_KEYS = ("step", "epoch", "k", "trial")
BATCH_COLUMNS = ("time", "learning_rate", "weight_decay", "train_loss", "train_error")
_BATCH_KEYS = ("time", "lr", "weight_decay", "loss_train_nats", "loss_train_bits", "acc_train")
EVAL_COLUMNS = (
    *("train_error", "train_loss", "train_error_clean", "train_loss_clean", "train_error_noisy", "train_loss_noisy"),
    *("test_error", "test_loss"),
)
VALIDATION_KEYS = ("loss_val_nats", "acc_val")
VALIDATION_COLUMNS = ("validation_loss", "validation_error")
# The metrics of monitors that step files call otherwise.
METRIC_KEYS = {
    METRICS[key].name: key for key in (*(key for key in STEP_FILE_KEYS if key in METRICS), "lambda_max_residual")
}
STANDARD_ERROR = "_se"

# Measured, but no finite number: spelt as Protocol Buffers do in JSON, as a string, because JSON has no such number.
# What was not measured is an empty field of a CSV file and an absent key of a JSON object.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_STEP_FILE_SYNONYMS = {"wd": "weight_decay", "learning_rate": "lr"}

# The words of which others make names.
_IMAGES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),  # of which images, every program says differently
}
_LOSSES = ("loss", "nll", "nll_loss", "ce", "ce_loss", "xent", "cross_entropy", "crossentropy", "cross_entropy_loss")
_ACCURACIES = (
    *("acc", "accuracy", "top1", "acc1", "prec1", "top_1", "acc_1", "top1_acc", "acc_top1", "accuracy_top1"),
    *("top1_accuracy", "top_1_accuracy", "categorical_accuracy", "sparse_categorical_accuracy", "binary_accuracy"),
)
_ERRORS = ("err", "error", "err1", "error_rate", "top1_err", "top1_error", "top_1_error")
_QUANTITIES = {
    **dict.fromkeys(_LOSSES, "loss"),
    **dict.fromkeys(_ACCURACIES, "acc"),
    **dict.fromkeys(_ERRORS, "error"),
}
_MOMENTS = {"epoch", "step", "mean", "avg", "average"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_PERCENT = {"percent", "pct"}
_ACCURACY_WORDS = {"acc", "accuracy", "acc1", "acc5", "top1", "top5", "prec1", "prec5"}
_PLACES = {
    **dict.fromkeys(("global_step", "trainer_global_step", "iteration", "iter"), "step"),
    **dict.fromkeys(("width", "width_multiplier"), "k"),
    "seed": "trial",
}


@dataclass(frozen=True)
class Meaning:
    """What the values of a key are.

    Attributes:
        table: that they go to, empty for a place.
        column: of the table, or the name of a metric of ``training_monitors``, or of a place.
        is_complement: whether the table has one minus them.
        factor: what they are multiplied by.
        is_fraction: whether they lie from 0 to 1, or to 100 in percent.
        is_percent: whether the name says so.
        is_loss: whether they cannot be negative.
    """

    table: str
    column: str
    is_complement: bool = False
    factor: float = 1.0
    is_fraction: bool = False
    is_percent: bool = False
    is_loss: bool = False


@functools.lru_cache(4096)
def plain(name: str) -> str:
    """A name in lower case, its words joined by underscores; ``Train Loss``, ``train/loss``, ``trainLoss`` are one."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def place_of(name: str) -> str | None:
    """The place (epoch, step, k, trial) that another's name stands for, or None."""
    word = plain(name)
    return word if word in PLACE_KEYS else _PLACES.get(word)


def own_meaning(name: str, *, has_steps: bool) -> Meaning | None:
    """What a name of this project means, or None if it is none.

    Without steps there are no batches: what is told of them is told of the epoch, loss and accuracy as of the training
    set, and the rest (learning rate, time) as metrics.
    """
    key = _STEP_FILE_SYNONYMS.get(name, name)
    is_fraction = "error" in key or key in ("acc_train", "acc_val")
    meaning = Meaning("training_monitors", key, is_fraction=is_fraction, is_loss="loss" in key)
    if key in EVAL_COLUMNS or (key in VALIDATION_KEYS and not has_steps):
        return as_now(replace(meaning, table="training_evals"))
    if key in _BATCH_KEYS and has_steps:
        return as_now(replace(meaning, table="training_batches"))
    if key in ("acc_train", "loss_train_nats"):
        return as_now(replace(meaning, table="training_evals"))
    return as_now(meaning) if key in STEP_FILE_KEYS or key in _BATCH_KEYS else None


def as_now(meaning: Meaning) -> Meaning:
    """A key of step files by the column or metric of the tables."""
    names = METRICS if meaning.table == "training_monitors" else NOW
    was = names.get(meaning.column, Now(meaning.column))
    return replace(meaning, column=was.name, is_complement=was.factor < 0, factor=abs(was.factor))


def meaning_of(name: str, *, has_steps: bool, once_an_epoch: bool) -> Meaning | None:
    """What a name means, ours or of its words; a metric of its own where these say nothing.

    Args:
        name: of the key.
        has_steps: whether the file counts steps.
        once_an_epoch: whether no epoch has two values of it: those of training are else taken to be of batches, and
            those of validation of a monitor.

    Returns:
        The meaning, or None where the name says what was measured but not of which images.
    """
    words = [word for word in plain(name).split("_") if word not in _PERCENT]
    is_percent = "%" in name or bool(_PERCENT & set(plain(name).split("_")))
    for own_name in (name, "_".join(words)):
        own = own_meaning(own_name, has_steps=has_steps)
        if own is not None and (once_an_epoch or own_name not in ("train_loss", "train_error")):
            return replace(own, is_percent=is_percent)
    images = [_IMAGES[word] for word in words if word in _IMAGES]
    rest = "_".join(word for word in words if word not in _IMAGES and word not in _MOMENTS)
    quantity = _QUANTITIES.get(rest)
    if quantity is None or len(images) > 1:
        is_fraction = bool(_ACCURACY_WORDS & set(words))
        return Meaning("training_monitors", name, is_fraction=is_fraction, is_percent=is_percent)
    if not images or images[0] == "eval":
        return None
    of_batches = has_steps and "epoch" not in words and ("step" in words or not once_an_epoch)
    wanted = Meaning("", "", is_fraction=quantity != "loss", is_percent=is_percent, is_loss=quantity == "loss")
    if images[0] == "val":
        table = "training_monitors" if of_batches else "training_evals"
    else:
        table = "training_batches" if images[0] == "train" and of_batches else "training_evals"
    column = f"{_SPLITS[images[0]]}_{'loss' if quantity == 'loss' else 'error'}"
    return replace(wanted, table=table, column=column, is_complement=quantity == "acc")


def is_reserved(metric: str) -> bool:
    """Whether a step file cannot have a monitor's metric of that name, because there it means something else."""
    return metric in PLACE_KEYS or metric in _STEP_FILE_SYNONYMS or metric in _BATCH_KEYS or metric in EVAL_COLUMNS
