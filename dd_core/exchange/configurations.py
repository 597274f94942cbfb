"""Runs of several configurations in one folder: which variant each is of, by what its file says was set.

A file may say in words which variant, optimiser and network it is of. Its learning rates and weight decays say which
point of a grid it is, if the user says that these tell runs apart (``--by lr,wd``): variants are then called as a grid
of a study file would call them, and know what they vary.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dd_core.errors import UserError
from dd_core.exchange.reading import WORDS, MetricFile
from dd_core.exchange.runs import Run
from dd_core.exchange.sources import Source
from dd_core.study.grid import column_of, name_of

# What may tell runs apart: where it stands in a variant.
RATES: dict[str, tuple[str, ...]] = {"lr": ("optimizer", "learning_rate"), "wd": ("optimizer", "weight_decay")}
_COLUMNS = {"lr": "learning_rate", "wd": "weight_decay"}
# Logs that skip steps miss the very peak of a schedule.
_DIGITS = 3


@dataclass(frozen=True)
class Piece:
    """What one file says of one run.

    Attributes:
        source: the file; its variant is the family, if rates tell runs apart.
        width, trial: which run.
        run: what is said.
    """

    source: Source
    width: float
    trial: int
    run: Run


def with_words(source: Source, file: MetricFile) -> Source:
    """The source with what its file says in words: of which variant it is, and how that was trained.

    Raises:
        UserError: it says two different things.
    """
    told: dict[str, str] = {}
    for key, values in file.words.items():
        if len(values) > 1:
            both = " and ".join(values)
            raise UserError(f"{file.path}: has runs of two kinds, {key} {both}; give each a file of its own")
        told[key] = values[0]
    words = {key: told[key].strip().lower() for key in WORDS if key in told}
    variant = re.sub(r"[^a-z0-9]+", "-", words.pop("variant", "")).strip("-")
    settings: dict[str, Any] = {"architecture": told["architecture"].strip()} if "architecture" in words else {}
    if "optimizer" in words:
        settings["optimizer"] = {"name": words["optimizer"]}
    return Source(source.path, variant or source.variant, source.k, source.trial, source.settings, settings)


def told_apart(pieces: list[Piece], by: tuple[str, ...]) -> list[tuple[str, Piece, dict[str, Any]]]:
    """The variant of every piece, and what is known of it: keys of ``Variant``.

    Args:
        pieces: their sources name variants.
        by: keys of ``RATES``.

    Raises:
        UserError: a file does not say what tells runs apart.
    """
    rates = {name: _rates(pieces, name) for name in by}
    found = []
    for number, piece in enumerate(pieces):
        family = str(piece.source.variant)
        known = dict(piece.source.words)
        if not by:
            found.append((family, piece, known))
            continue
        values = {RATES[name]: rates[name][number] for name in by}
        optimizer = {path[-1]: value for path, value in values.items()}
        known["optimizer"] = {**known.get("optimizer", {}), **optimizer}
        known["family"] = family
        known["grid_values"] = {column_of(path): value for path, value in values.items()}
        found.append((name_of(family, values), piece, known))
    return found


def _rates(pieces: list[Piece], name: str) -> list[float]:
    """What was set in every piece, to three digits: the largest learning rate, the one weight decay.

    A run that ended while its rate still rose does not say how far it would have risen: it is of the same setting as
    another that had the same rate at that step.
    """
    series = [_series(piece.run, _COLUMNS[name]) for piece in pieces]
    rates = [_of_path(piece.source, name) for piece in pieces]
    rising = [name == "lr" and len(values) > 0 and _is_rising(values) for _, values in series]
    for number, (_, values) in enumerate(series):
        if rates[number] is None and len(values) and not rising[number]:
            if name == "wd" and np.ptp(values) > 1e-6 * np.abs(values).max():
                raise UserError(f"{pieces[number].source.path}: its wd changes, so it does not tell runs apart")
            rates[number] = _rounded(float(values.max()))
    known = [(rate, series[number]) for number, rate in enumerate(rates) if rate is not None]
    chosen = []
    for number, (steps, values) in enumerate(series):
        rate = rates[number]
        if rate is None and len(values):
            alike = {other for other, theirs in known if _passes(theirs, steps[-1], values[-1])}
            rate = alike.pop() if len(alike) == 1 else None
        if rate is None:
            why = "its learning rate still rose when it ended" if len(values) else f"it has no {name}"
            raise UserError(
                f"{pieces[number].source.path}: {why}, so it does not say which run of --by {name} it is; name it in "
                f"its folder, such as {name}0.05, or leave it out"
            )
        chosen.append(rate)
    return chosen


def _series(run: Run, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (or epochs, where there are none) and finite values of a column of batches, or of a metric."""
    for table in ("training_batches", "training_monitors"):
        for values in run.content.get(table, {}).get(column, []):
            is_finite = np.isfinite(values.value)
            place = values.step if values.step.min(initial=0) >= 0 else values.epoch
            return place[is_finite], values.value[is_finite]
    return np.array([]), np.array([])


def _is_rising(values: np.ndarray) -> bool:
    return bool(values[-1] >= values.max() and (len(values) == 1 or values[-1] > values[-2]))


def _passes(series: tuple[np.ndarray, np.ndarray], step: float, value: float) -> bool:
    """Whether a run had a value at a step; files with six decimals differ in the last."""
    steps, values = series
    at = np.flatnonzero(steps == step)
    return bool(len(at) and np.isclose(values[at[0]], value, rtol=1e-4, atol=1e-7))


def _of_path(source: Source, name: str) -> float | None:
    """As a folder says it: ``lr0.05``, ``wd=1e-4``."""
    number = re.compile(rf"(?:^|[^a-z0-9]){name}[-_=]?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![\d.])", re.IGNORECASE)
    texts = (match[1] for folder in source.path.absolute().parents if (match := number.search(folder.name)))
    text = next(texts, None)
    return float(text) if text is not None and float(text) > 0 else None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def refuse_unknown(by: Iterable[str]) -> None:
    """Pass only what can tell runs apart.

    Raises:
        UserError: something else.
    """
    unknown = [name for name in by if name not in RATES]
    if unknown:
        raise UserError(f"--by {', '.join(unknown)}: runs can be told apart by {' and '.join(RATES)}")
