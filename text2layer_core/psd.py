"""Documents as PSD files, version 1, 8 bits (Adobe, "Photoshop File Formats Specification"), by way of psd-tools."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .atomic import write_file
from .blending import BlendMode
from .composition import compose_stack
from .flat import Masks, check_choice, corner, file_text, upright, with_levels, with_masks_in_alpha

if TYPE_CHECKING:
    from psd_tools.psd.layer_and_mask import ChannelData, LayerInfo, LayerRecord
    from torch import Tensor

    from .atomic import Writer
    from .layers import TwoLayerImage
    from .stack import Layer, LayerStack

BLEND_KEYS = {
    BlendMode.NORMAL: b"norm",
    BlendMode.MULTIPLY: b"mul ",
    BlendMode.SCREEN: b"scrn",
    BlendMode.OVERLAY: b"over",
    BlendMode.DARKEN: b"dark",
    BlendMode.LIGHTEN: b"lite",
    BlendMode.COLOR_DODGE: b"div ",
    BlendMode.COLOR_BURN: b"idiv",
    BlendMode.HARD_LIGHT: b"hLit",
    BlendMode.SOFT_LIGHT: b"sLit",
    BlendMode.DIFFERENCE: b"diff",
    BlendMode.EXCLUSION: b"smud",
    BlendMode.HUE: b"hue ",
    BlendMode.SATURATION: b"sat ",
    BlendMode.COLOR: b"colr",
    BlendMode.LUMINOSITY: b"lum ",
}

_OLD_NAME_BYTES = 63
_MASK = -2
_ALPHA = -1


def save_psd(path: str | Path, document: LayerStack | TwoLayerImage, *, masks: str = "layer") -> None:
    """Writes a PSD with the document's layers, atomically.

    Names, order, places, opacity, blend modes and visibility are kept, and pixels beyond the canvas. Layers that are
    scaled, turned, flipped or between pixels are resampled first. The merged picture that the file carries is the
    document's own composition, on stored sRGB values, of what the file holds.

    Args:
        path: the file; its folder exists.
        document: a batch of one.
        masks: "layer" keeps a layer's mask as a mask that can be edited, its picture whole; "alpha" multiplies it
            into the layer's transparency.

    Raises:
        ValueError: the document holds more than one picture, the choice is unknown, the canvas or a layer has a side
            above 16,384 pixels, or the layers do not fit into the format's 4 GiB.
        OSError: the file cannot be written; it names the file, and nothing is left of it then.
    """
    write_file(path, psd_writer(document, masks=masks))


def psd_writer(document: LayerStack | TwoLayerImage, *, masks: str = "layer") -> Writer:
    """What writes the file of `save_psd` to a path, not atomically; raises its ValueErrors at once."""
    check_choice("masks", masks, Masks)
    stack = upright(document)
    stack = with_levels(with_masks_in_alpha(stack) if masks == "alpha" else stack, 255)
    layers = tuple(replace(layer, opacity=round(layer.opacity * 255) / 255) for layer in stack)
    return partial(_write, stack=replace(stack, layers=layers))


def _write(path: Path, stack: LayerStack) -> None:
    from psd_tools.constants import ColorMode, Compression
    from psd_tools.psd import PSD
    from psd_tools.psd.header import FileHeader
    from psd_tools.psd.image_data import ImageData
    from psd_tools.psd.image_resources import ImageResources
    from psd_tools.psd.layer_and_mask import GlobalLayerMaskInfo, LayerAndMaskInformation
    from psd_tools.psd.tagged_blocks import TaggedBlocks

    merged, transparent = _merged(stack)
    width, height = stack.canvas
    header = FileHeader(
        version=1, channels=len(merged), width=width, height=height, depth=8, color_mode=ColorMode.RGB
    )
    image_data = ImageData(compression=Compression.RLE)
    image_data.set_data([_bytes(plane) for plane in merged], header)
    sections = LayerAndMaskInformation(
        layer_info=_layer_info(stack, transparent=transparent),
        global_layer_mask_info=GlobalLayerMaskInfo(),
        tagged_blocks=TaggedBlocks(),
    )
    document = PSD(
        header=header, image_resources=ImageResources.new(), layer_and_mask_information=sections, image_data=image_data
    )
    with path.open("wb") as file:
        try:
            document.write(file)
        except struct.error as error:  # a length that 32 bits do not hold
            raise ValueError("the layers must fit into the 4 GiB of a PSD file") from error


def _merged(stack: LayerStack) -> tuple[Tensor, bool]:
    """The merged picture's planes, (3 or 4, H, W), and whether one of them is alpha; then colours lie on white."""
    picture = compose_stack(stack)[0]
    colour, alpha = picture[:3], picture[3:]
    if bool((alpha * 255 >= 254.5).all()):
        return colour, False
    return torch.cat([torch.lerp(torch.ones_like(colour), colour, alpha), alpha]), True


def _layer_info(stack: LayerStack, *, transparent: bool) -> LayerInfo:
    from psd_tools.psd.layer_and_mask import ChannelDataList, ChannelImageData, LayerInfo, LayerRecords

    records: list[LayerRecord] = []
    channels: list[ChannelDataList] = []
    for layer in stack:
        planes = _planes(layer)
        records.append(_record(layer, list(planes)))
        channels.append(ChannelDataList([_channel(plane) for plane in planes.values()]))
    return LayerInfo(
        layer_count=-len(records) if transparent else len(records),  # the sign says that the merged picture has alpha
        layer_records=LayerRecords(records),
        channel_image_data=ChannelImageData(channels),
    )


def _planes(layer: Layer) -> dict[int, Tensor]:
    """The format's channel number -> (H, W); every layer has alpha, since one without would be a locked background."""
    picture = layer.picture[0]
    planes = {_ALPHA: picture[3] if len(picture) == 4 else torch.ones_like(picture[0])}
    planes.update(enumerate(picture[:3]))
    if layer.mask is not None:
        planes[_MASK] = layer.mask[0, 0]
    return planes


def _record(layer: Layer, channels: list[int]) -> LayerRecord:
    from psd_tools.constants import BlendMode as BlendKey
    from psd_tools.constants import Tag
    from psd_tools.psd.layer_and_mask import ChannelInfo, LayerFlags, LayerRecord, MaskData

    left, top = corner(layer)
    height, width = layer.picture.shape[-2:]
    right, bottom = left + width, top + height
    name = file_text(layer.name)
    record = LayerRecord(
        top=top, left=left, bottom=bottom, right=right,
        channel_info=[ChannelInfo(id=channel) for channel in channels],  # pyright: ignore[reportArgumentType]
        blend_mode=BlendKey(BLEND_KEYS[BlendMode(layer.blend_mode)]),
        opacity=round(layer.opacity * 255),
        flags=LayerFlags(visible=layer.visible),
        mask_data=None if layer.mask is None else MaskData(top=top, left=left, bottom=bottom, right=right),
        name=name.encode("macroman", "replace")[:_OLD_NAME_BYTES].decode("macroman"),
    )
    record.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, name)
    return record


def _channel(plane: Tensor) -> ChannelData:
    from psd_tools.constants import Compression
    from psd_tools.psd.layer_and_mask import ChannelData

    channel = ChannelData(compression=Compression.RLE)
    channel.set_data(_bytes(plane), plane.shape[1], plane.shape[0], 8)
    return channel


def _bytes(plane: Tensor) -> bytes:
    """(H, W) in [0, 1] to 8 bits, rounded to the nearest."""
    return (plane * 255).round().byte().contiguous().numpy().tobytes()
