"""Moving, scaling, turning and flipping one layer: its numbers change, its pixels do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from .placement import NEAR_TURN, cosine_and_sine
from .stack import Layer

Point = tuple[float, float]


class Anchor(str, Enum):
    """A point of the layer's own box; it turns with the box."""

    TOP_LEFT = "top-left"
    TOP = "top"
    TOP_RIGHT = "top-right"
    LEFT = "left"
    CENTER = "center"
    RIGHT = "right"
    BOTTOM_LEFT = "bottom-left"
    BOTTOM = "bottom"
    BOTTOM_RIGHT = "bottom-right"


_SHARES: dict[Anchor, Point] = {anchor: ((i % 3 - 1) / 2, (i // 3 - 1) / 2) for i, anchor in enumerate(Anchor)}
"""Where it lies from the centre, in sides of the box."""


def transform_layer(
    layer: Layer,
    *,
    move: Sequence[float] = (0.0, 0.0),
    scale: Sequence[float] = (1.0, 1.0),
    rotation: float = 0.0,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    anchor: Anchor | str | Point = Anchor.CENTER,
) -> Layer:
    """The layer flipped, then scaled, then turned about an anchor, then moved.

    Nothing is resampled and nothing is cut, not even what leaves the canvas: only the layer's numbers change. Whole
    moves, flips and quarter turns therefore have exact inverses.

    Args:
        layer: what to transform.
        move: to the right and down, pixels of the canvas.
        scale: of the box's own width and height, above 0; 1 leaves them.
        rotation: radians, clockwise as seen on the screen.
        flip_horizontal: mirrored left to right as seen on the screen, whichever way the layer is turned.
        flip_vertical: mirrored top to bottom as seen on the screen.
        anchor: the point that flipping, scaling and turning leave where it is: by name, or in pixels of the canvas.

    Raises:
        ValueError: a number is not finite, a scale not above 0, or the anchor unknown.
    """
    _check(move, scale, rotation)
    fixed = anchor_point(layer, anchor)
    left, top, width, height = layer.box
    away, angle = (left + width / 2 - fixed[0], top + height / 2 - fixed[1]), layer.rotation
    if flip_horizontal:
        away, angle = (-away[0], away[1]), -angle
    if flip_vertical:
        away, angle = (away[0], -away[1]), -angle
    upright = _turned(away, -angle)
    away = _turned((upright[0] * scale[0], upright[1] * scale[1]), angle)
    away = _turned(away, rotation)
    sides = tuple(side if factor == 1 else before * factor
                  for side, before, factor in zip((layer.width, layer.height), (width, height), scale, strict=True))
    turned = angle + rotation
    if abs(turned) < NEAR_TURN < abs(angle):
        turned = 2 * math.pi  # not 0: `place` takes a layer that was turned to whole pixels
    return replace(
        layer,
        x=fixed[0] + away[0] + move[0] - width * scale[0] / 2,
        y=fixed[1] + away[1] + move[1] - height * scale[1] / 2,
        width=sides[0],
        height=sides[1],
        rotation=turned,
        flip_horizontal=layer.flip_horizontal != flip_horizontal,
        flip_vertical=layer.flip_vertical != flip_vertical,
    )


def anchor_point(layer: Layer, anchor: Anchor | str | Point) -> Point:
    """Where an anchor lies, in pixels of the canvas.

    Raises:
        ValueError: the name is unknown, or a coordinate is not finite.
    """
    if not isinstance(anchor, str):
        if len(anchor) != 2 or not all(map(math.isfinite, anchor)):
            raise ValueError(f"anchor must be a name or two finite numbers, got {anchor}")
        return anchor
    if anchor not in set(Anchor):
        raise ValueError(f"anchor must be one of {', '.join(Anchor)}, got {anchor}")
    left, top, width, height = layer.box
    share = _SHARES[Anchor(anchor)]
    across, down = _turned((share[0] * width, share[1] * height), layer.rotation)
    return left + width / 2 + across, top + height / 2 + down


def _turned(vector: Point, angle: float) -> Point:
    cosine, sine = cosine_and_sine(angle)
    return cosine * vector[0] - sine * vector[1], sine * vector[0] + cosine * vector[1]


def _check(move: Sequence[float], scale: Sequence[float], rotation: float) -> None:
    if len(move) != 2 or not all(map(math.isfinite, move)):
        raise ValueError(f"move must be two finite numbers, got {tuple(move)}")
    if len(scale) != 2 or not all(0 < factor < math.inf for factor in scale):
        raise ValueError(f"scale must be two numbers above 0, got {tuple(scale)}")
    if not math.isfinite(rotation):
        raise ValueError(f"rotation must be finite, got {rotation}")
