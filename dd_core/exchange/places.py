"""Where a file's records belong: epoch, step, width and trial of each, by its columns, the user or its path."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.columns import PLACE_KEYS, place_of
from dd_core.exchange.formats import Format
from dd_core.exchange.reading import MetricFile
from dd_core.exchange.sources import Source
from dd_core.study.widths import LARGEST_K

_RANGES = {"epoch": (0, 9999), "step": (0, 2**53), "trial": (0, 2**31 - 1)}


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


def with_places(file: MetricFile, form: Format) -> tuple[MetricFile, dict[str, str]]:
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
    return replace(file, series=series, texts=texts), called


def places_of(file: MetricFile, key: str) -> np.ndarray:
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


def first_epoch_of(file: MetricFile, epoch: np.ndarray, reading: Reading, form: Format) -> int:
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


def after_training(file: MetricFile, epoch: np.ndarray, form: Format, first_epoch: int) -> np.ndarray:
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


def identity(source: Source, file: MetricFile, key: str, given: float | None) -> np.ndarray:
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
    told = places_of(file, key)
    if known is not None and (told != known).any():
        row = int(np.argmax(told != known))
        who = "its path" if given is None else f"--{key}"
        raise UserError(f"{file.where(row)}: {key} is {told[row]:g}, but {who} says {known:g}")
    return told
