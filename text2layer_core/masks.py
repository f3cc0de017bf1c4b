"""Masks as shapes: grown, shrunk, feathered, their band, their components, holes and specks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .layers import check_float_tensor, check_range

SOFT_BAND = (0.02, 0.98)  # values between are soft


def check_mask(mask: Tensor) -> None:
    """Raises ValueError unless the mask is floats (N, 1, H, W), none of them 0, finite and in [0, 1]."""
    check_float_tensor("mask", mask)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.numel() == 0:
        raise ValueError(f"mask must have shape (N, 1, H, W), none of them 0, got {tuple(mask.shape)}")
    check_range("mask", mask)


def check_picture_and_mask(picture: Tensor, mask: Tensor, name: str = "image") -> None:
    """Checks what the mask operations take: a picture (N, 3, H, W) in [0, 1] and a mask of its size.

    Raises:
        ValueError: types, shapes, dtypes, devices or values do not fit; sizes are given as width x height.
    """
    check_float_tensor(name, picture)
    if picture.ndim != 4 or picture.shape[1] != 3 or picture.numel() == 0:
        raise ValueError(f"{name} must have shape (N, 3, H, W), none of them 0, got {tuple(picture.shape)}")
    check_mask(mask)
    if mask.shape[-2:] != picture.shape[-2:]:
        (height, width), (rows, columns) = picture.shape[-2:], mask.shape[-2:]
        raise ValueError(f"mask must have the size of {name}, {width}x{height}, got {columns}x{rows} (width x height)")
    if mask.shape[0] != picture.shape[0]:
        raise ValueError(f"there must be one mask per picture ({picture.shape[0]}), got {mask.shape[0]}")
    if (mask.dtype, mask.device) != (picture.dtype, picture.device):
        raise ValueError(f"mask must be {picture.dtype} on {picture.device} as {name}, "
                         f"got {mask.dtype} on {mask.device}")
    check_range(name, picture)


def grow_mask(mask: Tensor, radius: float) -> Tensor:
    """The greatest value within a disc around each pixel: the mask grown, its softness kept.

    Args:
        mask: (N, 1, H, W) in [0, 1].
        radius: pixels; below 0 the mask shrinks by as much. What lies beyond the border counts for neither.

    Returns:
        (N, 1, H, W), of the same dtype; the mask itself for a radius between -1 and 1.

    Raises:
        ValueError: no mask, or a radius that is not finite.
    """
    check_mask(mask)
    if not math.isfinite(radius):
        raise ValueError(f"radius must be finite, got {radius}")
    return disc_maximum(mask, radius) if radius >= 0 else 1 - disc_maximum(1 - mask, -radius)


def disc_maximum(values: Tensor, radius: float) -> Tensor:
    """The greatest value within a disc of `radius` pixels: (N, C, H, W) of any dtype but bool, 0 or above.

    The disc is a stack of rows; the maxima along rows come from windows that double in length, so that the work grows
    with the radius, not with its square.
    """
    reach = int(radius)
    if reach < 1:
        return values
    height, width = values.shape[-2:]
    padded = functional.pad(values, (reach, reach))
    doubled = [padded]  # doubled[k][..., x] is the maximum of 2**k values that begin at x
    while 2 ** len(doubled) <= 2 * reach + 1:
        step, last = 2 ** (len(doubled) - 1), doubled[-1]
        doubled.append(torch.maximum(last[..., : last.shape[-1] - step], last[..., step:]))
    best = values.clone()
    for shift in range(min(reach, height - 1) + 1):
        half = int(math.sqrt(radius * radius - shift * shift))
        level = (2 * half + 1).bit_length() - 1
        first, second = reach - half, reach + half + 1 - 2**level
        row = torch.maximum(doubled[level][..., first : first + width], doubled[level][..., second : second + width])
        below, above = (..., slice(shift, None), slice(None)), (..., slice(height - shift), slice(None))
        best[below] = torch.maximum(best[below], row[above])
        best[above] = torch.maximum(best[above], row[below])
    return best


def box_mean(values: Tensor, radius: int) -> Tensor:
    """Means over squares of 2 * radius + 1 pixels, as far as they lie in the picture, (N, C, H, W)."""
    side = 2 * radius + 1
    values = functional.avg_pool2d(values, (side, 1), 1, (radius, 0), count_include_pad=False)
    return functional.avg_pool2d(values, (1, side), 1, (0, radius), count_include_pad=False)


def feather_mask(mask: Tensor, sigma: float) -> Tensor:
    """The mask blurred by a Gaussian of `sigma` pixels; the border continues.

    Raises:
        ValueError: no mask, or a sigma below 0 or not finite.
    """
    check_mask(mask)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be at least 0 pixels and finite, got {sigma}")
    return gaussian(mask, sigma).clamp(0, 1) if sigma else mask


def gaussian(values: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (N, C, H, W), continued at the border, cut at three sigma."""
    from kornia.filters import gaussian_blur2d

    if sigma <= 0:
        return values
    side = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(values, (side, side), (sigma, sigma), border_type="replicate")


def threshold_mask(mask: Tensor, threshold: float) -> Tensor:
    """1 where the mask is at least `threshold`, else 0.

    Raises:
        ValueError: no mask, or a threshold outside (0, 1].
    """
    check_mask(mask)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie above 0 and be at most 1, got {threshold}")
    return (mask >= threshold).to(mask.dtype)


def contour(mask: Tensor) -> Tensor:
    """The 0.5 contour of masks (N, 1, H, W): pixels above 0.5 beside others and those others, bool."""
    inside = mask > 0.5
    found = torch.zeros_like(inside)
    for dim in (-2, -1):
        size = inside.shape[dim]
        differ = inside.narrow(dim, 1, size - 1) ^ inside.narrow(dim, 0, size - 1)
        found.narrow(dim, 1, size - 1).logical_or_(differ)
        found.narrow(dim, 0, size - 1).logical_or_(differ)
    return found


def refinement_band(mask: Tensor, radius: float) -> Tensor:
    """What a refinement may change: within `radius` pixels of the 0.5 contour, or between 0.02 and 0.98; bool.

    Args:
        mask: (N, 1, H, W) in [0, 1].
        radius: pixels, from the centres of the contour's pixels.
    """
    low, high = SOFT_BAND
    near = disc_maximum(contour(mask).to(torch.uint8), radius) > 0
    return near | ((mask > low) & (mask < high))


def connected_components(shape: Tensor, *, diagonal: bool) -> Tensor:
    """Numbers the connected parts of shapes.

    Numbers spread along whole runs of rows, then of columns, until nothing changes: a few sweeps for ordinary shapes.

    Args:
        shape: (N, 1, H, W) bool.
        diagonal: whether pixels that touch at a corner are connected.

    Returns:
        (N, 1, H, W) long: 0 outside, else a number of the sample's own, the same for all of one part (not 1, 2, 3).
    """
    height, width = shape.shape[-2:]
    numbers = torch.arange(1, height * width + 1, device=shape.device).view(1, 1, height, width)
    labels = torch.where(shape, numbers, 0)
    while True:
        before = labels
        labels = _spread(_spread(labels, shape, -1), shape, -2)
        if diagonal:
            around = functional.max_pool2d(labels.double(), 3, 1, 1).long()
            labels = torch.where(shape, around, 0)
        if torch.equal(labels, before):
            return labels


def _spread(labels: Tensor, shape: Tensor, dim: int) -> Tensor:
    """The greatest label of each run along a dimension, in the whole run."""
    starts = shape.clone()
    size = shape.shape[dim]
    starts.narrow(dim, 1, size - 1).logical_and_(~shape.narrow(dim, 0, size - 1))
    scale = int(labels.shape[-1] * labels.shape[-2]) + 1
    runs = starts.long().cumsum(dim) * scale
    back = scale * size - runs
    labels = (runs + labels).cummax(dim).values - runs
    labels = (back + labels).flip(dim).cummax(dim).values.flip(dim) - back
    return torch.where(shape, labels, 0)


def component_areas(labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """For every pixel the pixels of its part (or the sum of `weight` over it); 0 outside, (N, 1, H, W) double.

    Args:
        labels: of `connected_components`.
        weight: (N, 1, H, W), what to sum instead of 1.
    """
    flat = labels.flatten(1)
    values = torch.ones_like(flat, dtype=torch.double) if weight is None else weight.flatten(1).double()
    sums = torch.zeros(flat.shape[0], int(flat.max()) + 1, dtype=torch.double, device=flat.device)
    sums.scatter_add_(1, flat, values)
    sums[:, 0] = 0
    return sums.gather(1, flat).view(labels.shape)


def fill_holes(mask: Tensor, most: float = math.inf) -> Tensor:
    """Sets holes to 1: parts below 0.98 that do not reach the border and fall to 0.5 or below somewhere.

    A hole's soft rim is filled with it; glass that nowhere falls to 0.5 is no hole.

    Args:
        mask: (N, 1, H, W) in [0, 1].
        most: pixels of the largest hole to fill, its rim included.

    Returns:
        (N, 1, H, W), bit-equal elsewhere.

    Raises:
        ValueError: no mask, or `most` is not above 0.
    """
    check_mask(mask)
    _check_area("most", most)
    open_parts = connected_components(mask < SOFT_BAND[1], diagonal=False)
    border = torch.ones_like(mask)
    border[..., 1:-1, 1:-1] = 0
    enclosed = (open_parts > 0) & (component_areas(open_parts, border) == 0)
    hole = enclosed & (component_areas(open_parts, mask <= 0.5) > 0) & (component_areas(open_parts) <= most)
    return torch.where(hole, torch.ones_like(mask), mask)


def drop_specks(mask: Tensor, least: float) -> Tensor:
    """Sets small parts to 0: parts above 0.02, connected at corners too, whose mask sums to less than `least` pixels.

    Raises:
        ValueError: no mask, or `least` is not above 0.
    """
    check_mask(mask)
    _check_area("least", least)
    parts = connected_components(mask > SOFT_BAND[0], diagonal=True)
    speck = (parts > 0) & (component_areas(parts, mask) < least)
    return torch.where(speck, torch.zeros_like(mask), mask)


def _check_area(name: str, area: float) -> None:
    if not area > 0:
        raise ValueError(f"{name} must be above 0 pixels, got {area}")
