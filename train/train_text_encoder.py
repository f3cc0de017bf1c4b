"""Pretrains the small text encoder against pictures, as CLIP was: `python -m train.train_text_encoder --config FILE`.

The paper conditions on CLIP's frozen text encoder; one that starts from nothing beside the UNet leaves its prompts
unread for thousands of steps. Here captions and latents of the same samples find each other in a batch (Radford et al.
2021, figure 3); the latents' half is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig
from train.data import DataConfig, expand, open_source
from train.engine import Objective, Part, TrainingConfig
from train.launch import launch
from train.train_diffusion import LatentSource, TextConfig, make_text_encoder

_EMBEDDING = 256
_SPLITS = 4


@dataclass(frozen=True, kw_only=True)
class TextTrainingConfig:
    """The whole config file.

    Attributes:
        run: run folder, outside the checkout.
        autoencoder: checkpoint whose frozen autoencoder makes the latents.
        encoder: size of the text encoder.
        cached: samples encoded once to disk; 0 encodes every sample afresh.
    """

    run: str
    autoencoder: str
    data: DataConfig
    encoder: TextEncoderConfig
    training: TrainingConfig
    cached: int = 0


class LatentTower(nn.Module):
    """Latents (n, C, h, w), h and w multiples of 4, to embeddings (n, 256) that keep where things are."""

    def __init__(self, channels: int, side: int) -> None:
        """Two strided levels, then one linear layer over all positions."""
        super().__init__()
        self.features = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Conv2d(channels, 96, 3, padding=1), nn.GroupNorm(8, 96), nn.SiLU(),
            nn.Conv2d(96, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.SiLU(),
            nn.Conv2d(128, 192, 3, stride=2, padding=1), nn.GroupNorm(8, 192), nn.SiLU(),
            nn.Flatten(), nn.Linear(192 * math.ceil(side / _SPLITS) ** 2, _EMBEDDING),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(n, C, h, w) -> (n, 256)."""
        return self.features(latents)


class ContrastiveModel(nn.Module):
    """Both towers and the temperature; its forward is the symmetric cross entropy."""

    def __init__(self, text_encoder: TextEncoder, channels: int, side: int) -> None:
        """The caption's embedding is read where the last end token stands: it has seen all of it."""
        super().__init__()
        self.text_encoder = text_encoder
        self.latents = LatentTower(channels, side)
        self.projection = nn.Linear(text_encoder.config.hidden_size, _EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Latents (n, C, h, w) and tokens (n, L) of the same samples; "top1" is the share of captions found."""
        latents, ids = batch
        pictures = functional.normalize(self.latents(latents).float(), dim=1)
        captions = functional.normalize(self.projection(self.text_encoder(ids)[:, -1]).float(), dim=1)
        logits = self.log_scale.exp().clamp(max=100) * captions @ pictures.T
        labels = torch.arange(len(ids), device=ids.device)
        loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
        return {"loss": loss, "top1": (logits.argmax(1) == labels).float().mean()}


class TextTask:
    """What `engine.fit` trains."""

    def __init__(self, config: TextTrainingConfig, latents: LatentSource, text_encoder: TextEncoder) -> None:
        """Builds the towers with the current seed."""
        self._config, self._latents = config, latents
        self.model = ContrastiveModel(text_encoder, latents.shape[0], latents.shape[1])
        self.objectives: Sequence[Objective] = (Objective("text", self.model),)
        self.ema_of: nn.Module = self.model

    def batch(self, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        """Latents and tokens of some samples."""
        ids = self.model.text_encoder.tokenize(self._latents.captions(part))
        return self._latents.draw(part, device)[0], ids.to(device)

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read the samples that the next step will encode."""
        self._latents.read_ahead(indices)

    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """There is nothing to draw."""

    def export(self, path: Path, images: int) -> None:
        """Autoencoder and text encoder in one file."""
        card: dict[str, Any] = {"images": images, "stage": "text encoder", "data": asdict(self._config.data)}
        save_checkpoint(path, Text2LayerModel(
            self._latents.autoencoder, None, self.model.text_encoder, ScheduleConfig(), card))

    def load_weights(self, path: Path) -> int:
        """The text encoder of any checkpoint of the same shape, with its tokenizer."""
        encoder = load_checkpoint(path).text_encoder
        if encoder is None or encoder.config != self.model.text_encoder.config:
            raise ValueError(f"--init-from must hold the configured text encoder, got {path}")
        self.model.text_encoder.load_state_dict(encoder.state_dict())
        self.model.text_encoder.set_tokenizer(encoder.tokenizer_json)
        return 0


def make_task(config: TextTrainingConfig, device: torch.device) -> TextTask:
    """Opens data and autoencoder, and builds the task."""
    source = open_source(config.data)
    text_encoder = make_text_encoder(TextConfig(encoder=config.encoder), source)
    autoencoder = load_checkpoint(expand(config.autoencoder)).autoencoder
    return TextTask(config, LatentSource(source, autoencoder, config, device), text_encoder)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return launch(argv, "train.train_text_encoder", TextTrainingConfig, make_task)


if __name__ == "__main__":
    raise SystemExit(main())
