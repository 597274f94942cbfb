"""The handwritten digits that come with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError
from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """The 1,797 images of UCI optdigits' test set, values 0 to 16.

    Their file is read without scikit-learn's code, whose import takes every worker a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataMissingError("digits is not there: it comes with scikit-learn, which is not installed")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, rows[:, -1].astype(np.int64), len(images)
