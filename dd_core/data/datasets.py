"""The data sets as uint8 arrays, exactly as their authors ship them; nothing is normalised or split here."""

import contextlib
import hashlib
import importlib
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError
from dd_core.machine.disk import flush
from dd_core.study.datasets import DATASETS, DatasetRecord
from dd_core.study.graphs import GENERATOR_VERSION
from dd_core.study.own_data import OwnDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath


@dataclass(frozen=True)
class Dataset:
    """All images of a data set.

    Attributes:
        name: as in a study file, or a short name of images of the user's own.
        images: uint8, (N, height, width, channels), values from 0 to the record's ``highest``. ``image_id`` is the row:
            official training images come first, then official test images.
        labels: int64, (N,).
        num_official_train: rows before the official test set; N where there is none.
        num_classes: labels run from 0 to one less.
    """

    name: str
    images: "NDArray[np.uint8]"
    labels: "NDArray[np.int64]"
    num_official_train: int
    num_classes: int

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the images and labels, kept in every manifest."""
        return digest(self.images, self.labels)


def digest(images: "NDArray[np.uint8]", labels: "NDArray[np.int64]") -> str:
    """SHA-256 of the bytes of images, uint8, and labels, int64."""
    result = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    result.update(labels.astype("<i8").tobytes())
    return result.hexdigest()


def fingerprint(dataset: str | OwnDataset) -> str:
    """What ``load(dataset).sha256`` is; images of the user's own were looked at when their study was read.

    Graphs are a function of the recipe and of the version of what makes them.
    """
    if isinstance(dataset, str) and dataset in DATASETS and not DATASETS[dataset].has_images:
        return hashlib.sha256(f"{dataset} {GENERATOR_VERSION}".encode()).hexdigest()
    return dataset.found.sha256 if isinstance(dataset, OwnDataset) else load(dataset).sha256


def data_address() -> str:
    """Where data sets are looked for: ``DD_DATASETS``, else ``datasets`` below ``DD_ROOT`` (default ./data)."""
    root = os.environ.get("DD_ROOT", "data")
    return os.environ.get("DD_DATASETS") or f"{root.rstrip('/')}/datasets"


def data_folder() -> Path:
    """The folder with data sets on this machine: where it is looked for, or a copy of what an object store has."""
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
        copy = Path(scratch) / final.name
        _copy(UPath(data_address()) / folder, copy)
        with contextlib.suppress(OSError):  # another process was faster
            copy.rename(final)


def _copy(source: "UPath", target: Path) -> None:
    """Copy a folder with all that is in it."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
            flush(target / path.name)


def _may_be_downloaded(record: DatasetRecord) -> bool:
    return bool(record.torchvision) and os.environ.get("DD_DOWNLOAD", "") == "1"


def require(dataset: str | OwnDataset) -> None:
    """Check, without loading it, that a data set is there or may be downloaded.

    Raises:
        DataMissingError: it is not, with what to do.
    """
    if isinstance(dataset, OwnDataset):
        path = dataset.npz or dataset.folder
        if path and not Path(path).exists():
            raise DataMissingError(f"data.dataset: {path} is not there; every machine that computes must see it")
        return
    record = DATASETS[dataset]
    if not record.folder or (data_folder() / record.folder).is_dir():
        return
    if not _may_be_downloaded(record) and not _is_on_object_store(record.folder):
        raise _missing(record)


def _missing(record: DatasetRecord) -> DataMissingError:
    place = data_address() if "://" in data_address() else data_folder()
    download = ", or set DD_DOWNLOAD=1 to let torchvision download it" if record.torchvision else ""
    return DataMissingError(
        f"{record.name} is not there: looked for the folder {record.folder} in {place}; unpack {record.source} there"
        f"{',' if download else ' or'} point DD_DATASETS to the folder that has it{download}"
    )


@lru_cache(maxsize=2)
def load(dataset: str | OwnDataset) -> Dataset:
    """Load a data set into memory.

    Raises:
        DataMissingError: its files are not there, or not the official ones, or not those that the study was read with;
            or its examples are no images.
    """
    require(dataset)
    if isinstance(dataset, str) and not DATASETS[dataset].has_images:
        raise DataMissingError(f"{dataset} is made of graphs, a domain for every variant; there are no images of it")
    if isinstance(dataset, OwnDataset):
        return _load_own(dataset)
    record = DATASETS[dataset]
    folder = data_folder() / record.folder
    if record.folder and _is_on_object_store(record.folder):
        _fetch(record.folder)
    elif record.folder and not folder.is_dir():
        _download(record)
    module, _, function = record.reader.partition(":")
    images, labels, num_train = getattr(importlib.import_module(module), function)(record, folder)
    return Dataset(record.name, images, labels, num_train, record.num_classes)


def _load_own(dataset: OwnDataset) -> Dataset:
    from dd_core.data.own.sources import read_source

    try:
        own = read_source(dataset.model_dump(exclude={"found", "class_names"}))
    except DataMissingError as error:
        raise DataMissingError(f"data.dataset: {error}") from error
    loaded = Dataset(dataset.title, own.images, own.labels, own.num_train, own.num_classes)
    found, shape = dataset.found, own.images.shape[1:]
    if (loaded.sha256, own.num_train, shape) != (found.sha256, found.num_train, found.image_shape):
        raise DataMissingError(
            f"data.dataset: {dataset.source} has other images or labels than when the study file was read; if they "
            "were changed meanwhile, run the same command again (in the UI, reload the definitions first), else make "
            "them the same each time and on each machine"
        )
    return loaded


def _download(record: DatasetRecord) -> None:
    """Let torchvision fetch and unpack it."""
    import torchvision.datasets

    folder = data_folder() / record.download_folder
    try:
        for options in record.download_options:
            getattr(torchvision.datasets, record.torchvision)(folder, download=True, **options)
    except (OSError, RuntimeError) as error:
        raise DataMissingError(f"{record.name} could not be downloaded to {data_folder()}: {error}") from error
