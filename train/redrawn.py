"""Latents that a UNet has redrawn: a decoder trained on them has seen what it will get in use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from text2layer_core.checkpoint import load_checkpoint
from text2layer_core.sampling import sample_ddim
from train.data import ArrayCache, DataConfig, Source, expand, fingerprint, sample_noise
from train.latents import weights_digest

_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class RedrawConfig:
    """How true latents are noised and denoised again (SDEdit, Meng et al. 2022); ours, not the paper's.

    Attributes:
        model: checkpoint with the UNet, and with the encoder whose latents it draws; its card's guidance counts.
        steps: of DDIM, for the whole schedule.
        most_steps: the last 0, 1, ..., most_steps of them are run, each count for as many samples.

    Raises:
        ValueError: numbers out of range.
    """

    model: str
    steps: int = 10
    most_steps: int = 7

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not 1 <= self.most_steps <= self.steps:
            raise ValueError(f"redraw: most_steps must lie in [1, steps={self.steps}], got {self.most_steps}")


class RedrawnLatents:
    """Redrawn latents of a source's first samples, from a cache.

    Attributes:
        encoder_digest: of the encoder that they are of (`weights_digest`).
    """

    def __init__(
        self, config: RedrawConfig, source: Source, data: DataConfig, folder: Path, count: int, device: torch.device
    ) -> None:
        """Fills the cache where it is not full yet, with a progress bar; ValueError for a model that cannot draw."""
        model = load_checkpoint(expand(config.model), device=device)
        if model.unet is None or model.text_encoder is None:
            raise ValueError(f"redraw: model must hold a UNet and a text encoder, got {config.model}")
        autoencoder, unet, text = model.autoencoder.eval(), model.unet.eval(), model.text_encoder.eval()
        self.encoder_digest = weights_digest(autoencoder.encoder, autoencoder.quant_conv)
        side = source.size // autoencoder.config.downscale
        shape = (autoencoder.config.latent_channels, side, side)
        key = [asdict(data), fingerprint(source), self.encoder_digest, weights_digest(unet, text),
               config.steps, config.most_steps, model.guidance_scale]
        self._cache = ArrayCache(folder, count, {"latents": (shape, "float16")}, key)

        @torch.no_grad()
        def redrawn(start: int, block: int) -> Tensor:
            batch = source.batch(start, block, device)
            latents = autoencoder.encode_stack(batch.stack).mode() * model.schedule.latent_scale
            noise = sample_noise(data.seed, range(start, start + block), shape).to(device)
            contexts, unconditional = text.encode(batch.captions), text.encode("")
            counts = torch.arange(start, start + block) % (config.most_steps + 1)
            for steps in range(1, config.most_steps + 1):
                rows = (counts == steps).nonzero()[:, 0].to(device)
                if not len(rows):
                    continue
                strength = min(1.0, (steps + 0.5) / config.steps)  # int(steps * strength) of them, whatever rounding
                with torch.autocast(device.type, torch.bfloat16):
                    latents[rows] = sample_ddim(
                        unet, model.schedule, noise[rows], contexts[rows], unconditional, steps=config.steps,
                        guidance_scale=model.guidance_scale, init_latents=latents[rows], strength=strength,
                    )
            return latents / model.schedule.latent_scale

        with tqdm(total=count, initial=self._cache.filled, desc="redraw", unit="image", file=sys.stderr) as bar:
            while self._cache.filled < count:
                block = min(_BLOCK, count - self._cache.filled)
                latents = redrawn(self._cache.filled, block)
                self._cache.store({"latents": latents.half().cpu().numpy()})
                bar.update(block)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Unscaled latents of some samples, (n, C, h, w), float32 on the CPU."""
        return torch.from_numpy(self._cache.arrays["latents"][rows]).float()
