"""The keys of metric files, and the columns of the tables they stand for. The only place that knows both.

Two kinds of file. A step file (``metrics.csv``, ``metrics.jsonl``) has keys ``step`` and ``epoch``: batches, and
whatever was measured between two of them. An epoch file (``metrics_k{k}.jsonl``) has ``epoch`` but no ``step``:
evaluations of the whole training and test set.
"""

import math

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

PLACE_KEYS = ("step", "epoch", "k", "trial")
BATCH_COLUMNS = ("time", "lr", "weight_decay", "loss_train_nats", "loss_train_bits", "acc_train")
EVAL_COLUMNS = (
    *("train_error", "train_loss", "train_error_clean", "train_loss_clean", "train_error_noisy", "train_loss_noisy"),
    *("test_error", "test_loss"),
)
VALIDATION_COLUMNS = ("loss_val_nats", "acc_val")
STANDARD_ERROR = "_se"

# Measured, but no finite number: spelt as Protocol Buffers do in JSON, as a string, because JSON has no such number.
# What was not measured is an empty field of a CSV file and an absent key of a JSON object.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# Other names of the same quantity, and of one minus it.
_STEP_FILE_SYNONYMS = {"wd": "weight_decay", "learning_rate": "lr"}
_EPOCH_FILE_SYNONYMS = {
    "val_loss": "loss_val_nats",
    "val_accuracy": "acc_val",
    "val_acc": "acc_val",
    "accuracy": "acc_val",
}
_COMPLEMENTS = {
    **dict.fromkeys(("train_accuracy", "train_acc"), "train_error"),
    **dict.fromkeys(("test_accuracy", "test_acc"), "test_error"),
    "val_error": "acc_val",
}
_FRACTIONS = {"acc_train", "acc_val", *(name for name in EVAL_COLUMNS if "error" in name), *_COMPLEMENTS}


def column_of(key: str, *, has_steps: bool) -> tuple[str, bool]:
    """The name under which the tables have a key, and whether its values are one minus the file's."""
    if has_steps:
        return _STEP_FILE_SYNONYMS.get(key, key), False
    if key in _COMPLEMENTS:
        return _COMPLEMENTS[key], True
    return _EPOCH_FILE_SYNONYMS.get(key, key), False


def table_of(column: str, *, has_steps: bool) -> str:
    """The table that a column's values go to; what is no column of the other two is a metric of the monitors."""
    if column in EVAL_COLUMNS or (column in VALIDATION_COLUMNS and not has_steps):
        return "training_evals"
    return "training_batches" if column in BATCH_COLUMNS else "training_monitors"


def is_fraction(key: str) -> bool:
    """Whether a key's values lie from 0 to 1."""
    return key in _FRACTIONS


def is_reserved(metric: str) -> bool:
    """Whether a step file cannot have a monitor's metric of that name, because there it means something else."""
    return metric in PLACE_KEYS or metric in _STEP_FILE_SYNONYMS or metric in BATCH_COLUMNS or metric in EVAL_COLUMNS
