"""The background out of focus, the subject sharp."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional

from .layers import TwoLayerImage
from .masks import gaussian


class BlurKind(str, Enum):
    """How a background is blurred.

    GAUSSIAN is a Gaussian whose sigma is half the radius, on stored values. LENS is a disc, as an open aperture draws
    it, in linear light, so that highlights become bright discs.
    """

    GAUSSIAN = "gaussian"
    LENS = "lens"


def blur_kind(name: BlurKind | str) -> BlurKind:
    """The kind of that name; ValueError if there is none."""
    try:
        return BlurKind(name)
    except ValueError:
        raise ValueError(f"kind must be one of {', '.join(kind.value for kind in BlurKind)}, got {name}") from None


def blur_background(image: TwoLayerImage, radius: float, kind: BlurKind | str = BlurKind.LENS) -> TwoLayerImage:
    """The layers with a blurred background; nothing of the subject bleeds into it, for it is not in there.

    Args:
        image: layers whose background is complete, as of `decompose` or of the model.
        radius: pixels; 0 changes nothing.
        kind: gaussian or lens.

    Returns:
        Foreground and mask as they were, the background blurred.

    Raises:
        ValueError: a radius below 0 or not finite, or an unknown kind.
    """
    chosen = blur_kind(kind)
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be at least 0 pixels and finite, got {radius}")
    if radius == 0:
        return image
    wide = image.background.to(torch.promote_types(image.background.dtype, torch.float32))
    blurred = gaussian(wide, radius / 2) if chosen is BlurKind.GAUSSIAN else _lens(wide, radius)
    return TwoLayerImage(image.foreground, blurred.clamp(0, 1).to(image.background.dtype), image.mask)


def _lens(picture: Tensor, radius: float) -> Tensor:
    from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb

    return linear_rgb_to_rgb(_disc_mean(rgb_to_linear_rgb(picture), radius).clamp(0, 1))


def _disc_mean(picture: Tensor, radius: float) -> Tensor:
    """Means over discs with soft rims, the border continued; by Fourier transform, whose cost knows no radius."""
    reach = math.ceil(radius)
    steps = torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype)
    kernel = (radius + 0.5 - torch.hypot(steps[:, None], steps)).clamp(0, 1)
    padded = functional.pad(picture, (reach, reach, reach, reach), mode="replicate")
    height, width = padded.shape[-2:]
    centred = functional.pad(kernel / kernel.sum(), (0, width - kernel.shape[1], 0, height - kernel.shape[0]))
    centred = centred.roll((-reach, -reach), (0, 1))
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(centred)
    return torch.fft.irfft2(product, s=(height, width))[..., reach : height - reach, reach : width - reach]
