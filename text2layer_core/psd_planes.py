"""Single channels of a PSD file: bytes become planes, strictly, and planes are looked at through other boxes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from psd_tools.psd.layer_and_mask import LayerRecord

_MASK, _REAL_MASK = -2, -3
_RAW, _RLE, _ZIP = 0, 1, 2


@dataclass(frozen=True)
class Box:
    """A rectangle of the canvas' pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """At least 0."""
        return max(self.right - self.left, 0)

    @property
    def height(self) -> int:
        """At least 0."""
        return max(self.bottom - self.top, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


@dataclass(frozen=True, eq=False)
class Plane:
    """A mask somewhere on the canvas.

    Attributes:
        values: (H, W) in [0, 1]; None where the box is empty.
        box: where they lie.
        outside: the value everywhere else.
    """

    values: Tensor | None
    box: Box
    outside: float

    def within(self, box: Box) -> Tensor:
        """What lies in another box, (H, W)."""
        if self.values is not None and self.box == box:
            return self.values
        result = torch.full((box.height, box.width), self.outside)
        left, right = max(self.box.left, box.left), min(self.box.right, box.right)
        top, bottom = max(self.box.top, box.top), min(self.box.bottom, box.bottom)
        if self.values is not None and left < right and top < bottom:
            result[top - box.top : bottom - box.top, left - box.left : right - box.left] = self.values[
                top - self.box.top : bottom - self.box.top, left - self.box.left : right - self.box.left
            ]
        return result


def user_mask(record: LayerRecord) -> tuple[int, Box, float, bool] | None:
    """Channel, box, value outside and whether it is switched off; the one that a vector mask is worked into, if any."""
    data, numbers = record.mask_data, [int(channel.id) for channel in record.channel_info]
    if data is None:
        return None
    if _REAL_MASK in numbers and data.real_flags is not None:
        box = Box(data.real_left or 0, data.real_top or 0, data.real_right or 0, data.real_bottom or 0)
        return _REAL_MASK, box, (data.real_background_color or 0) / 255, data.real_flags.mask_disabled
    if _MASK not in numbers:
        return None
    box = Box(data.left, data.top, data.right, data.bottom)
    return _MASK, box, data.background_color / 255, data.flags.mask_disabled


def decode(channel: Any, size: tuple[int, int], depth: int, version: int) -> Tensor:  # noqa: ANN401
    """A channel's values, (H, W) in [0, 1].

    psd-tools' own method puts black where data is damaged; here that is an error.

    Args:
        channel: of psd-tools, with `compression` and `data`.
        size: width and height.
        depth: bits, 8 or 16.
        version: of the file.

    Raises:
        ValueError: the data does not fill the rectangle.
    """
    import numpy as np

    width, height = size
    data = _unpacked(channel, size, depth, version)
    length = width * height * depth // 8
    if len(data) != length:
        raise ValueError(f"a channel of {width}x{height} pixels must have {length} bytes, got {len(data)}")
    values = np.frombuffer(data, np.uint8 if depth == 8 else np.dtype(">u2")).reshape(height, width)
    return torch.from_numpy(values.astype(np.float32) / (2**depth - 1))


def _unpacked(channel: Any, size: tuple[int, int], depth: int, version: int) -> bytes:  # noqa: ANN401
    from psd_tools.compression import decode_prediction, decode_rle

    width, height = size
    compression, data = int(channel.compression), bytes(channel.data)
    if compression == _RAW:
        return data
    if compression == _RLE:
        return decode_rle(data, width, height, depth, version)
    length = width * height * depth // 8
    inflater = zlib.decompressobj()
    raw = inflater.decompress(data, length)
    if len(raw) < length:
        raise ValueError(f"a channel of {width}x{height} pixels must have {length} bytes, got {len(raw)}")
    return raw if compression == _ZIP else decode_prediction(raw, width, height, depth)
