"""Where a layer's pixels come to lie: whole-pixel layers exactly, all others resampled without fringes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from .compositing import pad_foreground
from .stack import Layer

Window = tuple[int, int, int, int]
"""Left, top, right and bottom in whole pixels of the canvas; the last two are outside."""

_NEAR = 1e-4  # pixels: nearer to a whole number is whole
NEAR_TURN = 1e-6  # radians: nearer to a quarter turn is one
_INVISIBLE = 1 / 510  # alpha that rounds to 0 in 8 bits; the colour of such a resampled pixel says nothing


class Interpolation(str, Enum):
    """How a layer is resampled; where it shrinks, both filter first (antialias)."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"


@dataclass(frozen=True, eq=False)
class Placed:
    """The pixels of a layer on a canvas, opacity and blend mode left out.

    Attributes:
        window: where they lie.
        colour: (N, 3, h, w) in [0, 1], straight.
        coverage: (N, 1, h, w) in [0, 1]; None where the layer is opaque everywhere.
    """

    window: Window
    colour: Tensor
    coverage: Tensor | None


@dataclass(frozen=True)
class _Box:
    """A layer's box after turning.

    Attributes:
        centre: in pixels of the canvas.
        size: width and height before turning.
        rotation: radians, clockwise.
        quarters: the rotation in whole quarter turns; None where it is none.
        corner: left and top of the turned box's bounds.
        extent: width and height of these bounds.
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    rotation: float
    quarters: int | None
    corner: tuple[float, float]
    extent: tuple[float, float]

    @property
    def window(self) -> Window:
        """The pixels that the box touches, at least one."""
        (left, top), (width, height) = self.corner, self.extent
        first = math.floor(left + _NEAR), math.floor(top + _NEAR)
        last = math.ceil(left + width - _NEAR), math.ceil(top + height - _NEAR)
        return *first, max(last[0], first[0] + 1), max(last[1], first[1] + 1)

    @property
    def whole(self) -> bool:
        """Whether its sides run between pixels."""
        return self.quarters is not None and all(map(_is_whole, (*self.corner, *self.extent)))


def layer_bounds(layer: Layer) -> Window:
    """The least rectangle of whole pixels that holds the layer; it may reach beyond the canvas, or lie beside it."""
    return _box(layer).window


def place(
    layer: Layer, canvas: tuple[int, int] | None = None, *, interpolation: Interpolation | str = Interpolation.BICUBIC
) -> Placed | None:
    """The pixels of a layer where they come to lie.

    Exact, views of the layer's own tensors where possible, if the layer is at its picture's size, turned by quarters
    or not at all, and its box at whole pixels. A box that has been turned by quarters and lies half a pixel beside
    them on both axes, as an odd and an even side do, goes to the upper left, as in ComfyUI's compositor: so quarter
    turns are always exact. All other layers are resampled, premultiplied; a box's edge between pixels covers them in
    part.

    Args:
        layer: what to place.
        canvas: width and height; what lies outside is left out. None for all of it.
        interpolation: for layers that are resampled.

    Returns:
        The pixels, or None where the layer lies wholly off the canvas.

    Raises:
        ValueError: the interpolation is unknown.
    """
    filtering = _interpolation(interpolation)
    box = _box(layer)
    window = box.window if canvas is None else _overlap(box.window, (0, 0, *canvas))
    if window is None:
        return None
    colour, coverage = (None if part is None else _flipped(part, layer) for part in (layer.colour, layer.coverage))
    colour = cast("Tensor", colour)
    if _is_exact(layer, box):
        parts = [None if part is None else _cut(part, box, window) for part in (colour, coverage)]
        return Placed(window, cast("Tensor", parts[0]), parts[1])
    return _resample(colour, coverage, box, window, filtering)


def rasterise(
    layer: Layer, canvas: tuple[int, int] | None = None, *, interpolation: Interpolation | str = Interpolation.BICUBIC
) -> Layer | None:
    """The layer with its geometry worked into its pixels: unscaled, unturned, at whole pixels.

    Where a resampled layer is transparent, its colour is continued from where it shows (`pad_foreground`). Name,
    opacity, blend mode and visibility stay.

    Args:
        layer: what to rasterise; a layer that is at whole pixels already is given back as it is.
        canvas: cut to these pixels; None keeps everything.
        interpolation: see `place`.

    Returns:
        A layer with an RGBA picture and no mask, or RGB where it is opaque everywhere; None where it lies wholly off
        the canvas.

    Raises:
        ValueError: the interpolation is unknown.
    """
    box, upright = _box(layer), not (layer.flip_horizontal or layer.flip_vertical)
    exact = _is_exact(layer, box)
    if exact and upright and box.quarters == 0 and canvas is None:
        left, top = box.window[:2]
        return replace(layer, x=float(left), y=float(top), width=None, height=None, rotation=0.0)
    placed = place(layer, canvas, interpolation=interpolation)
    if placed is None:
        return None
    picture = placed.colour
    if placed.coverage is not None:
        if not exact:
            picture = pad_foreground(picture, torch.where(placed.coverage > _INVISIBLE, placed.coverage, 0.0))
        picture = torch.cat([picture, placed.coverage], dim=1)
    left, top = placed.window[:2]
    return replace(
        layer, picture=picture, mask=None, x=float(left), y=float(top), width=None, height=None, rotation=0.0,
        flip_horizontal=False, flip_vertical=False,
    )


def cosine_and_sine(angle: float) -> tuple[float, float]:
    """Of an angle in radians; exact at quarter turns."""
    quarters = _quarters(angle)
    if quarters is None:
        return math.cos(angle), math.sin(angle)
    return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[quarters]


def _interpolation(name: Interpolation | str) -> Interpolation:
    try:
        return Interpolation(name)
    except ValueError:
        raise ValueError(
            f"interpolation must be one of {', '.join(Interpolation)}, got {name}"
        ) from None


def _quarters(angle: float) -> int | None:
    turns = angle / (math.pi / 2)
    nearest = round(turns)
    return nearest % 4 if abs(turns - nearest) * math.pi / 2 <= NEAR_TURN else None


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) <= _NEAR


def _is_exact(layer: Layer, box: _Box) -> bool:
    """Whether the layer's pixels are pixels of the canvas."""
    return box.whole and _has_size(layer.picture, box.size)


def _has_size(picture: Tensor, size: tuple[float, float]) -> bool:
    height, width = picture.shape[-2:]
    return abs(size[0] - width) <= _NEAR and abs(size[1] - height) <= _NEAR


def _box(layer: Layer) -> _Box:
    left, top, width, height = layer.box
    centre = left + width / 2, top + height / 2
    quarters = _quarters(layer.rotation)
    if quarters is None:
        cosine, sine = abs(math.cos(layer.rotation)), abs(math.sin(layer.rotation))
        extent = width * cosine + height * sine, width * sine + height * cosine
    else:
        extent = (width, height) if quarters % 2 == 0 else (height, width)
    corner = centre[0] - extent[0] / 2, centre[1] - extent[1] / 2
    halves = (corner[0] - 0.5, corner[1] - 0.5, width, height)
    if quarters is not None and abs(layer.rotation) > NEAR_TURN and all(map(_is_whole, halves)):
        corner = math.floor(corner[0]), math.floor(corner[1])
        centre = corner[0] + extent[0] / 2, corner[1] + extent[1] / 2
    return _Box(centre, (width, height), layer.rotation, quarters, corner, extent)


def _overlap(first: Window, second: Window) -> Window | None:
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _flipped(picture: Tensor, layer: Layer) -> Tensor:
    dims = [dim for dim, flip in ((-1, layer.flip_horizontal), (-2, layer.flip_vertical)) if flip]
    return picture.flip(dims) if dims else picture


def _cut(picture: Tensor, box: _Box, window: Window) -> Tensor:
    """The window of a picture that fills a whole box."""
    turned = torch.rot90(picture, -box.quarters, (-2, -1)) if box.quarters else picture
    left, top = box.window[:2]
    return turned[..., window[1] - top : window[3] - top, window[0] - left : window[2] - left]


def _resample(
    colour: Tensor, coverage: Tensor | None, box: _Box, window: Window, interpolation: Interpolation
) -> Placed:
    planes = colour if coverage is None else torch.cat([colour * coverage, coverage], dim=1)
    if planes.dtype in (torch.float16, torch.bfloat16):
        planes = planes.float()
    planes = _shrink(planes, box.size, interpolation)
    if _has_size(planes, box.size) and box.whole:
        planes, edge = _cut(planes, box, window), None
    else:
        planes, edge = _sample(planes, box, window, interpolation)
    alpha = None
    if coverage is not None:
        planes, alpha = planes[:, :3], planes[:, 3:]
        planes, alpha = planes / torch.where(alpha > 0, alpha, 1.0), alpha.clamp(0, 1)
    planes = planes.clamp(0, 1)
    if edge is not None:
        alpha = edge.expand(planes.shape[0], -1, -1, -1) if alpha is None else alpha * edge
    return Placed(window, planes.to(colour.dtype), None if alpha is None else alpha.to(colour.dtype))


def _shrink(planes: Tensor, size: tuple[float, float], interpolation: Interpolation) -> Tensor:
    """Filtered down to the box's size, rounded up; a side that grows is left to `_sample`."""
    height, width = planes.shape[-2:]
    target = min(height, max(1, math.ceil(size[1] - _NEAR))), min(width, max(1, math.ceil(size[0] - _NEAR)))
    if target == (height, width):
        return planes
    return functional.interpolate(planes, target, mode=interpolation.value, align_corners=False, antialias=True)


def _sample(
    planes: Tensor, box: _Box, window: Window, interpolation: Interpolation
) -> tuple[Tensor, Tensor | None]:
    """The window of planes that fill a box, and how much of each pixel the box covers; None where it is whole."""
    (left, top, right, bottom), (width, height) = window, box.size
    columns, rows = right - left, bottom - top
    cosine, sine = cosine_and_sine(box.rotation)
    across, down = left + columns / 2 - box.centre[0], top + rows / 2 - box.centre[1]
    # In the box's own axes, in units of half its sides: the convention of align_corners=False.
    x = [cosine * columns / width, sine * rows / width, 2 * (cosine * across + sine * down) / width]
    y = [-sine * columns / height, cosine * rows / height, 2 * (-sine * across + cosine * down) / height]
    matrix = torch.tensor([[x, y]], dtype=planes.dtype, device=planes.device)
    grid = functional.affine_grid(matrix, [1, 1, rows, columns], align_corners=False)
    sampled = functional.grid_sample(
        planes, grid.expand(planes.shape[0], -1, -1, -1), mode=interpolation.value, padding_mode="border",
        align_corners=False,
    )
    if box.whole:
        return sampled, None
    half_sides = grid.new_tensor([width / 2, height / 2])
    return sampled, _edge(grid * half_sides, half_sides).unsqueeze(1)


def _edge(position: Tensor, half_sides: Tensor) -> Tensor:
    """How much of a unit square at each position (..., 2), pixels from the centre, the box covers: (...,)."""
    beyond = (position + 0.5 - half_sides).clamp_min(0) + (0.5 - position - half_sides).clamp_min(0)
    return (1 - beyond).clamp(0, 1).prod(dim=-1)
