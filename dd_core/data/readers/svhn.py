"""SVHN in its cropped form, two files of MATLAB."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.readers.official import official_bytes
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """The training images, then the test images; the digit 0, which the files call 10, is label 0.

    Raises:
        DataMissingError: a file is not there, or not the official one.
    """
    from scipy.io import loadmat

    parts = [loadmat(io.BytesIO(official_bytes(record, folder, name))) for name in record.files]
    images = np.concatenate([part["X"].transpose(3, 0, 1, 2) for part in parts])
    labels = np.concatenate([part["y"].reshape(-1) for part in parts]).astype(np.int64) % 10
    return images, labels, parts[0]["X"].shape[3]
