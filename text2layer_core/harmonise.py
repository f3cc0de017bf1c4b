"""Making two layers look as if taken together: colour statistics carried over, light spilling round an edge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .compositing import check_mask_shape

_FLAT = 0.1  # Lab units: a channel that varies less has no contrast to scale


def match_colour(
    picture: Tensor,
    reference: Tensor,
    *,
    picture_weight: Tensor | None = None,
    reference_weight: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Gives a picture the mean and deviation of another's colours, channel by channel, in CIE Lab.

    Reinhard et al., "Color Transfer between Images", 2001, which works in l-alpha-beta; Lab is our choice, as kornia
    has it. A channel that is flat in either picture is shifted only. Differentiable.

    Args:
        picture: (N, 3, H, W) in [0, 1], stored sRGB; all its pixels are changed.
        reference: (N, 3, h, w) in [0, 1].
        picture_weight: (N, 1, H, W) in [0, 1], how much each pixel counts (a mask); None for all alike.
        reference_weight: (N, 1, h, w), as before.
        strength: in [0, 1]; 0 gives the picture back as it is.

    Returns:
        (N, 3, H, W) in [0, 1]; a sample of which a weight is 0 everywhere stays as it is.

    Raises:
        ValueError: a shape does not fit, or the strength is outside [0, 1].
    """
    for name, each in (("picture", picture), ("reference", reference)):
        if each.ndim != 4 or each.shape[:2] != (picture.shape[0], 3):
            raise ValueError(f"{name} must have shape ({picture.shape[0]}, 3, H, W), got {tuple(each.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    if strength == 0:
        return picture
    from kornia.color import lab_to_rgb, rgb_to_lab

    lab, wanted = rgb_to_lab(picture), rgb_to_lab(reference)
    mean, deviation, counts = _statistics(lab, picture_weight)
    wanted_mean, wanted_deviation, wanted_counts = _statistics(wanted, reference_weight)
    flat = (deviation < _FLAT) | (wanted_deviation < _FLAT)
    gain = torch.where(flat, 1.0, wanted_deviation / torch.where(flat, 1.0, deviation))
    matched = lab_to_rgb((lab - mean) * gain + wanted_mean).to(picture.dtype)
    return torch.where(counts & wanted_counts, torch.lerp(picture, matched, strength), picture)


def light_wrap(foreground: Tensor, mask: Tensor, background: Tensor, *, radius: float, strength: float) -> Tensor:
    """Lets the background's light spill over the rim of a foreground, inside its mask.

    The blurred background is screened onto the foreground with the weight strength * min(1, 2 blur(1 - m)): strongest
    on the contour, nothing further inside than the radius. A foreground that the picture's border cuts has no rim
    there. Differentiable.

    Args:
        foreground: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in [0, 1]; it stays as it is.
        background: (N, 3, H, W) in [0, 1].
        radius: of the spill in pixels, above 0; the blur's deviation is half of it.
        strength: in [0, 1]; 0 gives the foreground back as it is.

    Returns:
        The foreground, (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: the shapes do not belong together, or a number is out of its range.
    """
    check_mask_shape(mask, foreground)
    if background.shape != foreground.shape:
        raise ValueError(
            f"background must have shape {tuple(foreground.shape)} to match foreground, got {tuple(background.shape)}"
        )
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be above 0 pixels, got {radius}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    if strength == 0:
        return foreground
    weight = strength * (2 * _blur(1 - mask, radius / 2)).clamp(0, 1)
    light = weight * _blur(background, radius / 2)
    return (foreground + light - foreground * light).clamp(0, 1)


def _statistics(lab: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of each channel, (N, 3, 1, 1), and whether any pixel counts, (N, 1, 1, 1)."""
    if weight is None:
        weight = torch.ones_like(lab[:, :1])
    check_mask_shape(weight, lab)
    values, weight = lab.float(), weight.float()
    total = weight.sum((2, 3), keepdim=True)
    share = weight / torch.where(total > 0, total, 1.0)
    mean = (values * share).sum((2, 3), keepdim=True)
    variance = ((values - mean).square() * share).sum((2, 3), keepdim=True)
    # The floor keeps the root's gradient finite; it is far below what counts as flat.
    return mean, variance.clamp_min(_FLAT**2 / 100).sqrt(), total > 0


def _blur(picture: Tensor, sigma: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    size = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(picture, (size, size), (sigma, sigma), border_type="replicate")
