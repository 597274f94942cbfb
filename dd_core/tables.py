"""The schema of every table and how its parquet files are written. The only place that knows the columns.

A table is a folder of parquet files with one schema; folder name = asset name = DuckDB view name. ``study`` and ``arm``
come from the folders (hive partitioning), everything else is in the files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd_core.store import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """A column: DuckDB-readable Arrow type and what a reader needs to know, unit included."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class Table:
    """A table's columns, the ones that come from folder names first."""

    name: str
    description: str
    columns: tuple[Column, ...]

    @property
    def folder_columns(self) -> tuple[str, ...]:
        """Columns encoded in folder names."""
        return tuple(c.name for c in self.columns if c.name in ("study", "arm"))

    @property
    def file_columns(self) -> tuple[Column, ...]:
        """Columns stored in the files."""
        return tuple(c for c in self.columns if c.name not in ("study", "arm"))


_STUDY = Column("study", "string", "name of the study")
_VARIANT = Column("variant", "string", "training recipe, a key of the study's variants")
_TRIAL = Column("trial", "int16", "random seed number, 0 to trials - 1")
_RECIPE = Column("recipe", "string", "hash of everything that determines the weights")
_ARM = (
    _STUDY,
    Column("arm", "string", "variant and width, for example s-core.k008"),
    _VARIANT,
    Column("k", "int16", "width multiplier of the model"),
    _TRIAL,
    _RECIPE,
)
_EPOCH = Column("epoch", "int16", "epochs of training completed; 0 is the initialisation")
_STEP = Column("step", "int64", "optimiser steps completed")
_IMAGE = Column("image_id", "int32", "row of the image in the data set")
_LABELS = (
    Column("true_label", "int16", "class of the image"),
    Column("given_label", "int16", "class the training was told"),
    Column("is_noisy", "bool", "given_label differs from true_label"),
)

_TABLES = (
    Table(
        "images",
        "Which images each trial trains and is tested on, and the labels it was given.",
        (
            _STUDY,
            _VARIANT,
            _TRIAL,
            _IMAGE,
            Column("split", "string", "train or test"),
            *_LABELS,
        ),
    ),
    Table(
        "runs",
        "One row per arm, trial and attempt to train it.",
        (
            *_ARM,
            Column("attempt", "int16", "1 for the first time this arm was trained, 2 after an interruption, ..."),
            Column("status", "string", "running, finished, failed or interrupted (killed without a word)"),
            Column("reason", "string", "why it ended, if not finished"),
            Column("seed", "int64", "seed of the study; with the trial it determines all randomness"),
            Column("num_parameters", "int64", "trainable parameters of one trial's network"),
            Column("device", "string", "cpu or the GPU's name"),
            Column("torch_version", "string", "version of PyTorch"),
            Column("first_epoch", "int16", "epoch this attempt started after"),
            Column("last_epoch", "int16", "last epoch completed"),
            Column("started_at", "timestamp", "UTC"),
            Column("ended_at", "timestamp", "UTC; null while running"),
            Column("seconds", "float64", "wall time of this attempt, all trials of the arm together, s"),
            Column("samples_per_second", "float64", "training images per second, summed over trials, 1/s"),
            Column("train_error", "float64", "at last_epoch, given labels, fraction"),
            Column("train_loss", "float64", "at last_epoch, given labels, nats"),
            Column("test_error", "float64", "at last_epoch, fraction"),
            Column("test_loss", "float64", "at last_epoch, nats"),
        ),
    ),
    Table(
        "training_batches",
        "Every optimiser step of every trial.",
        (
            *_ARM,
            Column("epoch", "int16", "epoch the batch belongs to, 1-based"),
            _STEP,
            Column("loss_train_nats", "float64", "mean cross-entropy of the batch before the step, nats"),
            Column("loss_train_bits", "float64", "the same in bits"),
            Column("acc_train", "float64", "accuracy on the batch (augmented, given labels), fraction"),
            Column("lr", "float64", "learning rate of the step"),
            Column("weight_decay", "float64", "weight decay of the step"),
            Column("time", "float64", "when the step was issued, Unix time, s"),
        ),
    ),
    Table(
        "training_evals",
        "Evaluations of the whole training and test set without augmentation, BatchNorm in eval mode.",
        (
            *_ARM,
            _EPOCH,
            _STEP,
            Column("train_error", "float64", "all training images, given labels, fraction"),
            Column("train_loss", "float64", "all training images, given labels, nats"),
            Column("train_error_clean", "float64", "training images with a right label, fraction"),
            Column("train_loss_clean", "float64", "training images with a right label, nats"),
            Column("train_error_noisy", "float64", "mislabelled training images against the GIVEN label, fraction"),
            Column("train_loss_noisy", "float64", "mislabelled training images against the GIVEN label, nats"),
            Column("test_error", "float64", "test images, true labels, fraction"),
            Column("test_loss", "float64", "test images, true labels, nats"),
        ),
    ),
    Table(
        "image_progress",
        "Loss and correctness of every image at every evaluation.",
        (
            *_ARM,
            _EPOCH,
            _IMAGE,
            Column("split", "string", "train or test"),
            Column("loss", "float32", "cross-entropy of the given label, nats"),
            Column("correct", "bool", "the most probable class is the given label"),
        ),
    ),
    Table(
        "per_image_curvature",
        "Curvature of the loss in input space for every training image at every checkpoint.",
        (
            *_ARM,
            _EPOCH,
            _IMAGE,
            *_LABELS,
            Column("loss", "float64", "cross-entropy of the given label, nats"),
            Column("probability", "float64", "of the given label"),
            Column("gradient_norm", "float64", "norm of the input gradient, nats per standardised pixel unit"),
            Column("trace", "float64", "trace of the input Hessian, nats per squared standardised pixel unit"),
            Column("frobenius_norm", "float64", "of the input Hessian, same unit"),
            Column("largest_eigenvalue", "float64", "of the input Hessian, same unit"),
        ),
    ),
    Table(
        "curvature",
        "Per-image curvature summarised per checkpoint and trial, over all, clean and noisy training images.",
        (
            *_ARM,
            _EPOCH,
            Column("subset", "string", "all, clean (right label) or noisy (wrong label)"),
            Column("num_images", "int32", "images in the subset"),
            Column("mean_trace", "float64", "nats per squared standardised pixel unit, as all traces here"),
            *(
                Column(f"trace_{name}", "float64", f"{share} of the images have a smaller trace")
                for name, share in (("p05", "5 %"), ("p25", "25 %"), ("p50", "half"), ("p75", "75 %"), ("p95", "95 %"))
            ),
            Column("mean_frobenius_norm", "float64", "same unit"),
            Column("mean_largest_eigenvalue", "float64", "same unit"),
            Column("mean_gradient_norm", "float64", "nats per standardised pixel unit"),
            Column("mean_loss", "float64", "nats"),
            Column("auroc_trace", "float64", "probability that a noisy image has a larger trace than a clean one"),
            Column("auroc_gradient_norm", "float64", "the same for the gradient norm"),
            Column("auroc_loss", "float64", "the same for the loss"),
            Column("source_sha256", "string", "SHA-256 of the per_image_curvature file summarised"),
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}


def arrow_schema(table: Table) -> "pa.Schema":
    """The schema of the table's files (without the folder columns), descriptions as field metadata."""
    import pyarrow as pa

    types = {
        "string": pa.dictionary(pa.int32(), pa.string()),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "bool": pa.bool_(),
        **{name: getattr(pa, name)() for name in ("int16", "int32", "int64", "float32", "float64")},
    }
    return pa.schema(
        [pa.field(c.name, types[c.type], metadata={"description": c.description}) for c in table.file_columns]
    )


def to_arrow(table_name: str, columns: dict[str, Any], num_rows: int) -> "pa.Table":
    """A typed Arrow table from arrays and constants.

    Args:
        table_name: key of ``TABLES``.
        columns: for every file column an array of ``num_rows`` values, or one value repeated for all rows.
        num_rows: number of rows.

    Raises:
        ValueError: a column is missing, unknown or of the wrong length.
    """
    import numpy as np
    import pyarrow as pa

    schema = arrow_schema(TABLES[table_name])
    if set(columns) != set(schema.names):
        raise ValueError(f"{table_name}: missing or unknown columns {sorted(set(columns) ^ set(schema.names))}")
    arrays = []
    for field in schema:
        values = columns[field.name]
        if np.ndim(values) == 0:
            scalar_type = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            scalar = values.item() if isinstance(values, np.generic) else values
            array = pa.repeat(pa.scalar(scalar, scalar_type), num_rows)
        else:
            array = pa.array(values)
        arrays.append(array.dictionary_encode() if pa.types.is_dictionary(field.type) else array.cast(field.type))
    return pa.table([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write one parquet file atomically; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_parquet(path: Path) -> "pa.Table":
    """Read one file of a table, without the folder columns."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()
