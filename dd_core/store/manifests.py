"""What a manifest says, and what it is in bytes: JSON that also says where it lies and what its own digest is.

A manifest decides which files count. One whose text has changed since it was written, or that lies in another's place,
is therefore as good as none. Those of earlier versions say nothing of themselves; of them only the form is checked.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

_SEAL = "manifest"


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its path below the data root, its SHA-256 and its size."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Identity:
    """What ties a result to its recipe and data; compared before anything is used."""

    study: str
    arm: str
    recipe: str
    trials: int
    data_sha256: str

    def differs_from(self, manifest: "Manifest") -> list[str]:
        """The names of what a manifest says otherwise, or not at all."""
        return [name for name, value in asdict(self).items() if manifest.content.get(name) != value]


class Ending(BaseModel):
    """Why a trial ended before the arm did.

    Attributes:
        status: stopped early, or diverged.
        epoch: in which.
        step: after which optimiser step it was stopped, or at which its loss was not finite.
        reason: a sentence.
    """

    model_config = ConfigDict(frozen=True)
    status: Literal["stopped early", "diverged"]
    epoch: int
    step: int
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What is known of some files. What a kind of manifest does not say is empty.

    Attributes:
        content: all of it but the files, as it is in the JSON.
        files: by role, for example weights or table.
        recipe: hash of what the result belongs to.
        data_sha256: fingerprint of the data set.
        trials: of a checkpoint, their number.
        epoch: of a checkpoint, or of a result of one.
        trial, loss_val_nats: of a best checkpoint.
        checkpoint_sha256: of the weights that a result was computed from.
        settings: that a result was computed with.
        rows: of the tables, by role.
        headline: numbers for people.
        device: what it was computed on.
        precision: in which it was computed, where one could be chosen; the settings say which was asked for.
        seconds: of a part of a result, that it took.
        ended: of a checkpoint, the trials that ended before the arm did.
        measured: of a checkpoint, what was asked to be measured; None in those of earlier versions.
        sources: of what was imported or exported, the digests of what it was made from.
    """

    content: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    recipe: str = ""
    data_sha256: str = ""
    trials: int = 0
    epoch: int = 0
    trial: int = 0
    loss_val_nats: float = 0.0
    checkpoint_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    headline: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    precision: str = ""
    seconds: float = 0.0
    ended: Mapping[int, Ending] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None
    sources: Any = None

    @classmethod
    def of(cls, content: Mapping[str, Any], files: Mapping[str, FileEntry]) -> Self:
        """The manifest that says this of these files."""
        known = {f.name: content[f.name] for f in fields(cls)[2:] if f.name in content}
        if "ended" in known:
            known["ended"] = {int(trial): Ending.model_validate(ending) for trial, ending in known["ended"].items()}
        return cls(content, files, **known)

    @property
    def weights(self) -> list[FileEntry]:
        """A checkpoint's files of weights in the order of the trials: one, or one for every part of the arm."""
        roles = (role for role in self.files if role.partition(".")[0] == "weights")
        return [self.files[role] for role in sorted(roles, key=lambda role: (len(role), role))]

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of a checkpoint's weights: of the file, or where there are several of their digests."""
        digests = [entry.sha256 for entry in self.weights]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def live_trials(self) -> list[int]:
        """The trials that have weights at a checkpoint: all but those that diverged before it."""
        return [t for t in range(self.trials) if t not in self.ended or self.ended[t].status != "diverged"]


def sealed(manifest: Manifest, place: str) -> dict[str, Any]:
    """The JSON that is written: with its place, a path below the data root, and the digest of both."""
    files = {role: asdict(entry) for role, entry in manifest.files.items()}
    plain = json.loads(json.dumps({**manifest.content, "files": files}))
    return {**plain, _SEAL: {"path": place, "sha256": _digest(plain, place)}}


@lru_cache(maxsize=4096)  # the same ones are read again and again, to see which files count
def opened(text: bytes | None, place: str) -> Manifest | None:
    """The manifest that was read at a place, or None where it is none, damaged, or another's."""
    try:
        content = json.loads(text.decode("utf-8")) if text is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not _names_files(content.get("files")):
        return None
    plain = {name: value for name, value in content.items() if name != _SEAL}
    if _SEAL in content and content[_SEAL] != {"path": place, "sha256": _digest(plain, place)}:
        return None
    files = {role: FileEntry(e["path"], e["sha256"], e["bytes"]) for role, e in plain.pop("files").items()}
    try:
        return Manifest.of(plain, files)
    except (AttributeError, TypeError, ValueError):  # of an earlier version, and damaged
        return None


def _digest(content: dict[str, Any], place: str) -> str:
    return hashlib.sha256(json.dumps([place, content], sort_keys=True).encode()).hexdigest()


def _names_files(files: Any) -> bool:
    wanted = {"path": str, "sha256": str, "bytes": int}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items())
        for entry in files.values()
    )
