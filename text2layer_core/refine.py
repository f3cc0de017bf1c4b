"""A better edge for a given mask: what may change, and the three ways to change it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .closed_form import solve_matting
from .guided import guided_mask
from .masks import (
    check_picture_and_mask,
    drop_specks,
    feather_mask,
    fill_holes,
    grow_mask,
    refinement_band,
    threshold_mask,
)

if TYPE_CHECKING:
    from .vitmatte import VitMatte


class RefineMethod(str, Enum):
    """How the band's values are found.

    NONE leaves them; GUIDED is a guided filter and levels (`guided.py`); CLOSED_FORM solves the matting Laplacian
    (`closed_form.py`; Levin et al., 2008); VITMATTE asks a matting network (`vitmatte.py`; Yao et al., 2023).
    """

    NONE = "none"
    GUIDED = "guided"
    CLOSED_FORM = "closed_form"
    VITMATTE = "vitmatte"


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """What `refine_mask` does, in this order: threshold, drop specks, fill holes, refine, grow, feather.

    Attributes:
        method: how the band is refined.
        radius: half the band's width, as a share of the picture's shorter side.
        threshold: from which value on a pixel becomes 1, the others 0; 0 keeps the mask soft.
        drop_specks: parts whose mask sums to less than this, in pixels, are dropped; 0 keeps all.
        fill_holes: holes of at most this many pixels are filled; 0 fills none, infinity all.
        grow: pixels; below 0 the mask shrinks.
        feather: sigma in pixels of a Gaussian.

    Raises:
        ValueError: a number out of its range, or an unknown method.
    """

    method: RefineMethod | str = RefineMethod.GUIDED
    radius: float = 0.03
    threshold: float = 0.0
    drop_specks: float = 0.0
    fill_holes: float = 0.0
    grow: float = 0.0
    feather: float = 0.0

    def __post_init__(self) -> None:
        """Checks every number."""
        refine_method(self.method)
        if not 0 < self.radius <= 0.5:
            raise ValueError(f"radius must lie above 0 and be at most 0.5 of the shorter side, got {self.radius}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        for name in ("drop_specks", "fill_holes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0 pixels, got {getattr(self, name)}")
        if not math.isfinite(self.grow):
            raise ValueError(f"grow must be finite, got {self.grow}")
        if not 0 <= self.feather < math.inf:
            raise ValueError(f"feather must be at least 0 pixels and finite, got {self.feather}")


def refine_method(name: RefineMethod | str) -> RefineMethod:
    """The method of that name; ValueError if there is none."""
    try:
        return RefineMethod(name)
    except ValueError:
        raise ValueError(f"method must be one of {', '.join(m.value for m in RefineMethod)}, got {name}") from None


def refine_mask(
    image: Tensor, mask: Tensor, options: RefineOptions | None = None, *, matting_model: VitMatte | None = None
) -> Tensor:
    """Refines a mask on its picture.

    Only the band may change: pixels within the radius of the mask's 0.5 contour, and pixels between 0.02 and 0.98. All
    others stay bit-equal, unless one of the other options (threshold, specks, holes, grow, feather) asks for more. An
    empty mask and an all-one mask have no band and come back as they are.

    Args:
        image: (N, 3, H, W), stored sRGB in [0, 1].
        mask: (N, 1, H, W) in [0, 1], 1 where the foreground shows.
        options: what to do; None for the guided filter alone.
        matting_model: for the method vitmatte, from `vitmatte.load_vitmatte`.

    Returns:
        (N, 1, H, W) in [0, 1], of the mask's dtype; the inputs are left alone.

    Raises:
        ValueError: image and mask do not fit, or vitmatte is asked for without a model.
    """
    options = options or RefineOptions()
    check_picture_and_mask(image, mask)
    if options.threshold:
        mask = threshold_mask(mask, options.threshold)
    if options.drop_specks:
        mask = drop_specks(mask, options.drop_specks)
    if options.fill_holes:
        mask = fill_holes(mask, options.fill_holes)
    mask = _refined(image, mask, options, matting_model)
    return feather_mask(grow_mask(mask, options.grow), options.feather)


def trimap(mask: Tensor, band: Tensor) -> Tensor:
    """1 and 0 where the mask is known, 0.5 in the band, (N, 1, H, W)."""
    return torch.where(band, 0.5, (mask > 0.5).to(mask.dtype)).to(mask.dtype)


def _refined(image: Tensor, mask: Tensor, options: RefineOptions, matting_model: VitMatte | None) -> Tensor:
    method = refine_method(options.method)
    if method is RefineMethod.NONE:
        return mask
    radius = max(1.0, options.radius * min(mask.shape[-2:]))
    band = refinement_band(mask, radius)
    if method is RefineMethod.VITMATTE:
        if matting_model is None:
            raise ValueError("method vitmatte must be given a matting_model, got none")
        found = matting_model(image, trimap(mask, band))
    else:
        wide = torch.promote_types(mask.dtype, torch.float32)
        found = guided_mask(image.to(wide), mask.to(wide), radius)
        if method is RefineMethod.CLOSED_FORM:
            found = solve_matting(image, trimap(mask, band), found)
    return torch.where(band, found.to(mask.dtype), mask)
