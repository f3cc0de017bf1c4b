"""The one place that knows ComfyUI's layouts: BHWC pictures, both mask polarities, the LAYERS document."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..text2layer_core.compositing import pad_foreground
from ..text2layer_core.layers import TwoLayerImage

LAYERS_VERSION = 1
SIZE = "text2layer_size"
"""In a LATENT: width and height of the picture before it was padded."""


def to_bhwc(picture: Tensor) -> Tensor:
    """(N, C, H, W) -> IMAGE (N, H, W, C)."""
    return picture.movedim(1, -1)


def to_nchw(image: Tensor) -> Tensor:
    """IMAGE (N, H, W, C) -> (N, C, H, W)."""
    return image.movedim(-1, 1)


def foreground_mask(image: TwoLayerImage) -> Tensor:
    """MASK (N, H, W), 1 where the foreground shows."""
    return image.mask[:, 0]


def layers_from_images(foreground: Tensor, background: Tensor, mask: Tensor) -> TwoLayerImage:
    """Checks what came in through the sockets and makes layers of it.

    Args:
        foreground: IMAGE (N, H, W, 3 or 4); an alpha channel is left out, the mask counts.
        background: IMAGE (N, H, W, 3).
        mask: MASK (N, H, W), or (1, H, W) or (H, W) for all pictures; 1 where the foreground shows.

    Returns:
        Layers whose foreground is continued where the mask is 0.

    Raises:
        ValueError: channels, sizes or batch sizes do not fit; the message names the input.
    """
    if foreground.shape[-1] not in (3, 4):
        raise ValueError(f"foreground must be RGB or RGBA, got {foreground.shape[-1]} channels")
    if background.shape[-1] != 3:
        raise ValueError(f"background must be RGB (3 channels), got {background.shape[-1]} channels")
    count, height, width = foreground.shape[:3]
    mask = mask.reshape(-1, *mask.shape[-2:])  # some nodes give (H, W)
    _check_size("background", background, height, width)
    _check_size("foreground_mask", mask, height, width)
    if mask.shape[0] == 1:
        mask = mask.expand(count, -1, -1)
    for name, batch in (("background", background), ("foreground_mask", mask)):
        if batch.shape[0] != count:
            raise ValueError(f"{name} must have as many pictures as foreground ({count}), got {batch.shape[0]}")
    alpha = mask.unsqueeze(1).to(foreground).clamp(0, 1)
    colour = to_nchw(foreground[..., :3]).clamp(0, 1)
    return TwoLayerImage(pad_foreground(colour, alpha), to_nchw(background).to(colour).clamp(0, 1), alpha)


def layer_outputs(
    image: TwoLayerImage, composed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """Foreground RGBA, background, foreground_mask, composed, and one LAYERS document per picture."""
    documents = [layers_document(image[index]) for index in range(len(image))]
    return to_bhwc(image.rgba), to_bhwc(image.background), foreground_mask(image), to_bhwc(composed), documents


def layers_document(image: TwoLayerImage) -> dict[str, Any]:
    """Core's layer document of one picture, bottom first; there a mask is 1 where the layer is transparent."""
    return {
        "version": LAYERS_VERSION,
        "canvas": (image.width, image.height),
        "layers": [
            _layer("background", to_bhwc(image.background), 0),
            {**_layer("foreground", to_bhwc(image.foreground), 1), "mask": 1 - foreground_mask(image)},
        ],
    }


def _layer(name: str, picture: Tensor, z_index: int) -> dict[str, Any]:
    return {
        "type": "raster", "name": name, "image": picture, "x": 0, "y": 0, "z_index": z_index, "opacity": 1.0,
        "blend_mode": "normal", "visible": True,
    }


def _check_size(name: str, picture: Tensor, height: int, width: int) -> None:
    found = tuple(picture.shape[1:3])
    if found != (height, width):
        raise ValueError(
            f"{name} must have the foreground's size {width}x{height}, got {found[1]}x{found[0]} (width x height)"
        )


