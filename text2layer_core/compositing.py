"""Putting layers together: eq. 1 of the paper, and the foreground's colour beyond its mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .layers import TwoLayerImage

_MIN_WEIGHT = 1e-3


def blend(foreground: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """I = m F + (1 - m) B (paper, eq. 1), on the values as they are given.

    Evaluated as B + m (F - B), one pass over memory where the sum of two products takes three.
    Differentiable in all arguments, any value range; where the mask is exactly 0 or 1 the result
    equals one layer bit for bit, and it never leaves the interval between the layers.

    Args:
        foreground: F, (N, C, H, W).
        background: B, (N, C, H, W).
        mask: m, (N, 1, H, W).

    Returns:
        I, (N, C, H, W).

    Raises:
        ValueError: the shapes do not belong together.
    """
    if foreground.ndim != 4 or foreground.shape != background.shape:
        raise ValueError(
            "foreground and background must have one shape (N, C, H, W), "
            f"got {tuple(foreground.shape)} and {tuple(background.shape)}"
        )
    check_mask_shape(mask, foreground)
    return torch.lerp(background, foreground, mask)


def compose(image: TwoLayerImage) -> Tensor:
    """The composed image of eq. 1 on stored sRGB values, (N, 3, H, W) in [0, 1]."""
    return blend(image.foreground, image.background, image.mask)


def pad_foreground(foreground: Tensor, mask: Tensor) -> Tensor:
    """Extends the foreground's colour into the pixels where the mask is 0, by a pull-push pyramid.

    Colours, weighted by the mask, are averaged 2x2 until one pixel is left, then fill the empty
    pixels of each finer level on the way back (Gortler et al., "The Lumigraph", 1996). The paper
    copies the image's pixels into F and is silent about the rest; extended colour is our choice,
    so that a moved, scaled or blurred layer shows no fringe.

    Args:
        foreground: F, (N, C, H, W), in [0, 1].
        mask: m, (N, 1, H, W), in [0, 1].

    Returns:
        (N, C, H, W), a new tensor of the same dtype: bit-equal to the foreground where the mask
        is above 0, and everywhere in a sample whose mask is 0 everywhere.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_mask_shape(mask, foreground)
    known = mask > 0
    # The floor keeps the weights of almost transparent pixels from vanishing in the sums.
    weight = torch.where(known, mask.float().clamp_min(_MIN_WEIGHT), 0.0)
    filled = _pull_push(foreground.float(), weight).clamp(0, 1).to(foreground.dtype)
    keep = known | ~known.flatten(1).any(dim=1).view(-1, 1, 1, 1)
    return torch.where(keep, foreground, filled)


def check_mask_shape(mask: Tensor, picture: Tensor) -> None:
    """Raises ValueError unless the picture is (N, C, H, W) and the mask (N, 1, H, W)."""
    if picture.ndim != 4:
        raise ValueError(f"a picture must have shape (N, C, H, W), got {tuple(picture.shape)}")
    count, _, height, width = picture.shape
    if tuple(mask.shape) != (count, 1, height, width):
        raise ValueError(f"mask must have shape {(count, 1, height, width)} to match, got {tuple(mask.shape)}")


def check_pair(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError unless both have one shape (N, C, H, W)."""
    if prediction.shape != target.shape or target.ndim != 4:
        raise ValueError(
            f"both tensors must have one shape (N, C, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )


def check_mask_pair(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError unless both have one shape (N, 1, H, W)."""
    check_pair(prediction, target)
    if target.shape[1] != 1:
        raise ValueError(f"masks must have shape (N, 1, H, W), got {tuple(target.shape)}")


def widen(value: Tensor) -> Tensor:
    """The value in float32 or better: squares of small differences and sums over pixels need it."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _pull_push(colour: Tensor, weight: Tensor) -> Tensor:
    """The filled picture of one level: its own colour where the weight is 1, the coarser level's where it is 0."""
    height, width = colour.shape[-2:]
    if height == 1 and width == 1:
        return colour
    pooled = functional.avg_pool2d(weight, 2, ceil_mode=True)
    sums = functional.avg_pool2d(colour * weight, 2, ceil_mode=True)
    mean = sums / pooled.clamp_min(torch.finfo(pooled.dtype).tiny)
    coarse = _pull_push(mean, (4 * pooled).clamp_max(1))
    fine = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(fine[..., :height, :width], colour, weight)
