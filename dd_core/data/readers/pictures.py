"""PNG and JPEG files as one array, read with Pillow. Formats are told by the files' content, and no other is opened."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_FORMATS = ("PNG", "JPEG")
_GREY_MODES = {"1", "L", "LA"}


def read_pictures(
    paths: Sequence[Path], channels: int | None = None, size: tuple[int, int] | None = None, *, resize: bool = False
) -> "NDArray[np.uint8]":
    """Images (N, height, width, channels).

    Args:
        paths: of the files, at least one.
        channels: 1 or 3; None: 1 if every file is grey, else 3.
        size: height and width that each must have; None: those of the first.
        resize: whether images of another size are brought to ``size`` (bilinear, with antialiasing).

    Raises:
        DataMissingError: a file cannot be read, or has another size.
    """
    images: NDArray[np.uint8] | None = None
    if channels is None:
        channels = 1 if all(_is_grey(path) for path in paths) else 3
    for index, path in enumerate(paths):
        picture = _opened(path, channels, size if resize else None)
        if images is None:
            size = size or picture.shape[:2]
            images = np.empty((len(paths), *size, channels), dtype=np.uint8)
        if picture.shape != images.shape[1:]:
            height, width = picture.shape[:2]
            raise DataMissingError(
                f"{path} is {width} pixels wide and {height} high, where {images.shape[2]} and {images.shape[1]} are "
                "expected; all images must have one size, or state one as resize: [height, width]"
            )
        images[index] = picture
    assert images is not None
    return images


def _is_grey(path: Path) -> bool:
    with _open(path) as image:
        return image.mode in _GREY_MODES


def _open(path: Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path, formats=_FORMATS)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _opened(path: Path, channels: int, size: tuple[int, int] | None) -> "NDArray[np.uint8]":
    from PIL import Image

    with _open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise DataMissingError(f"{path} has more than 8 bits a channel; save it with 8")
        try:
            plain = image.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:  # truncated or damaged
            raise _unreadable(path, error) from error
        if size is not None and plain.size != size[::-1]:
            plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(plain, dtype=np.uint8).reshape(*plain.size[::-1], channels)


def _unreadable(path: Path, error: Exception) -> DataMissingError:
    reason = "it is neither PNG nor JPEG" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return DataMissingError(f"{path} cannot be read as an image ({reason})")
