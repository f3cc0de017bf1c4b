"""Documents as OpenRaster files (freedesktop.org, "OpenRaster File Layout" and "Layer Stack", 0.0.6)."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import torch
from PIL import Image, UnidentifiedImageError

from .atomic import write_file
from .blending import BlendMode
from .composition import compose_stack, without_full_alpha
from .flat import (
    MAX_LAYER_BYTES,
    NO_SRGB,
    LoadedDocument,
    Room,
    check_size,
    corner,
    file_text,
    is_srgb,
    reading,
    upright,
    with_levels,
    with_masks_in_alpha,
)
from .png import to_pil, write_png
from .stack import MAX_LAYERS, Layer, LayerStack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .atomic import Writer
    from .layers import TwoLayerImage

_TYPE = b"image/openraster"
_THUMBNAIL_SIZE = 256
_MAX_XML_BYTES = 2**20
_MAX_DEPTH = 64
_PNG_HEAD_BYTES = 33
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, ElementTree.ParseError, UnidentifiedImageError, EOFError,
    SyntaxError,  # Pillow's for a broken PNG
    RuntimeError, NotImplementedError,  # zipfile's for encryption, and for compression that it does not know
)
_OPERATORS = {mode: f"svg:{'src-over' if mode == BlendMode.NORMAL else mode.value}" for mode in BlendMode}
_MODES = {operator: mode for mode, operator in _OPERATORS.items()}


def save_ora(path: str | Path, document: LayerStack | TwoLayerImage) -> None:
    """Writes an OpenRaster file with the document's layers, atomically.

    Names, order, places, opacity, blend modes and visibility are kept, and pixels beyond the canvas. Layers that are
    scaled, turned, flipped or between pixels are resampled first. OpenRaster has no layer masks: a mask is multiplied
    into its layer's alpha, straight, the colour under it kept. "svg:exclusion" is not in the specification's list;
    readers that do not know it show such a layer as "normal".

    Args:
        path: the file; its folder exists.
        document: a batch of one.

    Raises:
        ValueError: the document holds more than one picture, or the canvas or a layer has a side above 16,384 pixels.
        OSError: the file cannot be written; it names the file, and nothing is left of it then.
    """
    write_file(path, ora_writer(document))


def ora_writer(document: LayerStack | TwoLayerImage) -> Writer:
    """What writes the file of `save_ora` to a path, not atomically; raises its ValueErrors at once."""
    return partial(_write, stack=with_levels(with_masks_in_alpha(upright(document)), 255))


def _write(path: Path, stack: LayerStack) -> None:
    merged = to_pil(without_full_alpha(compose_stack(stack))[0])
    thumbnail = merged.copy()
    thumbnail.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    # The order and the lack of compression are the format's: a reader knows the file by its first bytes.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), _TYPE)
        archive.writestr(zipfile.ZipInfo("stack.xml"), _stack_xml(stack))
        for number, layer in enumerate(stack):
            archive.writestr(zipfile.ZipInfo(_source(number)), _png_bytes(layer.picture[0]))
        archive.writestr(zipfile.ZipInfo("mergedimage.png"), _png_bytes(merged))
        archive.writestr(zipfile.ZipInfo("Thumbnails/thumbnail.png"), _png_bytes(thumbnail))


def _stack_xml(stack: LayerStack) -> bytes:
    width, height = map(str, stack.canvas)
    image = ElementTree.Element("image", version="0.0.3", w=width, h=height, xres="72", yres="72")
    root = ElementTree.SubElement(image, "stack")
    for number, layer in reversed(list(enumerate(stack))):
        left, top = corner(layer)
        ElementTree.SubElement(root, "layer", {
            "name": file_text(layer.name),
            "src": _source(number),
            "x": str(left),
            "y": str(top),
            "opacity": repr(float(layer.opacity)),
            "visibility": "visible" if layer.visible else "hidden",
            "composite-op": _OPERATORS[BlendMode(layer.blend_mode)],
        })
    ElementTree.indent(image)
    return ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True)


def _source(number: int) -> str:
    return f"data/layer{number:03d}.png"


def _png_bytes(picture: Tensor | Image.Image) -> bytes:
    buffer = BytesIO()
    write_png(buffer, picture)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One layer of stack.xml with what the stacks around it do to it."""

    name: str
    source: str
    x: int
    y: int
    opacity: float
    visible: bool
    operator: str


def load_ora(path: str | Path) -> LoadedDocument:
    """Reads an OpenRaster file.

    Stacks within the stack are taken apart, their opacity and visibility handed down; operators that are not among
    `BlendMode` become normal. A note tells of each. Nothing is taken out of the archive to the disk.

    Args:
        path: the file.

    Returns:
        The document, layers RGBA, or RGB where they are opaque everywhere, and the notes.

    Raises:
        ValueError: the file is no OpenRaster, damaged, or larger than the limits (16,384 pixels a side, 268 megapixels
            in all layers together, 1 GiB in one); one line that names it.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with reading(path, *_DAMAGE), zipfile.ZipFile(path) as archive:
        return _read(archive)


def _read(archive: zipfile.ZipFile) -> LoadedDocument:
    if _member(archive, "mimetype", 64).strip() != _TYPE:
        raise ValueError("it must hold OpenRaster's mimetype")
    image = _parse(_member(archive, "stack.xml", _MAX_XML_BYTES))
    canvas = _whole(image, "w"), _whole(image, "h")
    check_size("the canvas", *canvas)
    root = image.find("stack")
    if image.tag != "image" or root is None:
        raise ValueError("stack.xml must hold an image with a stack")
    notes: list[str] = []
    items = list(_items(root, notes, opacity=1.0, visible=True, depth=0))[::-1]
    if not 1 <= len(items) <= MAX_LAYERS:
        raise ValueError(f"it must hold 1 to {MAX_LAYERS} layers, got {len(items)}")
    room = Room()
    for item in items:
        _check_png(archive, item, room)
    layers = [_layer(archive, item, notes) for item in items]
    return LoadedDocument(LayerStack(canvas=canvas, layers=tuple(layers)), tuple(notes))


def _member(archive: zipfile.ZipFile, name: str, limit: int, *, size: int = -1) -> bytes:
    """The first `size` bytes of a member, all by default, if it is no larger than the limit."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0]:
        raise ValueError(f"its member {name!r} must lie within it")
    try:
        information = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it must hold {name!r}") from None
    if information.file_size > limit:
        raise ValueError(f"its member {name!r} must be at most {limit} bytes, got {information.file_size}")
    with archive.open(information) as member:
        return member.read(size)


def _parse(text: bytes) -> ElementTree.Element:
    """The root of an XML document; none with a DTD is parsed, so that there are no entities to expand."""
    try:
        document = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("stack.xml must be UTF-8") from None
    if "<!DOCTYPE" in document or "<!ENTITY" in document:
        raise ValueError("stack.xml must have no document type definition")
    return ElementTree.fromstring(document)  # noqa: S314


def _items(
    stack: ElementTree.Element, notes: list[str], *, opacity: float, visible: bool, depth: int
) -> Iterator[_Item]:
    """The layers of a stack, topmost first."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its stacks must lie in each other at most {_MAX_DEPTH} deep")
    for element in stack:
        name = file_text(element.get("name") or element.tag)
        own_opacity, own_visible = _opacity(element, name), element.get("visibility", "visible") != "hidden"
        if element.tag == "layer":
            yield _Item(
                name=name, source=element.get("src", ""), x=_whole(element, "x", 0), y=_whole(element, "y", 0),
                opacity=own_opacity * opacity, visible=own_visible and visible,
                operator=element.get("composite-op", "svg:src-over"),
            )
        elif element.tag == "stack":
            notes.append(_group_note(element, name, own_opacity))
            yield from _items(
                element, notes, opacity=own_opacity * opacity, visible=own_visible and visible, depth=depth + 1
            )
        else:
            notes.append(f'"{name}" ({element.tag}) was left out')


def _group_note(element: ElementTree.Element, name: str, opacity: float) -> str:
    changes = [] if opacity == 1 else [f"its opacity {opacity:g} is now that of each layer"]
    operator = element.get("composite-op", "svg:src-over")
    if operator != "svg:src-over":
        changes.append(f"its mode {operator} was left out")
    if element.get("x", "0") != "0" or element.get("y", "0") != "0":
        changes.append("its own offset was left out")
    return "; ".join([f'group "{name}" was flattened: its layers stand alone', *changes])


def _opacity(element: ElementTree.Element, name: str) -> float:
    text = element.get("opacity", "1")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f'opacity of "{name}" must lie in [0, 1], got {text!r}')
    return value


def _whole(element: ElementTree.Element, key: str, default: int | None = None) -> int:
    text = element.get(key, "" if default is None else str(default))
    try:
        value = round(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{key} of <{element.tag}> must be a number, got {text!r}") from None
    if abs(value) >= 2**31:
        raise ValueError(f"{key} of <{element.tag}> must be less than 2^31, got {text}")
    return value


def _check_png(archive: zipfile.ZipFile, item: _Item, room: Room) -> None:
    """Looks at the head alone."""
    head = _member(archive, item.source, MAX_LAYER_BYTES, size=_PNG_HEAD_BYTES)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise ValueError(f'layer "{item.name}" must be a PNG')
    room.take(f'layer "{item.name}"', int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))


def _layer(archive: zipfile.ZipFile, item: _Item, notes: list[str]) -> Layer:
    data = _member(archive, item.source, MAX_LAYER_BYTES)
    mode = _MODES.get(item.operator)
    if mode is None:
        notes.append(f'layer "{item.name}": blend mode {item.operator} is not supported, normal instead')
    if data[24] == 16:
        notes.append(f'layer "{item.name}": 16 bits a channel were brought to 8')
    with Image.open(BytesIO(data), formats=["PNG"]) as opened:
        if NO_SRGB not in notes and not is_srgb(opened.info.get("icc_profile") or b"sRGB"):
            notes.append(NO_SRGB)
        picture = _tensor(opened)
    return Layer(
        name=item.name, picture=without_full_alpha(picture), x=float(item.x), y=float(item.y),
        opacity=item.opacity, blend_mode=mode or BlendMode.NORMAL, visible=item.visible,
    )


def _tensor(opened: Image.Image) -> Tensor:
    """RGBA, (1, 4, H, W) in [0, 1]."""
    import numpy as np

    if opened.mode.startswith("I"):  # 16-bit grey: PIL's own conversion cuts it off at 255
        opened = Image.fromarray((np.asarray(opened).astype(np.float32) / 257).round().astype(np.uint8))
    pixels = np.asarray(opened.convert("RGBA")).astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()
