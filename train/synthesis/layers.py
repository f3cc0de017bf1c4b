"""Mask to hole to layers (paper, "Data", steps 2 and 3): what is between the models and after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from text2layer_core.compositing import pad_foreground
from text2layer_core.decompose import InpaintCrop, InpaintOptions, prepare_inpaint
from text2layer_core.masks import connected_components, grow_mask
from train.samples import KNOWN_ABOVE
from train.synthesis.config import SIDE_OF_SIZES

if TYPE_CHECKING:
    from train.synthesis.config import FiltersConfig, LayersConfig

AREA_THRESHOLDS = (0.3, 0.5, 0.7, 0.9)  # of the paper's area histograms
LEAST_COMPONENT = 100  # pixels, as the paper counts
LEAST_GROUND = 0.01  # of the picture: an inpainter goes on with what it sees around the hole
_JPEG_BLOCK = 16  # pixels: chroma is stored at half the size in blocks of 8
_SHADOW = (0.3, 0.88)  # a shadow's light as a share of the ground's; below is a thing of its own
_SAME_HUE = 0.04  # how far red's and green's share of the light may move in a shadow


def mask_verdict(mask: np.ndarray, filters: FiltersConfig) -> str:
    """Why a mask (H, W) uint8 is dropped: "mask_empty", "mask_small", "mask_full", or "" where it is kept."""
    if int(mask.max()) <= KNOWN_ABOVE * 255:
        return "mask_empty"
    area = float(mask.mean()) / 255
    if area < filters.least_area:
        return "mask_small"
    return "mask_full" if area > filters.most_area else ""


def hole_verdict(hole: Tensor, image: Tensor) -> str:
    """Why a picture is dropped before its hole is filled: "no_ground", or "" where there is something to fill it from.

    A mask's mean does not tell: one of 0.85 everywhere has a hole of the whole picture.

    Args:
        hole: (1, 1, h, w), 1 where to fill, else 0; the rest of the picture is ground.
        image: (3, H, W), the whole picture; the ground must be at least 1 % of it.
    """
    ground = 1 - float(hole.sum()) / image[0].numel()
    return "no_ground" if ground < LEAST_GROUND else ""


def inpaint_crop(image: Tensor, mask: Tensor, config: LayersConfig, source_side: int, *, jpeg: bool) -> InpaintCrop:
    """The hole around the object and the window that the inpainter sees.

    Args:
        image: (3, H, W) in [0, 1].
        mask: (1, H, W) in [0, 1].
        config: sizes at 512.
        source_side: shorter side of the source's picture in pixels, for its JPEG's blocks.
        jpeg: whether the source is a JPEG.

    Raises:
        ValueError: an empty mask.
    """
    side = min(image.shape[1:])
    scale = side / SIDE_OF_SIZES
    dilate = config.dilate * scale
    if config.jpeg_rim and jpeg:
        dilate = max(dilate, _JPEG_BLOCK * side / source_side)
    options = InpaintOptions(dilate=dilate, feather=config.feather * scale, context=round(config.context * scale))
    going = mask[None]
    if config.shadow_reach:
        going = torch.maximum(going, shadow(image[None], going, config.shadow_reach * scale, dilate))
    return prepare_inpaint(image[None], going, options)


def shadow(image: Tensor, mask: Tensor, reach: float, skip: float) -> Tensor:
    """Contact shadows: what near the object is darker than the ground, of its hue, and joined to the object.

    The ground's light is that of what lies beyond `reach`, continued inwards (pull-push). The paper dilates alone; a
    cast shadow is longer than any dilation and tells of the object in its absence.

    Args:
        image: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in [0, 1].
        reach: pixels around the mask that are searched.
        skip: pixels around the mask that are in the hole anyhow.

    Returns:
        (N, 1, H, W), 1 in the shadow, else 0.
    """
    thing = (mask > KNOWN_ABOVE).to(mask.dtype)
    inner, outer = grow_mask(thing, skip), grow_mask(thing, reach)
    ground = pad_foreground(image, 1 - outer)
    light, ground_light = (picture.mean(dim=1, keepdim=True).clamp_min(1e-3) for picture in (image, ground))
    share = light / ground_light
    drift = (image / (3 * light) - ground / (3 * ground_light)).abs().amax(dim=1, keepdim=True)
    dark = (share > _SHADOW[0]) & (share < _SHADOW[1]) & (drift < _SAME_HUE) & (outer > 0)
    dark = grow_mask(grow_mask(dark.to(mask.dtype), -2), 2) > 0  # without specks
    parts = connected_components(dark | (inner > 0), diagonal=True)
    joined = torch.zeros_like(dark)
    for sample, labels in enumerate(parts):
        touching = labels[inner[sample] > 0].unique()
        joined[sample] = torch.isin(labels, touching[touching > 0])
    return (joined & dark).to(mask.dtype)


@dataclass(frozen=True)
class MaskFigures:
    """What the report says of a mask.

    Attributes:
        area: mean of m.
        areas: share of pixels above each of 0.3, 0.5, 0.7, 0.9.
        components: 8-connected parts above 0.5 with more than 100 pixels.
    """

    area: float
    areas: tuple[float, ...]
    components: int


def mask_figures(mask: np.ndarray) -> MaskFigures:
    """Of a mask (H, W) uint8."""
    import cv2

    areas = tuple(round(float((mask > threshold * 255).mean()), 5) for threshold in AREA_THRESHOLDS)
    _, _, parts, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8), connectivity=8)
    large = int((parts[1:, cv2.CC_STAT_AREA] > LEAST_COMPONENT).sum())
    return MaskFigures(round(float(mask.mean()) / 255, 5), areas, large)
