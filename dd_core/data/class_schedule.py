"""In which order the classes of a trial come, and splits that have equally many images of every class.

That every class has as many images as any other makes all trials of a stack alike in every epoch, whatever their
orders: only then can they share a network.
"""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.data.randomness import generator
from dd_core.errors import DataMissingError, UserError
from dd_core.study.classes import MOST_ORDERS, ClassSchedule, path_of_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A header and ten thousand classes; what is larger lists no classes.
_MOST_BYTES = 1 << 20


def read_orders(order: str) -> list[dict[str, Any]]:
    """Read the orders of classes from the file that a study names, or from those of trial 0, 1, ... up to the last.

    Args:
        order: absolute path, perhaps with {trial} in its name.

    Returns:
        For each file the values of ``dd_core.study.classes.FoundOrder``.

    Raises:
        UserError: the first file is not there, or one lists anything but each of its classes once.
    """
    found = [_read(Path(path_of_order(order, 0)))]
    while "{trial}" in order and len(found) < MOST_ORDERS:
        path = Path(path_of_order(order, len(found)))
        if not path.exists():
            break
        found.append(_read(path))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    try:
        classes = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a header is a piece of Python, and there is no end to what is wrong with others
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is no .npy file of whole numbers ({reason})") from error
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or not len(classes):
        raise UserError(f"{path} is not one row of whole numbers, the classes in their order")
    values, counts = np.unique(classes, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{path} lists class {values[counts > 1][0]} {counts.max()} times; each comes once")
    missing = np.setdiff1d(np.arange(len(classes)), values)
    if len(missing):
        other = np.setdiff1d(values, np.arange(len(classes)))[0]
        raise UserError(f"{path} lists {len(classes)} classes, {other} among them, but not class {missing[0]}")
    return {"sha256": hashlib.sha256(content).hexdigest(), "classes": classes.tolist()}


def class_order(schedule: ClassSchedule, seed: int, trial: int, num_classes: int) -> "NDArray[np.int64]":
    """The classes in the order in which they come, int64 (num_classes,): entry r is the class of rank r."""
    found = schedule.order_of(trial)
    if found is not None:
        return np.array(found, dtype=np.int64)
    return generator(seed, trial, "class_order").permutation(num_classes)


def balanced_splits(
    labels: "NDArray[np.int64]",
    num_official_train: int,
    shuffled: "NDArray[np.int64]",
    sizes: tuple[int, int, int],
    order: "NDArray[np.int64]",
) -> "list[NDArray[np.int64]]":
    """Training, validation and test images with equally many of each class, each split by rank of the class, then id.

    Args:
        labels: int64 (N,), of the whole data set; the official training images come first.
        num_official_train: how many these are; what follows is the official test set.
        shuffled: int64 (num_official_train,), the training images in the order in which they are handed out.
        sizes: images of each class for training, validation and test; the last from the official test set, in the
            order of the ids, or where there is none from what is left.
        order: int64 (classes,), as ``class_order`` gives it.

    Raises:
        DataMissingError: a class has fewer images.
    """
    num_train, num_validation, num_test = sizes
    official_test = np.arange(num_official_train, len(labels))
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    for label in order:
        own = shuffled[labels[shuffled] == label]
        given = np.split(own, [num_train, num_train + num_validation])
        if len(official_test):
            given[2] = official_test[labels[official_test] == label]
        given[2] = given[2][:num_test]
        if (found := tuple(map(len, given))) != sizes:
            raise DataMissingError(
                f"{num_train}, {num_validation} and {num_test} images of each class are needed for training, "
                f"validation and test, and class {label} has {found[0]}, {found[1]} and {found[2]}"
            )
        for part, ids in zip(parts, given, strict=True):
            part.append(np.sort(ids))
    return [np.concatenate(part) for part in parts]
