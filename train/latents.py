"""Latents of a data source: the frozen autoencoder's, with a cache on disk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from text2layer_core.autoencoder import CaT2IAutoencoder, LatentDistribution
from train.data import ArrayCache, DataConfig, Source, expand, fingerprint, read_ahead, sample_noise
from train.engine import Part, TrainingConfig
from train.samples import epoch_rows

NOISE_STREAM, LATENT_STREAM = 0, 1


class LatentConfig(Protocol):
    """What a config that trains on latents has."""

    @property
    def run(self) -> str:
        """The run folder."""
        ...

    @property
    def data(self) -> DataConfig:
        """The samples."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """The seed among others."""
        ...

    @property
    def cached(self) -> int:
        """Samples encoded once to disk; 0 encodes every sample afresh."""
        ...


class LatentSource:
    """Latents and captions of a source by index, from a cache where there is one.

    Attributes:
        autoencoder: frozen.
        shape: of one sample's latents, (C, h, w).
    """

    def __init__(
        self, source: Source, autoencoder: CaT2IAutoencoder, config: LatentConfig, device: torch.device
    ) -> None:
        """Fills the cache where it is not full yet, with a progress bar."""
        self._source, self._config = source, config
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        side = source.size // autoencoder.config.downscale
        self.shape = (autoencoder.config.latent_channels, side, side)
        self._cache: ArrayCache | None = None
        if config.cached:
            self._fill(device)
            self._captions = source.captions(0, config.cached)

    def draw(self, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        """Unscaled draws of z, (n, C, h, w), and the mask averaged over each of their cells, (n, 1, h, w)."""
        if self._cache is None:
            distribution, coverage = self._encode(part, device)
        else:
            rows = self._rows(part)
            mean, logvar, coverage = (torch.from_numpy(self._cache.arrays[name][rows]).to(device).float()
                                      for name in ("mean", "logvar", "coverage"))
            distribution = LatentDistribution(mean, logvar)
        noise = latent_noise(self._config.training.seed, LATENT_STREAM, part, self.shape).to(device)
        return distribution.mean + torch.exp(0.5 * distribution.logvar) * noise, coverage

    def captions(self, part: Part) -> list[str]:
        """The captions of the same samples."""
        if self._cache is None:
            return self._source.captions(part.start, part.count)
        return [self._captions[row] for row in self._rows(part)]

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read the samples that will be encoded next."""
        if self._cache is None:
            read_ahead(self._source, indices)

    def measured_scale(self, device: torch.device, count: int = 512) -> float:
        """1 / standard deviation of the first samples' latents."""
        parts = [Part(start, 16) for start in range(0, count, 16)]
        return float(1 / torch.cat([self.draw(part, device)[0].cpu() for part in parts]).std())

    def _rows(self, part: Part) -> np.ndarray:
        return epoch_rows(self._config.data.seed, part.start, part.count, self._config.cached)

    @torch.no_grad()
    def _encode(self, part: Part, device: torch.device) -> tuple[LatentDistribution, Tensor]:
        stack = self._source.batch(part.start, part.count, device).stack
        coverage = functional.avg_pool2d(stack[:, 6:], self.autoencoder.config.downscale)
        return self.autoencoder.encode_stack(stack), coverage

    def _fill(self, device: torch.device) -> None:
        count = self._config.cached
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "mean": (self.shape, "float16"), "logvar": (self.shape, "float16"),
            "coverage": ((1, *self.shape[1:]), "float16"),
        }
        key = [asdict(self._config.data), fingerprint(self._source),
               weights_digest(self.autoencoder.encoder, self.autoencoder.quant_conv)]
        cache = ArrayCache(expand(self._config.run) / "cache", count, shapes, key)
        with tqdm(total=count, initial=cache.filled, desc="encode", unit="image", file=sys.stderr) as bar:
            while cache.filled < count:
                block = min(64, count - cache.filled)
                found, coverage = self._encode(Part(cache.filled, block), device)
                rows = {"mean": found.mean, "logvar": found.logvar, "coverage": coverage}
                cache.store({name: values.half().cpu().numpy() for name, values in rows.items()})
                bar.update(block)
        self._cache = cache


def weights_digest(*modules: nn.Module) -> str:
    """Tells weights apart, for what depends on them."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_noise(seed: int, stream: int, part: Part, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of some samples, (n, *shape) on the CPU; each stream has its own."""
    return sample_noise(seed, [2 * index + stream for index in range(part.start, part.start + part.count)], shape)
