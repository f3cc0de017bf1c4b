"""Documents in any of the formats, chosen by name when saved and by content when loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .flat import LoadedDocument, check_choice
from .openraster import load_ora, save_ora
from .png import check_bits, save_png_set
from .psd import save_psd
from .psd_reader import load_psd
from .stack import LayerStack

FORMATS = ("psd", "ora", "png")


def save_document(
    folder: str | Path,
    stack: LayerStack,
    *,
    stem: str,
    format: str,
    bits: int = 8,
    masks: str = "layer",
    text: Mapping[str, str] | None = None,
) -> list[Path]:
    """Saves a document, all of it or nothing; see `save_psd`, `save_ora` and `save_png_set`.

    Args:
        folder: exists.
        stack: a batch of one.
        stem: the file's name without its extension; what the names of a PNG set begin with.
        format: one of `FORMATS`.
        bits: 8, or 16 for "png".
        masks: "layer" keeps masks apart, "alpha" multiplies them into alpha; "ora" knows alpha alone.
        text: for the text chunks of "png".

    Returns:
        The files.

    Raises:
        ValueError: a choice is unknown, 16 bits are asked for where there are none, or the document cannot be saved.
        OSError: a file cannot be written; it names the file.
    """
    check_choice("format", format, FORMATS)
    check_bits(bits)
    if format == "png":
        return save_png_set(folder, stack, prefix=stem, bits=bits, masks=masks, text=text)
    if bits != 8:
        raise ValueError(f"bits must be 8 for psd and ora, got {bits}")
    path = Path(folder) / f"{stem}.{format}"
    if format == "psd":
        save_psd(path, stack, masks=masks)
    else:
        save_ora(path, stack)
    return [path]


def load_document(path: str | Path) -> LoadedDocument:
    """Reads a PSD or OpenRaster file, told by its first bytes; see `load_psd` and `load_ora`.

    Raises:
        ValueError: the file is neither, or cannot be read; one line that names it.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(4)
    if head == b"8BPS":
        return load_psd(path)
    if head == b"PK\x03\x04":
        return load_ora(path)
    raise ValueError(f"{Path(path).name}: it must be a PSD or OpenRaster file, and its first bytes are another's")
