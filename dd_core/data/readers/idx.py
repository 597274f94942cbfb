"""The idx files of MNIST and its successors, packed with gzip or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.readers.official import incomplete, official_bytes
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UINT8 = 8  # the code of the type of values


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """Training images and labels, test images and labels: the record's files in this order.

    Raises:
        DataMissingError: a file is not there, or not the official one.
    """
    arrays = [_array(record, folder, name) for name in record.files]
    images = np.concatenate([arrays[0], arrays[2]])[..., None]
    return images, np.concatenate([arrays[1], arrays[3]]).astype(np.int64), len(arrays[0])


def _array(record: DatasetRecord, folder: Path, name: str) -> "NDArray[np.uint8]":
    content = None
    if not (folder / name).is_file():
        try:
            content = gzip.decompress((folder / f"{name}.gz").read_bytes())
        except (OSError, EOFError, zlib.error):
            content = b""
    content = official_bytes(record, folder, name, content)
    zero, kind, num_axes = struct.unpack_from(">HBB", content)
    shape = struct.unpack_from(f">{num_axes}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes)
    if zero or kind != _UINT8 or len(values) != math.prod(shape):
        raise incomplete(record, folder, f"{name} does not hold what its head says")
    return values.reshape(shape)
