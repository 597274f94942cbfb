"""The data sets as uint8 arrays, exactly as their authors ship them; nothing is normalised or split here."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
IMAGE_SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}
NUM_TRAIN = {"digits": 1797, "cifar10": 50_000, "cifar100": 50_000}
_CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@dataclass(frozen=True)
class Dataset:
    """All images of a data set.

    Attributes:
        name: as in a study file.
        images: uint8, (N, height, width, channels). digits: values 0 to 16; CIFAR: 0 to 255. ``image_id`` is the row:
            for CIFAR the official training images come first, then the official test images.
        labels: int64, (N,).
        num_official_train: rows before the official test set; N for digits, which has none.
    """

    name: str
    images: "NDArray[np.uint8]"
    labels: "NDArray[np.int64]"
    num_official_train: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return NUM_CLASSES[self.name]

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the images and labels, kept in every manifest."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def data_folder() -> Path:
    """Where CIFAR is looked for: ``DD_DATASETS``, else ``datasets`` below ``DD_ROOT`` (default ./data)."""
    root = Path(os.environ.get("DD_ROOT", "data"))
    return Path(os.environ.get("DD_DATASETS") or root / "datasets").expanduser().absolute()


def _download_allowed() -> bool:
    return os.environ.get("DD_DOWNLOAD", "") == "1"


def require(name: str) -> None:
    """Check, without loading it, that a data set is there or may be downloaded.

    Raises:
        DataMissingError: it is not, with what to do.
    """
    if name == "digits" or (data_folder() / _CIFAR_FOLDERS[name]).is_dir() or _download_allowed():
        return
    raise _missing(name)


def _missing(name: str) -> DataMissingError:
    folder = _CIFAR_FOLDERS[name]
    return DataMissingError(
        f"{name} is not there: looked for the folder {folder} in {data_folder()}; unpack the official Python version "
        f"of {name} there, point DD_DATASETS to the folder that has it, or set DD_DOWNLOAD=1 to let torchvision "
        "download it"
    )


@lru_cache(maxsize=2)
def load(name: str) -> Dataset:
    """Load a data set into memory.

    Raises:
        DataMissingError: its files are not there, or not the official ones.
    """
    return _load_digits() if name == "digits" else _load_cifar(name)


def _load_digits() -> Dataset:
    """The 1,797 handwritten digits of UCI optdigits' test set, as shipped with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    return Dataset("digits", images, bunch.target.astype(np.int64), len(images))


def _load_cifar(name: str) -> Dataset:
    """CIFAR through torchvision, which checks the official MD5 sums before it opens the (pickled) files."""
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    require(name)
    try:
        parts = [source(data_folder(), train=train, download=_download_allowed()) for train in (True, False)]
    except RuntimeError as error:
        raise DataMissingError(
            f"{name} in {data_folder() / _CIFAR_FOLDERS[name]} is incomplete or altered (its MD5 sums are not the "
            "official ones); unpack it again"
        ) from error
    except OSError as error:
        raise DataMissingError(f"{name} could not be downloaded to {data_folder()}: {error}") from error
    images = np.concatenate([part.data for part in parts])
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    return Dataset(name, images, labels, len(parts[0].data))
