"""Pictures of any kind as RGB bytes; what cannot be one is refused with a cause that is counted."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from train.synthesis.config import PictureConfig

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # none that runs another program, as EPS does
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (  # what Pillow raises on damaged files: its readers check little themselves
    OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)


class Refused(Exception):
    """A sample that cannot be used.

    Attributes:
        cause: a short name, counted in the manifest.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8, sRGB.
        width: of the file's picture, upright.
        height: of the file's picture, upright.
        format: of the file, as Pillow names it.
        converted: what had to be converted: "cmyk", "16_bit", "palette", "alpha", "grey", "profile", "animated",
            "rotated".
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str
    converted: tuple[str, ...]


def decode_picture(data: bytes, config: PictureConfig) -> Picture:
    """Decodes, turns upright, converts to sRGB and scales.

    Alpha is composed over white, as browsers and img2dataset show it. Colour profiles are converted to sRGB. Of an
    animation the first frame is taken, and counted. 16 bits are scaled, not clipped. EXIF that cannot be read turns
    nothing.

    Args:
        data: the file.
        config: sizes and limits.

    Raises:
        Refused: "empty", "corrupt", "too_large", "too_small" or "unsupported" (floating-point pixels).
    """
    if not data:
        raise Refused("empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on damaged metadata and large sizes; the limit is checked below
        image = _open(data, config)
        try:
            converted = _kinds(image, data)
            file_format = image.format or ""
            turned = image.format == "TIFF" and _turn(image) is not None  # Pillow turns a TIFF itself, while it loads
            image.load()
            turn = _turn(image)
            if turn is not None:
                image = image.transpose(turn)
            if turned or turn is not None:
                converted = (*converted, "rotated")
            width, height = image.size
            image = _rgb(image)
        except _BROKEN as error:
            raise Refused("corrupt") from error
    return Picture(_fitted(image, config), width, height, file_format, converted)


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with; it loads most of its readers on demand."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(data: bytes, config: PictureConfig) -> Image.Image:
    """The header alone is read here."""
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise Refused("too_large") from error
    except (UnidentifiedImageError, *_BROKEN) as error:
        raise Refused("corrupt") from error
    if image.width * image.height > config.most_megapixels * 1e6:
        raise Refused("too_large")
    if min(image.size) < config.least_side:
        raise Refused("too_small")
    if image.mode == "F":
        raise Refused("unsupported")
    return image


def _kinds(image: Image.Image, data: bytes) -> tuple[str, ...]:
    png_16_bit = image.format == "PNG" and data[24] == 16  # the header's bit depth: Pillow scales RGB by itself
    kinds = {
        "cmyk": image.mode == "CMYK",
        "16_bit": image.mode.startswith("I") or png_16_bit,
        "palette": image.mode in ("P", "PA"),
        "alpha": image.has_transparency_data,
        "grey": image.mode in ("1", "L", "LA", "I;16", "I;16B", "I"),
        "profile": bool(image.info.get("icc_profile")),
        "animated": image.format != "MPO" and bool(getattr(image, "is_animated", False)),
    }
    return tuple(name for name, found in kinds.items() if found)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that its EXIF asks for; ImageOps.exif_transpose writes all other tags anew, and fails on bad ones."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return _to_srgb(Image.alpha_composite(white, image).convert("RGB"), image.info)
    return _to_srgb(image, image.info)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit grey as 8 bits, rounded: 65535 -> 255. Pillow's mode I holds 16 bits of a PNG in 32."""
    clipped = np.clip(values.astype(np.int64), 0, 65535)
    return ((clipped + 128) // 257).astype(np.uint8)


def _to_srgb(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """Through the file's colour profile where it has one that fits; a broken profile is passed over."""
    profile = info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return found if found is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def _fitted(image: Image.Image, config: PictureConfig) -> np.ndarray:
    if config.fit == "crop":
        image = ImageOps.fit(image, (config.size, config.size), Image.Resampling.LANCZOS)
    else:
        scale = config.size / min(image.size)
        sides = (max(config.size, round(image.width * scale)), max(config.size, round(image.height * scale)))
        if sides[0] * sides[1] > config.most_megapixels * 1e6:  # a long strip, enlarged
            raise Refused("too_large")
        image = image.resize(sides, Image.Resampling.LANCZOS)
    return np.asarray(image).copy()
