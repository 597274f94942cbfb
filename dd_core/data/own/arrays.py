"""What images and labels of a user's own must be: every mistake is one sentence, and no pixel is changed silently."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dd_core.errors import DataMissingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The 5-layer CNN halves an image three times.
_SMALLEST, _LARGEST = 8, 4096
_CHANNELS = (1, 3)
_FEWEST_OF_A_CLASS = 2
# Of a multiple of 1/255 in float16, times 255; other floats lie further off, by 1/4 on average.
_ROUNDING = 0.07


def checked_images(values: Any, what: str = "images") -> "NDArray[np.uint8]":
    """Images as uint8 (N, height, width, channels).

    Args:
        values: array or tensor, (N, height, width, channels) or (N, height, width): whole numbers from 0 to 255, of an
            integer or a floating point type, or multiples of 1/255 from 0 to 1, as torchvision's ToTensor makes them
            of an image. Other numbers would have to be rounded, which is left to their owner.
        what: they are called.

    Raises:
        DataMissingError: they cannot be used.
    """
    images = _array(values, what)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise DataMissingError(
            f"{what} have the shape {np.shape(values)} instead of (N, height, width, channels) or (N, height, width)"
        )
    _, height, width, channels = images.shape
    if channels not in _CHANNELS:
        hint = f"; {what}.transpose(0, 2, 3, 1) puts the channels last" if images.shape[1] in _CHANNELS else ""
        raise DataMissingError(f"{what} have {channels} channels (shape {images.shape}) instead of 1 or 3{hint}")
    if not (_SMALLEST <= height <= _LARGEST and _SMALLEST <= width <= _LARGEST):
        raise DataMissingError(
            f"{what} are {width} pixels wide and {height} high; from {_SMALLEST} to {_LARGEST} are possible"
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind not in "biuf":
        raise DataMissingError(f"{what} are of type {images.dtype} instead of numbers")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataMissingError(f"{what} hold values that are not finite")
    lowest, highest = images.min(initial=0), images.max(initial=0)
    if lowest < 0 or highest > 255:
        raise DataMissingError(f"{what} hold values from {lowest:g} to {highest:g} instead of 0 to 255")
    scaled = images
    if images.dtype.kind == "b" or (images.dtype.kind == "f" and highest <= 1):
        scaled = images.astype(np.float32) * 255
    whole = np.rint(scaled)
    if np.abs(scaled - whole).max(initial=0) > (_ROUNDING if highest <= 1 else 0):
        raise DataMissingError(
            f"{what} hold fractions that are no multiples of 1/255, and are kept as whole numbers from 0 to 255; round "
            f"them yourself, for instance (255 * {what}).round().astype('uint8')"
        )
    return whole.astype(np.uint8)


def checked_labels(values: Any, num_images: int, what: str = "labels") -> "NDArray[np.int64]":
    """Labels as int64 (N,).

    Raises:
        DataMissingError: they cannot be used.
    """
    labels = _array(values, what)
    if labels.dtype.kind not in "biu":
        raise DataMissingError(f"{what} are of type {labels.dtype} instead of whole numbers")
    if labels.shape != (num_images,):
        raise DataMissingError(
            f"{what} have the shape {labels.shape}; for {num_images} images it must be ({num_images},)"
        )
    if labels.dtype == np.uint64:
        labels = np.minimum(labels, np.iinfo(np.int64).max)
    labels = labels.astype(np.int64)
    if labels.min(initial=0) < 0:
        raise DataMissingError(f"{what} hold {labels.min()}; they count the classes from 0")
    return labels


def num_classes_of(labels: "NDArray[np.int64]", test_labels: "NDArray[np.int64]") -> int:
    """Classes, of which each must have training images.

    Raises:
        DataMissingError: there is a gap, or a class is too small.
    """
    present, counts = np.unique(labels, return_counts=True)
    num_classes = int(present[-1]) + 1 if len(present) else 0
    if num_classes < 2:
        raise DataMissingError("labels hold fewer than 2 classes")
    if len(present) < num_classes:
        missing = next(number for number, label in enumerate(present) if number != label)
        raise DataMissingError(
            f"labels go up to {num_classes - 1}, but none is {missing}; they must count the classes from 0 on"
        )
    if counts.min() < _FEWEST_OF_A_CLASS:
        raise DataMissingError(
            f"class {int(counts.argmin())} has a single image; at least {_FEWEST_OF_A_CLASS} are needed"
        )
    if test_labels.max(initial=0) >= num_classes:
        raise DataMissingError(f"test_labels hold {test_labels.max()}, a class without training images")
    return num_classes


def _array(values: Any, what: str) -> "NDArray[Any]":
    """Arrays and tensors as an array; nothing else, since lists may be anything."""
    if type(values).__module__.partition(".")[0] == "torch":
        values = values.detach().cpu()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    if not isinstance(values, np.ndarray):
        raise DataMissingError(f"{what} are a {type(values).__name__} instead of a NumPy array or a torch tensor")
    if len(values.shape) == 0:
        raise DataMissingError(f"{what} are a single value")
    return values
