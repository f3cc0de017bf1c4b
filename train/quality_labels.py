"""Labels where the truth is exact: the paper's criteria of its two quality classifiers, each as a number.

The paper names the criteria and had people judge them (data step 4); the thresholds here are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from text2layer_core.compositing import check_mask_shape
from text2layer_core.layers import TwoLayerImage
from text2layer_core.masks import gaussian
from train.baselines import DEFECTS

INCOMPLETE, HOLDS_BACKGROUND, TOO_SMALL, HOLDS_OBJECT, DOES_NOT_FIT = DEFECTS


@dataclass(frozen=True, kw_only=True)
class QualityCriteria:
    """From which number on a sample is bad.

    Attributes:
        most_missing: share of the object's area that the mask leaves out; above it the object is incomplete.
        most_background: share of the mask's area that lies beside the object; above it the mask holds background.
        least_area: mean of the mask; below it the object is too small.
        most_object: how much of the object the filled background still shows, where it is: 0 is none, 1 all of it.
        least_contrast: mean square of object minus background; below it nobody can tell whether the hole holds the
            object.
        most_misfit: mean difference of the filled background from the true one where the object is, both blurred, so
            that another texture of the same colours does not count; above it the filling does not fit.
        blur: sigma of that blur as a share of the shorter side.

    Raises:
        ValueError: a number is outside [0, 1].
    """

    most_missing: float = 0.25
    most_background: float = 0.2
    least_area: float = 0.02
    most_object: float = 0.35
    least_contrast: float = 0.005
    most_misfit: float = 0.08
    blur: float = 0.03

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")


def mask_defects(truth: Tensor, mask: Tensor, criteria: QualityCriteria) -> list[list[str]]:
    """What is wrong with masks.

    Args:
        truth: true masks, (N, 1, H, W) in [0, 1].
        mask: found ones, of the same shape.
        criteria: the numbers.

    Returns:
        For each sample the criteria that it fails, of DEFECTS; an empty list is good. A mask of nothing is too small.

    Raises:
        ValueError: the shapes differ.
    """
    check_mask_shape(mask, truth)
    area, true_area = mask.sum(dim=(1, 2, 3)), truth.sum(dim=(1, 2, 3))
    missing = (truth - mask).clamp_min(0).sum(dim=(1, 2, 3)) / true_area.clamp_min(1e-6)
    beside = (mask - truth).clamp_min(0).sum(dim=(1, 2, 3)) / area.clamp_min(1e-6)
    return _named({
        INCOMPLETE: missing > criteria.most_missing,
        HOLDS_BACKGROUND: beside > criteria.most_background,
        TOO_SMALL: mask.mean(dim=(1, 2, 3)) < criteria.least_area,
    })


def inpainting_defects(truth: TwoLayerImage, background: Tensor, criteria: QualityCriteria) -> list[list[str]]:
    """What is wrong with filled backgrounds, judged where the true mask is.

    How much of the object b shows is the t that brings B + t (F - B) nearest to it, by least squares under the mask.

    Args:
        truth: the true layers.
        background: the filled ones, (N, 3, H, W) in [0, 1].
        criteria: the numbers.

    Returns:
        For each sample the criteria that it fails; an empty list is good.

    Raises:
        ValueError: the shapes differ.
    """
    if background.shape != truth.background.shape:
        raise ValueError(f"background must have shape {tuple(truth.background.shape)}, got {tuple(background.shape)}")
    mask, area = truth.mask, truth.mask.sum(dim=(1, 2, 3)).clamp_min(1e-6)
    difference, contrast = background - truth.background, truth.foreground - truth.background
    squares = (mask * contrast.square()).sum(dim=(1, 2, 3))
    shown = (mask * difference * contrast).sum(dim=(1, 2, 3)) / squares.clamp_min(1e-6)
    visible = squares / (3 * area) >= criteria.least_contrast
    sigma = criteria.blur * min(truth.height, truth.width)
    blurred = gaussian(difference, sigma)
    misfit = (mask * blurred.abs()).sum(dim=(1, 2, 3)) / (3 * area)
    return _named({
        HOLDS_OBJECT: visible & (shown > criteria.most_object),
        DOES_NOT_FIT: misfit > criteria.most_misfit,
    })


def _named(failed: dict[str, Tensor]) -> list[list[str]]:
    columns = torch.stack(list(failed.values()), dim=1).tolist()
    return [[name for name, bad in zip(failed, row, strict=True) if bad] for row in columns]
