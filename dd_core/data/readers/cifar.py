"""CIFAR in Krizhevsky's Python version. Read without torchvision: Dagster's own services have no torch."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.readers.official import official_bytes
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """The training batches, then the test batch, which is the last of the record's files.

    Raises:
        DataMissingError: a file is not there, or not the official one.
    """
    rows, labels = [], []
    for file in record.files:
        # The files are pickles: nothing but the official ones is opened.
        batch = pickle.loads(official_bytes(record, folder, file), encoding="latin1")
        rows.append(batch["data"])
        labels += batch["labels" if "labels" in batch else "fine_labels"]
    images = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # red, green and blue one by one
    return images, np.asarray(labels, dtype=np.int64), len(images) - len(rows[-1])
