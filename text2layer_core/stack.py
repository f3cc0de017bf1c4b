"""A document of any number of layers, bottom first: what the layer operations take and give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .blending import BlendMode, blend_mode
from .layers import TwoLayerImage, check_float_tensor, check_range

MAX_LAYERS = 50  # as ComfyUI's own compositor


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One layer, for a batch of N pictures: stored sRGB values in [0, 1], straight alpha.

    Its picture is flipped, brought to `width` x `height`, and turned about that box's centre; the box's upper left
    corner before turning lies at (x, y) of the canvas. A layer may reach beyond the canvas, or lie beside it: nothing
    is cut from it.

    Attributes:
        name: as shown in a layer editor.
        picture: (N, 3 or 4, H, W) in [0, 1]; a fourth channel is straight alpha.
        mask: (N, 1, H, W) in [0, 1], 1 where the layer shows; None where it has no mask. Multiplies the alpha.
        x: left edge, pixels of the canvas.
        y: upper edge, pixels of the canvas.
        width: pixels on the canvas; None for the picture's own.
        height: pixels on the canvas; None for the picture's own.
        rotation: radians, clockwise as seen on the screen, about the box's centre.
        flip_horizontal: mirrored left to right, before it is turned.
        flip_vertical: mirrored top to bottom, before it is turned.
        opacity: in [0, 1].
        blend_mode: how its colour mixes with what lies below.
        visible: False leaves it out of the composed picture.

    Raises:
        ValueError: a tensor has the wrong type, shape or range, or a number is out of its range.
    """

    name: str
    picture: Tensor
    mask: Tensor | None = None
    x: float = 0.0
    y: float = 0.0
    width: float | None = None
    height: float | None = None
    rotation: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    opacity: float = 1.0
    blend_mode: BlendMode = BlendMode.NORMAL
    visible: bool = True

    def __post_init__(self) -> None:
        """Checks tensors and numbers; every message names the layer."""
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f'layer "{self.name}": {error}') from None

    def _check(self) -> None:
        check_float_tensor("picture", self.picture)
        if self.picture.ndim != 4 or self.picture.shape[1] not in (3, 4) or self.picture.numel() == 0:
            raise ValueError(
                f"picture must have shape (N, 3 or 4, H, W), none of them 0, got {tuple(self.picture.shape)}"
            )
        check_range("picture", self.picture)
        if self.mask is not None:
            check_float_tensor("mask", self.mask)
            count, _, height, width = self.picture.shape
            if tuple(self.mask.shape) != (count, 1, height, width):
                raise ValueError(
                    f"mask must have shape {(count, 1, height, width)} to match picture, got {tuple(self.mask.shape)}"
                )
            if (self.mask.dtype, self.mask.device) != (self.picture.dtype, self.picture.device):
                raise ValueError(
                    f"mask must have dtype {self.picture.dtype} on {self.picture.device} to match picture, "
                    f"got {self.mask.dtype} on {self.mask.device}"
                )
            check_range("mask", self.mask)
        for name, number in (("x", self.x), ("y", self.y), ("rotation", self.rotation)):
            if not math.isfinite(number):
                raise ValueError(f"{name} must be finite, got {number}")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and not 0 < side < math.inf:
                raise ValueError(f"{name} must be above 0, got {side}")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must lie in [0, 1], got {self.opacity}")
        blend_mode(self.blend_mode)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the unturned box, pixels of the canvas."""
        height, width = self.picture.shape[-2:]
        return self.x, self.y, self.width or width, self.height or height

    @property
    def colour(self) -> Tensor:
        """(N, 3, H, W), without alpha."""
        return self.picture[:, :3]

    @property
    def coverage(self) -> Tensor | None:
        """Alpha times mask, (N, 1, H, W), opacity left out; None where the layer is opaque everywhere."""
        alpha = self.picture[:, 3:] if self.picture.shape[1] == 4 else None
        if alpha is None or self.mask is None:
            return self.mask if alpha is None else alpha
        return alpha * self.mask


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStack:
    """Layers on one canvas, bottom first.

    Attributes:
        canvas: width and height in pixels.
        layers: bottom first; all of one batch size, dtype and device.

    Raises:
        ValueError: no layer or more than 50, a canvas side below 1, or layers that do not belong together.
    """

    canvas: tuple[int, int]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        """Checks canvas, count and that the layers belong together."""
        if len(self.canvas) != 2 or not all(type(side) is int and side > 0 for side in self.canvas):
            raise ValueError(f"canvas must be a width and a height of at least 1 pixel, got {self.canvas}")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ValueError(f"a document must hold 1 to {MAX_LAYERS} layers, got {len(self.layers)}")
        first = self.layers[0].picture
        for layer in self.layers[1:]:
            found = layer.picture
            if (found.shape[0], found.dtype, found.device) != (first.shape[0], first.dtype, first.device):
                raise ValueError(
                    f'layer "{layer.name}" must match the lowest layer\'s batch size, dtype and device '
                    f"({first.shape[0]}, {first.dtype}, {first.device}), "
                    f"got ({found.shape[0]}, {found.dtype}, {found.device})"
                )

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        """The layers, bottom first."""
        return iter(self.layers)

    def index(self, name: str) -> int:
        """Position of the topmost layer of that name.

        Raises:
            ValueError: there is none.
        """
        for position in reversed(range(len(self))):
            if self.layers[position].name == name:
                return position
        names = ", ".join(layer.name for layer in self.layers)
        raise ValueError(f"layer must be one of {names}, got {name}")

    def with_layer(self, position: int, **changes: Any) -> LayerStack:  # noqa: ANN401
        """The document with some attributes of one layer changed."""
        return self.replaced(position, replace(self.layers[position], **changes))

    def replaced(self, position: int, layer: Layer) -> LayerStack:
        """The document with another layer at that position."""
        layers = list(self.layers)
        layers[position] = layer
        return replace(self, layers=tuple(layers))

    @classmethod
    def from_two_layers(cls, image: TwoLayerImage) -> LayerStack:
        """The layers "background" and "foreground", the mask as the foreground's layer mask."""
        return cls(
            canvas=(image.width, image.height),
            layers=(
                Layer(name="background", picture=image.background),
                Layer(name="foreground", picture=image.foreground, mask=image.mask),
            ),
        )
