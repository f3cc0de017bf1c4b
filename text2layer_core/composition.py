"""A whole document as one picture: W3C, "Compositing and Blending Level 1", sections 5.8 and 9.1.4 (source-over)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blending import BlendMode, mix
from .compositing import blend
from .placement import Interpolation, Placed, Window, place
from .stack import Layer, LayerStack


@dataclass(frozen=True, eq=False)
class _Ground:
    """What the layers so far give: straight colour, and alpha or None where it is 1 everywhere."""

    colour: Tensor
    alpha: Tensor | None


def compose_stack(
    stack: LayerStack,
    *,
    linear_light: bool = False,
    interpolation: Interpolation | str = Interpolation.BICUBIC,
) -> Tensor:
    """All visible layers over each other, bottom to top, on a transparent canvas.

    Co = Cb + w (Cs' - Cb) with Cs' = (1 - ab) Cs + ab B(Cb, Cs), ao = ab + as (1 - ab), w = as / ao: the
    specification's formulas for straight alpha, as is coverage times opacity. Where the backdrop is opaque, w = as and
    a layer of mode "normal" follows eq. 1 (`blend`) bit for bit. Differentiable in pictures and masks.

    Args:
        stack: the document.
        linear_light: whether colours are mixed in linear light instead of on stored sRGB values; layers are resampled
            on stored values all the same.
        interpolation: for layers that are not at whole pixels; see `place`.

    Returns:
        RGBA, (N, 4, H, W) in [0, 1], straight alpha. Where alpha is 0, the colour of the topmost layer that has a
        pixel there, or black.

    Raises:
        ValueError: the interpolation is unknown.
    """
    ground = None
    for layer in stack:
        placed = place(layer, stack.canvas, interpolation=interpolation) if layer.visible and layer.opacity else None
        if placed is not None:
            ground = _add(ground, placed, layer, stack, linear_light=linear_light)
    ground = ground or _empty(stack)
    colour = _to_srgb(ground.colour) if linear_light else ground.colour
    alpha = torch.ones_like(colour[:, :1]) if ground.alpha is None else ground.alpha
    return torch.cat([colour, alpha], dim=1)


def without_full_alpha(picture: Tensor) -> Tensor:
    """RGB where a picture's alpha is 1 everywhere, else the picture as it is.

    Raises:
        ValueError: the picture has other than 3 or 4 channels.
    """
    _check_picture(picture)
    return picture[:, :3] if picture.shape[1] == 4 and bool((picture[:, 3:] >= 1).all()) else picture


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 4 or picture.shape[1] not in (3, 4):
        raise ValueError(f"picture must have shape (N, 3 or 4, H, W), got {tuple(picture.shape)}")


def _empty(stack: LayerStack) -> _Ground:
    picture, (width, height) = stack.layers[0].picture, stack.canvas
    zeros = picture.new_zeros(picture.shape[0], 4, height, width)
    return _Ground(zeros[:, :3], zeros[:, 3:])


def _add(
    ground: _Ground | None, placed: Placed, layer: Layer, stack: LayerStack, *, linear_light: bool
) -> _Ground:
    """The ground with one more layer on it."""
    source = _to_linear(placed.colour) if linear_light else placed.colour
    alpha = _alpha(placed.coverage, layer.opacity, source)
    covers = placed.window == (0, 0, *stack.canvas)
    if ground is None and covers:
        return _Ground(source, alpha)
    ground = ground or _empty(stack)
    if covers:
        return _over(ground, source, alpha, layer.blend_mode)
    behind = _Ground(_part(ground.colour, placed.window), _optional_part(ground.alpha, placed.window))
    part = _over(behind, source, alpha, layer.blend_mode)
    colour = _with_part(ground.colour, part.colour, placed.window)
    if ground.alpha is None:
        return _Ground(colour, None)
    return _Ground(colour, _with_part(ground.alpha, 1.0 if part.alpha is None else part.alpha, placed.window))


def _alpha(coverage: Tensor | None, opacity: float, picture: Tensor) -> Tensor | None:
    if coverage is None:
        return None if opacity == 1 else torch.full_like(picture[:, :1], opacity)
    return coverage if opacity == 1 else coverage * opacity


def _over(ground: _Ground, source: Tensor, alpha: Tensor | None, mode: BlendMode) -> _Ground:
    """Source-over with blending; the source's alpha is None where it is 1 everywhere."""
    if mode != BlendMode.NORMAL:
        mixed = mix(ground.colour, source, mode)
        source = mixed if ground.alpha is None else blend(mixed, source, ground.alpha)
    if alpha is None:
        return _Ground(source, None)
    if ground.alpha is None:
        return _Ground(blend(source, ground.colour, alpha), None)
    total = ground.alpha + alpha * (1 - ground.alpha)
    weight = torch.where(ground.alpha > 0, alpha / torch.where(total > 0, total, 1.0), 1.0)
    return _Ground(blend(source, ground.colour, weight), total)


def _part(picture: Tensor, window: Window) -> Tensor:
    left, top, right, bottom = window
    return picture[..., top:bottom, left:right]


def _optional_part(picture: Tensor | None, window: Window) -> Tensor | None:
    return None if picture is None else _part(picture, window)


def _with_part(picture: Tensor, part: Tensor | float, window: Window) -> Tensor:
    """A copy, so that neither a caller's tensor nor one that autograd keeps is written to."""
    result = picture.clone()
    _part(result, window)[...] = part
    return result


def _to_linear(picture: Tensor) -> Tensor:
    from kornia.color import rgb_to_linear_rgb

    return rgb_to_linear_rgb(picture)


def _to_srgb(picture: Tensor) -> Tensor:
    from kornia.color import linear_rgb_to_rgb

    return linear_rgb_to_rgb(picture).clamp(0, 1)
