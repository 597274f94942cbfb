"""The data sets as uint8 arrays, exactly as their authors ship them; nothing is normalised or split here."""

import contextlib
import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError
from dd_core.machine.disk import flush
from dd_core.study.datasets import NUM_CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Training batches, then the test batch, with their official MD5 sums.
_CIFAR_FILES = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
}
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


def data_address() -> str:
    """Where CIFAR is looked for: ``DD_DATASETS``, else ``datasets`` below ``DD_ROOT`` (default ./data)."""
    root = os.environ.get("DD_ROOT", "data")
    return os.environ.get("DD_DATASETS") or f"{root.rstrip('/')}/datasets"


def data_folder() -> Path:
    """The folder with CIFAR on this machine: where it is looked for, or a copy of what an object store has."""
    address = data_address()
    if "://" in address:
        name = f"dd-datasets-{os.getuid()}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
        return Path(tempfile.gettempdir()) / name
    return Path(address).expanduser().absolute()


def _is_on_object_store(folder: str) -> bool:
    """Whether the data sets are on an object store, and this one among them."""
    if "://" not in data_address():
        return False
    from upath import UPath

    return bool((UPath(data_address()) / folder).is_dir())


def _fetch(folder: str) -> None:
    """Copy a data set from the object store unless it is here; seen whole or not at all."""
    from upath import UPath

    final = data_folder() / folder
    if final.is_dir():
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        copy = Path(scratch) / folder
        copy.mkdir()
        for path in (UPath(data_address()) / folder).iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
            flush(copy / path.name)
        with contextlib.suppress(OSError):  # another process was faster
            copy.rename(final)


def _download_allowed() -> bool:
    return os.environ.get("DD_DOWNLOAD", "") == "1"


def require(name: str) -> None:
    """Check, without loading it, that a data set is there or may be downloaded.

    Raises:
        DataMissingError: it is not, with what to do.
    """
    if name == "digits":
        return
    folder = _CIFAR_FOLDERS[name]
    if (data_folder() / folder).is_dir() or _download_allowed() or _is_on_object_store(folder):
        return
    raise _missing(name)


def _missing(name: str) -> DataMissingError:
    folder = _CIFAR_FOLDERS[name]
    place = data_address() if "://" in data_address() else data_folder()
    return DataMissingError(
        f"{name} is not there: looked for the folder {folder} in {place}; unpack the official Python version "
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
    """The 1,797 handwritten digits of UCI optdigits' test set, as shipped with scikit-learn.

    Its file is read without its code, whose import takes every worker a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataMissingError("digits is not there: it comes with scikit-learn, which is not installed")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    return Dataset("digits", images, rows[:, -1].astype(np.int64), len(images))


def _load_cifar(name: str) -> Dataset:
    """CIFAR as Krizhevsky ships it. Read without torchvision: Dagster's own services have no torch."""
    require(name)
    folder = data_folder() / _CIFAR_FOLDERS[name]
    if _is_on_object_store(_CIFAR_FOLDERS[name]):
        _fetch(_CIFAR_FOLDERS[name])
    elif _download_allowed() and not folder.is_dir():
        _download(name)
    rows, labels = [], []
    for file, md5 in _CIFAR_FILES[name].items():
        try:
            content = (folder / file).read_bytes()
        except OSError:
            content = b""
        # The files are pickles: nothing but the official ones is opened.
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataMissingError(
                f"{name} in {folder} is incomplete or altered (the MD5 sum of {file} is not the official one); unpack "
                "it again"
            )
        batch = pickle.loads(content, encoding="latin1")
        rows.append(batch["data"])
        labels += batch["labels" if name == "cifar10" else "fine_labels"]
    images = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # red, green and blue one by one
    return Dataset(name, images, np.asarray(labels, dtype=np.int64), len(images) - len(rows[-1]))


def _download(name: str) -> None:
    """Let torchvision fetch and unpack it."""
    from torchvision.datasets import CIFAR10, CIFAR100

    try:
        {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](data_folder(), download=True)
    except (OSError, RuntimeError) as error:
        raise DataMissingError(f"{name} could not be downloaded to {data_folder()}: {error}") from error
