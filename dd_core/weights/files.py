"""Which files of a folder are checkpoints, and of which arm, trial and epoch, as their paths say by a pattern."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dd_core.errors import UserError
from dd_core.study.study import Arm, Checkpoint

# As the published code of incremental CIFAR names its files, and a copy of it; in the folder itself or one below.
PUBLISHED = tuple(
    f"{folder}{name}index-{{trial}}_epoch-{{epoch}}.pt"
    for folder in ("", "model_parameters/")
    for name in ("", "checkpoint_")
)
_FIELDS = {
    "arm": r"(?P<arm>[^/]+)",
    "trial": r"(?P<trial>\d{1,10})",
    "epoch": r"(?P<epoch>\d{1,10})",
    "k": r"(?P<k>\d{1,5})",
}
_SAME = {"index": "trial", "seed": "trial", "variant": "arm"}
_ARM = re.compile(r"(?P<variant>[a-z0-9]+(?:-[a-z0-9]+)*)(?:\.k(?P<k>\d{3,5}))?")
_LAST_EPOCH = 9999


@dataclass(frozen=True)
class CheckpointFile:
    """A file of weights of one trial."""

    path: Path
    checkpoint: Checkpoint
    trial: int


def find_checkpoints(
    folder: Path, patterns: Iterable[str], variant: str, k: int | None, trial: int | None, num_known: int = 0
) -> list[CheckpointFile]:
    """The files of a folder that are called as a pattern says, by arm, epoch and trial.

    Args:
        folder: to look in.
        patterns: paths below it with {arm}, {trial} (or {index}, {seed}), {epoch} and {k}; * is any text.
        variant: where the pattern has no {arm}.
        k: where it has neither {k} nor an arm like ``s-core.k008``.
        trial: where it has no {trial}.
        num_known: trials of which there were files before.

    Raises:
        UserError: a pattern is none, nothing fits, two files are one checkpoint of one trial, or a number is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    expressions = {pattern: _expression(pattern) for pattern in patterns}
    found: dict[tuple[Checkpoint, int], CheckpointFile] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        match = next((m for e in expressions.values() if (m := e.fullmatch(name))), None)
        if match is None:
            continue
        file = _file(path, match.groupdict(), variant, k, trial)
        other = found.setdefault((file.checkpoint, file.trial), file)
        if other is not file:
            what = f"epoch {file.checkpoint.epoch} of trial {file.trial} of {file.checkpoint.arm.key}"
            raise UserError(f"{other.path} and {path} are both {what}; move one away, or say --pattern")
    if not found:
        raise UserError(f"{folder}: no file is called {' or '.join(expressions)}; say how with --pattern")
    files = sorted(found.values(), key=lambda file: (file.checkpoint, file.trial))
    _refuse_gaps(files, num_known)
    return files


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{([a-z]+)\}", pattern)
    names = [_SAME.get(name, name) for name in parts[1::2]]
    if any(name not in _FIELDS for name in names) or len(set(names)) < len(names) or "epoch" not in names:
        raise UserError(
            f"--pattern {pattern}: say where {{epoch}} is, and {{arm}}, {{trial}} and {{k}} if there are any, each once"
        )
    literals = [re.escape(part).replace(r"\*", "[^/]*") for part in parts[::2]]
    fields = [*(_FIELDS[name] for name in names), ""]
    return re.compile("".join(text for pair in zip(literals, fields, strict=True) for text in pair))


def _file(path: Path, said: dict[str, str], variant: str, k: int | None, trial: int | None) -> CheckpointFile:
    arm = _ARM.fullmatch(said.get("arm", variant))
    if arm is None:
        raise UserError(
            f"{path}: {said.get('arm', variant)} cannot be the name of a variant, lower-case letters and digits joined "
            "by single hyphens; rename the folder, or say --variant and a pattern with * in place of {arm}"
        )
    number = said.get("k") or arm["k"]
    width = int(number) if number else k
    if width is None:
        raise UserError(f"{path}: its path does not say which k (width) this is; pass --k")
    epoch, of_trial = int(said["epoch"]), int(said["trial"]) if "trial" in said else trial or 0
    if epoch > _LAST_EPOCH:
        raise UserError(f"{path}: is of epoch {epoch}, and epochs end at {_LAST_EPOCH}")
    return CheckpointFile(path, Checkpoint(Arm(arm["variant"], width), epoch), of_trial)


def _refuse_gaps(files: list[CheckpointFile], num_known: int) -> None:
    """Pass only trials that leave no gap between 0 and the last, with those known before.

    Raises:
        UserError: it names the first that is missing.
    """
    trials = {file.trial for file in files} | set(range(num_known))
    missing = sorted(set(range(max(trials) + 1)) - trials)
    if missing:
        raise UserError(
            f"there are files of trial {max(trials)} but none of trial {missing[0]}; trials are counted from 0, so put "
            "the number into --pattern and pass --trial instead, such as 'index-3_epoch-{epoch}.pt' --trial 0"
        )
