"""What a table and a column are, and the columns that many tables share. Needs no Arrow."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column: DuckDB-readable Arrow type and what a reader needs to know, unit included.

    One that is optional is in the files of studies that ask for it, and null in the view for all others.
    """

    name: str
    type: str
    description: str
    is_optional: bool = False


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
        for column in self.columns:
            if column.is_optional and column.name == name:
                return column
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
        """Columns stored in all files."""
        return tuple(c for c in self.columns if c.name not in ("study", "arm") and not c.is_optional)


STUDY = Column("study", "string", "name of the study")
VARIANT = Column("variant", "string", "training recipe, a key of the study's variants")
TRIAL = Column("trial", "int32", "random seed number, 0 to trials - 1; of imported studies as the files count")
RECIPE = Column("recipe", "string", "hash of everything that determines the weights")
ARM = (
    STUDY,
    Column("arm", "string", "variant and width, for example s-core.k008"),
    VARIANT,
    Column("k", "int32", "width multiplier of the model; of imported studies in units of the study's width_unit"),
    TRIAL,
    RECIPE,
)
EPOCH = Column("epoch", "int16", "epochs of training completed; 0 is the initialisation")
STEP = Column("step", "int64", "optimiser steps completed")
SPLIT = Column("split", "string", "train, validation, test, or of a subset left_out: others train on it")
CLASS_RANK = Column(
    "class_rank",
    "int16",
    "place of the true class in the order in which the trial's classes come, from 0; null: no order",
)
IMAGE = Column("image_id", "int32", "row of the image in the data set")
SEEN = (
    Column("num_seen_classes", "int16", "classes trained on by the end of the epoch; null: all, from the beginning"),
    Column("num_active_classes", "int16", "classes that the next epoch is trained on; likewise"),
)
LABELS = (
    Column("true_label", "int16", "class of the image"),
    Column("given_label", "int16", "class the training was told"),
    Column("is_noisy", "bool", "given_label differs from true_label"),
)
