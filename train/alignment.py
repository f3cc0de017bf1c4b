"""Latents that stay near those of a flat model (Stable Diffusion's of the composed picture): ours, not the paper's.

A UNet that draws pictures in the flat model's latents then starts nearly right on CaT2I-AE's, and has only the layers
to learn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from text2layer_core.atomic import write_tensors
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder, with_background_decoder
from text2layer_core.checkpoint import CheckpointError, one_line, parse_config
from text2layer_core.compositing import blend
from train.data import Source, expand
from train.init_from_sd import layered_stem
from train.sd_weights import read_sd

if TYPE_CHECKING:
    from train.baselines import ImageAutoencoder

_IMAGE_AUTOENCODER = "text2layer.image_autoencoder"
_MEASURED = 64


@dataclass(frozen=True, kw_only=True)
class AlignLatents:
    """The term weight * scale^2 * mean |mean of z - latent of the composed picture|^2.

    The scale brings the reference's latents to unit variance, so that 1 is the error of a z that knows nothing.

    Attributes:
        weight: of the term.
        autoencoder: the reference: a diffusers folder (whole or the VAE's) or .safetensors file of SD 1.x, or the
            `model.safetensors` of an image autoencoder of `train.tables`.
    """

    weight: float
    autoencoder: str

    def __post_init__(self) -> None:
        """Checks the weight."""
        if not self.weight > 0:
            raise ValueError(f"align_latents: weight must be above 0, got {self.weight}")


class LatentReference:
    """A frozen autoencoder of flat pictures.

    Attributes:
        autoencoder: the network.
        latent_scale: brings its latents to unit variance.
        weight: of the loss term.
    """

    def __init__(self, autoencoder: ImageAutoencoder, latent_scale: float, weight: float) -> None:
        """Freezes the network."""
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.latent_scale, self.weight = latent_scale, weight

    @torch.no_grad()
    def latents(self, stack: Tensor) -> Tensor:
        """(n, 7, H, W) in [0, 1] -> the unscaled mean latent of its composed picture, (n, C, h, w)."""
        return self.autoencoder.encode_pictures(blend(*stack.split([3, 3, 1], dim=1))).mean

    def loss(self, stack: Tensor, mean: Tensor) -> Tensor:
        """The weighted term for the mean of z, (n, C, h, w)."""
        error = (mean.float() - self.latents(stack).float()).square().mean()
        return self.weight * self.latent_scale**2 * error


def open_reference(
    section: AlignLatents, config: AutoencoderConfig, source: Source, device: torch.device
) -> LatentReference:
    """Loads the reference.

    Args:
        section: which.
        config: of the autoencoder that is trained.
        source: measures the scale of an image autoencoder's latents on its first samples; SD's is known.
        device: where it goes.

    Raises:
        ValueError: it cannot be read, or its latents have other shapes than the trained autoencoder's.
    """
    from train.baselines import ImageAutoencoder

    path = expand(section.autoencoder)
    with torch.random.fork_rng(devices=[]):  # the trained autoencoder's first weights stay those of its seed
        own = _read_image_autoencoder(path)
        if own is None:
            sd = read_sd(path, unet=False)
            autoencoder, scale = ImageAutoencoder(sd.autoencoder), sd.schedule.latent_scale
            autoencoder.load_state_dict(dict(sd.autoencoder_weights), strict=False)
        else:
            autoencoder, scale = own, None
    shape = (autoencoder.config.latent_channels, autoencoder.config.downscale)
    if shape != (config.latent_channels, config.downscale):
        raise ValueError(f"align_latents: autoencoder must have latent channels and stride "
                         f"{(config.latent_channels, config.downscale)}, got {shape}")
    autoencoder.to(device)
    return LatentReference(autoencoder, scale or measured_scale(autoencoder, source, device), section.weight)


@torch.no_grad()
def measured_scale(autoencoder: ImageAutoencoder, source: Source, device: torch.device) -> float:
    """1 / standard deviation of the latents of a source's first composed pictures."""
    pictures = blend(*source.batch(0, _MEASURED, device).stack.split([3, 3, 1], dim=1))
    return float(1 / autoencoder.encode_pictures(pictures).mean.float().std())


@torch.no_grad()
def start_as_flat(autoencoder: CaT2IAutoencoder, flat: ImageAutoencoder, coverage: float) -> None:
    """What `train.init_from_sd` does with SD's weights, with an image autoencoder of the same trunk and head.

    Args:
        autoencoder: all but its mask's head is overwritten.
        flat: of the same trunk.
        coverage: share of the picture that masks cover: the foreground's weight in the encoder's first layer.
    """
    state = {key: tensor for key, tensor in flat.state_dict().items() if not key.startswith("heads.")}
    state["encoder.conv_in.weight"] = layered_stem(state["encoder.conv_in.weight"], coverage)
    if autoencoder.config.background_decoder:
        state = with_background_decoder(state)
    autoencoder.load_state_dict(state, strict=False)
    head = cast("Mapping[str, Tensor]", flat.heads["composed"].state_dict())
    for name, own in autoencoder.heads.items():
        if name != "mask":
            own.load_state_dict(head)


def save_image_autoencoder(path: Path, autoencoder: ImageAutoencoder) -> None:
    """Writes an image autoencoder for `open_reference`, to a temporary name first."""
    state = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in autoencoder.state_dict().items()}
    write_tensors(path, state, {_IMAGE_AUTOENCODER: json.dumps(asdict(autoencoder.config))})


def _read_image_autoencoder(path: Path) -> ImageAutoencoder | None:
    """None where the path is no file of `save_image_autoencoder`."""
    from train.baselines import ImageAutoencoder

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            text: str | None = (handle.metadata() or {}).get(_IMAGE_AUTOENCODER)
            if text is None:
                return None
            values: dict[str, Any] = json.loads(text)
            autoencoder = ImageAutoencoder(parse_config(AutoencoderConfig, values))
            nn.Module.load_state_dict(autoencoder, {key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
    return autoencoder
