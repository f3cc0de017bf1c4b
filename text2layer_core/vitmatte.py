"""ViTMatte (Yao et al. 2023) as transformers has it, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_STRIDE = 32
_TRIMAP = {"known 0": 0.0, "unknown": 0.5, "known 1": 1.0}


def available() -> bool:
    """Whether this transformers has ViTMatte; its models need version 4.36 or newer."""
    try:
        from transformers import VitMatteForImageMatting  # noqa: F401
    except ImportError:
        return False
    return True


def matte(picture: Tensor, mask: Tensor, unknown: Tensor, folder: Path) -> Tensor:
    """Alpha by the network, from a trimap whose unknown part is the band.

    Args:
        picture: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in [0, 1]; rounded where it is known.
        unknown: (N, 1, H, W), bool.
        folder: model and image processor's config, as transformers saves them. Nothing is downloaded.

    Returns:
        (N, 1, H, W) in [0, 1].

    Raises:
        ValueError: the folder is none or holds no model.
    """
    model, mean, deviation = _load(folder)
    model.to(picture.device)
    trimap = torch.where(unknown, _TRIMAP["unknown"], (mask > 0.5).to(picture.dtype))
    normal = (picture - picture.new_tensor(mean).view(1, 3, 1, 1)) / picture.new_tensor(deviation).view(1, 3, 1, 1)
    height, width = mask.shape[-2:]
    padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
    pixels = functional.pad(torch.cat([normal, trimap], dim=1), padding)
    with torch.inference_mode():
        return model(pixel_values=pixels).alphas[..., :height, :width].clone()


def _load(folder: Path) -> tuple[Any, list[float], list[float]]:
    import json

    from transformers import VitMatteForImageMatting

    try:
        model = VitMatteForImageMatting.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"vitmatte must be a folder with a ViTMatte model, got {folder}: {reason}") from error
    return model, processor["image_mean"], processor["image_std"]
