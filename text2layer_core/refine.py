"""A mask fitted to its picture: guided filter, closed-form matting or ViTMatte, near the edge alone.

The paper's mask is decoded from a latent eight times smaller than the picture, and its own remedy is a better decoder;
refinement afterwards is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .masks import check_mask, edge_band

BAND_SHARE = 0.03
_GUIDED_EPS = 1e-3
_GAIN = 2.0
_EXPLAINED = (0.025, 0.05)


class RefineMethod(str, Enum):
    """How the mask's edge is found."""

    GUIDED = "guided"
    """Guided filter (He, Sun and Tang 2010), then levels."""
    CLOSED_FORM = "closed_form"
    """The matting Laplacian (Levin, Lischinski and Weiss 2008, eq. 12), solved in the band."""
    VITMATTE = "vitmatte"
    """ViTMatte (Yao et al. 2023), from a model folder."""


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How `refine_mask` works.

    Attributes:
        method: how the edge is found.
        radius: pixels around the contour m = 0.5 that may change; None for 3 % of the shorter side.
        vitmatte: folder with a ViTMatte model as transformers saves it; only for that method, which needs it.

    Raises:
        ValueError: the radius is below 1, or the folder and the method do not belong together.
    """

    method: RefineMethod = RefineMethod.GUIDED
    radius: int | None = None
    vitmatte: str | Path | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.radius is not None and self.radius < 1:
            raise ValueError(f"radius must be at least 1 pixel, got {self.radius}")
        if (RefineMethod(self.method) is RefineMethod.VITMATTE) != (self.vitmatte is not None):
            raise ValueError(f"a ViTMatte folder must come with the method vitmatte and only with it, "
                             f"got {self.vitmatte} with {RefineMethod(self.method).value}")


def refine_mask(picture: Tensor, mask: Tensor, config: RefineConfig | None = None) -> Tensor:
    """Fits a mask's edge to its picture; every pixel outside `edge_band` stays as it is, bit for bit.

    Args:
        picture: what the mask was made for, (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in [0, 1].
        config: method and width; the guided filter by default.

    Returns:
        The mask, (N, 1, H, W) in [0, 1], in its own dtype.

    Raises:
        ValueError: picture and mask are none or do not belong together.
        OSError: the ViTMatte folder holds no model.
    """
    config = config or RefineConfig()
    check_picture(picture, mask)
    radius = config.radius or max(1, round(BAND_SHARE * min(mask.shape[-2:])))
    band = edge_band(mask, radius)
    wide_picture, wide_mask = picture.float(), mask.float()
    method = RefineMethod(config.method)
    if method is RefineMethod.GUIDED:
        refined = guided_levels(wide_picture, wide_mask, radius)
    elif method is RefineMethod.CLOSED_FORM:
        from .closed_form import solve_alpha

        refined = solve_alpha(wide_picture, wide_mask, band)
    else:
        from .vitmatte import matte

        refined = matte(wide_picture, wide_mask, band, Path(str(config.vitmatte)))
    return torch.where(band, refined.clamp(0, 1).to(mask.dtype), mask)


def guided_levels(picture: Tensor, mask: Tensor, radius: int) -> Tensor:
    """The guided filter's mask, stretched where the picture's edge is sharper than the mask's.

    The filter answers a ramp over a sharp edge by two steps that lie too near to each other. They are drawn apart to
    the least and greatest value that the mask itself has around them, so that glass stays glass. Where the picture
    explains the mask's shape already, as in a thing out of focus, the mask is kept.

    Args:
        picture: (N, 3, H, W), float32.
        mask: (N, 1, H, W), float32.
        radius: of the filter's window, pixels.
    """
    from kornia.filters import guided_blur

    side = 2 * radius + 1
    filtered = guided_blur(picture, mask, side, _GUIDED_EPS, "replicate")
    reach = max(1, radius // 2)
    (low, high), (filtered_low, filtered_high) = (_range(each, reach) for each in (mask, filtered))
    share = (filtered - filtered_low) / (filtered_high - filtered_low).clamp_min(1e-3)
    stretched = low + (high - low) * ((share - 0.5) * _GAIN + 0.5).clamp(0, 1)
    variance = _mean(mask.square(), radius) - _mean(mask, radius).square()
    unexplained = _mean((mask - filtered).square(), radius) / variance.clamp_min(1e-4)
    trust = ((unexplained - _EXPLAINED[0]) / (_EXPLAINED[1] - _EXPLAINED[0])).clamp(0, 1)
    return torch.lerp(mask, stretched, trust)


def check_picture(picture: Tensor, mask: Tensor) -> None:
    """Raises ValueError unless the picture is (N, 3, H, W) in [0, 1] and the mask (N, 1, H, W) of its size."""
    from .layers import check_float_tensor, check_range

    check_mask(mask)
    check_float_tensor("picture", picture)
    count, _, height, width = mask.shape
    if tuple(picture.shape) != (count, 3, height, width):
        raise ValueError(
            f"picture must have shape {(count, 3, height, width)} to match mask, got {tuple(picture.shape)}"
        )
    check_range("picture", picture)


def _range(values: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The least and greatest value within `reach` pixels along both axes, smoothed."""
    low, high = -_greatest(-values, reach), _greatest(values, reach)
    return _mean(low, max(1, reach // 2)), _mean(high, max(1, reach // 2))


def _greatest(values: Tensor, reach: int) -> Tensor:
    across = functional.max_pool2d(values, (1, 2 * reach + 1), 1, (0, reach))
    return functional.max_pool2d(across, (2 * reach + 1, 1), 1, (reach, 0))


def _mean(values: Tensor, radius: int) -> Tensor:
    """Of a square window, the border continued."""
    across = functional.avg_pool2d(functional.pad(values, (radius, radius, 0, 0), "replicate"), (1, 2 * radius + 1), 1)
    return functional.avg_pool2d(functional.pad(across, (0, 0, radius, radius), "replicate"), (2 * radius + 1, 1), 1)
