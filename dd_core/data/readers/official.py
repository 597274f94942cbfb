"""Files that are opened only if they are the official ones."""

import hashlib
from pathlib import Path

from dd_core.errors import DataMissingError
from dd_core.study.datasets import DatasetRecord


def official_bytes(record: DatasetRecord, folder: Path, name: str, content: bytes | None = None) -> bytes:
    """The content of one of a data set's files.

    Args:
        record: knows the MD5 sum.
        folder: of the files.
        name: of the file.
        content: of it, where it had to be unpacked; None: what is on disk.

    Raises:
        DataMissingError: it is not there, or not the official one.
    """
    if content is None:
        try:
            content = (folder / name).read_bytes()
        except OSError:
            content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != record.files[name]:
        raise incomplete(record, folder, f"the MD5 sum of {name} is not the official one")
    return content


def incomplete(record: DatasetRecord, folder: Path, reason: str) -> DataMissingError:
    """The sentence about files that are not what they should be."""
    return DataMissingError(f"{record.name} in {folder} is incomplete or altered ({reason}); unpack it again")
