"""Whole files, read and written so that nobody ever meets a part of one, in a folder or on an object store.

In a folder a file is written in a hidden folder beside its place, flushed to disk, renamed, and the folder of its name
flushed too: what comes after it, a manifest for instance, is never on disk without it, even after a power cut. On an
object store it is written to this machine's temporary folder, then put in one request, or in parts that the last
request makes one object. Nothing below the data root is written past ``write_atomically`` and ``put_in_place``.
"""

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dd_core.errors import StoreError
from dd_core.machine.disk import flush

# As safetensors itself allows.
_LARGEST_HEADER = 100_000_000
_USUAL_HEADER = 64 * 1024  # bytes that one request may as well fetch
# No write takes so long: older temporaries of a file that is written without a lock are left by a killed process.
_LONGEST_WRITE_SECONDS = 3600.0
# How much of a file's name its temporary bears; names may be as long as the operating system allows.
_NAME_LENGTH = 60


def is_object(path: Path) -> bool:
    """Whether a path leads to an object store; it is then a ``UPath``, which does what a ``Path`` does."""
    return not isinstance(path, Path)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; of an object, that which was noted when it was put, if it was."""
    if is_object(path):
        from dd_core.store import objects

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
        from dd_core.store import objects

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
    from dd_core.store import objects

    return objects.download(path)


def tensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without its tensors: the start of the file is enough.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the object store does not answer.
        ValueError: it is no safetensors file.
    """
    # https://huggingface.co/docs/safetensors: the header's length as a little-endian 64-bit number, the header as JSON.
    start = _read_part(path, 0, _USUAL_HEADER)
    end = 8 + min(int.from_bytes(start[:8], "little"), _LARGEST_HEADER)
    if end > _USUAL_HEADER:
        start += _read_part(path, _USUAL_HEADER, end - _USUAL_HEADER)
    header = json.loads(start[8:end])
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
        from dd_core.store import objects

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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file of this machine, and make it ``path`` when it is whole.

    Readers see the old file or the new one, never a part, and after a power cut too. The file may be read and written
    by whom the umask allows. A process killed in between leaves only a hidden folder beside ``path``, with whatever the
    writer had put beside its file, or, where ``path`` is an object, a file in this machine's temporary folder.

    Raises:
        StoreError: the disk is full, the folder cannot be written, or the object store fails.
    """
    if is_object(path):
        _write_object(path, write)
        return
    with readable_errors(path):
        make_folder(path.parent)
        with _aside(path) as temporary:
            mode = temporary.stat().st_mode
            write(temporary)
            # Some writers replace the file instead of filling the open one, by one for its owner's eyes alone.
            temporary.chmod(mode)
            flush(temporary)
            put_in_place(temporary, path)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """An empty file on the same file system as ``path``, in a folder that is removed afterwards."""
    remove_leftovers(path.parent, path.name, _LONGEST_WRITE_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:_NAME_LENGTH]}.", suffix=".tmp", dir=path.parent))
    try:
        temporary = folder / "content"
        temporary.touch()
        yield temporary
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files in a folder, and in the folders in it, whose names match, while others write there.

    ``Path.glob("**")`` goes into the hidden folder of a writer, and fails when that is removed meanwhile.
    """
    if is_object(folder):
        yield from folder.glob(f"**/{pattern}")
        return
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in fnmatch.filter(names, pattern))


def put_in_place(written: Path, path: Path) -> None:
    """Give a flushed file of the same file system its final name; once this returns, it stays there."""
    written.replace(path)
    flush(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that stay there as what is written in them."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def remove(*paths: Path) -> None:
    """Remove files that may be there; once this returns they stay away.

    Manifests go like that, before the files they vouch for are removed or written anew.
    """
    folders = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            folders.add(path.parent)
    for folder in folders:
        if not is_object(folder):
            flush(folder)


def remove_leftovers(folder: Path, name: str = "", older_than: float = 0.0) -> None:
    """Remove what killed writers have left in a folder of this machine, of any file or of those whose name begins so.

    Call it while holding the lock of what lies there, or for what is ``older_than`` any write takes, in seconds.
    Earlier versions left files, and safetensors and DuckDB beside them ``.tmp0a1b2c`` and ``.name.0a1b.tmp.wal``.
    """
    beginning = f".{name[:_NAME_LENGTH]}"
    try:
        found = [path for path in folder.iterdir() if path.name.startswith(beginning) and ".tmp" in path.name]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in found:
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - path.lstat().st_mtime >= older_than:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def check_writable(folder: Path) -> None:
    """Write a small file, and leave nothing of it.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    if is_object(folder):
        # Pods that are alike have equal process ids, and their hosts may have equal names.
        probe = folder / f".writable-{socket.gethostname()}-{uuid.uuid4().hex}"
        write_text(probe, "")
        probe.unlink(missing_ok=True)
        return
    with readable_errors(folder):
        make_folder(folder)
        with _aside(folder / ".writable") as probe:
            probe.write_bytes(b"written")


def _write_object(path: Path, write: Callable[[Path], object]) -> None:
    from dd_core.store import objects

    with readable_errors(path), tempfile.TemporaryDirectory(prefix="dd-") as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        write(temporary)
        objects.put(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically; equal contents give equal bytes."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
