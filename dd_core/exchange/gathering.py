"""The runs of all files of an import, by arm and trial, and what is to be told of the files."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dd_core.errors import UserError
from dd_core.exchange.configurations import Piece, refuse_unknown, told_apart, with_words
from dd_core.exchange.formats import recognised
from dd_core.exchange.interpretation import Told
from dd_core.exchange.places import Reading
from dd_core.exchange.reading import read_metrics
from dd_core.exchange.run_names import runs_of
from dd_core.exchange.runs import Run, Split, split_runs
from dd_core.exchange.sources import Source, find_sources
from dd_core.exchange.widths import number_of, width_unit
from dd_core.study.study import Arm, Study

DEFAULT_VARIANT = "imported"
Runs = dict[tuple[Arm, int], Run]


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        study: name of the study that the runs become part of.
        paths: files, and folders in which they are looked for.
        variant: instead of what the paths say.
        reading: how files are to be read.
        renames: keys to be read under another name, or, with an empty one, to be left out.
        accept_nan: take bare NaN and Infinity in JSON.
        data: keys of ``Data`` that the user says.
        settings: keys of ``Variant`` that the user says.
        description: of a new study.
        replace: whether rows of an earlier import may give way to those of other files.
        by: what tells runs apart beside all this, keys of ``configurations.RATES``.
    """

    study: str
    paths: tuple[Path, ...]
    variant: str | None = None
    reading: Reading = field(default_factory=Reading)
    renames: dict[str, str] = field(default_factory=dict)
    accept_nan: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    description: str = "Metrics of another system, imported."
    replace: bool = False
    by: tuple[str, ...] = ()


@dataclass
class Found:
    """All runs by arm and trial, the width that k = 1 stands for, and what is to be told of the files.

    ``settings``: of each variant, what its files say of it, keys of ``Variant``.
    """

    runs: Runs
    settings: dict[str, dict[str, Any]]
    unit: float
    told: list[Told]
    left_out: list[str]


def gather(study: Study | None, request: Request) -> Found:
    """Read all files of a request.

    Args:
        study: into which they go, None if it is new.
        request: names them.

    Raises:
        UserError: one of them is wrong.
    """
    sources, left_alone = find_sources(request.paths)
    left_out = {reason: [str(path) for path in paths] for reason, paths in left_alone.items() if paths}
    told: dict[tuple[str, str, str], Told] = {}
    refuse_unknown(request.by)
    pieces: list[Piece] = []
    for source in sources:
        for part, split in _parts(source, request):
            variant = request.variant or part.variant or _only_variant(study, part)
            unit_of_export = (part.settings or {}).get("width_unit", 1.0)
            of_variant = replace(part, variant=variant)
            pieces += [Piece(of_variant, k * unit_of_export, trial, run) for (k, trial), run in split.runs.items()]
            for line in split.left_out:
                what, _, where = line.rpartition(": ")
                left_out.setdefault(what, []).append(where)
            for key in split.told:
                name = (key.format, key.key, key.meaning)
                told[name] = told[name] + key if name in told else key
    by_width: dict[tuple[str, float, int], Run] = {}
    settings: dict[str, dict[str, Any]] = {}
    for variant, piece, known in told_apart(pieces, request.by):
        by_width.setdefault((variant, piece.width, piece.trial), Run()).add(piece.run)
        other = settings.setdefault(variant, known)
        if other != known:
            raise UserError(f"{piece.source.path}: is of variant {variant}, but says {known} where others say {other}")
    unit = width_unit(
        {width for _, width, _ in by_width},
        study.width_unit if study else None,
        request.reading.width_unit,
        request.study,
    )
    runs = {(Arm(variant, number_of(width, unit)), trial): run for (variant, width, trial), run in by_width.items()}
    sentences = [f"{what}: {where[0]}{_and_others(len(where) - 1)}" for what, where in left_out.items()]
    return Found({key: runs[key] for key in sorted(runs)}, settings, unit, list(told.values()), sentences)


def _parts(source: Source, request: Request) -> Iterator[tuple[Source, Split]]:
    """What a file says; of several runs side by side, of each."""
    reading = request.reading
    file = read_metrics(source.path, request.renames, accept_nan=request.accept_nan)
    source = with_words(source, file)
    form = recognised(file.keys, file.path, is_export=source.settings is not None, asked=reading.format)
    if reading.runs is not None and not form.has_runs:
        raise UserError(
            f"{file.path}: --runs is for files with several runs side by side (wandb); this one is {form.name}"
        )
    texts = [f"{key}, which is no number: {file.path}:{line} ({text})" for key, (line, text) in file.texts.items()]
    if not form.has_runs:
        yield source, _with(split_runs(source, file, reading, form), [*file.left_out, *texts])
        return
    for number, (name, part) in enumerate(runs_of(file, reading.runs, request.renames)):
        known = {key: value for key, value in vars(name).items() if value is not None}
        of_run = replace(source, **known)
        split = split_runs(of_run, part, reading, form)
        yield of_run, _with(split, [*part.left_out, *([] if number else texts)])


def _with(split: Split, left_out: list[str]) -> Split:
    return replace(split, left_out=[*left_out, *split.left_out])


def _and_others(count: int) -> str:
    return f" and {count} other {'file' if count == 1 else 'files'}" if count else ""


def _only_variant(study: Study | None, source: Source) -> str:
    if study is None:
        return DEFAULT_VARIANT
    names = list(dict.fromkeys(study.families.values()))
    if len(names) > 1:
        raise UserError(
            f"{source.path}: its path names no variant, and {study.name} has several; pass --variant with one of "
            f"{', '.join(names)}, or a new one"
        )
    return names[0]
