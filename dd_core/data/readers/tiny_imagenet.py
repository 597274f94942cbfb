"""Tiny ImageNet in its own folders: JPEG files, the labels of its validation images in a text file.

Its test images have no public labels, so the validation images are the test set, as everywhere.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.data.readers.official import incomplete
from dd_core.data.readers.pictures import read_pictures
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """Training images class by class, classes and files sorted by name, then validation images sorted by name.

    Raises:
        DataMissingError: files are missing or damaged.
    """
    try:
        classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
        train = [
            (path, n)
            for n, name in enumerate(classes)
            for path in sorted((folder / "train" / name / "images").iterdir())
        ]
        lines = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        pairs = sorted(line.split("\t")[:2] for line in lines if line)
        test = [(folder / "val" / "images" / file, classes.index(name)) for file, name in pairs]
    except (OSError, ValueError) as error:
        raise incomplete(record, folder, str(error)) from error
    found, expected = (len(classes), len(train), len(test)), (record.num_classes, record.num_train, record.num_test)
    if found != expected:
        counts = "{:,} classes, {:,} training and {:,} validation images"
        raise incomplete(record, folder, f"{counts.format(*found)} instead of {counts.format(*expected)}")
    height, width, channels = record.image_shape
    images = read_pictures([path for path, _ in (*train, *test)], channels, (height, width))
    return images, np.array([label for _, label in (*train, *test)], dtype=np.int64), len(train)
