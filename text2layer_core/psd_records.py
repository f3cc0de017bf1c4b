"""What a layer's record in a PSD file says (Adobe, "Photoshop File Formats Specification", "Layer records")."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from .flat import file_text
from .psd import BLEND_KEYS

if TYPE_CHECKING:
    from psd_tools.psd.layer_and_mask import LayerRecord

BLEND_MODES = {key: mode for mode, key in BLEND_KEYS.items()}
PASS_THROUGH = b"pass"
ADJUSTMENTS = {
    b"SoCo": "solid colour", b"GdFl": "gradient", b"PtFl": "pattern", b"brit": "brightness/contrast",
    b"CgEd": "brightness/contrast", b"levl": "levels", b"curv": "curves", b"expA": "exposure", b"vibA": "vibrance",
    b"hue ": "hue/saturation", b"hue2": "hue/saturation", b"blnc": "colour balance", b"blwh": "black and white",
    b"phfl": "photo filter", b"mixr": "channel mixer", b"clrL": "colour lookup", b"nvrt": "invert",
    b"post": "posterise", b"thrs": "threshold", b"selc": "selective colour", b"grdm": "gradient map",
}
AS_PIXELS = {b"TySh": "text", b"SoLd": "smart object", b"SoLE": "smart object", b"PlLd": "smart object"}
EFFECTS = (b"lrFX", b"lfx2", b"lmfx")
VECTOR_MASKS = (b"vmsk", b"vsms")
_GROUP_TAGS = (b"lsdk", b"lsct")
_UNICODE_NAME = b"luni"
_FILL_OPACITY = b"iOpa"


class Kind(IntEnum):
    """What a record stands for; a group's layers lie between its end, which is below, and its own record."""

    LAYER = 0
    OPEN_GROUP = 1
    CLOSED_GROUP = 2
    GROUP_END = 3


def kind_of(record: LayerRecord) -> Kind:
    """Layer, group, or a group's lower end."""
    data = _block(record, *_GROUP_TAGS)
    return Kind.LAYER if data is None or int(data.kind) not in (1, 2, 3) else Kind(int(data.kind))


def clipping_bases(records: Sequence[LayerRecord]) -> dict[int, int]:
    """For each layer that is clipped, the nearest record below it in the same group that is not, or itself."""
    bases: dict[int, int] = {}
    lowest: list[int | None] = [None]
    for number, record in enumerate(records):
        kind = kind_of(record)
        if kind == Kind.GROUP_END:
            lowest.append(None)
            continue
        if kind != Kind.LAYER:
            lowest = lowest[:-1] or lowest
        if int(record.clipping) == 0:
            lowest[-1] = number
        elif kind == Kind.LAYER:
            below = lowest[-1]
            bases[number] = number if below is None else below
    return bases


def block_key(key: Any) -> bytes:  # noqa: ANN401
    """A tagged block's four bytes; psd-tools knows some as an enum."""
    return getattr(key, "value", key)


def tags_of(record: LayerRecord) -> set[bytes]:
    """The keys of all its tagged blocks."""
    return {block_key(key) for key in record.tagged_blocks}


def group_mode(record: LayerRecord) -> bytes:
    """The key of a group's blend mode."""
    mode = getattr(_block(record, *_GROUP_TAGS), "blend_mode", None)
    return block_key(record.blend_mode if mode is None else mode)


def mode_name(key: bytes) -> str:
    """A blend mode in words."""
    from psd_tools.constants import BlendMode as BlendKey

    return BlendKey(key).name.lower().replace("_", " ")


def name_of(record: LayerRecord) -> str:
    """The Unicode name, or the old one."""
    data = _block(record, _UNICODE_NAME)
    return file_text(record.name if data is None else str(getattr(data, "value", data)).rstrip("\0"))


def opacity_of(record: LayerRecord) -> float:
    """Opacity times fill opacity, which differ only in what they do to effects."""
    data = _block(record, _FILL_OPACITY)
    fill = 255 if data is None else int(getattr(data, "value", data))
    return record.opacity / 255 * min(max(fill, 0), 255) / 255


def _block(record: LayerRecord, *tags: bytes) -> Any:  # noqa: ANN401
    """What the first tagged block with one of these keys holds."""
    return next((block.data for key, block in record.tagged_blocks.items() if block_key(key) in tags), None)
