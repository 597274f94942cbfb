"""What a metric file says of each run (an arm's trial) in it, checked. ``rows`` makes rows of the tables of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import (
    PLACE_KEYS,
    STANDARD_ERROR,
    STEP_FILE_KEYS,
    column_of,
    is_fraction,
    table_of,
)
from dd_core.exchange.reading import MetricFile, Series
from dd_core.exchange.sources import Source

# Where a file counts epochs only.
NO_STEP = -1
_RANGES = {"epoch": (0, 9999), "step": (0, 2**53), "k": (1, 999), "trial": (0, 99)}


@dataclass(frozen=True)
class Values:
    """What one file says of one column of one run.

    Attributes:
        file: where it is from.
        epochs, steps: of all its records, int64; ``NO_STEP`` where it counts epochs only. Shared by all columns.
        rows: numbers of the records that say something, int64.
        value: float64, as many.
        errors: their standard errors, NaN where there is none; None if there is none at all.
    """

    file: MetricFile
    epochs: np.ndarray
    steps: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    errors: np.ndarray | None

    @property
    def epoch(self) -> np.ndarray:
        """Of each value."""
        return self.epochs[self.rows]

    @property
    def step(self) -> np.ndarray:
        """Of each value."""
        return self.steps[self.rows]

    @property
    def standard_error(self) -> np.ndarray:
        """Of each value."""
        return np.full(len(self.rows), np.nan) if self.errors is None else self.errors


@dataclass
class Run:
    """All that is said of one trial of an arm: by table and column, what each file says."""

    sources: list[Source] = field(default_factory=list)
    content: dict[str, dict[str, list[Values]]] = field(default_factory=dict)

    def add(self, other: "Run") -> None:
        """Take in what another file says of the same run."""
        self.sources += other.sources
        for table, columns in other.content.items():
            for name, values in columns.items():
                self.content.setdefault(table, {}).setdefault(name, []).extend(values)

    @property
    def evaluated_epochs(self) -> set[int]:
        """At which the whole data set was looked at, or else the last of all epochs."""
        told = {
            table: [values.epoch for of_column in columns.values() for values in of_column]
            for table, columns in self.content.items()
        }
        if "training_evals" in told:
            return set(np.concatenate(told["training_evals"]).tolist())
        return {int(epoch.max()) for epochs in told.values() for epoch in epochs}


@dataclass(frozen=True)
class Reading:
    """How the user says that files are to be read.

    Attributes:
        k, trial: instead of what the path says.
        first_epoch: number of the first epoch of training in the files: 1, or 0, then one is added.
        percent: whether accuracies and errors are in percent.
    """

    k: int | None = None
    trial: int | None = None
    first_epoch: int = 1
    percent: bool = False


# Of a table's column, the values and their standard errors.
_Columns = dict[tuple[str, str], tuple[Series, np.ndarray | None]]


def split_runs(source: Source, file: MetricFile, reading: Reading) -> Iterator[tuple[int, int, Run]]:
    """Yield k, trial and what the file says of that run.

    Raises:
        UserError: a place (epoch, step, k, trial) is missing, impossible or out of order, a value is impossible, two
            keys mean the same, or there is no metric at all.
    """
    keys = [*file.series, *(key for key in file.texts if key not in file.series)]
    if "epoch" not in keys:
        raise UserError(f"{file.path}: has no epoch, only {', '.join(keys)}; say which it is with --rename NAME=epoch")
    has_steps = "step" in keys
    epoch = _places(file, "epoch") + 1 - reading.first_epoch
    step = _places(file, "step") if has_steps else np.full(len(epoch), NO_STEP)
    k = _identity(source, file, "k", reading.k)
    trial = _identity(source, file, "trial", reading.trial)
    columns = _columns(file, has_steps, reading.percent)
    _refuse_batches_before_training(file, columns, epoch)
    for number_k, number_trial in np.unique(np.stack([k, trial], axis=1), axis=0).tolist():
        is_inside = (k == number_k) & (trial == number_trial)
        _refuse_disorder(file, np.flatnonzero(is_inside), epoch, step)
        run = Run([source])
        for (table, name), (series, errors) in columns.items():
            chosen: Any = slice(None) if is_inside.all() else is_inside[series.rows]
            rows, value = series.rows[chosen], series.values[chosen]
            if len(rows):
                values = Values(file, epoch, step, rows, value, None if errors is None else errors[chosen])
                run.content.setdefault(table, {})[name] = [values]
        yield number_k, number_trial, run


def _places(file: MetricFile, key: str) -> np.ndarray:
    """The whole numbers of a key that every record must have, int64."""
    if key in file.texts:
        line, text = file.texts[key]
        raise UserError(f"{file.path}:{line}: {key} is {text}, not a whole number")
    series, count = file.series[key], len(file.lines)
    if len(series.rows) < count:
        raise UserError(f"{file.where(np.setdiff1d(np.arange(count), series.rows)[0])}: has no {key}")
    smallest, largest = _RANGES[key]
    is_possible = (series.values >= smallest) & (series.values <= largest) & (series.values % 1 == 0)
    if not is_possible.all():
        row = int(np.argmin(is_possible))
        raise UserError(
            f"{file.where(row)}: {key} is {series.values[row]:.17g}, not a whole number from {smallest} to {largest}"
        )
    return series.values.astype(np.int64)


def _identity(source: Source, file: MetricFile, key: str, given: int | None) -> np.ndarray:
    """Width or trial of every record: as the file says, else the user, else its path; the trial is else 0."""
    by_path: int | None = getattr(source, key)
    known = by_path if given is None else given
    smallest, largest = _RANGES[key]
    if known is not None and not smallest <= known <= largest:
        raise UserError(f"{file.path}: {key} cannot be {known}; it is a number from {smallest} to {largest}")
    if key not in file.series and key not in file.texts:
        if known is None and key == "k":
            raise UserError(f"{file.path}: neither the file nor its path says which k (width) this is; pass --k")
        return np.full(len(file.lines), known or 0)
    told = _places(file, key)
    if known is not None and (told != known).any():
        row = int(np.argmax(told != known))
        who = "its path" if given is None else f"--{key}"
        raise UserError(f"{file.where(row)}: {key} is {told[row]}, but {who} says {known}")
    return told


def _columns(file: MetricFile, has_steps: bool, percent: bool) -> _Columns:
    """Values and standard errors by table and column; keys with words in them are left out."""
    for key, (line, text) in file.texts.items():
        column, _ = column_of(key, has_steps=has_steps)
        if column in STEP_FILE_KEYS or table_of(column, has_steps=has_steps) != "training_monitors":
            raise UserError(f"{file.path}:{line}: {key} is {text}, not a number; --rename {key}= leaves the key out")
    found: _Columns = {}
    for key, series in file.series.items():
        if key in PLACE_KEYS or key in file.texts or _is_standard_error(key, file, has_steps):
            continue
        column, is_complement = column_of(key, has_steps=has_steps)
        table = table_of(column, has_steps=has_steps)
        if (table, column) in found:
            raise UserError(f"{file.path}: has two keys for {column}; --rename {key}= leaves one out")
        values = _checked(file, key, series, percent)
        found[table, column] = (
            Series(series.rows, 1 - values if is_complement else values),
            _standard_errors(file, key, series),
        )
    if not found:
        raise UserError(f"{file.path}: has no metric, only {', '.join([*file.series, *file.texts])}")
    return found


def _is_standard_error(key: str, file: MetricFile, has_steps: bool) -> bool:
    base = key.removesuffix(STANDARD_ERROR)
    return base != key and base in file.series and table_of(base, has_steps=has_steps) == "training_monitors"


def _checked(file: MetricFile, key: str, series: Series, percent: bool) -> np.ndarray:
    """The values; fractions from percent if they are."""
    if not is_fraction(key):
        return series.values
    values = series.values / 100 if percent else series.values
    is_impossible = (values < 0) | (values > 1)
    if is_impossible.any():
        at = int(np.argmax(is_impossible))
        wrong = "not a percentage" if percent else "not a fraction; pass --percent if the file has percentages"
        raise UserError(f"{file.where(series.rows[at])}: {key} is {series.values[at]:g}, {wrong}")
    return values


def _standard_errors(file: MetricFile, key: str, series: Series) -> np.ndarray | None:
    """Of every value of a key, NaN where there is none."""
    told = file.series.get(f"{key}{STANDARD_ERROR}")
    if told is None or f"{key}{STANDARD_ERROR}" in file.texts:
        return None
    alone = np.setdiff1d(told.rows, series.rows)
    if len(alone):
        raise UserError(f"{file.where(alone[0])}: has {key}{STANDARD_ERROR}, a standard error, without {key}")
    errors = np.full(len(series.rows), np.nan)
    errors[np.searchsorted(series.rows, told.rows)] = told.values
    return errors


def _refuse_batches_before_training(file: MetricFile, columns: _Columns, epoch: np.ndarray) -> None:
    for (table, name), (series, _) in columns.items():
        is_early = epoch[series.rows] == 0
        if table == "training_batches" and is_early.any():
            raise UserError(
                f"{file.where(series.rows[np.argmax(is_early)])}: {name} of a batch in epoch 0, which here is before "
                "training; pass --first-epoch 0 if the file counts epochs from 0"
            )


def _refuse_disorder(file: MetricFile, rows: np.ndarray, epoch: np.ndarray, step: np.ndarray) -> None:
    """In a run neither steps nor epochs go back, and a step belongs to one epoch."""
    for name, values in (("step", step[rows]), ("epoch", epoch[rows])):
        back = np.flatnonzero(np.diff(values) < 0)
        if len(back):
            raise UserError(
                f"{file.where(rows[back[0] + 1])}: {name} goes back from {values[back[0]]} to {values[back[0] + 1]}; "
                "if these are two runs, give each a file of its own"
            )
    split = np.flatnonzero((np.diff(step[rows]) == 0) & (np.diff(epoch[rows]) > 0) & (step[rows][1:] != NO_STEP))
    if len(split):
        row = rows[split[0] + 1]
        raise UserError(f"{file.where(row)}: step {step[row]} is in epoch {epoch[row]} and in the one before it")
