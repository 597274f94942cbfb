"""The handwritten digits that come with scikit-learn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(record: DatasetRecord, folder: Path) -> tuple["NDArray[np.uint8]", "NDArray[np.int64]", int]:
    """The 1,797 images of UCI optdigits' test set, values 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    return images, bunch.target.astype(np.int64), len(images)
