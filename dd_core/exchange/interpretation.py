"""What is made of a file's columns, checked, and said so that a person can see whether it is right."""

from dataclasses import dataclass

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import (
    IN_BITS,
    IN_NATS,
    PLACE_KEYS,
    STANDARD_ERROR,
    STEP_FILE_KEYS,
    Meaning,
    meaning_of,
    own_meaning,
    plain,
)
from dd_core.exchange.formats import Format, shown
from dd_core.exchange.reading import MetricFile, Series

# Of a table's column, the values and their standard errors.
Columns = dict[tuple[str, str], tuple[Series, np.ndarray | None]]


@dataclass(frozen=True)
class Told:
    """What one key was taken for, for people.

    Attributes:
        format: name of the file's form.
        key: as the file has it.
        meaning: in words.
        lowest, highest: of the values as the file has them, without NaN; NaN if there is no other.
        values: how many.
        nan: how many of them are NaN, which is null in the tables.
    """

    format: str
    key: str
    meaning: str
    lowest: float
    highest: float
    values: int
    nan: int

    @classmethod
    def of(cls, form: Format, key: str, meaning: str, values: np.ndarray) -> "Told":
        """What is told of a series."""
        finite = values[~np.isnan(values)]
        ends = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
        return cls(form.name, key, meaning, *ends, len(values), len(values) - len(finite))

    @classmethod
    def of_place(cls, form: Format, file: MetricFile, key: str, place: str, first_epoch: int) -> "Told":
        """What is told of a place."""
        meaning = {
            "epoch": "epoch, as counted" if first_epoch else "epoch, counted from 0: one is added",
            "step": "optimiser step",
            "k": "width",
            "trial": "trial",
        }[place]
        return cls.of(form, key, meaning, file.series[place].values)

    def __add__(self, other: "Told") -> "Told":
        """The same key in two files."""
        ends = np.fmin(self.lowest, other.lowest), np.fmax(self.highest, other.highest)
        counts = (self.values + other.values, self.nan + other.nan)
        return Told(self.format, self.key, self.meaning, float(ends[0]), float(ends[1]), *counts)


def columns_of(
    file: MetricFile, form: Format, has_steps: bool, percent: bool, run_epochs: np.ndarray
) -> tuple[Columns, list[Told]]:
    """Values and standard errors by table and column; keys with words in them are left out.

    Args:
        file: with places under their own names.
        form: of the file.
        has_steps: whether it counts steps.
        percent: whether its accuracies and errors are in percent.
        run_epochs: int64, by record, equal where two are of the same epoch of the same run.

    Raises:
        UserError: a value is impossible, a name does not say of which images it is, two keys mean the same, or there is
            no metric at all.
    """
    meanings = {
        key: _meaning(file, key, form, has_steps, run_epochs)
        for key in dict.fromkeys([*file.series, *file.texts])
        if key not in PLACE_KEYS
    }
    for key, (line, text) in file.texts.items():
        meaning = meanings[key]
        if meaning.table != "training_monitors" or key in STEP_FILE_KEYS:
            raise UserError(f"{file.path}:{line}: {key} is {text}, not a number; --rename {key}= leaves the key out")
    found: Columns = {}
    told = []
    for key, series in file.series.items():
        if key in PLACE_KEYS or key in file.texts or not len(series.rows) or _is_standard_error(key, meanings):
            continue
        meaning = meanings[key]
        if key == IN_BITS and IN_NATS in file.series:
            told.append(Told.of(form, key, f"{IN_NATS} in bits, left out", series.values))
            continue
        if (meaning.table, meaning.column) in found:
            raise UserError(f"{file.path}: has two keys for {meaning.column}; --rename {key}= leaves one out")
        in_percent = meaning.is_fraction and (percent or meaning.is_percent)
        values = _checked(file, key, series, meaning, in_percent)
        values = 1 - values if meaning.is_complement else values * meaning.factor
        found[meaning.table, meaning.column] = Series(series.rows, values), _standard_errors(file, key, series)
        told.append(Told.of(form, key, _words(meaning, in_percent), series.values))
    if not found:
        raise UserError(f"{file.path}: has no metric, only {shown([*file.series, *file.texts])}")
    return found, told


def _meaning(file: MetricFile, key: str, form: Format, has_steps: bool, run_epochs: np.ndarray) -> Meaning:
    if form.is_exact:
        return own_meaning(key, has_steps=has_steps) or Meaning("training_monitors", key)
    rows = file.series[key].rows if key in file.series else np.array([], dtype=np.int64)
    once = len(np.unique(run_epochs[rows])) == len(rows)
    meaning = meaning_of(form.names.get(plain(key), key), has_steps=has_steps, once_an_epoch=once)
    if meaning is None:
        word = plain(key).split("_")[-1]
        raise UserError(
            f"{file.path}: {key} does not say of which images it is; pass --rename {key}=train_{word}, val_{word} or "
            f"test_{word}, or --rename {key}= to leave it out"
        )
    return meaning


def _words(meaning: Meaning, in_percent: bool) -> str:
    value = "x / 100" if in_percent else "x"
    formula = f"1 - {value}" if meaning.is_complement else value if meaning.factor == 1 else f"x * {meaning.factor:.4g}"
    is_metric = meaning.table == "training_monitors"
    where = f"{meaning.table}, metric {meaning.column}" if is_metric else f"{meaning.table}.{meaning.column}"
    return where if formula == "x" else f"{where} = {formula}"


def _is_standard_error(key: str, meanings: dict[str, Meaning]) -> bool:
    base = meanings.get(key.removesuffix(STANDARD_ERROR))
    return key.endswith(STANDARD_ERROR) and base is not None and base.table == "training_monitors"


def _checked(file: MetricFile, key: str, series: Series, meaning: Meaning, in_percent: bool) -> np.ndarray:
    """The values; fractions from percent if they are."""
    values = series.values / 100 if in_percent else series.values
    is_impossible, wrong = np.zeros(len(values), dtype=bool), ""
    if meaning.is_fraction:
        is_impossible = (values < 0) | (values > 1)
        wrong = "not a percentage" if in_percent else "not a fraction; pass --percent if the file has percentages"
    elif meaning.is_loss:
        is_impossible = values < 0
        wrong = f"but a cross-entropy is never negative; --rename {key}=NAME keeps it under a name of its own"
    if is_impossible.any():
        at = int(np.argmax(is_impossible))
        raise UserError(f"{file.where(series.rows[at])}: {key} is {series.values[at]:g}, {wrong}")
    return values


def _standard_errors(file: MetricFile, key: str, series: Series) -> np.ndarray | None:
    """The standard error of every value of a key, NaN where there is none."""
    told = file.series.get(f"{key}{STANDARD_ERROR}")
    if told is None or f"{key}{STANDARD_ERROR}" in file.texts:
        return None
    alone = np.setdiff1d(told.rows, series.rows)
    if len(alone):
        raise UserError(f"{file.where(alone[0])}: has {key}{STANDARD_ERROR}, a standard error, without {key}")
    errors = np.full(len(series.rows), np.nan)
    errors[np.searchsorted(series.rows, told.rows)] = told.values
    return errors
