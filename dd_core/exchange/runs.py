"""What a metric file says of each run (an arm's trial) in it, checked. ``rows`` makes rows of the tables of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import PLACE_KEYS
from dd_core.exchange.formats import Format, shown
from dd_core.exchange.interpretation import Columns, Told, columns_of
from dd_core.exchange.places import Reading, after_training, first_epoch_of, identity, places_of, with_places
from dd_core.exchange.reading import NO_STEP, MetricFile
from dd_core.exchange.resumed import is_used, latest, spans
from dd_core.exchange.sources import Source
from dd_core.words import counted


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
        """The epoch of each value."""
        return self.epochs[self.rows]

    @property
    def step(self) -> np.ndarray:
        """The step of each value."""
        return self.steps[self.rows]

    @property
    def standard_error(self) -> np.ndarray:
        """The standard error of each value, NaN where none is told."""
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


@dataclass
class Split:
    """What a file says, run by run.

    Attributes:
        runs: by width and trial.
        told: what was made of its columns.
        left_out: sentences about rows not taken.
    """

    runs: dict[tuple[float, int], Run]
    told: list[Told]
    left_out: list[str]


def split_runs(source: Source, file: MetricFile, reading: Reading, form: Format) -> Split:
    """The runs of a file.

    Raises:
        UserError: a place (epoch, step, k, trial) is missing, impossible or out of order, a value is impossible, two
            keys mean the same, or there is no metric at all.
    """
    file, places = with_places(file, form)
    keys = [*file.series, *(key for key in file.texts if key not in file.series)]
    if "epoch" not in keys:
        raise UserError(f"{file.path}: has no epoch, only {shown(keys)}; say which it is with --rename NAME=epoch")
    raw = places_of(file, "epoch")
    first_epoch = first_epoch_of(file, raw, reading, form)
    epoch = raw + 1 - first_epoch - after_training(file, raw, form, first_epoch)
    step = places_of(file, "step") if "step" in keys else np.full(len(epoch), NO_STEP)
    width = identity(source, file, "k", reading.k)
    trial = identity(source, file, "trial", reading.trial)
    empty = file.lines[~is_used(file)].tolist()
    without = counted(len(empty), "row that has", "rows that have")
    left_out = [f"{without} no number: {file.path}:{spans(empty)}"] if empty else []
    if reading.keep_last:
        file, again = latest(file, np.stack([width, trial], axis=1), epoch, step)
        left_out += again
    run_epochs = np.unique(np.stack([width, trial, epoch], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    columns, told = columns_of(file, form, "step" in keys, reading.percent or form.percent, run_epochs)
    told = [
        *(
            Told.of_place(form, file, places.get(key, key), key, first_epoch)
            for key in PLACE_KEYS
            if key in file.series
        ),
        *told,
    ]
    _refuse_training_before_training(file, columns, epoch, is_said=reading.first_epoch is not None)
    runs: dict[tuple[float, int], Run] = {}
    for number_k, number_trial in np.unique(np.stack([width, trial], axis=1), axis=0).tolist():
        is_inside = (width == number_k) & (trial == number_trial)
        used = np.flatnonzero(is_inside & is_used(file))
        _refuse_disorder(file, used, epoch, step)
        run = Run([source])
        for (table, name), (series, errors) in columns.items():
            chosen: Any = slice(None) if is_inside.all() else is_inside[series.rows]
            rows, value = series.rows[chosen], series.values[chosen]
            if len(rows):
                values = Values(file, epoch, step, rows, value, None if errors is None else errors[chosen])
                run.content.setdefault(table, {})[name] = [values]
        runs[number_k, int(number_trial)] = run
    return Split(runs, told, left_out)


def _refuse_training_before_training(file: MetricFile, columns: Columns, epoch: np.ndarray, *, is_said: bool) -> None:
    """Batches in epoch 0, or unless the user says how epochs are counted, learning rates in it."""
    for (table, name), (series, _) in columns.items():
        is_early = epoch[series.rows] == 0
        is_rate = table == "training_monitors" and name in ("learning_rate", "weight_decay") and not is_said
        if (table == "training_batches" or is_rate) and is_early.any():
            what = name if is_rate else f"{name} of a batch"
            raise UserError(
                f"{file.where(series.rows[np.argmax(is_early)])}: {what} in epoch 0, which here is before "
                "training; pass --first-epoch 0 if the file counts epochs from 0"
            )


def _refuse_disorder(file: MetricFile, rows: np.ndarray, epoch: np.ndarray, step: np.ndarray) -> None:
    """In a run neither steps nor epochs go back, and a step belongs to one epoch."""
    for name, values in (("step", step[rows]), ("epoch", epoch[rows])):
        back = np.flatnonzero(np.diff(values) < 0)
        if len(back):
            raise UserError(
                f"{file.where(rows[back[0] + 1])}: {name} goes back from {values[back[0]]} to {values[back[0] + 1]}; "
                "if these are two runs, give each a file of its own; if the run was resumed, --keep last takes what "
                "came later"
            )
    split = np.flatnonzero((np.diff(step[rows]) == 0) & (np.diff(epoch[rows]) > 0) & (step[rows][1:] != NO_STEP))
    if len(split):
        row = rows[split[0] + 1]
        raise UserError(f"{file.where(row)}: step {step[row]} is in epoch {epoch[row]} and in the one before it")
