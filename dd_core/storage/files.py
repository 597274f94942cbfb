"""Whole files, read and written so that nobody ever meets a part of one, in a folder or on an object store.

In a folder a file is written under a temporary name, flushed to disk, then renamed. On an object store it is written to
this machine's temporary folder, then put in one request, or in parts that the last request makes one object.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dd_core.errors import StoreError

# As safetensors itself allows.
_LARGEST_HEADER = 100_000_000


def is_object(path: Path) -> bool:
    """Whether a path leads to an object store; it is then a ``UPath``, which does what a ``Path`` does."""
    return not isinstance(path, Path)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; of an object, that which was noted when it was put, if it was."""
    if is_object(path):
        from dd_core.storage import objects

        return objects.look(path).sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=100_000)
def _sha256_unless_changed(path: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of a file, computed once per process for as long as the file's size and time stay the same."""
    return sha256_of(path)


def size_and_sha256(path: Path) -> tuple[int, Callable[[], str]] | None:
    """Size in bytes of a file and how to find its SHA-256, or None if there is no such file."""
    if is_object(path):
        from dd_core.storage import objects

        try:
            found = objects.look(path)
        except FileNotFoundError:
            return None
        return found.size, lambda: found.sha256
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, lambda: _sha256_unless_changed(path, status.st_size, status.st_mtime_ns)


def local_copy(path: Path) -> Path:
    """A file of this machine with the bytes of ``path``: itself, or what was downloaded; only for reading, and soon.

    Raises:
        FileNotFoundError: there is no such object.
        StaleError: the object is not what was put.
        StoreError: the object store does not answer.
    """
    if not is_object(path):
        return path
    from dd_core.storage import objects

    return objects.download(path)


def tensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without its tensors: the start of the file is enough.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the object store does not answer.
        ValueError: it is no safetensors file.
    """
    # https://huggingface.co/docs/safetensors: the header's length as a little-endian 64-bit number, the header as JSON.
    length = int.from_bytes(_read_part(path, 0, 8), "little")
    header = json.loads(_read_part(path, 8, min(length, _LARGEST_HEADER)))
    return dict(header.get("__metadata__", {})) if isinstance(header, dict) else {}


def _read_part(path: Path, start: int, length: int) -> bytes:
    if is_object(path):
        place: Any = path
        return bytes(place.fs.cat_file(place.path, start=start, end=start + length))
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def read_all(paths: Sequence[Path]) -> list[bytes | None]:
    """The bytes of small files, None for one that is not there; from an object store many at a time.

    Raises:
        OSError: the operating system does not let us read one.
        StoreError: the object store does not answer.
    """
    if paths and is_object(paths[0]):
        from dd_core.storage import objects

        return objects.read_all(paths)
    contents: list[bytes | None] = []
    for path in paths:
        try:
            contents.append(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            contents.append(None)
    return contents


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full: {path} was not written, and nothing half-written was left; free some space and "
                "run the same command again"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}; check the data root (DD_ROOT)") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file of this machine, and make it ``path`` when it is whole.

    Readers see the old file or the new one, never a part. A process killed in between leaves only a hidden temporary
    beside ``path``, or, where that is an object, a file in this machine's temporary folder.

    Raises:
        StoreError: the disk is full, the folder cannot be written, or the object store fails.
    """
    if is_object(path):
        _write_object(path, write)
        return
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            os.fchmod(handle, 0o644)
            write(temporary)
            # Some writers replace the file instead of filling the open one: flush what is there under the name now.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


def _write_object(path: Path, write: Callable[[Path], None]) -> None:
    from dd_core.storage import objects

    with readable_errors(path), tempfile.TemporaryDirectory(prefix="dd-") as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        write(temporary)
        objects.put(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically and flush its folder, so that the renames before it are on disk as well."""
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(path, lambda temporary: _write_text(temporary, text))
    if is_object(path):
        return
    with readable_errors(path):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
