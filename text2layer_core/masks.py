"""Masks as pictures: which pixels lie near the edge, and edits that need no picture beside the mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .layers import check_float_tensor, check_range

EDGE_LOW, EDGE_HIGH = 0.02, 0.98


def check_mask(mask: Tensor) -> None:
    """Raises ValueError unless the mask is a floating (N, 1, H, W) of finite values in [0, 1]."""
    check_float_tensor("mask", mask)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.numel() == 0:
        raise ValueError(f"mask must have shape (N, 1, H, W), none of them 0, got {tuple(mask.shape)}")
    check_range("mask", mask)


def edge_band(mask: Tensor, radius: int) -> Tensor:
    """The pixels near the edge: at most `radius` from the contour m = 0.5, or with 0.02 < m < 0.98.

    Args:
        mask: (N, 1, H, W) in [0, 1].
        radius: pixels, at least 1.

    Returns:
        (N, 1, H, W), bool.

    Raises:
        ValueError: the mask is none, or the radius below 1.
    """
    check_mask(mask)
    if radius < 1:
        raise ValueError(f"radius must be at least 1 pixel, got {radius}")
    inside = mask > 0.5
    near = _within(inside, radius) & _within(~inside, radius)
    return near | ((mask > EDGE_LOW) & (mask < EDGE_HIGH))


def grow_mask(mask: Tensor, pixels: int) -> Tensor:
    """The mask widened by a disc of that radius; narrowed where `pixels` is negative.

    Grey-level dilation and erosion: a soft rim keeps its softness.

    Raises:
        ValueError: the mask is none.
    """
    check_mask(mask)
    if pixels == 0:
        return mask
    return _dilated(mask, pixels) if pixels > 0 else 1 - _dilated(1 - mask, -pixels)


def feather_mask(mask: Tensor, pixels: float) -> Tensor:
    """The mask blurred by a Gaussian whose standard deviation is half of `pixels`, its border continued.

    Raises:
        ValueError: the mask is none, or the width negative or not finite.
    """
    check_mask(mask)
    if not 0 <= pixels < math.inf:
        raise ValueError(f"feather must be a finite number of pixels of at least 0, got {pixels}")
    return gaussian_blur(mask, pixels / 2).clamp(0, 1)


def threshold_mask(mask: Tensor, threshold: float) -> Tensor:
    """1 where the mask is above the threshold, else 0, in the mask's dtype.

    Raises:
        ValueError: the mask is none, or the threshold not in [0, 1].
    """
    check_mask(mask)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    return (mask > threshold).to(mask.dtype)


def fill_holes(mask: Tensor, area: int) -> Tensor:
    """Closes holes: patches below 0.5 of at most `area` pixels that do not touch the border become 1.

    Raises:
        ValueError: the mask is none, or the area negative.
    """
    check_mask(mask)
    return torch.where(_small_components(mask <= 0.5, area, keep_at_border=True), 1.0, mask)


def drop_specks(mask: Tensor, area: int) -> Tensor:
    """Removes specks: patches above 0.5 of at most `area` pixels become 0, with the soft rim that only they have.

    Raises:
        ValueError: the mask is none, or the area negative.
    """
    check_mask(mask)
    specks = _small_components(mask > 0.5, area, keep_at_border=False)
    if not bool(specks.any()):
        return mask
    soft = mask > EDGE_LOW
    kept = _reachable((mask > 0.5) & ~specks, soft)
    return torch.where(_reachable(specks, soft) & ~kept, 0.0, mask)


def components(inside: Tensor) -> Tensor:
    """Labels of 4-connected patches: (N, 1, H, W) bool -> long, 0 outside, else a number that a patch has alone.

    Every pixel names a pixel of its patch; neighbours hook what they name to the larger, names are followed to their
    ends, until all agree (Shiloach and Vishkin, 1982): a few dozen passes whatever a patch's shape.
    """
    number = torch.arange(inside.numel(), device=inside.device).view(inside.shape)
    pairs = [(number[..., :-1], number[..., 1:], inside[..., :-1] & inside[..., 1:]),
             (number[:, :, :-1], number[:, :, 1:], inside[:, :, :-1] & inside[:, :, 1:])]
    first, second = (torch.cat([pair[k][pair[2]] for pair in pairs]) for k in (0, 1))
    named = number.flatten()
    while True:
        one, other = named[first], named[second]
        open_pairs = one != other
        if not bool(open_pairs.any()):
            return torch.where(inside, named.view(inside.shape) + 1, 0)
        first, second, one, other = (each[open_pairs] for each in (first, second, one, other))
        named = named.scatter_reduce(0, torch.minimum(one, other), torch.maximum(one, other), "amax")
        while not torch.equal(named, followed := named[named]):
            named = followed


def gaussian_blur(picture: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian, border continued: (N, C, H, W) -> (N, C, H, W); below 0.05 pixels the picture itself."""
    if sigma < 0.05:
        return picture
    reach = math.ceil(3 * sigma)
    position = torch.arange(-reach, reach + 1, device=picture.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (position / sigma).square())
    kernel = (kernel / kernel.sum()).to(picture.dtype)
    channels = picture.shape[1]
    for shape, padding in (((1, 1, 1, -1), (reach, reach, 0, 0)), ((1, 1, -1, 1), (0, 0, reach, reach))):
        padded = functional.pad(picture, padding, mode="replicate")
        picture = functional.conv2d(padded, kernel.view(shape).expand(channels, -1, -1, -1), groups=channels)
    return picture


def _within(inside: Tensor, radius: int) -> Tensor:
    """Pixels at most `radius` from one that is inside: how many of a disc's pixels are, by FFT, is above 0."""
    height, width = inside.shape[-2:]
    size = [height + 2 * radius, width + 2 * radius]
    offset = torch.arange(-radius, radius + 1, device=inside.device).square()
    disc = (offset.unsqueeze(1) + offset <= radius**2).float()
    spectrum = torch.fft.rfft2(inside.float(), s=size) * torch.fft.rfft2(disc, s=size)
    counted = torch.fft.irfft2(spectrum, s=size)
    return counted[..., radius : radius + height, radius : radius + width] > 0.5


def _dilated(mask: Tensor, radius: int) -> Tensor:
    """The largest value of a disc around each pixel, row of the disc by row."""
    height = mask.shape[2]
    padded = functional.pad(mask, (0, 0, radius, radius))
    result = mask
    for down in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - down**2)
        rows = padded[:, :, radius + down : radius + down + height]
        result = torch.maximum(result, functional.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach)))
    return result


def _small_components(inside: Tensor, area: int, *, keep_at_border: bool) -> Tensor:
    """The pixels of patches of at most `area` pixels; those that touch the border are left out if they are kept."""
    if area < 0:
        raise ValueError(f"area must be a number of pixels of at least 0, got {area}")
    labels = components(inside)
    small = torch.zeros_like(inside)
    for one, found in zip(labels, small, strict=True):
        sizes = torch.bincount(one.flatten())
        if keep_at_border:
            for edge in (one[:, 0], one[:, -1], one[:, :, 0], one[:, :, -1]):
                sizes[edge.flatten()] = area + 1
        found[...] = (one > 0) & (sizes[one] <= area)
    return small


def _reachable(seeds: Tensor, through: Tensor) -> Tensor:
    """The pixels of the patches of `through` that hold a seed."""
    labels = components(through)
    found = torch.zeros_like(through)
    for one, seed, reached in zip(labels, seeds, found, strict=True):
        reached[...] = (one > 0) & torch.isin(one, one[seed])
    return found
