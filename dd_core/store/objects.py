"""The data root on an object store: S3, or what else fsspec knows how to reach.

An object becomes visible when the request that puts it, or that completes its parts, has been answered; before that
there is nothing. With every object on S3 its SHA-256 is noted as metadata, which is lost when somebody else overwrites
it: so that an object is what was put can be asked without downloading it, and is asked again of what is downloaded.
"""

import atexit
import hashlib
import importlib
import os
import posixpath
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dd_core.errors import StaleError, StoreError
from dd_core.store import leases

# Of scheme, what has to be installed for it.
_SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
# Listings are never remembered, because other machines write as well.
_OPTIONS = {"use_listings_cache": False}
# Downloads are kept until they are together larger than this, so that a checkpoint is not loaded twice for one task.
_KEPT_BYTES = 2 << 30
# What is larger than twice that is put in parts.
_PART_BYTES = 50 << 20
# Below so many files it is cheaper to ask for each than to list their folder.
_FEW = 8


def root_at(address: str) -> Path:
    """The folder that an address like ``s3://bucket/prefix`` stands for; asks nothing of the store yet.

    Raises:
        StoreError: no such scheme, no bucket, a character that means something else in patterns.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in _SCHEMES:
        raise StoreError(f"the data root must be a folder or an address like s3://bucket/prefix, not {address}")
    if not rest.strip("/"):
        raise StoreError(f"the data root {address} names no bucket; set DD_ROOT to an address like s3://bucket/prefix")
    if set(rest) & set("*?[]{}#%\\") or "//" in rest.rstrip("/") or not rest.isprintable():
        raise StoreError(f"the data root {address} may not have a * ? [ ] {{ }} # % \\ or // in it; choose another")
    try:
        importlib.import_module(_SCHEMES[scheme])
    except ImportError as error:
        raise StoreError(f"{scheme}:// needs the package {_SCHEMES[scheme]}: pip install {_SCHEMES[scheme]}") from error
    from upath import UPath

    options: dict[str, Any] = dict(_OPTIONS)
    if scheme == "s3":
        from dd_core.store import s3

        s3.register()
        options |= s3.options()
    return cast(Path, UPath(address.rstrip("/"), **options))


@dataclass(frozen=True)
class Look:
    """What a store says of an object.

    Attributes:
        size: bytes.
        version: changes whenever the object is put again.
        noted_sha256: of what was put by us, if it was.
    """

    path: Any
    size: int
    version: str
    noted_sha256: str | None

    @property
    def sha256(self) -> str:
        """As noted, else of what is downloaded."""
        return self.noted_sha256 or _downloads.of(self)[1]


def look(path: Any) -> Look:
    """Ask for an object.

    Raises:
        FileNotFoundError: there is none.
        StoreError: the store does not answer.
    """
    if path.protocol == "s3":
        bucket, key, _ = path.fs.split_path(path.path)
        head = path.fs.call_s3("head_object", Bucket=bucket, Key=key)
        return Look(path, head["ContentLength"], head["ETag"], head["Metadata"].get("sha256"))
    info = path.fs.info(path.path)
    if info["type"] != "file":
        raise FileNotFoundError(str(path))
    return Look(path, info["size"], str(sorted((name, str(value)) for name, value in info.items())), None)


def put(file: Path, path: Any) -> None:
    """Make a whole file of this machine an object.

    Raises:
        StoreError: the store fails, or a lock that is held here has been lost; there is then no new object.
    """
    leases.check_held()
    extra: dict[str, Any] = {}
    if path.protocol == "s3":
        with file.open("rb") as opened:
            extra["Metadata"] = {"sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
        extra["chunksize"] = _PART_BYTES
    path.fs.put_file(str(file), path.path, **extra)


def download(path: Any) -> Path:
    """A file with the bytes of an object, kept for a while; as ``files.local_copy``."""
    return _downloads.of(look(path))[0]


class _Downloads:
    """Files downloaded by this process, the oldest of which give way to new ones."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[str, str], tuple[Path, str, int]] = OrderedDict()
        self._mutex = threading.Lock()
        self._folder: str | None = None

    def of(self, found: Look) -> tuple[Path, str]:
        """The file and its SHA-256.

        Raises:
            FileNotFoundError: the object has gone.
            StaleError: its bytes are not those that were put.
        """
        with self._mutex:
            for _ in range(3):
                key = (str(found.path), found.version)
                if key not in self._files:
                    file, sha256 = self._get(found)
                    if sha256 != (found.noted_sha256 or sha256):
                        file.unlink()
                        newer = look(found.path)
                        if newer.version != found.version:  # put again between the two requests
                            found = newer
                            continue
                        raise StaleError(f"{found.path} is damaged: its SHA-256 differs from that noted with it")
                    self._files[key] = (file, sha256, file.stat().st_size)
                self._files.move_to_end(key)
                self._forget_oldest()
                return self._files[key][:2]
        raise StoreError(f"{found.path} is written again and again while it is read; try again later")

    def _get(self, found: Look) -> tuple[Path, str]:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="dd-downloads-")
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        handle, name = tempfile.mkstemp(suffix=f"-{found.path.name}", dir=self._folder)
        os.close(handle)
        file = Path(name)
        try:
            found.path.fs.get_file(found.path.path, name)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        with file.open("rb") as opened:
            return file, hashlib.file_digest(opened, "sha256").hexdigest()

    def _forget_oldest(self) -> None:
        while len(self._files) > 1 and sum(size for *_, size in self._files.values()) > _KEPT_BYTES:
            _, (file, *_) = self._files.popitem(last=False)
            file.unlink(missing_ok=True)


_downloads = _Downloads()


def read_all(paths: Sequence[Any]) -> list[bytes | None]:
    """The bytes of small objects, many requests at a time; None for one that is not there.

    Raises:
        StoreError: the store does not answer.
    """
    fs, wanted = paths[0].fs, [path.path for path in paths]
    if len(wanted) > _FEW:
        there = set(fs.find(posixpath.commonpath(posixpath.dirname(path) for path in wanted)))
        wanted = [path for path in wanted if path in there]
    # Whole, because asking for parts would mean to ask for the size first.
    found = fs.cat(wanted, on_error="return", max_concurrency=1) if wanted else {}
    for content in found.values():
        if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
            raise content
    contents = (found.get(path.path) for path in paths)
    return [content if isinstance(content, bytes) else None for content in contents]


def move(source: Any, target: Any) -> bool:
    """Copy all objects below one folder to another, then remove them, those that end in ``.json`` last.

    A process killed in between leaves every object in at least one of the two; calling again completes it.

    Returns:
        Whether there were any.
    """
    fs = source.fs
    names = sorted(set(fs.find(source.path)) - {source.path}, key=lambda name: (name.endswith(".json"), name))
    leases.check_held()
    for name in names:
        fs.cp_file(name, target.path + name.removeprefix(source.path))
    for is_manifest in (False, True):
        if chosen := [name for name in names if name.endswith(".json") == is_manifest]:
            fs.rm(chosen)
    return bool(names)
