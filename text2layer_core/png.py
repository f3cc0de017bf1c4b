"""Pictures as PNG, 8 or 16 bits a channel, and a document's layers as a set of them."""

from __future__ import annotations

import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .atomic import write_file, write_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from torch import Tensor

    from .atomic import Writer
    from .stack import LayerStack

BITS = (8, 16)

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_UP_FILTER = 2
_ROWS_AT_ONCE = 256
_NAME_LENGTH = 40


def save_png(
    path: str | Path, picture: Tensor, *, bits: int = 8, text: Mapping[str, str] | None = None
) -> None:
    """Writes one picture as a PNG, atomically; colour under alpha 0 is kept.

    Args:
        path: the file; its folder exists.
        picture: (C, H, W) in [0, 1], C = 1 (grey), 3 (RGB) or 4 (RGB and straight alpha).
        bits: 8 or 16 a channel.
        text: keywords (Latin-1) and texts for the file's own text chunks.

    Raises:
        ValueError: the picture has another shape, or `bits` is another number.
        OSError: the file cannot be written; nothing is left of it then.
    """
    if picture.ndim != 3 or picture.shape[0] not in _MODES:
        raise ValueError(f"picture must have shape (1, 3 or 4, H, W), got {tuple(picture.shape)}")
    check_bits(bits)
    write_file(path, partial(write_png, picture=picture, bits=bits, text=text))


def save_png_set(
    folder: str | Path,
    stack: LayerStack,
    *,
    prefix: str = "",
    bits: int = 8,
    masks: str = "layer",
    text: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a document as PNGs of the canvas' size: all of them or none.

    `<prefix><number>_<name>.png` for each layer, lowest first from 01: RGBA with alpha times mask as straight alpha,
    or RGB where it is opaque everywhere; then `<prefix>composed.png`. Opacity and blend mode are in `composed` alone.
    A PNG has no place for what lies beyond the canvas.

    Args:
        folder: exists.
        stack: a batch of one.
        prefix: comes before each name.
        bits: 8 or 16 a channel.
        masks: "layer" also writes `<prefix><number>_<name>_mask.png` for each layer with a mask; "alpha" does not.
        text: see `save_png`.

    Returns:
        The files, `composed` last.

    Raises:
        ValueError: the document holds more than one picture, or a choice is unknown.
        OSError: a file cannot be written; it names the file, and nothing is left of the set then.
    """
    from .composition import compose_stack, without_full_alpha
    from .flat import Masks, check_choice, on_canvas, upright, with_levels

    check_bits(bits)
    check_choice("masks", masks, Masks)
    flat = with_levels(upright(stack), 2**bits - 1)
    pictures: dict[str, Tensor] = {}
    for number, layer in enumerate(flat, 1):
        name = f"{number:02d}_{file_name(layer.name)}"
        picture, mask = on_canvas(layer, stack.canvas)
        pictures[name] = picture
        if mask is not None and masks == "layer":
            pictures[f"{name}_mask"] = mask
    pictures["composed"] = without_full_alpha(compose_stack(flat))
    writers: dict[Path, Writer] = {
        Path(folder) / f"{prefix}{name}.png": partial(write_png, picture=picture[0], bits=bits, text=text)
        for name, picture in pictures.items()
    }
    return write_files(writers)


def check_bits(bits: int) -> None:
    """Raises ValueError unless it is 8 or 16."""
    if bits not in BITS:
        raise ValueError(f"bits must be 8 or 16, got {bits}")


def file_name(name: str) -> str:
    """A layer's name as a part of a file's: letters, digits, "_" and "-" of any alphabet, at most 40."""
    return re.sub(r"[^\w-]+", "_", name).strip("_")[:_NAME_LENGTH] or "layer"


def to_pil(picture: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] to 8 bits, rounded to the nearest."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes(_MODES[pixels.shape[2]], size, pixels.contiguous().numpy().tobytes())


def write_png(
    file: Path | BinaryIO, picture: Tensor | Image.Image, *, bits: int = 8, text: Mapping[str, str] | None = None
) -> None:
    """Writes a picture, (C, H, W) in [0, 1] or PIL's, to an open file or a path, not atomically."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    if isinstance(picture, Image.Image) or bits == 8:
        pixels = picture if isinstance(picture, Image.Image) else to_pil(picture)
        pixels.save(file, format="PNG", pnginfo=info)
    elif isinstance(file, Path):
        with file.open("wb") as opened:
            _write_16_bits(opened, picture, info)
    else:
        _write_16_bits(file, picture, info)


def _write_16_bits(file: BinaryIO, picture: Tensor, info: PngInfo) -> None:
    """PNG specification, third edition: Pillow writes no 16-bit colours. Every row is stored minus the one above."""
    import numpy as np

    channels, height, width = picture.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0))
    for kind, data, *_ in info.chunks:
        _write_chunk(file, kind, data)
    pixels = picture.detach().float().cpu().clamp(0, 1).permute(1, 2, 0)
    compressor = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, _ROWS_AT_ONCE):
        part = (pixels[top : top + _ROWS_AT_ONCE] * 65535).round().contiguous().numpy().astype(">u2")
        rows = part.view(np.uint8).reshape(part.shape[0], -1)
        filtered = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        marked = np.concatenate([np.full((len(rows), 1), _UP_FILTER, np.uint8), filtered], axis=1)
        compressed = compressor.compress(marked.tobytes())
        if compressed:
            _write_chunk(file, b"IDAT", compressed)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
