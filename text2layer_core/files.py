"""A two-layer image as files: PNG, PSD, OpenRaster, and a sheet to look at (paper, eq. 1, for the composed picture)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from .atomic import write_file, write_files
from .png import to_pil, write_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .atomic import Writer
    from .layers import TwoLayerImage

FORMATS = ("png", "psd", "ora")

_PANEL_SIZES = (256, 512)
_PROMPT_LINES = 4
_CHECKER_GREYS = (160, 210)


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
    write_file(path, partial(write_png, picture=layer_sheet(image, prompt)))


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
        OSError: a file cannot be written; it names the file, and nothing is left of the set then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats must be among {', '.join(FORMATS)}, got {', '.join(unknown)}")
    writers = _writers(image, formats, prompt)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {Path(name): write for name, write in writers.items()}
    return write_files({folder / f"{name.stem}{suffix}{name.suffix}": write for name, write in names.items()})


def _writers(image: TwoLayerImage, formats: Sequence[str], prompt: str) -> dict[str, Writer]:
    pictures = _pictures(image)
    writers: dict[str, Writer] = {}
    if "png" in formats:
        writers["foreground.png"] = partial(write_png, picture=pictures.cutout)
        writers["background.png"] = partial(write_png, picture=pictures.background)
        writers["mask.png"] = partial(write_png, picture=pictures.mask)
        writers["composed.png"] = partial(write_png, picture=pictures.composed)
    if "psd" in formats:
        from .psd import psd_writer  # torch: `--help` must not wait for it

        writers["layers.psd"] = psd_writer(image)
    if "ora" in formats:
        from .openraster import ora_writer

        writers["layers.ora"] = ora_writer(image)
    writers["sheet.png"] = partial(write_png, picture=_sheet(pictures, prompt))
    return writers


def _pictures(image: TwoLayerImage) -> _Pictures:
    from .compositing import compose
    from .layers import TwoLayerImage

    if len(image) != 1:
        raise ValueError(f"image must hold one picture (index the batch), got {len(image)}")
    stored = TwoLayerImage.from_stack((image.stack().detach().float().cpu() * 255).round() / 255)
    return _Pictures(
        foreground=to_pil(stored.foreground[0]),
        background=to_pil(stored.background[0]),
        mask=to_pil(stored.mask[0]),
        composed=to_pil(compose(stored)[0]),
    )


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
