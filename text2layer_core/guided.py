"""The guided filter that pulls a mask to the picture's edges (He and Sun, "Fast Guided Filter", 2015), and levels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .masks import box_mean

_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_CELLS = 4  # windows are this many cells in radius: coarser ones change the result, finer ones cost more
_EPSILON = 1e-4
_LEAST_WEIGHT = 0.02
_DOUBT = 0.27  # of the radius: how far from the given edge labels are doubted
_GAIN = 1.5


def guided_mask(image: Tensor, mask: Tensor, radius: float) -> Tensor:
    """The mask as a locally linear function of the picture's colour, stretched to the levels that the mask has there.

    Two things differ from He and Sun's filter. Each pixel's weight in the fit falls with the mask's range in its
    neighbourhood, so that labels beside the given edge, which may lie on its wrong side, count little; kornia's
    `guided_blur` has no weights. And the levels are local: what lies between the least and the greatest value of the
    filter's answer nearby is drawn apart, half as much again, to the least and the greatest value of the mask nearby,
    so that a hard edge becomes hard again and a pane of glass stays as it is.

    Args:
        image: (N, 3, H, W) in [0, 1], float32 or better.
        mask: (N, 1, H, W) in [0, 1], same dtype.
        radius: of the windows, pixels.

    Returns:
        (N, 1, H, W) in [0, 1], everywhere; where to use it is the caller's choice.
    """
    cell = max(1, int(radius) // _CELLS)
    low, high = _local_range(mask, max(1, round(_DOUBT * radius)), cell)
    weight = (1 - (high - low)).clamp_min(_LEAST_WEIGHT)
    fitted = _fit(image, mask, weight, max(1, round(radius / cell)), cell)
    return _local_levels(fitted, mask, radius / 2, cell)


def _fit(image: Tensor, mask: Tensor, weight: Tensor, radius: int, cell: int) -> Tensor:
    """Weighted linear regression of the mask on colour in every window, the windows' answers averaged per pixel."""
    centred = image - 0.5  # smaller sums, smaller rounding
    products = torch.cat([centred[:, i : i + 1] * centred[:, j : j + 1] for i, j in _PAIRS], dim=1)
    moments = torch.cat([centred, mask, products, centred * mask], dim=1) * weight
    means = box_mean(_pooled(moments, cell), radius) / box_mean(_pooled(weight, cell), radius)
    colour, label = means[:, :3], means[:, 3:4]
    square = torch.cat([colour[:, i : i + 1] * colour[:, j : j + 1] for i, j in _PAIRS], dim=1)
    slope = _solve(means[:, 4:10] - square, means[:, 10:] - colour * label)
    offset = label - (slope * colour).sum(dim=1, keepdim=True)
    fine = _enlarged(box_mean(torch.cat([slope, offset], dim=1), radius), cell, image)
    return (fine[:, :3] * centred).sum(dim=1, keepdim=True) + fine[:, 3:]


def _solve(covariance: Tensor, right: Tensor) -> Tensor:
    """Solves (covariance + epsilon) x = right by Cramer's rule; covariance (N, 6, H, W) in the order of _PAIRS."""
    rr, rg, rb, gg, gb, bb = covariance.unbind(1)
    rr, gg, bb = rr + _EPSILON, gg + _EPSILON, bb + _EPSILON
    first = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
    second = (first[1], rr * bb - rb * rb, rb * rg - rr * gb)
    third = (first[2], second[2], rr * gg - rg * rg)
    determinant = first[0] * rr + first[1] * rg + first[2] * rb
    r, g, b = right.unbind(1)
    return torch.stack([x * r + y * g + z * b for x, y, z in (first, second, third)], dim=1) / determinant.unsqueeze(1)


def _local_range(mask: Tensor, radius: float, cell: int) -> tuple[Tensor, Tensor]:
    """Least and greatest values around each pixel, smoothed, (N, 1, H, W) each."""
    reach = max(1, round(radius / cell))
    side = 2 * reach + 1
    both = torch.cat([1 - mask, mask], dim=1)
    coarse = functional.max_pool2d(both, cell, ceil_mode=True) if cell > 1 else both
    coarse = functional.max_pool2d(functional.max_pool2d(coarse, (side, 1), 1, (reach, 0)), (1, side), 1, (0, reach))
    fine = _enlarged(box_mean(coarse, reach), cell, mask)
    return 1 - fine[:, :1], fine[:, 1:]


def _local_levels(fitted: Tensor, mask: Tensor, radius: float, cell: int) -> Tensor:
    fitted = fitted.clamp(0, 1)
    low, high = _local_range(mask, radius, cell)
    fitted_low, fitted_high = _local_range(fitted, radius, cell)
    share = (fitted - fitted_low) / (fitted_high - fitted_low).clamp_min(1e-3)
    stretched = ((share - 0.5) * _GAIN + 0.5).clamp(0, 1)
    return (low + stretched * (high - low)).clamp(0, 1)


def _pooled(values: Tensor, cell: int) -> Tensor:
    return functional.avg_pool2d(values, cell, ceil_mode=True, count_include_pad=False) if cell > 1 else values


def _enlarged(values: Tensor, cell: int, like: Tensor) -> Tensor:
    if cell > 1:
        values = functional.interpolate(values, scale_factor=cell, mode="bilinear", align_corners=False)
    return values[..., : like.shape[-2], : like.shape[-1]]
