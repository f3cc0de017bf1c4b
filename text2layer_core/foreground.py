"""True colours under a mask (Germer et al., "Fast Multi-Level Foreground Estimation", 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .masks import check_picture_and_mask

_REGULARISATION = 1e-5
_COARSE_SIDE = 256  # up to this size every pixel is solved, and more often
_COARSE_SWEEPS, _SWEEPS, _FINEST_SWEEPS = 10, 3, 1  # at 2048 px less error and less time than 2 each


@torch.no_grad()
def estimate_foreground(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The colours F and B of I = m F + (1 - m) B, both smooth where m is.

    At each level of a pyramid, coarse to fine, the pixels' two-by-two systems (Germer et al., eq. 4) are solved in
    turns, half of a checkerboard after the other. Levels above 256 pixels and the finest one are solved only where
    0 < m < 1: elsewhere one of the layers is the picture itself, and the other continues the coarser level.
    Carries no gradients.

    Args:
        image: I, (N, 3, H, W), stored sRGB in [0, 1].
        mask: m, (N, 1, H, W) in [0, 1], taken as true.

    Returns:
        F and B, (N, 3, H, W) in [0, 1], of the image's dtype. F is bit-equal to the image where the mask is 1 and
        continues into where it is 0; B is bit-equal where the mask is 0 and continues under the foreground. A layer
        that shows nowhere is the picture.

    Raises:
        ValueError: image and mask do not fit.
    """
    check_picture_and_mask(image, mask)
    pairs = [_estimate_one(picture, alpha) for picture, alpha in zip(image, mask, strict=True)]
    foreground, background = (torch.stack(layers) for layers in zip(*pairs, strict=True))
    return foreground, background


def _estimate_one(image: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """F and B of one picture: image (3, H, W), alpha (1, H, W)."""
    if not bool((alpha > 0).any()) or not bool((alpha < 1).any()):
        return image.clone(), image.clone()
    wide = torch.promote_types(image.dtype, torch.float32)
    levels = [(image.to(wide), alpha.to(wide))]
    while min(levels[-1][1].shape[1:]) > 2:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    coarsest, weight = levels[-1]
    start = torch.cat([_mean(coarsest, weight), _mean(coarsest, 1 - weight)])
    colours = start.view(6, 1, 1).expand(6, *weight.shape[1:])
    for level, (picture, matte) in enumerate(reversed(levels)):
        if level:
            colours = functional.interpolate(colours[None], scale_factor=2, mode="nearest")[0]
            colours = colours[:, : matte.shape[1], : matte.shape[2]]
        colours = _solve_level(picture, matte, colours, finest=level == len(levels) - 1)
    return colours[:3].to(image.dtype), colours[3:].to(image.dtype)


def _halved(values: Tensor) -> Tensor:
    return functional.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)


def _mean(image: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean colour, (3,)."""
    return (image * weight).sum(dim=(1, 2)) / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _solve_level(image: Tensor, alpha: Tensor, colours: Tensor, *, finest: bool) -> Tensor:
    """One level, (6, H, W): image (3, H, W), alpha (1, H, W), colours (6, H, W) from the level below."""
    dense = not finest and max(alpha.shape) <= _COARSE_SIDE
    colours = colours.contiguous()
    soft = torch.ones_like(alpha[0], dtype=torch.bool)
    if not dense:
        opaque, clear = alpha == 1, alpha == 0
        soft = ~(opaque | clear)[0]
        torch.where(opaque, image, colours[:3], out=colours[:3])
        torch.where(clear, image, colours[3:], out=colours[3:])
    system = _System.of(image, alpha[0], soft)
    rows = colours.view(6, -1)[:, system.involved].T.contiguous()
    for _ in range(_COARSE_SWEEPS if dense else _FINEST_SWEEPS if finest else _SWEEPS):
        for half in system.halves:
            half.solve(rows)
    colours.view(6, -1)[:, system.involved] = rows.T
    return colours


@dataclass(frozen=True, eq=False)
class _Half:
    """The soft pixels of one colour of the checkerboard: no two are neighbours.

    Attributes:
        pixels: (n,) long, where in the list of involved pixels they stand.
        neighbours: (n * 4,) long, likewise; a pixel itself beyond the border.
        weights: (n, 1, 4), of the neighbours, divided by their sum.
        share: (n, 1), the mask.
        scale: (n, 1), 1 / (m^2 + (1 - m)^2 + sum of weights).
        image: (n, 3).
    """

    pixels: Tensor
    neighbours: Tensor
    weights: Tensor
    share: Tensor
    scale: Tensor
    image: Tensor

    def solve(self, rows: Tensor) -> None:
        """Sets F and B of these pixels to what fits the picture and the neighbours best; rows (all, 6), in place.

        Of the two unknowns both move from the neighbours' mean by what the picture still lacks.
        """
        mean = torch.bmm(self.weights, rows.index_select(0, self.neighbours).view(-1, 4, 6))[:, 0]
        lack = (self.image - torch.lerp(mean[:, 3:], mean[:, :3], self.share)) * self.scale
        mean[:, :3].addcmul_(lack, self.share)
        mean[:, 3:].addcmul_(lack, 1 - self.share)
        rows[self.pixels] = mean.clamp_(0, 1)


@dataclass(frozen=True, eq=False)
class _System:
    """The soft pixels of a level.

    Attributes:
        involved: (k,) long, the soft pixels and their neighbours.
        halves: of the checkerboard.
    """

    involved: Tensor
    halves: tuple[_Half, _Half]

    @classmethod
    def of(cls, image: Tensor, alpha: Tensor, soft: Tensor) -> _System:
        """From image (3, H, W), alpha (H, W) and soft (H, W) bool."""
        height, width = soft.shape
        near = soft.clone()
        near[1:] |= soft[:-1]
        near[:-1] |= soft[1:]
        near[:, 1:] |= soft[:, :-1]
        near[:, :-1] |= soft[:, 1:]
        involved = near.flatten().nonzero()[:, 0]
        place = torch.empty(height * width, dtype=torch.long, device=soft.device)
        place[involved] = torch.arange(len(involved), device=soft.device)
        rows, columns = soft.nonzero(as_tuple=True)
        around = torch.stack(
            [(rows - 1).clamp_min(0) * width + columns, (rows + 1).clamp_max(height - 1) * width + columns,
             rows * width + (columns - 1).clamp_min(0), rows * width + (columns + 1).clamp_max(width - 1)], dim=1)
        pixels, odd = rows * width + columns, (rows + columns) % 2 == 1
        matte, flat = alpha.flatten(), image.reshape(3, -1)
        share = matte[pixels, None]
        weights = _REGULARISATION + (share - matte[around]).abs()
        total = weights.sum(dim=1, keepdim=True)
        parts = (place[pixels], place[around], (weights / total).unsqueeze(1), share,
                 1 / (share.square() + (1 - share).square() + total), flat[:, pixels].T)
        first, second = (tuple(part[chosen] for part in parts) for chosen in (~odd, odd))
        return cls(involved, (_half(*first), _half(*second)))


def _half(pixels: Tensor, around: Tensor, weights: Tensor, share: Tensor, scale: Tensor, image: Tensor) -> _Half:
    return _Half(pixels, around.flatten(), weights, share, scale, image)
