"""How a layer's colour mixes with what lies below it: W3C, "Compositing and Blending Level 1", section 10.

Each formula is evaluated with a harmless divisor or root where another branch applies, so that gradients stay finite.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

_LUMINOSITY = (0.3, 0.59, 0.11)


class BlendMode(str, Enum):
    """The blend modes of the specification, under its own names, which Photoshop and OpenRaster share."""

    NORMAL = "normal"
    MULTIPLY = "multiply"
    SCREEN = "screen"
    OVERLAY = "overlay"
    DARKEN = "darken"
    LIGHTEN = "lighten"
    COLOR_DODGE = "color-dodge"
    COLOR_BURN = "color-burn"
    HARD_LIGHT = "hard-light"
    SOFT_LIGHT = "soft-light"
    DIFFERENCE = "difference"
    EXCLUSION = "exclusion"
    HUE = "hue"
    SATURATION = "saturation"
    COLOR = "color"
    LUMINOSITY = "luminosity"


def mix(backdrop: Tensor, source: Tensor, mode: BlendMode | str) -> Tensor:
    """B(Cb, Cs): the colour where both the backdrop and the layer are opaque.

    Args:
        backdrop: Cb, (N, 3, H, W) in [0, 1].
        source: Cs, the layer, same shape.
        mode: one of `BlendMode`.

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: the mode is unknown, or the shapes differ or hold other than 3 channels.
    """
    if backdrop.shape != source.shape or source.ndim != 4 or source.shape[1] != 3:
        raise ValueError(
            "backdrop and source must have one shape (N, 3, H, W), "
            f"got {tuple(backdrop.shape)} and {tuple(source.shape)}"
        )
    return _FORMULAS[blend_mode(mode)](backdrop, source)


def blend_mode(name: BlendMode | str) -> BlendMode:
    """The mode of that name; ValueError if there is none."""
    try:
        return BlendMode(name)
    except ValueError:
        raise ValueError(f"blend_mode must be one of {', '.join(BlendMode)}, got {name}") from None


def _multiply(backdrop: Tensor, source: Tensor) -> Tensor:
    return backdrop * source


def _screen(backdrop: Tensor, source: Tensor) -> Tensor:
    return backdrop + source - backdrop * source


def _hard_light(backdrop: Tensor, source: Tensor) -> Tensor:
    return torch.where(source <= 0.5, _multiply(backdrop, 2 * source), _screen(backdrop, 2 * source - 1))


def _color_dodge(backdrop: Tensor, source: Tensor) -> Tensor:
    bright = (backdrop / torch.where(source < 1, 1 - source, 1.0)).clamp_max(1)
    return torch.where(backdrop <= 0, 0.0, torch.where(source >= 1, 1.0, bright))


def _color_burn(backdrop: Tensor, source: Tensor) -> Tensor:
    dark = 1 - ((1 - backdrop) / torch.where(source > 0, source, 1.0)).clamp_max(1)
    return torch.where(backdrop >= 1, 1.0, torch.where(source <= 0, 0.0, dark))


def _soft_light(backdrop: Tensor, source: Tensor) -> Tensor:
    polynomial = ((16 * backdrop - 12) * backdrop + 4) * backdrop
    lifted = torch.where(backdrop <= 0.25, polynomial, backdrop.clamp_min(0.25).sqrt())
    amount = 2 * source - 1
    return torch.where(
        source <= 0.5, backdrop + amount * backdrop * (1 - backdrop), backdrop + amount * (lifted - backdrop)
    )


def _luminosity(colour: Tensor) -> Tensor:
    """Lum of the specification, (N, 1, H, W)."""
    red, green, blue = (weight * colour[:, channel : channel + 1] for channel, weight in enumerate(_LUMINOSITY))
    return red + green + blue


def _saturation(colour: Tensor) -> Tensor:
    """Sat of the specification, (N, 1, H, W)."""
    return colour.amax(1, keepdim=True) - colour.amin(1, keepdim=True)


def _with_luminosity(colour: Tensor, luminosity: Tensor) -> Tensor:
    """SetLum and ClipColor of the specification: moved to a luminosity, then drawn towards it into [0, 1]."""
    colour = colour + (luminosity - _luminosity(colour))
    low, high = colour.amin(1, keepdim=True), colour.amax(1, keepdim=True)
    down = torch.where(low < 0, luminosity / _positive(luminosity - low), 1.0)
    colour = luminosity + (colour - luminosity) * down
    up = torch.where(high > 1, (1 - luminosity) / _positive(high - luminosity), 1.0)
    return (luminosity + (colour - luminosity) * up).clamp(0, 1)


def _with_saturation(colour: Tensor, saturation: Tensor) -> Tensor:
    """SetSat of the specification: the least channel becomes 0, the greatest the saturation."""
    return (colour - colour.amin(1, keepdim=True)) / _positive(_saturation(colour)) * saturation


def _positive(divisor: Tensor) -> Tensor:
    """The divisor, or 1 where it is not above 0."""
    return torch.where(divisor > 0, divisor, 1.0)


_FORMULAS: dict[BlendMode, Callable[[Tensor, Tensor], Tensor]] = {
    BlendMode.NORMAL: lambda _, source: source,
    BlendMode.MULTIPLY: _multiply,
    BlendMode.SCREEN: _screen,
    BlendMode.OVERLAY: lambda backdrop, source: _hard_light(source, backdrop),
    BlendMode.DARKEN: torch.minimum,
    BlendMode.LIGHTEN: torch.maximum,
    BlendMode.COLOR_DODGE: _color_dodge,
    BlendMode.COLOR_BURN: _color_burn,
    BlendMode.HARD_LIGHT: _hard_light,
    BlendMode.SOFT_LIGHT: _soft_light,
    BlendMode.DIFFERENCE: lambda backdrop, source: (backdrop - source).abs(),
    BlendMode.EXCLUSION: lambda backdrop, source: backdrop + source - 2 * backdrop * source,
    BlendMode.HUE: lambda backdrop, source: _with_luminosity(
        _with_saturation(source, _saturation(backdrop)), _luminosity(backdrop)
    ),
    BlendMode.SATURATION: lambda backdrop, source: _with_luminosity(
        _with_saturation(backdrop, _saturation(source)), _luminosity(backdrop)
    ),
    BlendMode.COLOR: lambda backdrop, source: _with_luminosity(source, _luminosity(backdrop)),
    BlendMode.LUMINOSITY: lambda backdrop, source: _with_luminosity(backdrop, _luminosity(source)),
}
