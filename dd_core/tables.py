"""The schema of every table and how its parquet files are written. The only place that knows the columns.

A table is a folder of parquet files with one schema; folder name = asset name = DuckDB view name. ``study`` and ``arm``
come from the folders (hive partitioning), everything else is in the files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd_core.curvature_names import STEP_PATTERN
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
class OptionalColumns:
    """Columns that a file may have, as a study's settings decide: a pattern of names and what they have in common."""

    pattern: str
    type: str
    description: str


@dataclass(frozen=True)
class Table:
    """A table's columns, the ones that come from folder names first.

    With ``newest``, an SQL window clause, files may tell a row several times, and its view shows the one that comes
    first in each window.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    optional: tuple[OptionalColumns, ...] = ()
    newest: str | None = None

    def optional_column(self, name: str) -> Column | None:
        """The optional column of that name, if the table may have it."""
        for group in self.optional:
            if re.fullmatch(group.pattern, name):
                return Column(name, group.type, group.description)
        return None

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
        newest="PARTITION BY study, arm, trial, recipe, attempt ORDER BY status = 'running', ended_at DESC",
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
            Column("method", "string", "estimator of the input Hessian: exact, top_directions or double_backward"),
            Column("gradient_norm", "float64", "norm of the input gradient g, nats per standardised pixel unit"),
            Column("gradient_curvature", "float64", "g'Hg/|g|^2, nats per squared standardised pixel unit"),
            Column("trace", "float64", "trace of the input Hessian H, same unit"),
            Column("trace_standard_error", "float64", "0 where the method is exact, same unit"),
            Column("frobenius_norm", "float64", "of the input Hessian, same unit"),
            Column("frobenius_norm_standard_error", "float64", "0 where the method is exact, same unit"),
            Column("largest_eigenvalue", "float64", "of the input Hessian, same unit"),
            Column("largest_eigenvalue_residual", "float64", "how far it may be off, 0 where exact, same unit"),
        ),
        optional=(
            OptionalColumns(
                f"fd_(norm|directional)_{STEP_PATTERN}(_se)?",
                "float64",
                "published finite difference at the step h of the name, mean over random signs r (_se: its standard "
                "error): norm of the gradient's change, or r times it; normalised as the study says, by default a "
                "derivative per h (norm) or h^2 (directional)",
            ),
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
            Column("mean_gradient_curvature", "float64", "of g'Hg/|g|^2, nats per squared standardised pixel unit"),
            Column("mean_trace_standard_error", "float64", "of single images, 0 where the method is exact, same unit"),
            Column("mean_loss", "float64", "nats"),
            Column("auroc_trace", "float64", "probability that a noisy image has a larger trace than a clean one"),
            *(
                Column(f"auroc_{name}", "float64", f"the same for {words}")
                for name, words in (
                    ("frobenius_norm", "the Frobenius norm"),
                    ("largest_eigenvalue", "the largest eigenvalue"),
                    ("gradient_curvature", "the curvature along the gradient"),
                    ("gradient_norm", "the gradient norm"),
                    ("loss", "the loss"),
                )
            ),
            Column("source_sha256", "string", "SHA-256 of the per_image_curvature file summarised"),
        ),
        optional=(
            OptionalColumns(
                f"auroc_fd_(norm|directional)_{STEP_PATTERN}",
                "float64",
                "probability that a noisy image has a larger finite difference at that step than a clean one",
            ),
        ),
    ),
    Table(
        "hessian_spectra",
        "The Hessian of the training loss in the weights of one trial at one checkpoint.",
        (
            *_ARM,
            _EPOCH,
            Column("num_images", "int32", "training images the loss is averaged over"),
            Column("num_parameters", "int64", "of the layers looked at"),
            Column("layers", "list<string>", "names or patterns the Hessian is restricted to; empty: all layers"),
            Column("loss", "float64", "mean cross-entropy of these images, nats"),
            Column("lambda_max", "float64", "largest eigenvalue, nats per squared weight unit, as all of H here"),
            Column("lambda_max_residual", "float64", "|Hv - lambda v| of its unit vector, same unit"),
            Column("lambda_min", "float64", "smallest eigenvalue, same unit"),
            Column("lambda_min_residual", "float64", "|Hv - lambda v| of its unit vector, same unit"),
            Column("eigenvalues", "list<float64>", "the largest, falling, same unit"),
            Column("residuals", "list<float64>", "|Hv - lambda v| of each, same unit"),
            Column("trace", "float64", "exact trace, same unit; null where the network is not piecewise linear"),
            Column("layer_names", "list<string>", "layers with parameters"),
            Column("layer_traces", "list<float64>", "exact trace of each layer's diagonal block, same unit"),
            Column("trace_hutchinson", "float64", "Hutchinson's estimate of the trace, same unit"),
            Column("trace_hutchinson_standard_error", "float64", "of it"),
            Column("trace_hutch_plus_plus", "float64", "Hutch++ estimate of the trace, same unit"),
            Column("trace_hutch_plus_plus_standard_error", "float64", "of it"),
            Column("density_eigenvalues", "list<float64>", "grid of the spectral density, same unit"),
            Column("density", "list<float64>", "spectral density at the grid, integral 1, per that unit"),
            Column("gradient_norm", "float64", "norm of the gradient of the loss, nats per weight unit"),
            Column("gradient_sharpness", "float64", "g'Hg/|g|^2, same unit as H"),
            Column("gradient_overlap", "float64", "share of |g|^2 in the span of the largest eigenvectors"),
            Column("gradient_variance", "float64", "trace of the covariance of single images' gradients"),
            Column("image_gradient_norm_mean", "float64", "of single images' gradients, nats per weight unit"),
            Column("image_gradient_norm_median", "float64", "the same"),
            Column("image_gradient_norm_max", "float64", "the same"),
            Column("seconds", "float64", "wall time of the trial, s"),
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}


def arrow_schema(table: Table, optional: Iterable[str] = ()) -> "pa.Schema":
    """The schema of the table's files (without the folder columns), descriptions as field metadata.

    Raises:
        ValueError: the table cannot have one of the optional columns named.
    """
    import pyarrow as pa

    types = {
        "string": pa.dictionary(pa.int32(), pa.string()),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "bool": pa.bool_(),
        "list<float64>": pa.list_(pa.float64()),
        "list<string>": pa.list_(pa.string()),
        **{name: getattr(pa, name)() for name in ("int16", "int32", "int64", "float32", "float64")},
    }
    columns = list(table.file_columns)
    for name in optional:
        column = table.optional_column(name)
        if column is None:
            raise ValueError(f"{table.name}: unknown column {name}")
        columns.append(column)
    return pa.schema([pa.field(c.name, types[c.type], metadata={"description": c.description}) for c in columns])


def to_arrow(table_name: str, columns: dict[str, Any], num_rows: int) -> "pa.Table":
    """A typed Arrow table from arrays and constants.

    Args:
        table_name: key of ``TABLES``.
        columns: for every file column an array of ``num_rows`` values, or one value repeated for all rows; optional
            columns may follow.
        num_rows: number of rows.

    Raises:
        ValueError: a column is missing, unknown or of the wrong length.
    """
    import pyarrow as pa

    table = TABLES[table_name]
    fixed = [c.name for c in table.file_columns]
    missing = sorted(set(fixed) - set(columns))
    if missing:
        raise ValueError(f"{table_name}: missing columns {missing}")
    schema = arrow_schema(table, [name for name in columns if name not in fixed])
    return pa.table([_array(columns[field.name], field.type, num_rows) for field in schema], schema=schema)


def _array(values: Any, type_: "pa.DataType", num_rows: int) -> "pa.Array":
    """Values, or one value for every row, as an array of that type."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(type_):
        return pa.array(values, type_)
    if np.ndim(values) == 0:
        scalar_type = type_.value_type if pa.types.is_dictionary(type_) else type_
        scalar = values.item() if isinstance(values, np.generic) else values
        array = pa.repeat(pa.scalar(scalar, scalar_type), num_rows)
    else:
        array = pa.array(values)
    return array.dictionary_encode().cast(type_) if pa.types.is_dictionary(type_) else array.cast(type_)


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write one parquet file atomically; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_parquet(path: Path) -> "pa.Table":
    """Read one file of a table, without the folder columns."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()
