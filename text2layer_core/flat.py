"""A document made ready for a file: layers at whole pixels, in the steps that the file can hold."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .layers import TwoLayerImage
from .placement import layer_bounds, rasterise
from .stack import Layer, LayerStack

MAX_SIDE = 16_384
MAX_PIXELS = 2**28
MAX_LAYER_BYTES = 2**30

Masks = ("layer", "alpha")
"""A layer's mask as a mask that can be edited, or multiplied into its alpha."""

NO_SRGB = "its colour profile is not sRGB: colours were taken as they are stored"

_BYTES_A_VALUE = 4  # float32
_NO_XML = {"\ufffe", "\uffff"}
_NAME_LENGTH = 255


@dataclass(frozen=True, eq=False)
class LoadedDocument:
    """What a file holds.

    Attributes:
        stack: a batch of one, float32.
        notes: one line for everything of the file that the document does not hold as it was.
    """

    stack: LayerStack
    notes: tuple[str, ...]


class Room:
    """How many pixels a file may still ask for; asked before they are made."""

    def __init__(self) -> None:
        self._left = MAX_PIXELS * 4 * _BYTES_A_VALUE

    def take(self, what: str, width: int, height: int, *, channels: int = 4) -> None:
        """Raises ValueError where a picture, or all of them together, would be too large."""
        check_size(what, width, height)
        size = width * height * channels * _BYTES_A_VALUE
        if size > MAX_LAYER_BYTES:
            raise ValueError(f"{what} must take at most {MAX_LAYER_BYTES} bytes, got {size} ({width}x{height})")
        self._left -= size
        if self._left < 0:
            raise ValueError(f"its layers must have at most {MAX_PIXELS} pixels together; {what} is beyond that")


class Damage(Exception):
    """What is wrong in a file, where its reader says so in its own words."""


@contextmanager
def reading(path: Path, *damage: type[Exception]) -> Generator[None, None, None]:
    """One line that names the file for everything that is wrong in it, `damage` being what its readers may raise.

    Raises:
        ValueError: for all these, and for other ValueErrors.
        OSError: the operating system's errors, as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a place in the file that cannot be
            raise
        raise ValueError(f"{path.name} is damaged: {_one_line(error)}") from error
    except (Damage, *damage) as error:
        raise ValueError(f"{path.name} is damaged: {_one_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {_one_line(error)}") from error


def as_stack(document: LayerStack | TwoLayerImage) -> LayerStack:
    """A two-layer image as a document; a document stays."""
    return LayerStack.from_two_layers(document) if isinstance(document, TwoLayerImage) else document


def upright(document: LayerStack | TwoLayerImage) -> LayerStack:
    """The document with all geometry worked into the layers' pixels, on the CPU in float32.

    A mask stays a mask wherever the layer's own picture has no alpha: what resampling makes of it, and of the layer's
    edges between pixels, becomes the mask.

    Raises:
        ValueError: the document holds more than one picture, or a canvas or layer is too large for a file.
    """
    stack = as_stack(document)
    count = stack.layers[0].picture.shape[0]
    if count != 1:
        what = "image" if isinstance(document, TwoLayerImage) else "document"
        raise ValueError(f"{what} must hold one picture (index the batch), got {count}")
    check_size("the canvas", *stack.canvas)
    return replace(stack, layers=tuple(_upright(layer) for layer in stack))


def _upright(layer: Layer) -> Layer:
    left, top, right, bottom = layer_bounds(layer)
    check_size(f'layer "{layer.name}"', right - left, bottom - top)
    mask = None if layer.mask is None else layer.mask.detach().float().cpu()
    layer = replace(layer, picture=layer.picture.detach().float().cpu(), mask=mask)
    flat = rasterise(layer)
    if flat is None:  # only where a canvas cuts it
        raise ValueError(f'layer "{layer.name}" must have pixels')
    if mask is not None and flat.mask is None and layer.picture.shape[1] == 3 and flat.picture.shape[1] == 4:
        flat = replace(flat, picture=flat.picture[:, :3], mask=flat.picture[:, 3:])
    return flat


def with_levels(stack: LayerStack, levels: int) -> LayerStack:
    """The document as a file gives it back: pictures and masks in whole steps of 1 / levels."""
    return replace(stack, layers=tuple(
        replace(
            layer, picture=_rounded(layer.picture, levels),
            mask=None if layer.mask is None else _rounded(layer.mask, levels),
        )
        for layer in stack
    ))


def with_masks_in_alpha(stack: LayerStack) -> LayerStack:
    """The document without masks, each multiplied into its layer's alpha."""
    return replace(stack, layers=tuple(
        layer if layer.mask is None else replace(layer, picture=covered(layer), mask=None) for layer in stack
    ))


def covered(layer: Layer) -> Tensor:
    """RGB, or RGBA with alpha times mask, (N, 3 or 4, H, W)."""
    coverage = layer.coverage
    return layer.colour if coverage is None else torch.cat([layer.colour, coverage], dim=1)


def on_canvas(layer: Layer, canvas: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Picture, see `covered`, and mask of a layer at whole pixels, on the whole canvas; transparent beside it."""
    picture, (left, top) = covered(layer), corner(layer)
    height, width = picture.shape[-2:]
    if (left, top, width, height) == (0, 0, *canvas):
        return picture, layer.mask
    if picture.shape[1] == 3:
        picture = torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1)
    mask = None if layer.mask is None else _moved(layer.mask, left, top, canvas)
    return _moved(picture, left, top, canvas), mask


def _moved(part: Tensor, left: int, top: int, canvas: tuple[int, int]) -> Tensor:
    result = part.new_zeros(*part.shape[:2], canvas[1], canvas[0])
    height, width = part.shape[-2:]
    columns = slice(max(left, 0), max(min(left + width, canvas[0]), 0))
    rows = slice(max(top, 0), max(min(top + height, canvas[1]), 0))
    if columns.start < columns.stop and rows.start < rows.stop:
        result[..., rows, columns] = part[
            ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return result


def corner(layer: Layer) -> tuple[int, int]:
    """Left and top of a layer at whole pixels."""
    return round(layer.x), round(layer.y)


def file_text(name: str) -> str:
    """A name that every format can hold: no control characters, no halves of characters, at most 255."""
    kept = (" " if unicodedata.category(part) in ("Cc", "Cs") or part in _NO_XML else part for part in name)
    return "".join(kept)[:_NAME_LENGTH]


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile is called sRGB, in either of its ways to write a text."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}")


def check_size(what: str, width: int, height: int) -> None:
    """Raises ValueError for sides below 1 or above 16,384 pixels."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"{what} must be 1 to {MAX_SIDE} pixels a side, got {width}x{height}")


def _rounded(picture: Tensor, levels: int) -> Tensor:
    return (picture * levels).round() / levels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
