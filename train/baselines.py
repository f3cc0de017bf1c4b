"""What the paper compares with: images coded one by one, a flat model, and data that nobody filtered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from text2layer_core import losses
from text2layer_core.autoencoder import (
    AutoencoderConfig,
    CaT2IAutoencoder,
    DecodedLayers,
    Encoder,
    LatentDistribution,
)
from text2layer_core.compositing import blend
from text2layer_core.layers import TwoLayerImage
from text2layer_core.masks import grow_mask
from train.alignment import save_image_autoencoder
from train.data import Source
from train.engine import Objective, Part
from train.pictures import save_grid
from train.samples import KNOWN_ABOVE, LayeredBatch
from train.train_autoencoder import AutoencoderBatch, AutoencoderTrainingConfig, draw_batch

_KINDS = 4
_SHEET_SAMPLES = 8
_HOLE_PIXELS = 2
DEFECTS = ("incomplete", "holds background", "too small", "object in the hole", "does not fit")
"""The paper's criteria: three of its mask classifier, two of its inpainting classifier."""


class ImageAutoencoder(CaT2IAutoencoder):
    """Stable Diffusion's autoencoder of one picture: CaT2I-AE's own trunk and head, so that only the layers differ."""

    def __init__(self, config: AutoencoderConfig) -> None:
        """A three-channel encoder and one head."""
        super().__init__(replace(config, background_decoder=False))
        self.encoder = Encoder(config, nn, in_channels=3)
        self.heads = nn.ModuleDict({"composed": self.heads["composed"]})
        self._initialise()

    def encode_pictures(self, pictures: Tensor) -> LatentDistribution:
        """(N, 3, H, W) in [0, 1] -> the distribution of z, (N, C, h, w)."""
        moments = self.quant_conv(self.encoder(functional.pixel_unshuffle(pictures * 2 - 1, self.config.patch_size)))
        mean, logvar = moments.chunk(2, dim=1)
        return LatentDistribution(mean, logvar.clamp(-30.0, 20.0))

    def decode_pictures(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W), not clamped."""
        return self.decode_heads(latents)["composed"]


class LayeredBaseline(nn.Module):
    """An image autoencoder in the place of CaT2I-AE.

    Attributes:
        images: the image autoencoder.
        config: its config, with the latent channels of what the UNet sees.
    """

    def __init__(self, images: ImageAutoencoder, pictures: int) -> None:
        """`pictures` are coded for each sample, their latents concatenated."""
        super().__init__()
        self.images = images
        self.config = replace(images.config, latent_channels=pictures * images.config.latent_channels)

    def encode_stack(self, stack: Tensor) -> LatentDistribution:
        """(N, 7, H, W) in [0, 1] -> the distribution of what the UNet sees."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> DecodedLayers:
        """What the UNet draws -> layers in [0, 1]."""
        raise NotImplementedError

    @property
    def encoder(self) -> nn.Module:
        """What a cache of latents depends on."""
        return self.images.encoder

    @property
    def quant_conv(self) -> nn.Module:
        """The encoder's last layer."""
        return self.images.quant_conv


class SeparateAutoencoder(LayeredBaseline):
    """F, B and m one by one, their latents side by side: the paper's SD-AE."""

    def __init__(self, images: ImageAutoencoder) -> None:
        """Three pictures a sample."""
        super().__init__(images, 3)

    def encode_stack(self, stack: Tensor) -> LatentDistribution:
        """(N, 7, H, W) -> (N, 3C, h, w)."""
        foreground, background, mask = stack.split([3, 3, 1], dim=1)
        parts = [self.images.encode_pictures(part) for part in (foreground, background, mask.expand_as(foreground))]
        return LatentDistribution(*(torch.cat([getattr(part, name) for part in parts], dim=1)
                                    for name in ("mean", "logvar")))

    def decode(self, latents: Tensor) -> DecodedLayers:
        """(N, 3C, h, w) -> layers in [0, 1]; the mask is the mean of its picture's channels."""
        foreground, background, mask = (self.images.decode_pictures(part).clamp(0, 1) for part in latents.chunk(3, 1))
        return DecodedLayers(TwoLayerImage(foreground, background, mask.mean(dim=1, keepdim=True)), None)


class FlatAutoencoder(LayeredBaseline):
    """The composed picture alone: what plain text-to-image models have."""

    def __init__(self, images: ImageAutoencoder) -> None:
        """One picture a sample."""
        super().__init__(images, 1)

    def encode_stack(self, stack: Tensor) -> LatentDistribution:
        """(N, 7, H, W) -> (N, C, h, w) of eq. 1."""
        return self.images.encode_pictures(blend(*stack.split([3, 3, 1], dim=1)))

    def decode(self, latents: Tensor) -> DecodedLayers:
        """(N, C, h, w) -> the picture as both layers, its mask 1 everywhere: it knows none."""
        picture = self.images.decode_pictures(latents).clamp(0, 1)
        return DecodedLayers(TwoLayerImage(picture, picture, torch.ones_like(picture[:, :1])), picture)


class ImageObjective(nn.Module):
    """Latent Diffusion's autoencoder loss (L1, perceptual substitute, KL) on F, B, m and I in equal shares, or on I."""

    def __init__(
        self, autoencoder: ImageAutoencoder, perceptual_weight: float, kl: float, *, composed_only: bool = False
    ) -> None:
        """The weights of the joint autoencoder's terms."""
        super().__init__()
        self.autoencoder = autoencoder
        self._perceptual_weight, self._kl, self._composed_only = perceptual_weight, kl, composed_only

    def forward(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """The sum "loss" and its terms."""
        foreground, background, mask = batch.stack.split([3, 3, 1], dim=1)
        candidates = torch.stack(
            [foreground, background, mask.expand_as(foreground), blend(foreground, background, mask)]
        )
        rows = torch.arange(len(mask), device=mask.device)
        pictures = candidates[-1] if self._composed_only else candidates[rows % _KINDS, rows]
        distribution = self.autoencoder.encode_pictures(pictures)
        latents = distribution.mean + torch.exp(0.5 * distribution.logvar) * batch.noise
        found = self.autoencoder.decode_pictures(latents).float()
        kl = losses.kl_loss(distribution.mean.float(), distribution.logvar.float())
        terms = {
            "picture": losses.reconstruction_l1(found, pictures),
            "perceptual": self._perceptual_weight * losses.gradient_loss(found, pictures),
            "kl": self._kl / pictures[0].numel() * kl,
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


class ImageAutoencoderTask:
    """What `engine.fit` trains."""

    def __init__(self, config: AutoencoderTrainingConfig, source: Source, *, composed_only: bool = False) -> None:
        """Builds the network with the current seed."""
        self._config, self._source = config, source
        self.autoencoder = ImageAutoencoder(config.autoencoder)
        if config.training.gradient_checkpointing:
            self.autoencoder.checkpoint_blocks()
        objective = ImageObjective(self.autoencoder, config.losses.perceptual_weight, config.losses.kl,
                                   composed_only=composed_only)
        self.objectives: Sequence[Objective] = (Objective("autoencoder", objective),)
        self.ema_of: nn.Module = self.autoencoder

    def batch(self, part: Part, device: torch.device) -> AutoencoderBatch:
        """Samples and their latent noise."""
        return draw_batch(self._config, self._source, part, device)

    @torch.no_grad()
    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Composed pictures above their reconstruction."""
        image = self._source.batch(0, _SHEET_SAMPLES, device).image
        truth = blend(image.foreground, image.background, image.mask)
        found = self.autoencoder.decode_pictures(self.autoencoder.encode_pictures(truth).mode())
        save_grid(path, [truth, found])

    def export(self, path: Path, images: int) -> None:
        """For `align_latents`; a checkpoint it is not."""
        save_image_autoencoder(path, self.autoencoder)


class UnfilteredSource:
    """A source in which a share of the samples is as bad as segmentation and inpainting leave them (LAION-L2I (U)).

    The picture I stays what it is, as the paper's: what a broken mask misses stays in the background, what it takes in
    too much stands in the foreground; a bad filling shows in the background alone.
    """

    def __init__(self, source: Source, share: float, seed: int) -> None:
        """Breaks `share` of a source's samples, each index for itself."""
        self._source, self._share, self._seed = source, share, seed
        self.size = source.size

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1."""
        batch = self._source.batch(start, count, device)
        rows = [self._broken(start + row, stack) for row, stack in enumerate(batch.stack)]
        return LayeredBatch(torch.stack(rows), batch.captions)

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone, which no defect touches."""
        return self._source.captions(start, count)

    def defect(self, index: int) -> str | None:
        """What is wrong with a sample, one of DEFECTS."""
        rng = self._rng(index)
        return DEFECTS[int(rng.integers(len(DEFECTS)))] if rng.random() < self._share else None

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, 3, index))

    def _broken(self, index: int, stack: Tensor) -> Tensor:
        defect = self.defect(index)
        if defect is None:
            return stack
        rng = self._rng(index + (1 << 40))
        foreground, background, mask = stack[None].split([3, 3, 1], dim=1)
        if defect in _BROKEN_MASKS:
            foreground, background, mask = _remasked(stack[None], _BROKEN_MASKS[defect](mask, rng))
        else:
            hole = grow_mask(mask, _HOLE_PIXELS)
            filling = foreground if defect == "object in the hole" else _colour(rng).to(stack.device)
            background = torch.lerp(background, filling.expand_as(background), 0.8 * hole)
        return torch.cat([foreground, background, mask], dim=1)[0]


def _remasked(stack: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layers that the paper's steps make of I and another mask, its hole filled with the true background."""
    foreground, background, truth = stack.split([3, 3, 1], dim=1)
    composed = blend(foreground, background, truth)
    hole = grow_mask(mask, _HOLE_PIXELS) > 0
    return torch.where(truth > KNOWN_ABOVE, foreground, composed), torch.where(hole, background, composed), mask


def _incomplete(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut through its centre, in any direction."""
    down, right = _centre(mask)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = _grid(mask)
    return mask * ((rows - down) * np.sin(angle) + (columns - right) * np.cos(angle) > 0)


def _with_background(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A disc of the background beside it, of 15 to 25 % of the width."""
    side = mask.shape[-1]
    return torch.maximum(mask, _disc(mask, rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.15, 0.25) * side))


def _too_small(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A speck of it, of 5 to 9 % of the width."""
    return mask * _disc(mask, *_centre(mask), rng.uniform(0.05, 0.09) * mask.shape[-1])


_BROKEN_MASKS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "incomplete": _incomplete, "holds background": _with_background, "too small": _too_small,
}


def _disc(mask: Tensor, down: float, right: float, radius: float) -> Tensor:
    rows, columns = _grid(mask)
    return ((rows - down).square() + (columns - right).square() < radius**2).to(mask)


def _grid(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, (H, 1) and (1, W)."""
    height, width = mask.shape[-2:]
    return torch.arange(height, device=mask.device)[:, None], torch.arange(width, device=mask.device)[None]


def _centre(mask: Tensor) -> tuple[float, float]:
    rows, columns = _grid(mask)
    total = mask.sum().clamp_min(1e-6)
    return float((mask * rows).sum() / total), float((mask * columns).sum() / total)


def _colour(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((1, 3, 1, 1), np.float32))
