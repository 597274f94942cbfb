"""Which files are to be imported, and what their paths say of the run they are from.

Exported files lie at ``<arm>/trial-000/metrics.*`` and ``<variant>/metrics_k{k}.jsonl``; any of ``s-core.k008``,
``k008``, ``trial-3`` and ``metrics_k12.jsonl`` in a path is understood, wherever it comes from.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd_core.errors import UserError
from dd_core.exchange.exporter import MANIFEST
from dd_core.studies import Arm

_SUFFIXES = (".csv", ".jsonl", ".ndjson")
_ARM = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)\.k(\d{3})")
_K = re.compile(r"k(\d{1,3})")
_TRIAL = re.compile(r"trial[-_]?(\d{1,3})")
_FILE_OF_K = re.compile(r"metrics_k(\d{1,3})")


@dataclass(frozen=True)
class Source:
    """A file and what is known of its run before it is read.

    Attributes:
        path: the file.
        variant, k, trial: as its path says; None where it does not.
        settings: the recipe of an exported arm (``Study.recipe``), which lies beside its files.
    """

    path: Path
    variant: str | None
    k: int | None
    trial: int | None
    settings: dict[str, Any] | None


def find_sources(paths: Iterable[Path]) -> tuple[list[Source], list[Path]]:
    """The metric files among some paths; in folders those called ``metrics.*`` and ``metrics_k*.*``.

    Where ``metrics.jsonl`` and ``metrics.csv`` lie side by side they are one run told twice, and the first is taken.

    Returns:
        The files, and those left alone.

    Raises:
        UserError: a path is not there, or there is no such file in a folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_metric_files(path))
            if not inside:
                raise UserError(f"{path}: there is no metrics.csv, metrics.jsonl or metrics_k*.jsonl in this folder")
            found += inside
        elif not path.exists():
            raise UserError(f"{path}: does not exist")
        elif path.suffix.lower() not in _SUFFIXES:
            raise UserError(f"{path}: metrics are read from {', '.join(_SUFFIXES)} files, not from this kind")
        else:
            found.append(path)
    unique = list({path.resolve(): path for path in found}.values())
    told_twice = [p for p in unique if p.suffix == ".csv" and p.with_suffix(".jsonl") in unique]
    return [_source(path) for path in unique if path not in told_twice], told_twice


def _metric_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("metrics*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        is_metrics = path.stem == "metrics" or _FILE_OF_K.fullmatch(path.stem)
        if path.suffix in _SUFFIXES and is_metrics and not hidden and path.is_file():
            yield path


def _source(path: Path) -> Source:
    """What the path says; the innermost folder that says something counts."""
    parents = list(path.absolute().parents)
    arm = next(((m, p) for p in parents if (m := _ARM.fullmatch(p.name))), None)
    variant, k, settings = (arm[0][1], int(arm[0][2]), _settings(arm[1])) if arm else (None, None, None)
    k = k or next((int(m[1]) for p in parents if (m := _K.fullmatch(p.name))), None)
    trial = next((int(m[1]) for p in parents if (m := _TRIAL.fullmatch(p.name))), None)
    if of_k := _FILE_OF_K.fullmatch(path.stem):
        k, beside = int(of_k[1]), parents[1] / Arm(parents[0].name, int(of_k[1])).key
        if arm is None and (beside / MANIFEST).is_file():  # the layout of exported files
            variant, settings = parents[0].name, _settings(beside)
    return Source(path, variant, k, trial, settings)


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None
