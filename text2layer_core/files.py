"""Layers as files: PNG, PSD, OpenRaster and a sheet to look at (paper, eq. 1, for the composed picture)."""

from __future__ import annotations

import os
import textwrap
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

    from .layers import TwoLayerImage

FORMATS = ("png", "psd", "ora")

_PNG_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_THUMBNAIL_SIZE = 256
_PANEL_SIZES = (256, 512)
_PROMPT_LINES = 4
_CHECKER_GREYS = (160, 210)
_STACK_XML = """<?xml version="1.0" encoding="UTF-8"?>
<image version="0.0.3" w="{width}" h="{height}" xres="72" yres="72">
  <stack>
    <layer name="foreground" src="data/foreground.png" x="0" y="0" opacity="1.0" composite-op="svg:src-over"/>
    <layer name="background" src="data/background.png" x="0" y="0" opacity="1.0" composite-op="svg:src-over"/>
  </stack>
</image>
"""


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """One two-layer image in 8 bits; `composed` is eq. 1 of these 8-bit layers, not of the finer ones before."""

    foreground: Image.Image
    background: Image.Image
    mask: Image.Image
    composed: Image.Image

    @property
    def cutout(self) -> Image.Image:
        """The foreground as RGBA with straight alpha, its colour kept where alpha is 0."""
        cutout = self.foreground.copy()
        cutout.putalpha(self.mask)
        return cutout


def save_png(path: str | Path, picture: Tensor) -> None:
    """Writes one picture as an 8-bit PNG, atomically; colour under alpha 0 is kept.

    Args:
        path: the file; its folder exists.
        picture: (C, H, W) in [0, 1], C = 1 (grey), 3 (RGB) or 4 (RGB and straight alpha).

    Raises:
        ValueError: the picture has another shape.
        OSError: the file cannot be written; nothing is left of it then.
    """
    if picture.ndim != 3 or picture.shape[0] not in _PNG_MODES:
        raise ValueError(f"picture must have shape (1, 3 or 4, H, W), got {tuple(picture.shape)}")
    with _staged([Path(path)]) as (temporary,):
        _write_png(temporary, _to_pil(picture))


def save_psd(path: str | Path, image: TwoLayerImage) -> None:
    """Writes a PSD with the layers "background" and "foreground", the latter with a layer mask of its own.

    The foreground's pixels stay opaque and whole, so that its mask can be edited in the layer editor.
    The merged picture that the file carries is `composed` to within 2/255.

    Args:
        path: the file; its folder exists. Written atomically.
        image: a batch of one.

    Raises:
        ValueError: the image holds more than one picture.
        OSError: the file cannot be written; nothing is left of it then.
    """
    _save_one(path, image, _write_psd)


def save_ora(path: str | Path, image: TwoLayerImage) -> None:
    """Writes an OpenRaster file with the layers "background" and "foreground".

    OpenRaster has no layer masks: the foreground carries the mask as straight alpha.

    Args:
        path: the file; its folder exists. Written atomically.
        image: a batch of one.

    Raises:
        ValueError: the image holds more than one picture.
        OSError: the file cannot be written; nothing is left of it then.
    """
    _save_one(path, image, _write_ora)


def save_sheet(path: str | Path, image: TwoLayerImage, prompt: str = "") -> None:
    """Writes one PNG for looking at: composed, foreground on a checkerboard, background and mask side by side.

    Args:
        path: the file; its folder exists. Written atomically.
        image: a batch of one.
        prompt: written above the pictures, wrapped, at most four lines of it.

    Raises:
        ValueError: the image holds more than one picture.
        OSError: the file cannot be written; nothing is left of it then.
    """
    _save_one(path, image, lambda temporary, pictures: _write_png(temporary, _sheet(pictures, prompt)))


def layer_sheet(image: TwoLayerImage, prompt: str = "") -> Image.Image:
    """The picture that `save_sheet` writes, RGB.

    Raises:
        ValueError: the image holds more than one picture.
    """
    return _sheet(_pictures(image), prompt)


def save_layers(
    folder: str | Path,
    image: TwoLayerImage,
    *,
    formats: Sequence[str] = ("png", "psd"),
    prompt: str = "",
    suffix: str = "",
) -> list[Path]:
    """Writes one two-layer image in every format asked for, and `sheet.png`, as one set: all of it or nothing.

    "png" stands for `foreground.png` (RGBA), `background.png`, `mask.png` and `composed.png`, "psd" for
    `layers.psd`, "ora" for `layers.ora`.

    Args:
        folder: made if it does not exist.
        image: a batch of one.
        formats: some of `FORMATS`.
        prompt: for the sheet.
        suffix: comes before the extension of each name ("-0001").

    Returns:
        The files, in the order above, the sheet last.

    Raises:
        ValueError: a format is unknown, or the image holds more than one picture.
        OSError: a file cannot be written; no temporary file is left then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats must be among {', '.join(FORMATS)}, got {', '.join(unknown)}")
    pictures = _pictures(image)
    writers = _writers(pictures, formats, prompt)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [Path(name) for name in writers]
    paths = [folder / f"{name.stem}{suffix}{name.suffix}" for name in names]
    with _staged(paths) as temporaries:
        for temporary, write in zip(temporaries, writers.values(), strict=True):
            write(temporary)
    return paths


def _writers(pictures: _Pictures, formats: Sequence[str], prompt: str) -> dict[str, Callable[[Path], None]]:
    writers: dict[str, Callable[[Path], None]] = {}
    if "png" in formats:
        writers["foreground.png"] = lambda path: _write_png(path, pictures.cutout)
        writers["background.png"] = lambda path: _write_png(path, pictures.background)
        writers["mask.png"] = lambda path: _write_png(path, pictures.mask)
        writers["composed.png"] = lambda path: _write_png(path, pictures.composed)
    if "psd" in formats:
        writers["layers.psd"] = lambda path: _write_psd(path, pictures)
    if "ora" in formats:
        writers["layers.ora"] = lambda path: _write_ora(path, pictures)
    writers["sheet.png"] = lambda path: _write_png(path, _sheet(pictures, prompt))
    return writers


def _save_one(path: str | Path, image: TwoLayerImage, write: Callable[[Path, _Pictures], None]) -> None:
    pictures = _pictures(image)
    with _staged([Path(path)]) as (temporary,):
        write(temporary, pictures)


@contextmanager
def _staged(paths: Sequence[Path]) -> Generator[list[Path], None, None]:
    """Temporary names beside the paths, renamed together at the end, removed on an error or Ctrl-C."""
    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporaries
        _rename_all(temporaries, paths)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _rename_all(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    except KeyboardInterrupt:  # every file is complete by now: end with the whole set, not with a part of it
        for temporary, path in zip(temporaries, paths, strict=True):
            if temporary.exists():
                temporary.replace(path)
        raise


def _pictures(image: TwoLayerImage) -> _Pictures:
    from .compositing import compose  # torch: `--help` must not wait for it
    from .layers import TwoLayerImage

    if len(image) != 1:
        raise ValueError(f"image must hold one picture (index the batch), got {len(image)}")
    stored = TwoLayerImage.from_stack((image.stack().detach().float().cpu() * 255).round() / 255)
    return _Pictures(
        foreground=_to_pil(stored.foreground[0]),
        background=_to_pil(stored.background[0]),
        mask=_to_pil(stored.mask[0]),
        composed=_to_pil(compose(stored)[0]),
    )


def _to_pil(picture: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] to 8 bits, rounded to the nearest."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    channels = pixels.shape[2]
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes(_PNG_MODES[channels], size, pixels.contiguous().numpy().tobytes())


def _write_png(path: Path, picture: Image.Image) -> None:
    picture.save(path, format="PNG")


def _write_psd(path: Path, pictures: _Pictures) -> None:
    from psd_tools import PSDImage

    document = PSDImage.new("RGB", pictures.composed.size)
    document.create_pixel_layer(pictures.background, name="background")
    document.create_pixel_layer(pictures.foreground, name="foreground").create_mask(pictures.mask)
    with path.open("wb") as file:
        document.save(file)


def _write_ora(path: Path, pictures: _Pictures) -> None:
    thumbnail = pictures.composed.copy()
    thumbnail.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    width, height = pictures.composed.size
    # The order and the lack of compression are the format's: a reader knows the file by its first bytes.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "image/openraster")
        archive.writestr(zipfile.ZipInfo("stack.xml"), _STACK_XML.format(width=width, height=height))
        for name, picture in (
            ("data/background.png", pictures.background),
            ("data/foreground.png", pictures.cutout),
            ("mergedimage.png", pictures.composed),
            ("Thumbnails/thumbnail.png", thumbnail),
        ):
            archive.writestr(zipfile.ZipInfo(name), _png_bytes(picture))


def _png_bytes(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _sheet(pictures: _Pictures, prompt: str) -> Image.Image:
    panels = {
        "composed": pictures.composed,
        "foreground": _on_checkerboard(pictures.cutout),
        "background": pictures.background,
        "mask": pictures.mask.convert("RGB"),
    }
    width, height = _panel_size(pictures.composed.size)
    margin = max(width // 24, 8)
    font = ImageFont.load_default(size=max(width // 16, 14))
    line = round(1.3 * font.getbbox("Ag")[3])
    column = max(width, *(round(font.getlength(label)) for label in panels))
    sheet_width = len(panels) * (column + margin) + margin
    lines = _wrap(prompt, font, sheet_width - 2 * margin)
    top = margin + (len(lines) * line + margin // 2 if lines else 0)
    sheet = Image.new("RGB", (sheet_width, top + height + line + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(lines):
        draw.text((margin, margin + index * line), text, fill="black", font=font)
    for index, (label, picture) in enumerate(panels.items()):
        left = margin + index * (column + margin)
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        draw.text((left, top + height + margin // 4), label, fill="dimgray", font=font)
    return sheet


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size of one picture on the sheet: small ones are enlarged and large ones reduced, shape kept."""
    longest = max(size)
    scale = min(max(longest, _PANEL_SIZES[0]), _PANEL_SIZES[1]) / longest
    width, height = (max(round(side * scale), 1) for side in size)
    return width, height


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    text = " ".join(text.split())
    if not text:
        return []
    per_line = int(0.9 * width * len(text) / font.getlength(text))
    return textwrap.wrap(text, max(per_line, 8), max_lines=_PROMPT_LINES, placeholder=" ...")


def _on_checkerboard(cutout: Image.Image) -> Image.Image:
    cell = max(max(cutout.size) // 16, 1)
    board = Image.new("RGBA", cutout.size)
    draw = ImageDraw.Draw(board)
    for y in range(0, cutout.height, cell):
        for x in range(0, cutout.width, cell):
            grey = _CHECKER_GREYS[(x + y) // cell % 2]
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(grey, grey, grey, 255))
    return Image.alpha_composite(board, cutout).convert("RGB")
