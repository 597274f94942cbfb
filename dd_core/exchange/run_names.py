"""Files with several runs side by side, taken apart: a column called ``<run> - <metric>`` is a metric of that run.

How the names of runs tell width, trial and variant is said by a pattern such as ``rn18-k{k}-seed{trial}``, or by the
words in which paths say it too (``k8``, ``trial-3``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dd_core.errors import UserError
from dd_core.exchange.formats import WANDB_BOUNDS, WANDB_SEPARATOR
from dd_core.exchange.reading import MetricFile

NUMBERED = "trials"
_FIELDS = {
    "k": r"(?P<k>\d+(?:\.\d+)?)",
    "trial": r"(?P<trial>\d+)",
    "variant": r"(?P<variant>[a-z0-9]+(?:-[a-z0-9]+)*?)",
}
_K = re.compile(r"(?<![a-z0-9])(?:k|width)[-_= ]?(\d+(?:\.\d+)?)(?![a-z0-9.])", re.IGNORECASE)
_TRIAL = re.compile(r"(?<![a-z0-9])(?:trial|seed|s)[-_= ]?(\d+)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class RunName:
    """What the name of a run says; None where it does not."""

    k: float | None = None
    trial: int | None = None
    variant: str | None = None


def runs_of(file: MetricFile, pattern: str | None, renames: dict[str, str]) -> Iterator[tuple[RunName, MetricFile]]:
    """Yield each run of a file, and what the file says of it alone.

    Args:
        file: has a column for each run.
        pattern: how runs are called, ``trials`` for trials in the order of the columns, None for the usual words.
        renames: of metrics.

    Raises:
        UserError: the pattern does not fit, or two runs would be one.
    """
    names = dict.fromkeys(key.rpartition(WANDB_SEPARATOR)[0] for key in file.series if WANDB_SEPARATOR in key)
    bounds = [key for key in file.series if key.endswith(WANDB_BOUNDS) and key[:-5] in file.series]
    left_out = file.left_out
    if bounds:
        left_out += (f"__MIN and __MAX, which say how a chart was thinned: {len(bounds)} columns of {file.path}",)
    seen: dict[RunName, str] = {}
    for number, run in enumerate(names):
        told = RunName(trial=number) if pattern == NUMBERED else told_by(run, pattern, file)
        if told in seen:
            raise UserError(
                f"{file.path}: the runs {seen[told]} and {run} would be one; say with --runs how their names tell "
                f"width and trial, such as --runs 'net-k{{k}}-seed{{trial}}', or --runs {NUMBERED}"
            )
        seen[told] = run
    for number, (told, run) in enumerate(seen.items()):
        series = {key: values for key, values in file.series.items() if WANDB_SEPARATOR not in key}
        for key, values in file.series.items():
            of_run, _, metric = key.rpartition(WANDB_SEPARATOR)
            if of_run == run and key not in bounds and (name := renames.get(metric, metric)):
                series[name] = values
        texts = {key: text for key, text in file.texts.items() if key.rpartition(WANDB_SEPARATOR)[0] in ("", run)}
        yield told, replace(file, series=series, texts=texts, left_out=() if number else left_out)


def told_by(run: str, pattern: str | None, file: MetricFile) -> RunName:
    """What a run's name says, by a pattern or in the usual words.

    Raises:
        UserError: the pattern is none, or does not fit the name.
    """
    if pattern is None:
        k, trial = _K.search(run), _TRIAL.search(run)
        return RunName(float(k[1]) if k else None, int(trial[1]) if trial else None)
    parts = re.split(r"\{([a-z]+)\}", pattern)
    unknown = [name for name in parts[1::2] if name not in _FIELDS]
    if unknown or len(set(parts[1::2])) < len(parts[1::2]) or len(parts) == 1:
        raise UserError(f"--runs {pattern}: say where {{k}}, {{trial}} and {{variant}} are, each once, or {NUMBERED}")
    text = "".join(
        _FIELDS[part] if position % 2 else re.escape(part).replace(r"\*", ".*?") for position, part in enumerate(parts)
    )
    match = re.fullmatch(text, run)
    if match is None:
        raise UserError(f"{file.path}: the run {run} is not called as --runs {pattern} says; * stands for any text")
    said = match.groupdict()
    return RunName(
        float(said["k"]) if "k" in said else None, int(said["trial"]) if "trial" in said else None, said.get("variant")
    )
