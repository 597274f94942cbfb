"""What a metric file says of each run (an arm's trial) in it, checked. ``rows`` makes rows of the tables of it."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import PLACE_KEYS, place_of
from dd_core.exchange.formats import Format, shown
from dd_core.exchange.interpretation import Columns, Told, columns_of
from dd_core.exchange.reading import MetricFile, Series
from dd_core.exchange.sources import Source
from dd_core.studies import LARGEST_K

# Where a file counts epochs only.
NO_STEP = -1
_RANGES = {"epoch": (0, 9999), "step": (0, 2**53), "trial": (0, 2**31 - 1)}


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
        k, trial: instead of what the path says; ``k`` as the file counts widths, which may be a fraction.
        first_epoch: number of the first epoch of training in the files: 1, or 0, then one is added; None: as the format
            counts.
        percent: whether accuracies and errors are in percent, as some formats have them anyhow.
        keep_last: of what is told twice take what comes later, as of a run that was resumed from a checkpoint.
        format: name of the format, None to recognise it.
        runs: how the runs in the columns of a file are called (``run_names``).
        width_unit: the width that k = 1 stands for, where widths are fractions; None: as fine as needed.
    """

    k: float | None = None
    trial: int | None = None
    first_epoch: int | None = None
    percent: bool = False
    keep_last: bool = False
    format: str | None = None
    runs: str | None = None
    width_unit: Fraction | None = None


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
    file, places = _with_places(file, form)
    keys = [*file.series, *(key for key in file.texts if key not in file.series)]
    if "epoch" not in keys:
        raise UserError(f"{file.path}: has no epoch, only {shown(keys)}; say which it is with --rename NAME=epoch")
    raw = _places(file, "epoch")
    first_epoch = _first_epoch(file, raw, reading, form)
    epoch = raw + 1 - first_epoch - _after_training(file, raw, form, first_epoch)
    step = _places(file, "step") if "step" in keys else np.full(len(epoch), NO_STEP)
    width = _identity(source, file, "k", reading.k)
    trial = _identity(source, file, "trial", reading.trial)
    empty = file.lines[~_is_used(file)].tolist()
    left_out = [f"{len(empty)} rows that have no number: {file.path}:{_spans(empty)}"] if empty else []
    if reading.keep_last:
        file, again = _latest(file, np.stack([width, trial], axis=1), epoch, step)
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
        used = np.flatnonzero(is_inside & _is_used(file))
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


def _with_places(file: MetricFile, form: Format) -> tuple[MetricFile, dict[str, str]]:
    """The file with its places under their own names, and what the file calls them."""
    if form.is_exact:
        return file, {}
    found: dict[str, list[str]] = {}
    for key in [*file.series, *(key for key in file.texts if key not in file.series)]:
        if (place := place_of(key)) is not None:
            found.setdefault(place, []).append(key)
    called = {}
    for place, names in found.items():
        if place in names:
            continue  # what has the very name is it, and the others are metrics
        if len(names) > 1:
            raise UserError(f"{file.path}: has two keys for {place}; --rename {names[1]}= leaves one out")
        called[place] = names[0]
    new = {name: place for place, name in called.items()}
    series = {new.get(key, key): values for key, values in file.series.items()}
    texts = {new.get(key, key): told for key, told in file.texts.items()}
    return MetricFile(file.path, file.keys, file.lines, series, texts, file.left_out), called


def _places(file: MetricFile, key: str) -> np.ndarray:
    """The numbers of a key that every record must have: int64, or of a width float64."""
    if key in file.texts:
        line, text = file.texts[key]
        raise UserError(f"{file.path}:{line}: {key} is {text}, not a whole number")
    series, count = file.series[key], len(file.lines)
    if len(series.rows) < count:
        raise UserError(f"{file.where(np.setdiff1d(np.arange(count), series.rows)[0])}: has no {key}")
    if key == "k":
        is_possible, wanted = (series.values > 0) & (series.values <= LARGEST_K), f"a width up to {LARGEST_K}"
    else:
        smallest, largest = _RANGES[key]
        is_possible = (series.values >= smallest) & (series.values <= largest) & (series.values % 1 == 0)
        wanted = f"a whole number from {smallest} to {largest}"
    if not is_possible.all():
        row = int(np.argmin(is_possible))
        raise UserError(f"{file.where(row)}: {key} is {series.values[row]:.17g}, not {wanted}")
    return series.values if key == "k" else series.values.astype(np.int64)


def _first_epoch(file: MetricFile, epoch: np.ndarray, reading: Reading, form: Format) -> int:
    """How the file counts: as the user says, else as its format does."""
    if reading.first_epoch is not None:
        return reading.first_epoch
    if form.first_epoch == 0 and epoch.min() == 1 and reading.format is None:
        if form.name == "lightning":  # others write the same columns and count from 1
            return 1
        raise UserError(
            f"{file.path}: begins with epoch 1, but {form.name} counts from 0; pass --first-epoch 1 if this is the "
            "first epoch of training, or --first-epoch 0"
        )
    return form.first_epoch


def _after_training(file: MetricFile, epoch: np.ndarray, form: Format, first_epoch: int) -> np.ndarray:
    """1 for records of Lightning's test after training, which stand under the epoch that would have come next."""
    later = np.zeros(len(epoch), dtype=np.int64)
    if form.name != "lightning" or first_epoch != 0:
        return later
    metrics = {key: series.rows for key, series in file.series.items() if key not in PLACE_KEYS}
    of_test = [rows for key, rows in metrics.items() if key.startswith("test")]
    others = np.unique(np.concatenate([[], *(rows for key, rows in metrics.items() if not key.startswith("test"))]))
    if of_test and len(others):
        only_test = np.setdiff1d(np.concatenate(of_test), others).astype(np.int64)
        later[only_test] = epoch[only_test] == epoch[others.astype(np.int64)].max() + 1
    return later


def _identity(source: Source, file: MetricFile, key: str, given: float | None) -> np.ndarray:
    """Width or trial of every record: as the file says, else the user, else its path; the trial is else 0."""
    by_path: float | None = getattr(source, key)
    known = by_path if given is None else given
    if known is not None and not (0 < known <= LARGEST_K if key == "k" else 0 <= known <= _RANGES["trial"][1]):
        wanted = f"a width up to {LARGEST_K}" if key == "k" else f"a number from 0 to {_RANGES['trial'][1]}"
        raise UserError(f"{file.path}: {key} cannot be {known:g}; it is {wanted}")
    if key not in file.series and key not in file.texts:
        if known is None and key == "k":
            raise UserError(f"{file.path}: neither the file nor its path says which k (width) this is; pass --k")
        return np.full(len(file.lines), known or 0)
    told = _places(file, key)
    if known is not None and (told != known).any():
        row = int(np.argmax(told != known))
        who = "its path" if given is None else f"--{key}"
        raise UserError(f"{file.where(row)}: {key} is {told[row]:g}, but {who} says {known:g}")
    return told


def _latest(file: MetricFile, run: np.ndarray, epoch: np.ndarray, step: np.ndarray) -> tuple[MetricFile, list[str]]:
    """Without what a run that went on from an earlier place has told anew, and without what it had told beyond it."""
    place = np.where(step == NO_STEP, epoch, step)
    is_kept = np.ones(len(epoch), dtype=bool)
    for one in np.unique(run, axis=0):
        rows = np.flatnonzero((run == one).all(axis=1))
        goes_back = np.diff(place[rows]) < 0
        restarts = np.where(goes_back, place[rows][1:], np.iinfo(np.int64).max)
        # The earliest place from which it is told anew later: what stood there and beyond was left behind.
        is_kept[rows[:-1]] = place[rows][:-1] < np.minimum.accumulate(restarts[::-1])[::-1]
    series, superseded = {}, np.zeros(len(epoch), dtype=bool)
    where = np.concatenate([run, epoch[:, None], step[:, None]], axis=1)
    for key, told in file.series.items():
        kept = is_kept[told.rows]
        if key not in PLACE_KEYS:
            # Of several values at one place the last.
            at = where[told.rows[kept]][::-1]
            last = np.zeros(len(at), dtype=bool)
            last[np.unique(at, axis=0, return_index=True)[1]] = True
            positions = np.flatnonzero(kept)
            kept[positions[~last[::-1]]] = False
            superseded[told.rows[~kept]] = True
            told = Series(told.rows[kept], told.values[kept])
        series[key] = told
    lines = file.lines[superseded].tolist()
    left_out = [f"{len(lines)} rows that come again later: {file.path}:{_spans(lines)}"] if lines else []
    return MetricFile(file.path, file.keys, file.lines, series, file.texts, file.left_out), left_out


def _spans(lines: list[int]) -> str:
    text = ", ".join(map(str, lines[:8]))
    return text if len(lines) <= 8 else f"{text}, …"


def _is_used(file: MetricFile) -> np.ndarray:
    """Whether each record still has a value."""
    used = np.zeros(len(file.lines), dtype=bool)
    for key, series in file.series.items():
        if key not in PLACE_KEYS:
            used[series.rows] = True
    return used


def _refuse_training_before_training(file: MetricFile, columns: Columns, epoch: np.ndarray, *, is_said: bool) -> None:
    """Batches in epoch 0, or unless the user says how epochs are counted, learning rates in it."""
    for (table, name), (series, _) in columns.items():
        is_early = epoch[series.rows] == 0
        is_rate = table == "training_monitors" and name in ("lr", "weight_decay") and not is_said
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
