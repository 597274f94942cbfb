"""What may be on disk after a power cut, as POSIX allows it: a record of what a program asks of the operating system.

Until its folder has been flushed, a name that was given, taken away or moved may be there as it was or as it is now,
each name for itself. Until a file has been flushed, its bytes may be there or not. So after every call there is a set
of things that a path may show after a crash, and these must hold in all of them:

1. what a path shows is whole: it was flushed before it got this name, and nobody has written into it since;
2. where a manifest can be read, every file is there that it vouches for, with the bytes it vouches for.

Temporaries (with .tmp in their path) and lock files may show anything. Writers in C++ and Rust cannot be watched, and
need not be: what they have written is looked at when it is flushed and when it gets its name.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Content:
    """A file's bytes as they were when it got a name."""

    sha256: str
    vouched: tuple[tuple[str, str], ...]  # path below the root and SHA-256 of what a manifest vouches for
    is_flushed: bool


def _is_result(path: Path) -> bool:
    return ".tmp" not in str(path) and path.suffix != ".lock"


@dataclass
class Recorder:
    """Follows every name below a root.

    Attributes:
        states: by path what it may show after a crash; the last is what it shows now, None: nothing.
        new_folders: folders whose own name may be gone after a crash.
        calls: how many calls changed or flushed something.
        violations: sentences.
    """

    root: Path
    states: dict[Path, list[Content | None]] = field(default_factory=dict)
    new_folders: set[Path] = field(default_factory=set)
    flushed: dict[int, str] = field(default_factory=dict)
    stamps: dict[Path, tuple[int, int, int]] = field(default_factory=dict)
    calls: int = 0
    violations: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """What is there is on disk."""
        for path in self._files():
            self.states[path] = [self._content(path, is_flushed=True)]
            self.stamps[path] = _stamp(path)

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file() and _is_result(path)]

    def _content(self, path: Path, is_flushed: bool) -> Content:
        content = path.read_bytes()
        vouched: tuple[tuple[str, str], ...] = ()
        if path.suffix == ".json":
            with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
                entries = json.loads(content)["files"].values()
                vouched = tuple((entry["path"], entry["sha256"]) for entry in entries)
        return Content(hashlib.sha256(content).hexdigest(), vouched, is_flushed)

    # What the program does

    def file_flushed(self, path: Path) -> None:
        """Its bytes are on disk."""
        self.flushed[path.stat().st_ino] = hashlib.sha256(path.read_bytes()).hexdigest()

    def folder_flushed(self, folder: Path) -> None:
        """The names in it are on disk."""
        for path, states in self.states.items():
            if path.parent == folder:
                del states[:-1]
        self.new_folders -= {new for new in self.new_folders if new.parent == folder}
        self._check()

    def folder_made(self, folder: Path) -> None:
        """There is a new folder."""
        self.new_folders.add(folder)

    def moved(self, source: Path, target: Path) -> None:
        """A file has been renamed."""
        is_flushed = self.flushed.get(target.stat().st_ino) == hashlib.sha256(target.read_bytes()).hexdigest()
        self._shows(target, self._content(target, is_flushed))
        self._shows(source, None)
        self._check()

    def removed(self, path: Path) -> None:
        """A file has gone."""
        self._shows(path, None)
        self._check()

    def _shows(self, path: Path, content: Content | None) -> None:
        if not _is_result(path):
            return
        self.states.setdefault(path, [None]).append(content)
        self.stamps.pop(path, None)
        if content is not None:
            self.stamps[path] = _stamp(path)

    # What must hold

    def _check(self) -> None:
        self.calls += 1
        for path, states in self.states.items():
            for content in states:
                if content is None:
                    continue
                if not content.is_flushed:
                    self._violated(f"{path} may be there without its bytes")
                for name, sha256 in content.vouched:
                    self._check_vouched(path, self.root / name, sha256)
        for path, stamp in self.stamps.items():
            if path.exists() and _stamp(path) != stamp:
                self._violated(f"{path} was written in place")

    def _check_vouched(self, manifest: Path, path: Path, sha256: str) -> None:
        if any(content is None or content.sha256 != sha256 for content in self.states.get(path, [None])):
            self._violated(f"{manifest} may be there without {path.name}, or with another one")
        # A folder that is gone takes the manifest with it if it lies there too.
        for folder in self.new_folders:
            if path.is_relative_to(folder) and not manifest.is_relative_to(folder):
                self._violated(f"{manifest} may be there without {path.name}, whose folder is not on disk")

    def _violated(self, sentence: str) -> None:
        sentence = sentence.replace(f"{self.root}/", "")
        if sentence not in self.violations:
            self.violations.append(sentence)

    def end(self) -> None:
        """Also look for files that nobody has given a name by renaming."""
        self._check()
        for path in self._files():
            if self.states.get(path, [None])[-1] is None:
                self._violated(f"{path} was written in place")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Record what this process does below a root; at the end the violations are complete."""
    recorder = Recorder(root)
    recorder.begin()
    usual = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink", "remove", "mkdir")}

    def is_ours(path: Any) -> bool:
        return Path(os.fsdecode(path)).is_relative_to(root)

    def fsync(handle: int) -> None:
        usual["fsync"](handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if is_ours(path):
            (recorder.folder_flushed if path.is_dir() else recorder.file_flushed)(path)

    def move(name: str) -> Any:
        def call(source: Any, target: Any, **options: Any) -> None:
            usual[name](source, target, **options)
            if is_ours(target):
                recorder.moved(Path(source), Path(target))

        return call

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        usual["unlink"](path, dir_fd=dir_fd)
        whole = Path(f"/proc/self/fd/{dir_fd}").readlink() / path if dir_fd is not None else Path(path)
        if is_ours(whole):
            recorder.removed(whole)

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        usual["mkdir"](path, *arguments, **options)
        if is_ours(path):
            recorder.folder_made(Path(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "rename", move("rename"))
        patch.setattr(os, "replace", move("replace"))
        patch.setattr(os, "unlink", unlink)
        patch.setattr(os, "remove", unlink)
        patch.setattr(os, "mkdir", mkdir)
        yield recorder
        recorder.end()
