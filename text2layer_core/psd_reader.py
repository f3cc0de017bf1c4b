"""PSD files as documents (Adobe, "Photoshop File Formats Specification"): psd-tools parses, all limits are ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .blending import BlendMode
from .composition import without_full_alpha
from .flat import NO_SRGB, Damage, LoadedDocument, Room, check_size, is_srgb, reading
from .psd_planes import Box, Plane, decode, user_mask
from .psd_records import (
    ADJUSTMENTS,
    AS_PIXELS,
    BLEND_MODES,
    EFFECTS,
    PASS_THROUGH,
    VECTOR_MASKS,
    Kind,
    block_key,
    clipping_bases,
    group_mode,
    kind_of,
    mode_name,
    name_of,
    opacity_of,
    tags_of,
)
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
_ICC_PROFILE = 1039
_ALPHA = -1
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


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """A layer with pixels, and what stands around it; `base` is the record that it is clipped to."""

    number: int
    base: int | None
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
        if not all(is_srgb(profile) for profile in self._profiles()):
            self._notes.append(NO_SRGB)
        leaves = self._leaves()
        if len(leaves) > MAX_LAYERS:
            raise ValueError(f"it must hold at most {MAX_LAYERS} layers with pixels, got {len(leaves)}")
        for leaf in leaves:
            self._room.take(f'layer "{leaf.name}"', leaf.record.width, leaf.record.height)
        layers = self._layers(leaves) if leaves else [self._merged()]
        canvas = self._psd.header.width, self._psd.header.height
        return LoadedDocument(LayerStack(canvas=canvas, layers=tuple(layers)), tuple(self._notes))

    def _profiles(self) -> list[bytes]:
        resources = self._psd.image_resources.items()
        return [bytes(resource.data) for key, resource in resources if int(key) == _ICC_PROFILE]

    def _records(self) -> list[tuple[LayerRecord, Any]]:
        """Bottom first; 16-bit files may keep them in a block of their own."""
        sections = self._psd.layer_and_mask_information
        found = sections.layer_info
        for key, block in (sections.tagged_blocks or {}).items():
            if block_key(key) in (b"Lr16", b"Lr32"):
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
        records = self._records()
        bases = clipping_bases([record for record, _ in records])
        for number, (record, channels) in reversed(list(enumerate(records))):
            kind, name = kind_of(record), name_of(record)
            if kind in (Kind.OPEN_GROUP, Kind.CLOSED_GROUP):
                if len(groups) > _MAX_DEPTH:
                    raise ValueError(f"its groups must lie in each other at most {_MAX_DEPTH} deep")
                groups.append(self._group(groups[-1], record, channels, name))
            elif kind == Kind.GROUP_END:
                groups = groups[:-1] or groups  # an end without a group is none
            elif self._has_pixels(record, name):
                leaves.append(_Leaf(
                    number=number, base=bases.get(number), record=record, channels=channels, group=groups[-1], name=name
                ))
        return leaves[::-1]

    def _group(self, outer: _Group, record: LayerRecord, channels: Any, name: str) -> _Group:  # noqa: ANN401
        changes: list[str] = []
        opacity = opacity_of(record)
        if opacity != 1:
            changes.append(f"its opacity {opacity:.3g} is now that of each layer")
        mode = group_mode(record)
        if mode not in (PASS_THROUGH, b"norm"):
            changes.append(f"its blend mode {mode_name(mode)} was left out")
        if any(tag in tags_of(record) for tag in EFFECTS):
            changes.append("its effects were left out")
        mask = self._mask(record, channels, name)
        if mask is not None:
            changes.append("its mask is now part of each layer's")
        self._notes.append("; ".join([f'group "{name}" was flattened: its layers stand alone', *changes]))
        return _Group(
            opacity=outer.opacity * opacity, visible=outer.visible and record.flags.visible,
            masks=outer.masks if mask is None else (*outer.masks, mask),
        )

    def _has_pixels(self, record: LayerRecord, name: str) -> bool:
        tags = tags_of(record)
        kinds = [kind for tag, kind in ADJUSTMENTS.items() if tag in tags]
        if record.width and record.height and not kinds:
            return True
        what = f"{kinds[0]} layer" if kinds else "layer"
        self._notes.append(f'{what} "{name}" was left out: it has no pixels of its own')
        return False

    def _layers(self, leaves: list[_Leaf]) -> list[Layer]:
        bases = {leaf.base for leaf in leaves}
        shapes: dict[int, tuple[_Leaf, Plane]] = {}
        layers: list[Layer] = []
        for leaf in leaves:
            box = _box(leaf.record)
            picture, own = self._pixels(leaf, box)
            layers.append(self._layer(leaf, picture, own, self._clip(leaf, shapes)))
            if leaf.number in bases:
                shapes[leaf.number] = leaf, _shape(picture, own, box)
        return layers

    def _pixels(self, leaf: _Leaf, box: Box) -> tuple[Tensor, Plane | None]:
        self._note_left_out(leaf.record, leaf.name)
        return self._colour_planes(leaf.record, leaf.channels, box), self._mask(leaf.record, leaf.channels, leaf.name)

    def _clip(self, leaf: _Leaf, shapes: dict[int, tuple[_Leaf, Plane]]) -> tuple[_Leaf, Plane] | None:
        """The layer that it is clipped to, and where that one shows, groups left out."""
        if leaf.base is None:
            return None
        found = shapes.get(leaf.base)
        if found is None:
            self._notes.append(f'layer "{leaf.name}" was clipped to what is no layer with pixels: it stands alone')
        else:
            self._notes.append(
                f'layer "{leaf.name}" was clipped to "{found[0].name}": that layer\'s alpha is part of its mask'
            )
        return found

    def _layer(
        self, leaf: _Leaf, picture: Tensor, own: Plane | None, clip: tuple[_Leaf, Plane] | None
    ) -> Layer:
        record, group, name, box = leaf.record, leaf.group, leaf.name, _box(leaf.record)
        masks = [*group.masks, *([] if own is None else [own]), *([] if clip is None else [clip[1]])]
        below = record if clip is None else clip[0].record
        mode = BLEND_MODES.get(record.blend_mode.value)
        if mode is None:
            self._notes.append(
                f'layer "{name}": blend mode {mode_name(record.blend_mode.value)} is not supported, normal instead'
            )
        return Layer(
            name=name, picture=picture, mask=_product(mask.within(box) for mask in masks), x=float(box.left),
            y=float(box.top), opacity=opacity_of(record) * group.opacity * (1 if clip is None else opacity_of(below)),
            blend_mode=mode or BlendMode.NORMAL,
            visible=record.flags.visible and group.visible and below.flags.visible,
        )

    def _note_left_out(self, record: LayerRecord, name: str) -> None:
        tags = tags_of(record)
        for tag, kind in AS_PIXELS.items():
            if tag in tags:
                self._notes.append(f'{kind} "{name}" was taken as its pixels')
                break
        if any(tag in tags for tag in EFFECTS):
            self._notes.append(f'layer "{name}": its effects were left out')
        has_real = any(int(channel.id) == -3 for channel in record.channel_info)
        if any(tag in tags for tag in VECTOR_MASKS) and not has_real:
            self._notes.append(f'layer "{name}": its vector mask was left out')

    def _colour_planes(self, record: LayerRecord, channels: Any, box: Box) -> Tensor:  # noqa: ANN401
        """(1, 3 or 4, H, W); RGB where alpha is absent or 1 everywhere."""
        planes: dict[int, Tensor] = {}
        for information, channel in zip(record.channel_info, channels, strict=True):
            if int(information.id) in (_ALPHA, *range(self._planes)):
                planes[int(information.id)] = decode(channel, box.size, self._depth, self._version)
        missing = [number for number in range(self._planes) if number not in planes]
        if missing:
            raise ValueError(f'layer "{name_of(record)}" must have all colours, channel {missing[0]} is missing')
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


def _shape(picture: Tensor, mask: Plane | None, box: Box) -> Plane:
    """Where a layer shows: its alpha and its own mask."""
    height, width = picture.shape[-2:]
    alpha = picture[0, 3] if picture.shape[1] == 4 else torch.ones(height, width)
    return Plane(alpha if mask is None else alpha * mask.within(box), box, 0.0)


def _product(masks: Iterable[Tensor]) -> Tensor | None:
    result: Tensor | None = None
    for mask in masks:
        result = mask if result is None else result * mask
    return None if result is None else result[None, None]


def _box(record: LayerRecord) -> Box:
    return Box(record.left, record.top, record.right, record.bottom)
