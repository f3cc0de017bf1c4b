"""From a flat picture to layers, and the two ends of an inpainting: the crop to fill, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .compositing import pad_foreground
from .foreground import estimate_foreground
from .layers import TwoLayerImage, check_float_tensor, check_range
from .masks import SOFT_BAND, check_mask, check_picture_and_mask, gaussian, grow_mask

_RIM = 0.01  # of the shorter side: what an edge leaves beyond the mask


def decompose(image: Tensor, mask: Tensor, background: Tensor | None = None) -> TwoLayerImage:
    """Layers of a flat picture: true foreground colour, and a background that is whole.

    Args:
        image: (N, 3, H, W), stored sRGB in [0, 1].
        mask: (N, 1, H, W) in [0, 1], 1 where the foreground shows.
        background: (N, 3, H, W), the picture with the foreground taken out by an inpainter, taken as it is; None fills
            the hole with `fill_hole`.

    Returns:
        The layers. Where the mask is 0 everywhere or 1 everywhere, layers that are the picture itself.

    Raises:
        ValueError: picture, mask and background do not fit.
    """
    foreground, _ = estimate_foreground(image, mask)
    if background is None:
        background = fill_hole(image, mask)
    elif background.shape != image.shape:
        raise ValueError(f"background must have the shape {tuple(image.shape)} of image, got {tuple(background.shape)}")
    return TwoLayerImage(foreground, background, mask)


def fill_hole(image: Tensor, mask: Tensor) -> Tensor:
    """The picture with the masked thing smoothed over by a pull-push pyramid: no new detail, but no ghost either.

    Everything within 1 % of the shorter side of the mask is filled; other pixels stay bit-equal. A picture that is
    masked everywhere stays as it is.

    Raises:
        ValueError: image and mask do not fit.
    """
    check_picture_and_mask(image, mask)
    hole = _hole(mask, max(1.0, _RIM * min(mask.shape[-2:])))
    return pad_foreground(image, 1 - hole)


def _hole(mask: Tensor, radius: float) -> Tensor:
    """1 within `radius` pixels of what the mask shows, else 0."""
    return grow_mask((mask > SOFT_BAND[0]).to(mask.dtype), radius)


@dataclass(frozen=True, kw_only=True)
class InpaintOptions:
    """How a hole is prepared, in pixels.

    Attributes:
        dilate: how far the hole reaches beyond the mask, so that no rim or shadow of the thing stays.
        feather: width of the seam at the hole's edge, inside the hole; at most half of `dilate`, so that nothing of
            the thing shines through.
        context: how much around the hole the crop shows.
        multiple: the crop's sides are multiples of it, as far as the picture has room.

    Raises:
        ValueError: a number out of its range.
    """

    dilate: float = 16.0
    feather: float = 8.0
    context: int = 64
    multiple: int = 8

    def __post_init__(self) -> None:
        """Checks every number."""
        if not 0 <= self.dilate < math.inf:
            raise ValueError(f"dilate must be at least 0 pixels and finite, got {self.dilate}")
        if not 0 <= self.feather <= self.dilate / 2:
            raise ValueError(f"feather must lie between 0 and half of dilate ({self.dilate / 2:g}), got {self.feather}")
        if self.context < 0:
            raise ValueError(f"context must be at least 0 pixels, got {self.context}")
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1 pixel, got {self.multiple}")


@dataclass(frozen=True, eq=False, kw_only=True)
class InpaintCrop:
    """What goes to an inpainter, one window for the whole batch.

    Attributes:
        image: (N, 3, h, w), the picture in the window.
        hole: (N, 1, h, w), 1 where it is to be filled, else 0.
        blend: (N, 1, h, w) in [0, 1], how much of the filled picture is taken: 1 on the thing, 0 outside the hole.
        x: the window's left edge, pixels of the picture.
        y: its upper edge.
    """

    image: Tensor
    hole: Tensor
    blend: Tensor
    x: int
    y: int


def prepare_inpaint(image: Tensor, mask: Tensor, options: InpaintOptions | None = None) -> InpaintCrop:
    """The dilated, feathered hole where the masked thing is, and the window around it.

    Args:
        image: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in [0, 1], 1 where the thing is that is to go.
        options: sizes; None for the defaults.

    Raises:
        ValueError: image and mask do not fit, or no mask shows anything.
    """
    options = options or InpaintOptions()
    check_picture_and_mask(image, mask)
    hole = _hole(mask, options.dilate)
    shown = hole.amax(dim=(0, 1)) > 0
    if not bool(shown.any()):
        raise ValueError("mask must show what is to go in at least one picture, got an empty mask")
    seam = gaussian(grow_mask(hole, -options.feather), options.feather / 3).clamp(0, 1) * hole
    seam = torch.maximum(seam, _hole(mask, 0))
    rows, columns = (shown.any(dim=dim).nonzero() for dim in (1, 0))
    top, bottom = _window(int(rows[0]), int(rows[-1]) + 1, shown.shape[0], options)
    left, right = _window(int(columns[0]), int(columns[-1]) + 1, shown.shape[1], options)
    window = (..., slice(top, bottom), slice(left, right))
    return InpaintCrop(image=image[window], hole=hole[window], blend=seam[window], x=left, y=top)


def _window(first: int, last: int, size: int, options: InpaintOptions) -> tuple[int, int]:
    """Begin and end along one axis: the hole from `first` to `last`, context around it, a multiple if there is room."""
    wanted = last - first + 2 * options.context
    wanted += -wanted % options.multiple
    if wanted > size:
        fitting = size - size % options.multiple
        wanted = fitting if fitting >= last - first else size
    begin = min(max(0, (first + last - wanted) // 2), size - wanted)
    return begin, begin + wanted


def paste_back(image: Tensor, inpainted: Tensor, blend: Tensor, x: int, y: int) -> Tensor:
    """The picture with the filled window in its place; bit-equal where `blend` is 0 and outside the window.

    Args:
        image: (N, 3, H, W), the whole picture.
        inpainted: (N, 3, h, w), the window as it came back.
        blend: (N, 1, h, w), of `prepare_inpaint`.
        x: the window's left edge.
        y: its upper edge.

    Returns:
        (N, 3, H, W), a new tensor of the image's dtype.

    Raises:
        ValueError: sizes or batches do not fit, or the window leaves the picture.
    """
    check_float_tensor("image", image)
    check_float_tensor("inpainted", inpainted)
    check_mask(blend)
    if inpainted.ndim != 4 or blend.shape[-2:] != inpainted.shape[-2:]:
        raise ValueError("inpainted must have the size of the window that was prepared, "
                         f"{blend.shape[-1]}x{blend.shape[-2]}, got {inpainted.shape[-1]}x{inpainted.shape[-2]} "
                         "(width x height)")
    if not image.shape[:2] == inpainted.shape[:2] == (blend.shape[0], 3):
        raise ValueError("image, inpainted and blend must have one batch size and 3, 3 and 1 channels, "
                         f"got {tuple(image.shape)}, {tuple(inpainted.shape)} and {tuple(blend.shape)}")
    height, width = inpainted.shape[-2:]
    if not (0 <= x <= image.shape[-1] - width and 0 <= y <= image.shape[-2] - height):
        raise ValueError(f"the window {width}x{height} at ({x}, {y}) must lie in the picture, "
                         f"{image.shape[-1]}x{image.shape[-2]} (width x height)")
    check_range("inpainted", inpainted)
    result = image.clone()
    window = (..., slice(y, y + height), slice(x, x + width))
    filled = torch.lerp(image[window], inpainted.to(image), blend.to(image))
    result[window] = torch.where(blend > 0, filled, image[window])
    return result
