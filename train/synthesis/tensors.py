"""Between bytes (H, W, C), as files and OpenCV have them, and tensors (C, H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) or (H, W) uint8 -> (C, H, W) float32 in [0, 1]."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(planes.astype(np.float32) / 255).permute(2, 0, 1)


def to_bytes(picture: Tensor) -> np.ndarray:
    """(3, H, W) or (1, H, W) in [0, 1] -> (H, W, 3) or (H, W) uint8, rounded."""
    pixels = (picture * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def by_size(pictures: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the pictures of each size, so that those of one size make a batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(tuple(picture.shape), []).append(index)
    return list(groups.values())


def to_pil(picture: Tensor) -> Image.Image:
    """(3, H, W) or (1, H, W) in [0, 1] -> RGB or grey."""
    return Image.fromarray(to_bytes(picture))
