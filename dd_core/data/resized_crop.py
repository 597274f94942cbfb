"""torchvision's RandomResizedCrop for whole batches on the device: where crops lie, and enlarging them.

Where they lie is drawn on the CPU, as all of an epoch's augmentation. A crop is never larger than the image that it is
enlarged to, so torchvision's antialiasing, which only acts where an image shrinks, would change nothing.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from dd_core.study.recipe import ResizedCrop

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As torchvision; then it takes the middle of the image.
_ATTEMPTS = 10


def draw_crops(
    random: np.random.Generator, number: int, height: int, width: int, settings: ResizedCrop
) -> "NDArray[np.int64]":
    """Crops distributed as ``torchvision.transforms.RandomResizedCrop.get_params`` draws them.

    Args:
        random: source of randomness.
        number: of crops.
        height: of the images, pixels.
        width: of the images, pixels.
        settings: range of areas, uniform, and of shapes, log-uniform.

    Returns:
        int64 (number, 4): top, left, height and width of each, pixels.
    """
    shape = (_ATTEMPTS, number)
    area = height * width * random.uniform(*settings.scale, shape)
    ratio = np.exp(random.uniform(math.log(settings.ratio[0]), math.log(settings.ratio[1]), shape))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(0)
    each = np.arange(number)
    high, wide = heights[first, each], widths[first, each]
    top = np.floor(random.random(number) * (height - high + 1))
    left = np.floor(random.random(number) * (width - wide + 1))
    crops = np.stack([top, left, high, wide], axis=1).astype(np.int64)
    crops[~fits.any(0)] = _middle(height, width, settings.ratio)
    return crops


def _middle(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest crop in the middle whose shape is allowed."""
    high, wide = height, width
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def source_pixels(
    start: torch.Tensor, length: torch.Tensor, size: int, flipped: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which two rows (or columns) of an image each row of the enlarged crop is a mean of.

    The middle of pixel i of ``size`` lies at ``(i + 0.5) * length / size - 0.5`` of the crop, and what lies beyond its
    outermost middles is the outermost pixel: ``torch.nn.functional.interpolate``, bilinear, ``align_corners=False``.

    Args:
        start: int64, of any shape, first pixel of the crops along one axis.
        length: int64, of the same shape, their pixels along it.
        size: of the image along it.
        flipped: bool, of the same shape: which are mirrored.
        dtype: of the weights.

    Returns:
        Two int64 tensors with an axis of ``size`` appended, and the weight of the second.
    """
    positions = torch.arange(size, device=start.device, dtype=dtype)
    if flipped is not None:
        positions = torch.where(flipped[..., None], positions.flip(0), positions)
    where = (positions + 0.5) * (length[..., None].to(dtype) / size) - 0.5
    where = where.clamp_min(0).minimum((length[..., None] - 1).to(dtype))
    first = where.floor()
    second = torch.minimum(first + 1, (length[..., None] - 1).to(dtype))
    return start[..., None] + first.long(), start[..., None] + second.long(), where - first
