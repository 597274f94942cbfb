"""Copies among the training images, and the one function that says which pixels an image of a trial has.

Images that look alike, and bear the same label, need not be memorised one by one; how a score treats them is a test of
it. Whoever looks at pixels of a trial's images asks ``pixels_of``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import DataMissingError
from dd_core.study.recipe import Duplicates

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of near copies: the largest shift, pixels, and the largest change of a raw value beside it, share of the highest.
_LARGEST_SHIFT = 2
_LARGEST_CHANGE = 0.02


@dataclass(frozen=True)
class Copies:
    """Images of a trial that have been given the pixels and the label of another image of their class.

    Attributes:
        ids: int64 (C,), the images that are copies; the exact ones first.
        sources: int64 (C,), whose.
        near: uint8 (number of near copies, height, width, channels), the pixels of the last of ``ids``.
    """

    ids: "NDArray[np.int64]"
    sources: "NDArray[np.int64]"
    near: "NDArray[np.uint8]"

    @property
    def num_exact(self) -> int:
        """Copies pixel by pixel."""
        return len(self.ids) - len(self.near)

    def source_of(self, ids: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """For every image whose pixels it has, -1 for its own; int64 (N,)."""
        return _looked_up(ids, self.ids, self.sources)

    def kind_of(self, ids: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """0 for every image that has a copy or is one, exactly; 1 for nearly; -1 for neither; int64 (N,)."""
        kinds = np.repeat([0, 1], [self.num_exact, len(self.near)])
        return _looked_up(ids, np.concatenate([self.ids, self.sources]), np.tile(kinds, 2))


def _looked_up(ids: "NDArray[np.int64]", keys: "NDArray[np.int64]", values: "NDArray[np.int64]") -> "NDArray[np.int64]":
    known = np.full(max(ids.max(initial=0), keys.max(initial=0)) + 1, -1)
    known[keys] = values
    return known[ids]


def draw_copies(
    duplicates: Duplicates,
    images: "NDArray[np.uint8]",
    labels: "NDArray[np.int64]",
    ids: "NDArray[np.int64]",
    highest: int,
    random: np.random.Generator,
) -> Copies:
    """Draw pairs of images of a class, each image in one pair at most, of which one becomes a copy of the other.

    That both are of one class leaves every class as many images as before.

    Args:
        duplicates: how many of each kind.
        images: uint8 (N, height, width, channels), the whole data set.
        labels: int64 (N,), true labels of the whole data set.
        ids: int64 (M,), the images that may be copied and replaced.
        highest: largest raw value.
        random: where they are drawn from.

    Raises:
        DataMissingError: there are not so many pairs.
    """
    number = duplicates.exact + duplicates.near
    waiting: dict[int, int] = {}
    pairs: list[tuple[int, int]] = []
    for image in random.permutation(ids).tolist():
        label = int(labels[image])
        if label in waiting:
            pairs.append((image, waiting.pop(label)))
        else:
            waiting[label] = image
    if len(pairs) < number:
        raise DataMissingError(
            f"data.duplicates: {number} copies need as many pairs of images of one class, and {len(ids)} training "
            f"images have {len(pairs)}"
        )
    copies, sources = np.array(pairs[:number], dtype=np.int64).reshape(-1, 2).T
    near = [_nearly(images[source], highest, random) for source in sources[duplicates.exact :]]
    return Copies(copies, sources, np.array(near, dtype=np.uint8).reshape(-1, *images.shape[1:]))


def _nearly(image: "NDArray[np.uint8]", highest: int, random: np.random.Generator) -> "NDArray[np.uint8]":
    """An image moved by one or two pixels in one or both directions, with the background following, and noise on it."""
    size = _LARGEST_SHIFT
    moves = [(y, x) for y in range(-size, size + 1) for x in range(-size, size + 1) if (y, x) != (0, 0)]
    y, x = moves[random.integers(len(moves))]
    padded = np.pad(image, ((size, size), (size, size), (0, 0)))
    height, width = image.shape[:2]
    moved = padded[size + y : size + y + height, size + x : size + x + width].astype(np.int64)
    most = max(1, round(_LARGEST_CHANGE * highest))
    return np.clip(moved + random.integers(-most, most + 1, moved.shape), 0, highest).astype(np.uint8)


def pixels_of(
    images: "NDArray[np.uint8]", copies: Sequence[Copies | None], ids: "Sequence[NDArray[np.int64]]"
) -> "tuple[NDArray[np.uint8], list[NDArray[np.int64]]]":
    """Where the pixels of some trials' images are.

    Args:
        images: uint8 (N, height, width, channels), the whole data set.
        copies: of each trial; None: there are none.
        ids: of each trial the images asked for.

    Returns:
        Images, uint8 (M, height, width, channels), these and what else there is; and for each trial the rows in them of
        the images asked for.
    """
    rows, further = [], [images]
    for own, wanted in zip(copies, ids, strict=True):
        if own is None:
            rows.append(wanted)
            continue
        where = np.arange(len(images))
        where[own.ids] = own.sources
        where[own.ids[own.num_exact :]] = sum(map(len, further)) + np.arange(len(own.near))
        rows.append(where[wanted])
        further.append(own.near)
    return images if sum(map(len, further)) == len(images) else np.concatenate(further), rows


def images_of(images: "NDArray[np.uint8]", copies: Copies | None, ids: "NDArray[np.int64]") -> "NDArray[np.uint8]":
    """One trial's images, as ``pixels_of`` finds them, uint8 (len(ids), height, width, channels)."""
    found, (rows,) = pixels_of(images, [copies], [ids])
    return found[rows]
