"""Relayering: another picture in the place of a layer, fitted, and made to look as if it belonged there."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from .composition import compose_stack
from .harmonise import light_wrap, match_colour
from .placement import place, rasterise
from .stack import Layer, LayerStack

Box = tuple[float, float, float, float]
"""Left, top, width and height, pixels of the canvas."""


class Fit(str, Enum):
    """How a picture fills a box: see `fit_box`."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"
    NONE = "none"


class ColourMatch(str, Enum):
    """Which colours change when a layer is replaced: see `replace_layer`."""

    NONE = "none"
    REPLACED = "replaced"
    BACKGROUND = "background"


def fit_box(size: tuple[int, int], box: Box, fit: Fit | str) -> Box:
    """Where a picture goes so that it fills a box, centred, its sides in whole pixels.

    "cover" keeps its proportions and leaves nothing of the box free (the surplus reaches beyond it), "contain" keeps
    them and stays inside, "stretch" takes the box's, "none" keeps its size.

    Args:
        size: width and height of the picture.
        box: the box to fill.
        fit: one of `Fit`.

    Raises:
        ValueError: the fit is unknown.
    """
    if fit not in set(Fit):
        raise ValueError(f"fit must be one of {', '.join(Fit)}, got {fit}")
    left, top, width, height = box
    if fit == Fit.STRETCH:
        return box
    factors = width / size[0], height / size[1]
    factor = {Fit.COVER: max(factors), Fit.CONTAIN: min(factors), Fit.NONE: 1.0}[Fit(fit)]
    wide, high = (float(max(1, round(side * factor))) for side in size)
    if fit == Fit.COVER:
        wide, high = max(wide, width), max(high, height)
    return left + math.floor((width - wide) / 2), top + math.floor((height - high) / 2), wide, high


def replace_layer(
    stack: LayerStack,
    position: int,
    picture: Tensor,
    mask: Tensor | None = None,
    *,
    fit: Fit | str = Fit.COVER,
    colour_match: ColourMatch | str = ColourMatch.NONE,
    match_strength: float = 1.0,
    wrap_strength: float = 0.0,
    wrap_radius: float = 0.02,
) -> LayerStack:
    """Puts another picture in the place of one layer (paper: "relayering").

    The lowest layer's place is the whole canvas, any other's the box of the layer that goes, turned as it was. Name,
    opacity, blend mode and visibility stay; the mask goes with the old picture: a new one without alpha and without
    mask is opaque. Every other layer keeps its pixels bit for bit unless `colour_match` or `wrap_strength` says
    otherwise, and then its alpha, so that outside the masks the composed picture never changes with the foreground.

    "In front" below is the new layer, or all visible layers above it if it is the lowest.

    Args:
        stack: the document.
        position: of the layer to replace, counted from the lowest; negative from the topmost.
        picture: (N, 3 or 4, h, w) in [0, 1], of any size; a fourth channel is straight alpha.
        mask: (N, 1, h, w) in [0, 1], 1 where the picture shows; multiplies its alpha.
        fit: how the picture fills the place; see `fit_box`.
        colour_match: "none"; "replaced": the new picture takes on the colours of the one that it replaces;
            "background": what is in front takes on the colours of what is behind it. See `match_colour`.
        match_strength: of the colour match, in [0, 1].
        wrap_strength: of light from behind round the rim of what is in front, in [0, 1]; see `light_wrap`. Above 0, a
            layer in front that is not at whole pixels is rasterised.
        wrap_radius: of that light, a share of the canvas's shorter side, above 0.

    Raises:
        IndexError: there is no such position.
        ValueError: the picture does not fit the document, or a choice is unknown or a number out of its range.
    """
    if not -len(stack) <= position < len(stack):
        raise IndexError(f"position must lie in [-{len(stack)}, {len(stack)}), got {position}")
    if colour_match not in set(ColourMatch):
        raise ValueError(f"colour_match must be one of {', '.join(ColourMatch)}, got {colour_match}")
    for name, value in (("match_strength", match_strength), ("wrap_strength", wrap_strength)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    position %= len(stack)
    old = stack.layers[position]
    result = stack.with_layer(position, **_placed(stack, position, picture, mask, fit))
    if colour_match == ColourMatch.REPLACED:
        new = result.layers[position]
        result = result.with_layer(position, picture=_matched(new, old.colour, old.coverage, match_strength))
    behind = max(position, 1)
    front = [index for index in ([position] if position else range(1, len(stack))) if stack.layers[index].visible]
    if not front or (colour_match != ColourMatch.BACKGROUND and wrap_strength == 0):
        return result
    backdrop = compose_stack(replace(result, layers=result.layers[:behind]))
    for index in front:
        if colour_match == ColourMatch.BACKGROUND:
            matched = _matched(result.layers[index], backdrop[:, :3], backdrop[:, 3:], match_strength)
            result = result.with_layer(index, picture=matched)
        if wrap_strength:
            radius = wrap_radius * min(stack.canvas)
            result = result.replaced(index, _wrapped(result.layers[index], backdrop, radius, wrap_strength))
    return result


def _placed(
    stack: LayerStack, position: int, picture: Tensor, mask: Tensor | None, fit: Fit | str
) -> dict[str, object]:
    """What changes in a layer when another picture takes its place."""
    old = stack.layers[position]
    new = Layer(name=old.name, picture=picture, mask=mask)
    box = old.box if position else (0.0, 0.0, float(stack.canvas[0]), float(stack.canvas[1]))
    left, top, width, height = fit_box((picture.shape[-1], picture.shape[-2]), box, fit)
    return {
        "picture": new.picture, "mask": new.mask, "x": left, "y": top, "width": width, "height": height,
        "rotation": old.rotation if position else 0.0, "flip_horizontal": False, "flip_vertical": False,
    }


def _matched(layer: Layer, reference: Tensor, reference_weight: Tensor | None, strength: float) -> Tensor:
    """The layer's picture with other colours and the same alpha."""
    colour = match_colour(
        layer.colour, reference, picture_weight=layer.coverage, reference_weight=reference_weight, strength=strength
    )
    return torch.cat([colour, layer.picture[:, 3:]], dim=1)


def _wrapped(layer: Layer, backdrop: Tensor, radius: float, strength: float) -> Layer:
    """The layer with the backdrop's light on its rim; unchanged where it lies off the canvas or has no rim."""
    height, width = backdrop.shape[-2:]
    flat = rasterise(layer)
    if flat is None or flat.coverage is None or place(layer, (width, height)) is None:
        return layer
    rows = torch.arange(flat.picture.shape[-2], device=backdrop.device).add(round(flat.y)).clamp(0, height - 1)
    columns = torch.arange(flat.picture.shape[-1], device=backdrop.device).add(round(flat.x)).clamp(0, width - 1)
    light = (backdrop[:, :3] * backdrop[:, 3:])[..., rows, :][..., columns]
    colour = light_wrap(flat.colour, flat.coverage, light, radius=radius, strength=strength)
    return replace(flat, picture=torch.cat([colour, flat.picture[:, 3:]], dim=1))
