"""How good layers are: pictures, masks and their consistency, one number per sample.

The paper ("Results") reports FID, CLIP score and the mask's IOU against a saliency model and against
people. These figures need neither: PSNR, IoU and SAD compare a prediction with the truth,
`consistency_psnr` compares two pictures of one model, `nearest_sprite` a foreground with a vocabulary;
`fringe`, `ghost` and `mask_statistics` look at the layers alone. Each returns (N,), floats in float32
or better. Pictures and masks are in [0, 1]; the mean over samples is left to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .compositing import check_mask_pair, check_mask_shape, check_pair, widen
from .masks import SOFT_BAND, box_mean, check_mask, connected_components, contour

SPRITE_SIZE = 32
SPRITE_ROTATIONS = (0.0, 8.0, -8.0, 16.0, -16.0)
_CUT = 0.5  # of a mask, where it has to be hard
_BOX_SHARE = 0.5
_SOLID = 0.95
_FRINGE_RADIUS = 0.03
_GHOST_MOVES = (0.10, 0.15, 0.20, 0.25, 0.10, 0.15, 0.20, 0.25)  # one for each eighth of a turn


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1: (N, C, H, W) twice -> (N,); equal pictures give infinity.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    check_pair(prediction, target)
    return _decibel(_squared_error(prediction, target).mean(dim=(1, 2, 3)))


def masked_psnr(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB over the pixels where the mask is above 0.5, (N,); without such a pixel, NaN.

    Args:
        prediction: (N, C, H, W).
        target: (N, C, H, W).
        mask: (N, 1, H, W), as a rule the true mask.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_pair(prediction, target)
    check_mask_shape(mask, target)
    inside = mask > 0.5
    error = torch.where(inside, _squared_error(prediction, target), 0).sum(dim=(1, 2, 3))
    return _decibel(error / (inside.sum(dim=(1, 2, 3)) * target.shape[1]))


def consistency_psnr(predicted_composed: Tensor, composed: Tensor) -> Tensor:
    """PSNR in dB of the auxiliary head's picture against eq. 1 of the predicted layers, (N, 3, H, W) -> (N,).

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    return psnr(predicted_composed, composed)


def soft_iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of minima over sum of maxima of two soft masks (N, 1, H, W) -> (N,), in [0, 1]; both empty gives 1.

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    check_mask_pair(prediction, target)
    prediction, target = widen(prediction), widen(target)
    union = torch.maximum(prediction, target).sum(dim=(1, 2, 3))
    overlap = torch.minimum(prediction, target).sum(dim=(1, 2, 3))
    return torch.where(union > 0, overlap / torch.where(union > 0, union, 1.0), 1.0)  # no 0 / 0 for the gradient either


def iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of two masks (N, 1, H, W), each cut at 0.5 -> (N,), in [0, 1]; both empty gives 1.

    The paper's IOU; where it cuts the masks it does not say.

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    return soft_iou((prediction > _CUT).float(), (target > _CUT).float())


def sad(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of |m^ - m| over the mask, (N, 1, H, W) -> (N,), in pixels (matting papers print thousands of them).

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    check_mask_pair(prediction, target)
    return (widen(prediction) - widen(target)).abs().sum(dim=(1, 2, 3))


def soft_band_sad(prediction: Tensor, target: Tensor) -> Tensor:
    """`sad` in pixels over the soft band alone, where 0.02 < m < 0.98 in the truth, (N, 1, H, W) -> (N,).

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    check_mask_pair(prediction, target)
    low, high = SOFT_BAND
    band = (target > low) & (target < high)
    return torch.where(band, (widen(prediction) - widen(target)).abs(), 0).sum(dim=(1, 2, 3))


def fringe(foreground: Tensor, mask: Tensor) -> Tensor:
    """How far the edge's colour is from that of the thing beside it, (N,), in 1/255; NaN without a soft edge.

    The mean over 0.02 < m < 0.98 of |F - F'|; F' is the average of m F where m > 0.95, divided by that of m, over
    squares that reach 3 % of the width to either side. Edges without such a solid part in reach are left out.

    Args:
        foreground: F, (N, 3, H, W), straight.
        mask: m, (N, 1, H, W).

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_mask_shape(mask, foreground)
    foreground, mask = widen(foreground), widen(mask)
    solid = torch.where(mask > _SOLID, mask, 0)
    radius = max(1, round(_FRINGE_RADIUS * mask.shape[-1]))
    around = box_mean(solid, radius)
    near = box_mean(solid * foreground, radius) / around.clamp_min(torch.finfo(around.dtype).tiny)
    low, high = SOFT_BAND
    edge = (mask > low) & (mask < high) & (around > 1e-6)
    difference = (foreground - near).abs().mean(dim=1, keepdim=True)
    return 255 * torch.where(edge, difference, 0).sum(dim=(1, 2, 3)) / edge.sum(dim=(1, 2, 3))


def ghost(background: Tensor, mask: Tensor) -> Tensor:
    """What a moved subject would reveal of itself, (N,): 1 is no trace, more is an outline; NaN without a contour.

    The mean of |grad B| on the contour m = 0.5 divided by its mean on eight copies of the contour, moved in eight
    directions by 10 to 25 % of the shorter side, as far as they stay in the picture.

    Args:
        background: B, (N, C, H, W).
        mask: m, (N, 1, H, W).

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_mask_shape(mask, background)
    slope = _gradient(widen(background))
    line = contour(mask)
    height, width = mask.shape[-2:]
    total, count = torch.zeros_like(slope), torch.zeros_like(slope)
    for direction, share in enumerate(_GHOST_MOVES):
        angle, distance = math.pi / 4 * direction, share * min(height, width)
        down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
        moved = _shifted(line, down, right)
        total += torch.where(moved, slope, 0)
        count += moved
    elsewhere = total.sum(dim=(1, 2, 3)) / count.sum(dim=(1, 2, 3))
    return torch.where(line, slope, 0).sum(dim=(1, 2, 3)) / line.sum(dim=(1, 2, 3)) / elsewhere


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskStatistics:
    """What masks are like, (N,) each.

    Attributes:
        area: mean of m, a share of the picture.
        softness: pixels with 0.02 < m < 0.98 as a share of those above 0.02; 0 for an empty mask.
        components: parts above 0.5, connected at corners too; long.
    """

    area: Tensor
    softness: Tensor
    components: Tensor


def mask_statistics(mask: Tensor) -> MaskStatistics:
    """Area, softness and components of masks (N, 1, H, W) in [0, 1].

    Raises:
        ValueError: no masks.
    """
    check_mask(mask)
    low, high = SOFT_BAND
    shown = (mask > low).sum(dim=(1, 2, 3))
    soft = ((mask > low) & (mask < high)).sum(dim=(1, 2, 3))
    labels = connected_components(mask > 0.5, diagonal=True)
    parts = torch.stack([each.unique().count_nonzero() for each in labels])
    return MaskStatistics(area=widen(mask).mean(dim=(1, 2, 3)), softness=soft / shown.clamp_min(1), components=parts)


def _gradient(picture: Tensor) -> Tensor:
    """Length of the gradient by central differences, mean over channels, per pixel, (N, 1, H, W)."""
    padded = functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return torch.hypot(right, down).mean(dim=1, keepdim=True)


def _shifted(shape: Tensor, down: int, right: int) -> Tensor:
    """The shape (N, 1, H, W) bool moved; what leaves the picture is gone."""
    height, width = shape.shape[-2:]
    moved = torch.zeros_like(shape)
    rows, columns = _overlap(down, height), _overlap(right, width)
    moved[..., rows[1], columns[1]] = shape[..., rows[0], columns[0]]
    return moved


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where along an axis the pixels that stay come from, and where they go."""
    return slice(max(0, -shift), max(0, size - max(0, shift))), slice(max(0, shift), max(0, size + min(0, shift)))


@dataclass(frozen=True, eq=False)
class SpriteBank:
    """A vocabulary prepared for `nearest_sprite`; made by `sprite_bank`.

    Attributes:
        features: (S, 4 * 32 * 32) float32, each sprite cropped, squared, resized, premultiplied.
        labels: (S,) long, what each sprite shows; several sprites may share one.
    """

    features: Tensor
    labels: Tensor


def sprite_bank(sprites: Tensor, labels: Tensor) -> SpriteBank:
    """Prepares a vocabulary once.

    Args:
        sprites: (S, 4, h, w) in [0, 1], straight RGBA.
        labels: (S,) long.

    Raises:
        ValueError: shapes or dtypes are wrong, or a sprite is wholly transparent.
    """
    if sprites.ndim != 4 or sprites.shape[1] != 4 or not sprites.is_floating_point():
        raise ValueError(f"sprites must be floats (S, 4, h, w), got {sprites.dtype} {tuple(sprites.shape)}")
    if labels.shape != sprites.shape[:1] or labels.dtype != torch.long:
        raise ValueError(f"labels must be long ({sprites.shape[0]},), got {labels.dtype} {tuple(labels.shape)}")
    empty = sprites[:, 3].flatten(1).amax(dim=1) <= 0
    if bool(empty.any()):
        raise ValueError(f"every sprite must show something, sprite {int(empty.nonzero()[0])} is transparent")
    features = [_normalised(_premultiplied(sprite)).flatten() for sprite in sprites]
    return SpriteBank(torch.stack(features), labels)


def nearest_sprite(foreground: Tensor, mask: Tensor, sprites: SpriteBank) -> Tensor:
    """The label of the sprite that each foreground looks like.

    The foreground is cropped to the bounding box of mask > half the mask's maximum, so that a pane of
    glass counts whole and a halo does not; padded to a square, resized to 32x32 and compared by the
    L2 distance of premultiplied RGBA with every sprite, prepared in the same way. In both, alpha is
    divided by its maximum, so that glass looks like the thing it is made after. Mirrored and rotated
    (by 0, 8, 16 degrees either way) is the foreground rather than each sprite: the same comparisons
    at a fraction of the work.

    Args:
        foreground: F, (N, 3, H, W), in [0, 1].
        mask: m, (N, 1, H, W), in [0, 1].
        sprites: the vocabulary, on the same device.

    Returns:
        (N,) long; -1 where the mask is 0 everywhere.

    Raises:
        ValueError: the shapes do not belong together, or the devices differ.
    """
    check_mask_shape(mask, foreground)
    if foreground.shape[1] != 3:
        raise ValueError(f"foreground must have shape (N, 3, H, W), got {tuple(foreground.shape)}")
    if foreground.device != sprites.features.device:
        raise ValueError(f"foreground must be on the sprites' {sprites.features.device}, got {foreground.device}")
    return torch.stack(
        [_nearest_label(picture, sprites) for picture in torch.cat([foreground, mask.to(foreground.dtype)], dim=1)]
    )


def _nearest_label(picture: Tensor, sprites: SpriteBank) -> Tensor:
    """The label, a long scalar, for one straight RGBA picture (4, H, W)."""
    if not bool((picture[3] > 0).any()):
        return sprites.labels.new_tensor(-1)
    turned = torch.stack([_normalised(view) for view in _rotations(_premultiplied(picture))])
    queries = torch.cat([turned, turned.flip(-1)]).flatten(1)
    return sprites.labels[torch.cdist(queries, sprites.features).amin(dim=0).argmin()]


def _premultiplied(picture: Tensor) -> Tensor:
    """Straight RGBA (4, H, W) to premultiplied RGBA in float32, alpha divided by its maximum."""
    colour, alpha = picture.float().split([3, 1])
    alpha = alpha / alpha.amax()
    return torch.cat([colour * alpha, alpha])


def _normalised(picture: Tensor) -> Tensor:
    """Premultiplied RGBA (4, H, W) cropped to its thing, padded to a square and resized: (4, 32, 32)."""
    solid = picture[3] > _BOX_SHARE * picture[3].amax()
    rows, columns = solid.any(dim=1).nonzero().flatten(), solid.any(dim=0).nonzero().flatten()
    crop = picture[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    square = _centred(crop, max(crop.shape[-2:]))
    size = (SPRITE_SIZE, SPRITE_SIZE)
    return functional.interpolate(square[None], size=size, mode="bilinear", antialias=True)[0]


def _rotations(picture: Tensor) -> Tensor:
    """The picture (C, H, W) turned by each angle about its centre on a canvas that cuts nothing off."""
    canvas = _centred(picture, math.ceil(math.hypot(*picture.shape[-2:])))
    angles = torch.tensor(SPRITE_ROTATIONS, device=picture.device).deg2rad()
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    canvases = canvas.expand(len(SPRITE_ROTATIONS), *canvas.shape)
    grid = functional.affine_grid(matrices, list(canvases.shape), align_corners=False)
    return functional.grid_sample(canvases, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centred(picture: Tensor, side: int) -> Tensor:
    """The picture (C, H, W) in the middle of a transparent square."""
    top, left = (side - picture.shape[-2]) // 2, (side - picture.shape[-1]) // 2
    bottom, right = side - picture.shape[-2] - top, side - picture.shape[-1] - left
    return functional.pad(picture, (left, right, top, bottom))


def _decibel(mean_squared_error: Tensor) -> Tensor:
    return -10 * mean_squared_error.log10()


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (widen(prediction) - widen(target)).square()
