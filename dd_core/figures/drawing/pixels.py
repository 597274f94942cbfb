"""Small images as PNG data URIs, enlarged without smoothing so that single pixels stay visible in every viewer."""

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from dd_core.study.datasets import DatasetRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_rgb_or_grey(image: "NDArray[np.uint8]", record: DatasetRecord) -> "NDArray[np.uint8]":
    """Displayable values 0 to 255, (height, width, channels); the digits' ink becomes dark on white."""
    if record.highest == 255 and not record.is_ink:
        return image
    bright = np.round(image.astype(np.float64) * (255 / max(record.highest, 1)))
    return (255 - bright if record.is_ink else bright).astype(np.uint8)


def fit(image: "NDArray[np.uint8]", size: int) -> "NDArray[np.uint8]":
    """Repeat pixels until the image is at least ``size`` high, or average them where it is twice as high or more."""
    factor = -(-size // image.shape[0])
    if (step := image.shape[0] // size) < 2:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (side // step * step for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // step, step, width // step, step, -1)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def png(image: "NDArray[np.uint8]") -> bytes:
    """Encode (height, width, 1 or 3) as PNG (ISO/IEC 15948): 8 bits, no filter."""
    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each line starts with its filter type, 0
    lines[:, 1:] = image.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(image: "NDArray[np.uint8]", record: DatasetRecord, size: int) -> str:
    """One image of a data set as a ``data:`` address of a PNG about ``size`` pixels high."""
    content = png(fit(to_rgb_or_grey(image, record), size))
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
