"""Which files are to be imported, and what their paths say of the run they are from.

Exported files lie at ``<arm>/trial-000/metrics.*`` and ``<variant>/metrics_k{k}.jsonl``; any of ``s-core.k008``,
``k008``, ``trial-3`` and ``metrics_k12.jsonl`` in a path is understood, wherever it comes from.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dd_core.errors import UserError
from dd_core.exchange.exporter import MANIFEST
from dd_core.exchange.text import OBJECT_SUFFIXES, PACKED, TABLE_SUFFIXES, form_of
from dd_core.study.study import Arm

_ARM = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)\.k(\d{3,5})")
_K = re.compile(r"k(\d{1,5}(?:\.\d+)?)")
_TRIAL = re.compile(r"(?:trial|seed)[-_]?(\d{1,10})")
_FILE_OF_K = re.compile(r"metrics_k(\d{1,5}(?:\.\d+)?)")


@dataclass(frozen=True)
class Source:
    """A file and what is known of its run before it is read.

    Attributes:
        path: the file.
        variant, k, trial: as its path, or its name in a file of several, says; None where it does not. ``k`` may be
            a fraction.
        settings: the recipe of an exported arm (``Study.recipe``), which lies beside its files.
        words: keys of ``Variant`` that the file says in words.
    """

    path: Path
    variant: str | None
    k: float | None
    trial: int | None
    settings: dict[str, Any] | None
    words: dict[str, Any] = field(default_factory=dict)


def find_sources(paths: Iterable[Path]) -> tuple[list[Source], dict[str, list[Path]]]:
    """The metric files among some paths; in folders those called ``metrics.*`` and ``metrics_k*.*``.

    Where ``metrics.jsonl`` and ``metrics.csv`` lie side by side they are one run told twice, and the first is taken.

    Returns:
        The files, and those left alone by reason.

    Raises:
        UserError: a path is not there, or there is no such file in a folder.
    """
    found: list[Path] = []
    others: list[Path] = []
    suffixes = [suffix + packed for packed in ("", PACKED) for suffix in (*TABLE_SUFFIXES, *OBJECT_SUFFIXES)]
    for path in paths:
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except (OSError, ValueError) as error:  # a name too long for any file
            raise UserError(f"{str(path)[:60]}…: cannot be read ({getattr(error, 'strerror', error)})") from error
        if is_folder:
            inside, beside = _metric_files(path)
            if not inside:
                hint = f"; name {beside[0].name} itself if it is one" if beside else ""
                raise UserError(
                    f"{path}: there is no metrics.csv, metrics.jsonl or metrics_k*.jsonl in this folder{hint}"
                )
            found += inside
            others += beside
        elif not is_there:
            raise UserError(f"{path}: does not exist")
        elif form_of(path) is None:
            raise UserError(f"{path}: metrics are read from {', '.join(suffixes)} files, not from this kind")
        else:
            found.append(path)
    unique = list({path.resolve(): path for path in found}.values())
    told_twice = [p for p in unique if p.suffix == ".csv" and p.with_suffix(".jsonl") in unique]
    left_alone = {
        "metrics.csv, as metrics.jsonl beside it says the same": told_twice,
        "files of another name in these folders, which can be named one by one": others,
    }
    return [_source(path) for path in unique if path not in told_twice], left_alone


def _metric_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of metrics in a folder, and others that could be, sorted."""
    metrics: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and form_of(path) is not None and path.is_file():
            is_metrics = _name(path) == "metrics" or _FILE_OF_K.fullmatch(_name(path))
            (metrics if is_metrics else others).append(path)
    return metrics, others


def _name(path: Path) -> str:
    """The name of a file without what says how it is written."""
    return (path.with_suffix("") if path.suffix.lower() == PACKED else path).stem


def _source(path: Path) -> Source:
    """What the path says; the innermost folder that says something counts."""
    parents = list(path.absolute().parents)
    arm = next(((m, p) for p in parents if (m := _ARM.fullmatch(p.name))), None)
    variant, k, settings = (arm[0][1], float(arm[0][2]), _settings(arm[1])) if arm else (None, None, None)
    k = k or next((float(m[1]) for p in parents if (m := _K.fullmatch(p.name))), None)
    trial = next((int(m[1]) for p in parents if (m := _TRIAL.fullmatch(p.name))), None)
    if of_k := _FILE_OF_K.fullmatch(_name(path)):
        k = float(of_k[1])
        beside = parents[1] / Arm(parents[0].name, int(k)).key
        if arm is None and k % 1 == 0 and (beside / MANIFEST).is_file():  # the layout of exported files
            variant, settings = parents[0].name, _settings(beside)
    return Source(path, variant, k, trial, settings)


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None
