"""Images of a user's own from where they are, checked; see ``dd_core.study.own_data.OwnDataset`` for the sources."""

import contextlib
import importlib
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dd_core.data.own.arrays import checked_images, checked_labels, num_classes_of
from dd_core.data.readers.pictures import read_pictures
from dd_core.errors import DataMissingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARRAYS = ("images", "labels", "test_images", "test_labels")
_NO_IMAGES = {".DS_Store", "Thumbs.db", "desktop.ini"}


class OwnImages(NamedTuple):
    """Images as they are used.

    Attributes:
        images: uint8 (N, height, width, channels), test images of their own last.
        labels: int64 (N,).
        num_train: images that are not test images.
        num_classes: labels run from 0 to one less.
        class_names: names of the folders, empty for other sources.
    """

    images: "NDArray[np.uint8]"
    labels: "NDArray[np.int64]"
    num_train: int
    num_classes: int
    class_names: tuple[str, ...] = ()


def read_source(source: dict[str, Any]) -> OwnImages:
    """Read and check.

    Args:
        source: the keys of an ``OwnDataset``, without what was found.

    Raises:
        DataMissingError: it is not there, or cannot be used.
    """
    if source.get("npz"):
        return _checked(_of_npz(Path(source["npz"])))
    if source.get("folder"):
        return _of_folder(Path(source["folder"]), source.get("resize"))
    if source.get("function"):
        return _checked(_of_function(source["function"], source.get("module_folder")))
    raise DataMissingError("only metrics of these images were imported; the images themselves are not known")


def _checked(arrays: dict[str, Any]) -> OwnImages:
    images = checked_images(arrays["images"])
    labels = checked_labels(arrays["labels"], len(images))
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise DataMissingError("test_images and test_labels belong together, and one of them is missing")
    if "test_images" not in arrays:
        return OwnImages(images, labels, len(images), num_classes_of(labels, labels[:0]))
    test_images = checked_images(arrays["test_images"], "test_images")
    test_labels = checked_labels(arrays["test_labels"], len(test_images), "test_labels")
    if test_images.shape[1:] != images.shape[1:]:
        raise DataMissingError(
            f"test_images have the shape {test_images.shape[1:]} and images {images.shape[1:]}; they must be the same"
        )
    num_classes = num_classes_of(labels, test_labels)
    both = np.concatenate([images, test_images]), np.concatenate([labels, test_labels])
    return OwnImages(*both, len(images), num_classes)


def _of_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataMissingError(f"{path} holds a single array; write images and labels with np.savez_compressed")
            arrays = {name: file[name] for name in _ARRAYS if name in file.files}
            missing = [name for name in _ARRAYS[:2] if name not in arrays]
            if missing:
                has = ", ".join(file.files) or "nothing"
                raise DataMissingError(f"{path} has no array {' and '.join(missing)}; it has {has}")
            return arrays
    except FileNotFoundError:
        raise DataMissingError(f"{path} is not there") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "pickle" in str(error).lower() else str(error)
        raise DataMissingError(f"{path} cannot be read as an npz file of arrays ({reason})") from error


def _of_folder(folder: Path, resize: list[int] | None) -> OwnImages:
    if not folder.is_dir():
        raise DataMissingError(f"{folder} is not there" if not folder.exists() else f"{folder} is not a folder")
    parts = [folder / "train", folder / "test"] if (folder / "train").is_dir() else [folder]
    classes: list[str] = []
    paths, labels, num_train = [], [], 0
    for part in parts:
        if not part.is_dir():
            continue
        own = [path.name for path in _entries(part) if path.is_dir()]
        stray = [path.name for path in _entries(part) if not path.is_dir()]
        if stray:
            raise DataMissingError(f"{part / stray[0]} lies outside of the folders of classes")
        classes = classes or own
        strange = sorted(set(own) - set(classes))
        if strange:
            raise DataMissingError(f"{part / strange[0]} is a class that {parts[0]} does not have")
        for name in own:
            files = _entries(part / name)
            paths += files
            labels += [classes.index(name)] * len(files)
            if not files:
                raise DataMissingError(f"{part / name} has no images")
        num_train = num_train or len(paths)
    if not paths:
        raise DataMissingError(f"{folder} has no folders of images, one for each class")
    read = read_pictures(paths, size=(resize[0], resize[1]) if resize else None, resize=resize is not None)
    images, all_labels = checked_images(read), np.array(labels, dtype=np.int64)
    num_classes = num_classes_of(all_labels[:num_train], all_labels[num_train:])
    return OwnImages(images, all_labels, num_train, num_classes, tuple(classes))


def _entries(folder: Path) -> list[Path]:
    """What is in a folder by name, but for files that systems leave in every folder."""
    return sorted(path for path in folder.iterdir() if path.name not in _NO_IMAGES and not path.name.startswith("."))


def _of_function(target: str, module_folder: str | None) -> dict[str, Any]:
    """Call a function of the user's own."""
    module, _, name = target.partition(":")
    with _importable_from(module_folder):
        try:
            function = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name != module.partition(".")[0] and error.name != module:
                raise DataMissingError(f"{target}: {module} cannot be imported ({error})") from error
            raise DataMissingError(
                f"{target}: there is no module {module} in {module_folder} or on the PYTHONPATH"
            ) from error
        except Exception as error:  # the user's code may raise anything
            raise DataMissingError(f"{target}: {module} cannot be imported ({_told(error)})") from error
        if not callable(function):
            raise DataMissingError(f"{target}: there is no function {name} in {module}")
        try:
            returned = function()
        except Exception as error:
            raise DataMissingError(f"{target} failed ({_told(error)})") from error
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 4):
        raise DataMissingError(
            f"{target} must return images and labels, or images, labels, test_images and test_labels, and returned "
            + (f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}")
        )
    return dict(zip(_ARRAYS, returned, strict=False))


@contextlib.contextmanager
def _importable_from(folder: str | None) -> Iterator[None]:
    """Let Python look for modules there first, as it does for a script's neighbours."""
    if folder is None:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _told(error: Exception) -> str:
    """An exception, and the last line of the user's code that it passed."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.parent != Path(__file__).parent and "importlib" not in str(path):
            place = place or f", {path.name} line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
