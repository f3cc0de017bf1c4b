"""PSD files as documents (Adobe, "Photoshop File Formats Specification"): psd-tools parses, all limits are ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .blending import BlendMode
from .composition import without_full_alpha
from .flat import Damage, LoadedDocument, Room, check_size, file_text, reading
from .psd import BLEND_KEYS
from .psd_planes import Box, Plane, decode, user_mask
from .stack import MAX_LAYERS, Layer, LayerStack

if TYPE_CHECKING:
    from typing import BinaryIO

    from psd_tools.psd import PSD
    from psd_tools.psd.layer_and_mask import LayerRecord

_HEAD = struct.Struct(">4sH6xHIIHH")
_MODES = {1: ("grey", 1), 3: ("RGB", 3)}
_OTHER_MODES = {0: "bitmap", 2: "indexed", 4: "CMYK", 7: "multichannel", 8: "duotone", 9: "Lab"}
_MAX_CHANNELS = 56
_MAX_RECORDS = 1000
_MAX_DEPTH = 32
_ALPHA = -1
_BLEND_MODES = {key: mode for mode, key in BLEND_KEYS.items()}
_PASS_THROUGH = b"pass"
_GROUP_TAGS = (b"lsdk", b"lsct")
_ADJUSTMENTS = {
    b"SoCo": "solid colour", b"GdFl": "gradient", b"PtFl": "pattern", b"brit": "brightness/contrast",
    b"CgEd": "brightness/contrast", b"levl": "levels", b"curv": "curves", b"expA": "exposure", b"vibA": "vibrance",
    b"hue ": "hue/saturation", b"hue2": "hue/saturation", b"blnc": "colour balance", b"blwh": "black and white",
    b"phfl": "photo filter", b"mixr": "channel mixer", b"clrL": "colour lookup", b"nvrt": "invert",
    b"post": "posterise", b"thrs": "threshold", b"selc": "selective colour", b"grdm": "gradient map",
}
_AS_PIXELS = {b"TySh": "text", b"SoLd": "smart object", b"SoLE": "smart object", b"PlLd": "smart object"}
_EFFECTS = (b"lrFX", b"lfx2", b"lmfx")
_VECTOR_MASKS = (b"vmsk", b"vsms")
# What psd-tools raises for files that are cut off or made up; its own errors are ValueErrors.
_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RecursionError, TypeError, struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What the groups around a layer do to it."""

    opacity: float = 1.0
    visible: bool = True
    masks: tuple[Plane, ...] = ()
    path: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """A layer with pixels, and what stands around it."""

    record: LayerRecord
    channels: Any
    group: _Group
    name: str


def load_psd(path: str | Path) -> LoadedDocument:
    """Reads a PSD or PSB file: RGB or grey, 8 or 16 bits a channel.

    Layers keep name, place, opacity, blend mode, visibility, alpha and mask. Groups are taken apart: opacity,
    visibility and mask are handed down. Adjustment and fill layers, effects and vector masks are left out, modes that
    are not among `BlendMode` become normal, and a layer clipped to the one below gets its alpha. Without layers, the
    merged picture is the only one. A note tells of each.

    Args:
        path: the file.

    Returns:
        The document, layers RGBA, or RGB where they are opaque everywhere, and the notes.

    Raises:
        ValueError: the file is no such PSD, damaged, or larger than the limits (16,384 pixels a side, 268 megapixels
            in all layers together, 1 GiB in one); one line that names it. Sizes are checked before memory is taken.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with reading(path, *_DAMAGE), path.open("rb") as file:
        depth, planes = _check_head(file)
        return _Reader(_parse(file), depth, planes).read()


def _check_head(file: BinaryIO) -> tuple[int, int]:
    """Bits a channel and colours of a file whose first 26 bytes are in order."""
    head = file.read(_HEAD.size)
    file.seek(0)
    if len(head) < _HEAD.size or head[:4] != b"8BPS":
        raise ValueError("it must be a PSD file, and its first bytes are another's")
    _, version, channels, height, width, depth, mode = _HEAD.unpack(head)
    if version not in (1, 2):
        raise ValueError(f"PSD version must be 1 or 2, got {version}")
    check_size("the canvas", width, height)
    if mode not in _MODES:
        raise ValueError(f"colours must be RGB or grey, got {_OTHER_MODES.get(mode, f'mode {mode}')}")
    if depth not in (8, 16):
        raise ValueError(f"it must have 8 or 16 bits a channel, got {depth}")
    name, planes = _MODES[mode]
    if not planes <= channels <= _MAX_CHANNELS:
        raise ValueError(f"{name} must have {planes} to {_MAX_CHANNELS} channels, got {channels}")
    return depth, planes


def _parse(file: BinaryIO) -> PSD:
    from psd_tools.psd import PSD

    try:
        return PSD.read(file)
    except ValueError as error:
        raise Damage(str(error.args[0] if error.args else error)) from error


class _Reader:
    """One file: its records become layers."""

    def __init__(self, psd: PSD, depth: int, planes: int) -> None:
        self._psd, self._depth, self._planes, self._version = psd, depth, planes, psd.header.version
        self._room = Room()
        self._notes: list[str] = []

    def read(self) -> LoadedDocument:
        if self._depth == 16:
            self._notes.append("16 bits a channel: PSD files are written with 8")
        if self._planes == 1:
            self._notes.append("grey was made RGB")
        leaves = self._leaves()
        if len(leaves) > MAX_LAYERS:
            raise ValueError(f"it must hold at most {MAX_LAYERS} layers with pixels, got {len(leaves)}")
        for leaf in leaves:
            self._room.take(f'layer "{leaf.name}"', leaf.record.width, leaf.record.height)
        layers = self._layers(leaves) if leaves else [self._merged()]
        canvas = self._psd.header.width, self._psd.header.height
        return LoadedDocument(LayerStack(canvas=canvas, layers=tuple(layers)), tuple(self._notes))

    def _records(self) -> list[tuple[LayerRecord, Any]]:
        """Bottom first; 16-bit files may keep them in a block of their own."""
        sections = self._psd.layer_and_mask_information
        found = sections.layer_info
        for key, block in (sections.tagged_blocks or {}).items():
            if _key(key) in (b"Lr16", b"Lr32"):
                found = block.data
        if found is None:
            return []
        records = list(zip(found.layer_records, found.channel_image_data, strict=True))
        if len(records) > _MAX_RECORDS:
            raise ValueError(f"it must hold at most {_MAX_RECORDS} layers and groups, got {len(records)}")
        return records

    def _leaves(self) -> list[_Leaf]:
        """The layers with pixels, bottom first: walked from the top, where a group's own record comes first."""
        groups = [_Group()]
        leaves: list[_Leaf] = []
        for number, (record, channels) in reversed(list(enumerate(self._records()))):
            kind, name = _group_kind(record), _name(record)
            if kind in (1, 2):
                if len(groups) > _MAX_DEPTH:
                    raise ValueError(f"its groups must lie in each other at most {_MAX_DEPTH} deep")
                groups.append(self._group(groups[-1], record, channels, name, number))
            elif kind == 3:
                groups = groups[:-1] or groups  # an end without a group is none
            elif self._has_pixels(record, name):
                leaves.append(_Leaf(record=record, channels=channels, group=groups[-1], name=name))
        return leaves[::-1]

    def _group(self, outer: _Group, record: LayerRecord, channels: Any, name: str, number: int) -> _Group:  # noqa: ANN401
        changes: list[str] = []
        opacity = _opacity(record)
        if opacity != 1:
            changes.append(f"its opacity {opacity:.3g} is now that of each layer")
        mode = _group_mode(record)
        if mode not in (_PASS_THROUGH, b"norm"):
            changes.append(f"its blend mode {_mode_name(mode)} was left out")
        if any(tag in _tags(record) for tag in _EFFECTS):
            changes.append("its effects were left out")
        mask = self._mask(record, channels, name)
        if mask is not None:
            changes.append("its mask is now part of each layer's")
        self._notes.append("; ".join([f'group "{name}" was flattened: its layers stand alone', *changes]))
        return _Group(
            opacity=outer.opacity * opacity, visible=outer.visible and record.flags.visible,
            masks=outer.masks if mask is None else (*outer.masks, mask), path=(*outer.path, number),
        )

    def _has_pixels(self, record: LayerRecord, name: str) -> bool:
        tags = _tags(record)
        kinds = [kind for tag, kind in _ADJUSTMENTS.items() if tag in tags]
        if record.width and record.height and not kinds:
            return True
        what = f"{kinds[0]} layer" if kinds else "layer"
        self._notes.append(f'{what} "{name}" was left out: it has no pixels of its own')
        return False

    def _layers(self, leaves: list[_Leaf]) -> list[Layer]:
        layers: list[Layer] = []
        base: tuple[_Leaf, Layer] | None = None
        for leaf in leaves:
            layer = self._layer(leaf)
            if int(leaf.record.clipping) == 0:
                base = leaf, layer
            elif base is not None and base[0].group.path == leaf.group.path:
                layer = _clipped(layer, base[1])
                self._notes.append(
                    f'layer "{leaf.name}" was clipped to "{base[0].name}": that layer\'s alpha is part of its mask'
                )
            else:
                self._notes.append(f'layer "{leaf.name}" was clipped to what is no layer with pixels: it stands alone')
            layers.append(layer)
        return layers

    def _layer(self, leaf: _Leaf) -> Layer:
        record, group, name = leaf.record, leaf.group, leaf.name
        self._note_left_out(record, name)
        box = _box(record)
        planes = self._colour_planes(record, leaf.channels, box)
        own = self._mask(record, leaf.channels, name)
        masks = [mask.within(box) for mask in (*group.masks, *([] if own is None else [own]))]
        mode = _BLEND_MODES.get(record.blend_mode.value)
        if mode is None:
            self._notes.append(
                f'layer "{name}": blend mode {_mode_name(record.blend_mode.value)} is not supported, normal instead'
            )
        return Layer(
            name=name, picture=planes, mask=_product(masks), x=float(box.left), y=float(box.top),
            opacity=_opacity(record) * group.opacity, blend_mode=mode or BlendMode.NORMAL,
            visible=record.flags.visible and group.visible,
        )

    def _note_left_out(self, record: LayerRecord, name: str) -> None:
        tags = _tags(record)
        for tag, kind in _AS_PIXELS.items():
            if tag in tags:
                self._notes.append(f'{kind} "{name}" was taken as its pixels')
                break
        if any(tag in tags for tag in _EFFECTS):
            self._notes.append(f'layer "{name}": its effects were left out')
        has_real = any(int(channel.id) == -3 for channel in record.channel_info)
        if any(tag in tags for tag in _VECTOR_MASKS) and not has_real:
            self._notes.append(f'layer "{name}": its vector mask was left out')

    def _colour_planes(self, record: LayerRecord, channels: Any, box: Box) -> Tensor:  # noqa: ANN401
        """(1, 3 or 4, H, W); RGB where alpha is absent or 1 everywhere."""
        planes: dict[int, Tensor] = {}
        for information, channel in zip(record.channel_info, channels, strict=True):
            if int(information.id) in (_ALPHA, *range(self._planes)):
                planes[int(information.id)] = decode(channel, box.size, self._depth, self._version)
        missing = [number for number in range(self._planes) if number not in planes]
        if missing:
            raise ValueError(f'layer "{_name(record)}" must have all colours, channel {missing[0]} is missing')
        colours = [planes[number] for number in range(self._planes)] * (3 // self._planes)
        alpha = [planes[_ALPHA]] if _ALPHA in planes else []
        return without_full_alpha(torch.stack([*colours, *alpha]).unsqueeze(0))

    def _mask(self, record: LayerRecord, channels: Any, name: str) -> Plane | None:  # noqa: ANN401
        found = user_mask(record)
        if found is None:
            return None
        number, box, outside, disabled = found
        if disabled:
            self._notes.append(f'"{name}": its mask is switched off and was left out')
            return None
        parameters = record.mask_data.parameters if record.mask_data is not None else None
        if parameters is not None and (parameters.user_mask_feather or parameters.user_mask_density not in (None, 255)):
            self._notes.append(f'"{name}": feather and density of its mask were left out')
        if not (box.width and box.height):
            return Plane(None, box, outside)
        self._room.take(f'the mask of "{name}"', box.width, box.height, channels=1)
        for information, channel in zip(record.channel_info, channels, strict=True):
            if int(information.id) == number:
                return Plane(decode(channel, box.size, self._depth, self._version), box, outside)
        return None

    def _merged(self) -> Layer:
        """The merged picture as the only layer."""
        header = self._psd.header
        width, height = header.width, header.height
        self._room.take("the picture", width, height)
        self._notes.append("it has no layers with pixels: its merged picture was taken")
        planes = decode(self._psd.image_data, (width, height * header.channels), self._depth, self._version)
        colours = planes.view(header.channels, height, width)[: self._planes]
        return Layer(name="Background", picture=colours.expand(3, -1, -1).contiguous().unsqueeze(0))


def _clipped(layer: Layer, base: Layer) -> Layer:
    """A layer that shows only where the one below does."""
    height, width = base.picture.shape[-2:]
    left, top = round(base.x), round(base.y)
    coverage = base.coverage
    plane = torch.ones(height, width) if coverage is None else coverage[0, 0]
    below = Plane(plane, Box(left, top, left + width, top + height), 0.0)
    height, width = layer.picture.shape[-2:]
    left, top = round(layer.x), round(layer.y)
    mask = below.within(Box(left, top, left + width, top + height)).view(1, 1, height, width)
    mask = mask if layer.mask is None else mask * layer.mask
    return replace(layer, mask=mask, visible=layer.visible and base.visible)


def _product(masks: Iterable[Tensor]) -> Tensor | None:
    result: Tensor | None = None
    for mask in masks:
        result = mask if result is None else result * mask
    return None if result is None else result[None, None]


def _box(record: LayerRecord) -> Box:
    return Box(record.left, record.top, record.right, record.bottom)


def _key(key: Any) -> bytes:  # noqa: ANN401
    """A tagged block's four bytes; psd-tools knows some as an enum."""
    return getattr(key, "value", key)


def _tags(record: LayerRecord) -> set[bytes]:
    return {_key(key) for key in record.tagged_blocks}


def _group_kind(record: LayerRecord) -> int:
    """0 for a layer, 1 or 2 for a group, 3 for its lower end."""
    for key, block in record.tagged_blocks.items():
        if _key(key) in _GROUP_TAGS:
            return int(block.data.kind)
    return 0


def _group_mode(record: LayerRecord) -> bytes:
    for key, block in record.tagged_blocks.items():
        if _key(key) in _GROUP_TAGS and block.data.blend_mode is not None:
            return _key(block.data.blend_mode)
    return record.blend_mode.value


def _mode_name(key: bytes) -> str:
    from psd_tools.constants import BlendMode as BlendKey

    return BlendKey(key).name.lower().replace("_", " ")


def _name(record: LayerRecord) -> str:
    for key, block in record.tagged_blocks.items():
        if _key(key) == b"luni":
            return file_text(str(getattr(block.data, "value", block.data)).rstrip("\0"))
    return file_text(record.name)


def _opacity(record: LayerRecord) -> float:
    """Opacity times fill opacity, which differ only in what they do to effects."""
    fill = 255
    for key, block in record.tagged_blocks.items():
        if _key(key) == b"iOpa":
            fill = int(getattr(block.data, "value", block.data))
    return record.opacity / 255 * min(max(fill, 0), 255) / 255
