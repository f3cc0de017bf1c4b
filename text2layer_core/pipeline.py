"""From prompts to two layers: one latent and one UNet pass per step (paper, section on CaT2I-AE-SD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from .autoencoder import DecodedLayers
from .checkpoint import CheckpointError, Text2LayerModel, bundled_model_path, load_checkpoint
from .compositing import compose
from .layers import TwoLayerImage
from .sampling import SAMPLERS, Callback, initial_noise
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

MAX_SIDE = 4096
MAX_SEED = 2**64 - 1
DEFAULT_RESOLUTION = 256

_Part = TypeVar("_Part", bound=nn.Module)


@dataclass(frozen=True)
class PipelineOutput:
    """What the prompts became.

    Attributes:
        layers: foreground, background and mask, float32, as many as there were prompts.
        predicted_composed: the auxiliary head's picture (N, 3, H, W) in [0, 1], None for a model without that head.
        seeds: the seed that each picture can be drawn with alone.
    """

    layers: TwoLayerImage
    predicted_composed: Tensor | None
    seeds: tuple[int, ...]

    @property
    def composed(self) -> Tensor:
        """Eq. 1 of the layers, (N, 3, H, W)."""
        return compose(self.layers)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The checked arguments of one call."""

    prompts: list[str]
    height: int
    width: int
    seeds: tuple[int, ...]


class Text2LayerPipeline:
    """A whole model that draws.

    Attributes:
        model: its parts, on `device`.
        device: where everything is computed; only the noise is always drawn on the CPU.
        stride: width and height are padded to multiples of it, and cropped back.
    """

    def __init__(self, model: Text2LayerModel, device: str | torch.device = "cpu") -> None:
        """Move the parts to the device and set them to eval mode.

        Raises:
            ValueError: if the model lacks a part, or the machine the device.
        """
        if model.unet is None:
            raise ValueError("the model must have a UNet, got the autoencoder alone, which cannot draw from a prompt")
        if model.text_encoder is None:
            named = f"; it was trained with {model.external_text_encoder}" if model.external_text_encoder else ""
            raise ValueError(f"the model must have a text encoder, got none{named}")
        self.device = _device(device)
        self.model = model
        self._autoencoder = _ready(model.autoencoder, self.device)
        self._unet = _ready(model.unet, self.device)
        self._text_encoder = _ready(model.text_encoder, self.device)
        self.stride = model.autoencoder.config.downscale * 2 ** (len(self._unet.config["block_out_channels"]) - 1)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: str | Path | None = None,
    ) -> Self:
        """Read a checkpoint.

        Args:
            path: the file; the bundled model if None.
            device: where to compute.
            dtype: floating dtype of the parts. SD-size autoencoders overflow in float16: bfloat16 or float32.
            text_encoder: a folder with CLIP's text encoder, for a model that leaves it out, and only for such.

        Raises:
            CheckpointError: if the file cannot be used, see `load_checkpoint`.
            ValueError: if the model has no UNet, needs a text encoder that was not given or has one besides the given
                one, or if there is no such device.
        """
        device = _device(device)
        path = bundled_model_path() if path is None else Path(path)
        model = load_checkpoint(path, device=device, dtype=dtype)
        if device.type == "cpu":  # oneDNN decodes about a tenth quicker so; for the UNet it does not pay
            nn.utils.convert_conv2d_weight_memory_format(model.autoencoder, torch.channels_last)
        if model.external_text_encoder is None and text_encoder is not None:
            raise ValueError(f"text_encoder must be left out for {path}, which has its own, got {text_encoder}")
        if model.external_text_encoder is not None:
            if text_encoder is None:
                name = model.external_text_encoder
                raise CheckpointError(f"{path} needs {name}: text_encoder must be a folder that holds it, got None")
            model = replace(model, text_encoder=TextEncoder.from_clip(text_encoder).to(device, dtype))
        try:
            return cls(model, device)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        seed: int = 0,
        steps: int = 50,
        guidance_scale: float | None = None,
        sampler: str = "ddim",
        callback: Callback | None = None,
        layers: TwoLayerImage | None = None,
        strength: float = 1.0,
    ) -> PipelineOutput:
        """Draw one picture per prompt.

        Args:
            prompt: one prompt or several; picture k has the seed `seed + k` and is the picture of that seed alone.
            negative_prompt: what guidance leads away from; the empty one is the paper's unconditional prompt.
            width: in [1, 4096]; by default that of `layers`, or the model card's "resolution", or 256.
            height: the same.
            seed: in [0, 2^64 - number of prompts].
            steps: denoising steps, from 1 to the schedule's timesteps; the paper's 50.
            guidance_scale: at least 0; by default the model's own (`Text2LayerModel.guidance_scale`); 1 turns guidance
                off.
            sampler: "ddim" (the paper's) or "dpmpp".
            callback: called after each step with (step from 1, total, latents). What it raises ends the drawing.
            layers: a picture to start from, one for all prompts or one each, of the size asked for (img2img).
            strength: in (0, 1], how far `layers` are noised; 1 without them.

        Raises:
            ValueError: if an argument is out of range, before any work; or if the model's output is not finite.
        """
        request = self._check(prompt, width, height, seed, layers)
        guidance_scale = self.model.guidance_scale if guidance_scale is None else guidance_scale
        _check_sampling(self.model.schedule.num_train_timesteps, steps, guidance_scale, sampler, layers, strength)
        if not isinstance(negative_prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"negative_prompt must be a string, got {type(negative_prompt).__name__}")
        count = len(request.prompts)
        with torch.no_grad():
            init_latents = None if layers is None else self.encode(layers).expand(count, -1, -1, -1)
            latents = SAMPLERS[sampler](
                self._unet,
                self.model.schedule,
                self._noise(request),
                self._text_encoder.encode(request.prompts),
                self._text_encoder.encode(negative_prompt),
                steps=steps,
                guidance_scale=guidance_scale,
                callback=callback,
                init_latents=init_latents,
                strength=strength,
            )
            decoded = self.decode(latents, height=request.height, width=request.width)
        return PipelineOutput(decoded.layers, decoded.predicted_composed, request.seeds)

    def encode(self, layers: TwoLayerImage) -> Tensor:
        """Encode layers as the UNet sees them: the mode of their distribution, scaled.

        Args:
            layers: any height and width, each at most 4096; padded below and on the right by their border pixels.

        Returns:
            (N, C, h, w) float32 on the pipeline's device; h and w are the padded size over the autoencoder's downscale.

        Raises:
            ValueError: if a side is too long.
        """
        _check_side("height", layers.height)
        _check_side("width", layers.width)
        padded = layers.to(self.device, self._autoencoder_dtype).pad(self.stride)
        with torch.no_grad():
            mode = self._autoencoder.encode(padded).mode()
        return mode.float() * self.model.schedule.latent_scale

    def decode(self, latents: Tensor, *, height: int | None = None, width: int | None = None) -> DecodedLayers:
        """Decode scaled latents, as `encode` and the samplers give them.

        Args:
            latents: (N, C, h, w).
            height: rows to keep of the decoded picture, by default all.
            width: columns to keep, by default all.

        Returns:
            float32 layers and the auxiliary head's picture, (N, ..., height, width), on the pipeline's device.

        Raises:
            ValueError: if the latents' shape is wrong, the size larger than theirs, or the decoded values not finite.
        """
        with torch.no_grad():
            unscaled = latents.to(self.device, torch.float32) / self.model.schedule.latent_scale
            decoded = self._autoencoder.decode(unscaled.to(self._autoencoder_dtype))
        layers = decoded.layers.to(torch.float32)
        layers = layers.crop(layers.height if height is None else height, layers.width if width is None else width)
        predicted = decoded.predicted_composed
        cropped = None if predicted is None else predicted.float()[..., : layers.height, : layers.width]
        return DecodedLayers(layers, cropped)

    @property
    def _autoencoder_dtype(self) -> torch.dtype:
        return self._autoencoder.quant_conv.weight.dtype

    def _noise(self, request: _Request) -> Tensor:
        """Each picture's own noise, drawn on the CPU, at the padded size."""
        downscale = self.model.autoencoder.config.downscale
        sides = (request.height, request.width)
        rows, columns = (math.ceil(side / self.stride) * self.stride // downscale for side in sides)
        channels = self.model.autoencoder.config.latent_channels
        noise = [initial_noise(seed, (1, channels, rows, columns)) for seed in request.seeds]
        return torch.cat(noise).to(self.device)

    def _check(
        self,
        prompt: str | Sequence[str],
        width: int | None,
        height: int | None,
        seed: int,
        layers: TwoLayerImage | None,
    ) -> _Request:
        prompts = _prompts(prompt)
        height, width = self._size(height, width, layers)
        if layers is not None and len(layers) not in (1, len(prompts)):
            raise ValueError(f"layers must hold one picture, or one per prompt ({len(prompts)}), got {len(layers)}")
        last = MAX_SEED + 1 - len(prompts)
        if type(seed) is not int or not 0 <= seed <= last:
            raise ValueError(f"seed must be an integer in [0, {last}], got {seed!r}")
        return _Request(prompts=prompts, height=height, width=width, seeds=tuple(range(seed, seed + len(prompts))))

    def _size(self, height: int | None, width: int | None, layers: TwoLayerImage | None) -> tuple[int, int]:
        resolution: int = self.model.card.get("resolution", DEFAULT_RESOLUTION)
        natural = (resolution, resolution) if layers is None else (layers.height, layers.width)
        size = (natural[0] if height is None else height, natural[1] if width is None else width)
        _check_side("height", size[0])
        _check_side("width", size[1])
        if layers is not None and size != natural:
            raise ValueError(
                f"layers must have the size asked for, {size[1]}x{size[0]} (width x height), "
                f"got {layers.width}x{layers.height}"
            )
        return size


def _ready(part: _Part, device: torch.device) -> _Part:
    return part.to(device).eval()


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows, got {device!r}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that this machine has, got {str(device)!r}")
    return found


def _prompts(prompt: object) -> list[str]:
    several = cast("list[object]", list(prompt)) if isinstance(prompt, list | tuple) else [prompt]
    texts = [text for text in several if isinstance(text, str)]
    if not texts or len(texts) != len(several):
        raise ValueError(f"prompt must be a string or a list of them, got {prompt!r}")
    return texts


def _check_side(name: str, value: int) -> None:
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise ValueError(f"{name} must be an integer in [1, {MAX_SIDE}], got {value!r}")


def _check_sampling(
    timesteps: int, steps: int, guidance_scale: float, sampler: str, layers: TwoLayerImage | None, strength: float
) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if type(steps) is not int or not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be an integer in [1, {timesteps}], got {steps!r}")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale must be finite and at least 0, got {guidance_scale}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    if layers is None and strength != 1:
        raise ValueError(f"strength must be 1 without layers to start from, got {strength}")
    if int(steps * strength) < 1:
        raise ValueError(f"steps * strength must be at least 1, got {steps} * {strength}")
