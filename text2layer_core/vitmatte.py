"""ViTMatte as a refiner (Yao et al., "ViTMatte", 2023), where transformers is installed and a model folder given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_STRIDE = 32


def vitmatte_available() -> bool:
    """Whether transformers is installed; nothing of it is imported."""
    return importlib.util.find_spec("transformers") is not None


class VitMatte:
    """A loaded network: image and trimap to alpha."""

    def __init__(self, model: nn.Module) -> None:
        """Wraps a `VitMatteForImageMatting`, in eval mode."""
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Alpha everywhere; the caller takes the unknown pixels.

        The preparation is `VitMatteImageProcessor`'s: picture to [-1, 1], trimap as fourth channel, zeros added below
        and on the right up to multiples of 32. The network runs on its own device, in its own dtype.

        Args:
            image: (N, 3, H, W) in [0, 1].
            trimap: (N, 1, H, W); 0, 0.5 (unknown) and 1.

        Returns:
            (N, 1, H, W) in [0, 1], on the image's device and of its dtype.
        """
        height, width = image.shape[-2:]
        weight = next(self.model.parameters())
        pixels = torch.cat([2 * image - 1, trimap], dim=1).to(weight)
        pixels = functional.pad(pixels, (0, -width % _STRIDE, 0, -height % _STRIDE))
        alphas = self.model(pixel_values=pixels).alphas
        return alphas[..., :height, :width].to(image).clamp(0, 1)


def load_vitmatte(folder: str | Path, device: torch.device | str = "cpu") -> VitMatte:
    """Loads a model folder (config.json, model.safetensors) with transformers; nothing is downloaded, no pickle read.

    Raises:
        ValueError: transformers is not installed, or the folder holds no ViTMatte.
    """
    if not vitmatte_available():
        raise ValueError("method vitmatte must have the package transformers, got an environment without it")
    folder = Path(folder)
    if not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        raise ValueError(f"a ViTMatte folder must hold config.json and model.safetensors, got {folder.name}")
    from transformers import AutoConfig, VitMatteForImageMatting

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "vitmatte":
        raise ValueError(f"a ViTMatte folder must hold a model of type vitmatte, got {config.model_type}")
    loaded: Any = VitMatteForImageMatting.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return VitMatte(loaded.to(device))
