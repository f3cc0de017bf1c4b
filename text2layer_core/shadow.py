"""A soft cast shadow as a layer of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .blending import BlendMode
from .masks import check_mask, gaussian
from .stack import MAX_LAYERS, Layer, LayerStack


@dataclass(frozen=True, kw_only=True)
class ShadowOptions:
    """How the shadow falls, lengths in pixels of the layer's picture.

    Attributes:
        x: to the right.
        y: downwards.
        blur: sigma of its softness.
        height: of the shadow as a share of the thing's: 1 is a drop shadow on a wall behind, less lies on the ground,
            measured from the thing's lowest pixel.
        slant: how far the top of the shadow leans to the right, as a share of the thing's height.
        opacity: in [0, 1].
        colour: what the layers below are multiplied by at full opacity, sRGB in [0, 1].

    Raises:
        ValueError: a number out of its range.
    """

    x: float = 0.0
    y: float = 0.0
    blur: float = 8.0
    height: float = 1.0
    slant: float = 0.0
    opacity: float = 0.5
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Checks every number."""
        for name in ("x", "y", "slant"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if not 0 <= self.blur < math.inf:
            raise ValueError(f"blur must be at least 0 pixels and finite, got {self.blur}")
        if not 0 < self.height <= 4:
            raise ValueError(f"height must lie above 0 and be at most 4 times the thing's, got {self.height}")
        if not abs(self.slant) <= 4:
            raise ValueError(f"slant must lie in [-4, 4] times the thing's height, got {self.slant}")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must lie in [0, 1], got {self.opacity}")
        if len(self.colour) != 3 or not all(0 <= value <= 1 for value in self.colour):
            raise ValueError(f"colour must be three values in [0, 1], got {self.colour}")


def cast_shadow(mask: Tensor, options: ShadowOptions | None = None, *, name: str = "shadow") -> Layer:
    """The shadow of a mask, a multiply layer that reaches beyond the mask's picture where it must.

    Args:
        mask: (N, 1, H, W) in [0, 1], of the thing that casts it.
        options: how it falls; None for the defaults.
        name: the layer's.

    Returns:
        A layer for under the thing, placed as if the mask's picture lay at (0, 0).

    Raises:
        ValueError: no mask.
    """
    options = options or ShadowOptions()
    check_mask(mask)
    wide = mask.to(torch.promote_types(mask.dtype, torch.float32))
    height = mask.shape[-2]
    margin = math.ceil(3 * options.blur) + 1
    across = margin + math.ceil(abs(options.slant) * height)
    above = margin + math.ceil(max(0.0, options.height - 1) * height)
    fallen = functional.pad(wide, (across, across, above, margin))
    if options.height != 1 or options.slant:
        fallen = torch.cat([_fallen(each[None], options) for each in fallen])
    shape = gaussian(fallen, options.blur).clamp(0, 1).to(mask.dtype)
    colour = shape.new_tensor(options.colour).view(1, 3, 1, 1).expand(len(shape), 3, *shape.shape[-2:])
    return Layer(name=name, picture=colour, mask=shape, x=options.x - across, y=options.y - above,
                 opacity=options.opacity, blend_mode=BlendMode.MULTIPLY)


def _fallen(mask: Tensor, options: ShadowOptions) -> Tensor:
    """One mask (1, 1, H, W) leaning and shortened about its lowest shown row; an empty one stays empty."""
    rows = (mask[0, 0] > 0.5).any(dim=1).nonzero()
    if not len(rows):
        return mask
    base, (height, width) = float(rows[-1]) + 1, mask.shape[-2:]
    ground = 2 * base / height - 1
    lean = options.slant / options.height * height / width
    theta = mask.new_tensor([[[1, lean, -lean * ground], [0, 1 / options.height, ground * (1 - 1 / options.height)]]])
    return functional.grid_sample(mask, functional.affine_grid(theta, list(mask.shape), align_corners=False),
                                  align_corners=False)


def add_shadow(stack: LayerStack, position: int, options: ShadowOptions | None = None) -> LayerStack:
    """The document with a shadow under one of its layers.

    Args:
        stack: the document.
        position: of the layer that casts it, which is neither scaled, flipped nor turned: the shadow follows its place.
        options: how it falls.

    Raises:
        ValueError: no such layer, one without a mask or alpha, one that is scaled, flipped or turned, or no room for
            one more layer.
    """
    if not 0 <= position < len(stack):
        raise ValueError(f"position must lie between 0 and {len(stack) - 1}, got {position}")
    if len(stack) >= MAX_LAYERS:
        raise ValueError(f"a document must have room for the shadow, got {len(stack)} of {MAX_LAYERS} layers")
    layer = stack.layers[position]
    if layer.coverage is None:
        raise ValueError(f'layer "{layer.name}" must have a mask or alpha to cast a shadow, got neither')
    if layer.rotation or layer.flip_horizontal or layer.flip_vertical or not _own_size(layer):
        raise ValueError(f'layer "{layer.name}" must not be scaled, flipped or turned to cast a shadow')
    shadow = cast_shadow(layer.coverage, options, name=f"{layer.name} shadow")
    shadow = replace(shadow, x=shadow.x + layer.x, y=shadow.y + layer.y, opacity=shadow.opacity * layer.opacity)
    layers = (*stack.layers[:position], shadow, *stack.layers[position:])
    return replace(stack, layers=layers)


def _own_size(layer: Layer) -> bool:
    return tuple(layer.box[2:]) == (layer.picture.shape[-1], layer.picture.shape[-2])
