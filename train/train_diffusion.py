"""Trains the latent diffusion model (paper, "CaT2I-AE-SD", eq. 5): `python -m train.train_diffusion --config FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from text2layer_core.autoencoder import AUTOENCODER_PRESETS, CaT2IAutoencoder
from text2layer_core.checkpoint import (
    CLIP_L,
    Text2LayerModel,
    load_checkpoint,
    read_header,
    save_checkpoint,
    unet_config,
)
from text2layer_core.compositing import compose
from text2layer_core.pipeline import Text2LayerPipeline
from text2layer_core.schedule import ScheduleConfig, add_noise, min_snr_weight, training_target
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNetConfig, build_unet
from train.data import DataConfig, Source, expand, open_source
from train.engine import Objective, Part, TrainingConfig
from train.estimate import Rehearsal
from train.latents import NOISE_STREAM, LatentSource, latent_noise
from train.launch import launch
from train.lora import LoraSection, add_lora, merged_unet, save_lora
from train.pictures import save_grid

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedModel

_SHEET_SAMPLES = 8
_TOKENIZER_CAPTIONS = 20_000
_CLIP_L = TextEncoderConfig(vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12)
_R2 = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder: a small one trained with the UNet, or CLIP's, frozen.

    Attributes:
        encoder: size of the small one; its vocab_size is the most tokens that the tokenizer may learn.
        pretrained: checkpoint of `train.train_text_encoder` to start the small one from.
        clip: folder of a CLIP text model (the paper's ViT-L/14), left out of the checkpoint.
    """

    encoder: TextEncoderConfig | None = None
    pretrained: str | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        """Exactly one of the three."""
        if sum(choice is not None for choice in (self.encoder, self.pretrained, self.clip)) != 1:
            raise ValueError("text must have one of encoder, pretrained and clip")


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig:
    """The whole config file.

    Attributes:
        run: run folder, outside the checkout.
        autoencoder: checkpoint whose frozen autoencoder makes the latents.
        schedule: its own latent_scale stays out; the key below is the one that counts.
        latent_scale: factor to about unit variance; 0 measures it on the first samples, or takes that of --init-from.
        caption_dropout: share of captions replaced by the empty one, for guidance.
        min_snr_gamma: Min-SNR weighting; 0 is the paper's plain loss.
        foreground_weight: what a latent cell that the mask covers counts beyond 1 (ours): the best prediction stays the
            same, but things are learnt sooner. 0 is the paper's plain loss.
        cached: samples encoded once to disk; 0 encodes every sample afresh.
        guidance_scale: of the sample sheets; written in the card, it is what all but the nodes draw with by default.
        lora: trains an adapter of a checkpoint's UNet instead of a UNet: `lora.safetensors` in the run folder is the
            adapter, `model.safetensors` the base with it worked in.

    Raises:
        ValueError: numbers out of range, all in one line.
    """

    run: str
    autoencoder: str
    data: DataConfig
    unet: UNetConfig
    text: TextConfig
    training: TrainingConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    latent_scale: float = 0.0
    caption_dropout: float = 0.1
    min_snr_gamma: float = 0.0
    foreground_weight: float = 0.0
    cached: int = 0
    guidance_scale: float = 7.5
    lora: LoraSection | None = None

    def __post_init__(self) -> None:
        """Collects every problem and raises once."""
        problems = [f"{name} must not be negative, got {value}" for name, value in (
            ("latent_scale", self.latent_scale), ("min_snr_gamma", self.min_snr_gamma),
            ("foreground_weight", self.foreground_weight), ("cached", self.cached),
            ("guidance_scale", self.guidance_scale)) if not value >= 0]
        if not 0 <= self.caption_dropout <= 1:
            problems.append(f"caption_dropout must be in [0, 1], got {self.caption_dropout}")
        if self.schedule.latent_scale != ScheduleConfig().latent_scale:
            problems.append(f"latent_scale must not stand under schedule, got {self.schedule.latent_scale} there")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class DiffusionBatch:
    """One part: scaled latents and noise (n, C, h, w), coverage (n, 1, h, w), timesteps (n,), tokens (n, L)."""

    latents: Tensor
    noise: Tensor
    coverage: Tensor
    timesteps: Tensor
    ids: Tensor


class DiffusionModel(nn.Module):
    """UNet and text encoder; its forward is the training loss.

    The latent scale and the tokenizer are part of its state: a resumed run must not measure or learn them anew.

    Attributes:
        unet: the UNet.
        text_encoder: one whose parameters are frozen stays so.
        latent_scale: scalar.
    """

    latent_scale: Tensor

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: TextEncoder, schedule: ScheduleConfig, gamma: float,
        foreground_weight: float = 0.0,
    ) -> None:
        """Gamma is Min-SNR's, 0 for none; the weight is the config's."""
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.register_buffer("latent_scale", torch.tensor(schedule.latent_scale))
        self._schedule, self._gamma, self._foreground_weight = schedule, gamma, foreground_weight

    def forward(self, batch: DiffusionBatch) -> dict[str, Tensor]:
        """Mean squared error of the prediction (eq. 5), weighted by Min-SNR and by coverage if so configured."""
        noisy = add_noise(self._schedule, batch.latents, batch.noise, batch.timesteps)
        target = training_target(self._schedule, batch.latents, batch.noise, batch.timesteps)
        prediction = self.unet(noisy, batch.timesteps, self.text_encoder(batch.ids), return_dict=False)[0]
        weights = 1 + self._foreground_weight * batch.coverage
        errors = (weights * (prediction.float() - target).square()).mean(dim=(1, 2, 3))
        if self._gamma:
            errors = errors * min_snr_weight(self._schedule, batch.timesteps, self._gamma)
        return {"loss": errors.mean()}

    def get_extra_state(self) -> str:
        """The tokenizer's JSON."""
        return self.text_encoder.tokenizer_json

    def set_extra_state(self, state: str) -> None:
        """Takes over a tokenizer, whose weights are loaded as well."""
        self.text_encoder.set_tokenizer(state)


class DiffusionTask:
    """What `engine.fit` trains."""

    def __init__(
        self, config: DiffusionTrainingConfig, latents: LatentSource, text_encoder: TextEncoder,
        schedule: ScheduleConfig, prompts: Sequence[str], device: torch.device,
        held_out: LatentSource | None = None,
    ) -> None:
        """Builds the UNet with the current seed; `prompts` are those of the sample sheets."""
        self._config, self._latents, self._prompts, self._held_out = config, latents, list(prompts), held_out
        unet = build_unet(config.unet)
        _initialise_unet(unet)
        if config.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.model = DiffusionModel(unet, text_encoder, schedule, config.min_snr_gamma, config.foreground_weight)
        if device.type == "cpu":
            _use_plain_attention(self.model)
        self._adapted = False
        self.objectives: Sequence[Objective] = (Objective("diffusion", self.model),)
        self.ema_of: nn.Module = self.model

    def batch(self, part: Part, device: torch.device) -> DiffusionBatch:
        """Latents, noise, timesteps and tokens of some samples, all fixed by their index."""
        return self._batch(self._latents, part, device)

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read the samples that the next step will encode."""
        self._latents.read_ahead(indices)

    def validation_batch(self, part: Part, device: torch.device) -> DiffusionBatch:
        """The same of held-out samples."""
        if self._held_out is None:
            raise ValueError("validation needs a held-out split, got none")
        return self._batch(self._held_out, part, device)

    def _batch(self, source: LatentSource, part: Part, device: torch.device) -> DiffusionBatch:
        indices = np.arange(part.start, part.start + part.count)
        seed = self._config.training.seed
        # Roberts' R2 sequence spreads timesteps and dropped captions evenly over a batch; each is still uniform.
        levels, chances = ((indices * step + seed * 0.5) % 1 for step in _R2)
        drop = chances < self._config.caption_dropout
        captions = ["" if dropped else text for dropped, text in zip(drop, source.captions(part), strict=True)]
        timesteps = torch.from_numpy((levels * self._config.schedule.num_train_timesteps).astype(np.int64))
        latents, coverage = source.draw(part, device)
        return DiffusionBatch(
            latents * self.model.latent_scale.to(device),
            latent_noise(seed, NOISE_STREAM, part, source.shape).to(device),
            coverage,
            timesteps.to(device),
            self.model.text_encoder.tokenize(captions).to(device),
        )

    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Fixed held-out prompts: composed, foreground, background, mask."""
        output = Text2LayerPipeline(self.checkpoint(images), device)(
            self._prompts, width=self._config.data.size, height=self._config.data.size, seed=0, steps=25,
            guidance_scale=self._config.guidance_scale,
        )
        layers = output.layers
        save_grid(path, [compose(layers), layers.foreground, layers.background, layers.mask.expand(-1, 3, -1, -1)])
        path.with_suffix(".txt").write_text("\n".join(self._prompts) + "\n", encoding="utf-8")

    def export(self, path: Path, images: int) -> None:
        """The whole model in one file; CLIP is left out. Beside it the adapter alone, where one is trained."""
        model = self.checkpoint(images)
        save_checkpoint(path, model)
        if self._config.lora is not None:
            save_lora(path.with_name("lora.safetensors"), self.model.unet, self._config.lora, model.card)

    def adapt(self, section: LoraSection) -> None:
        """Loads the base and puts the adapter in; all else is frozen, and the EMA is the adapter's alone."""
        self.load_weights(expand(section.base))
        parameters = add_lora(self.model.unet, section)
        self.model.text_encoder.requires_grad_(False)
        self.ema_of = nn.ParameterList(parameters)
        self._adapted = True

    def load_weights(self, path: Path) -> int:
        """UNet, text encoder and latent scale of a checkpoint of the same shape, trained on the same autoencoder."""
        if self._adapted:
            raise ValueError(f"--init-from must be left out with lora, whose base is the start, got {path}")
        model = load_checkpoint(path)
        if model.unet is None or unet_config(model.unet) != self._config.unet:
            raise ValueError(f"--init-from must hold the configured UNet, got {path}")
        if replace(model.schedule, latent_scale=self._config.schedule.latent_scale) != self._config.schedule:
            raise ValueError(f"--init-from must be trained with the configured schedule, got {model.schedule}")
        if self._config.text.clip is None:
            if model.text_encoder is None or model.text_encoder.config != self.model.text_encoder.config:
                raise ValueError(f"--init-from must hold the configured text encoder, got {path}")
            self.model.text_encoder.load_state_dict(model.text_encoder.state_dict())
            self.model.text_encoder.set_tokenizer(model.text_encoder.tokenizer_json)
        self.model.unet.load_state_dict(model.unet.state_dict())
        if not self._config.latent_scale:
            self.model.latent_scale.fill_(model.schedule.latent_scale)
        return int(model.card.get("images", 0))

    def checkpoint(self, images: int) -> Text2LayerModel:
        """The whole model with its card."""
        config = self._config
        card: dict[str, Any] = {
            "images": images, "resolution": config.data.size, "seed": config.training.seed, "stage": "diffusion",
            "guidance_scale": config.guidance_scale, "data": asdict(config.data),
        }
        if config.lora is not None:
            card["lora"] = asdict(config.lora)
        unet = merged_unet(self.model.unet) if self._adapted else self.model.unet
        external = CLIP_L if config.text.clip is not None else None
        schedule = replace(config.schedule, latent_scale=float(self.model.latent_scale))
        return Text2LayerModel(
            self._latents.autoencoder, unet, self.model.text_encoder, schedule, card, external
        )


def make_text_encoder(config: TextConfig, source: Source) -> TextEncoder:
    """CLIP's, frozen, or a fresh small one with a tokenizer learnt from the source's captions."""
    if config.clip is not None:
        return TextEncoder.from_clip(expand(config.clip))
    if config.pretrained is not None:
        return load_text_encoder(config.pretrained)
    if config.encoder is None:
        raise ValueError("text must have one of encoder, pretrained and clip")
    tokenizer = train_tokenizer(source.captions(0, _TOKENIZER_CAPTIONS), config.encoder.vocab_size)
    return TextEncoder(config.encoder, tokenizer.to_str())


def load_text_encoder(path: str) -> TextEncoder:
    """That of a checkpoint; ValueError where it holds none."""
    encoder = load_checkpoint(expand(path)).text_encoder
    if encoder is None:
        raise ValueError(f"text must name a checkpoint with a text encoder, got {path}")
    return encoder


def make_task(config: DiffusionTrainingConfig, device: torch.device) -> DiffusionTask:
    """Opens data and autoencoder, and builds the task."""
    autoencoder = load_checkpoint(expand(config.autoencoder)).autoencoder
    channels = autoencoder.config.latent_channels
    if config.unet.in_channels != channels:
        raise ValueError(f"unet: in_channels must be the autoencoder's latent channels {channels}, "
                         f"got {config.unet.in_channels}")
    stride = autoencoder.config.downscale * 2 ** (len(config.unet.block_out_channels) - 1)
    if config.data.size % stride:
        raise ValueError(f"data: size must be a multiple of the stride {stride}, got {config.data.size}")
    source = open_source(config.data)
    text_encoder = make_text_encoder(config.text, source)
    if config.unet.cross_attention_dim != text_encoder.config.hidden_size:
        raise ValueError(f"unet: cross_attention_dim must be the text encoder's hidden_size "
                         f"{text_encoder.config.hidden_size}, got {config.unet.cross_attention_dim}")
    latents = LatentSource(source, autoencoder, config, device)
    scale = config.latent_scale or (1.0 if config.lora is not None else latents.measured_scale(device))
    schedule = replace(config.schedule, latent_scale=scale)
    held_out = None
    if config.training.validation_images:
        held_out = LatentSource(open_source(config.data, "held_out"), autoencoder, replace(config, cached=0), device)
    task = DiffusionTask(config, latents, text_encoder, schedule, _sheet_prompts(config.data), device, held_out)
    if config.lora is not None:
        task.adapt(config.lora)
    return task


class _RehearsedStep(nn.Module):
    """The networks of a `DiffusionModel`; latents, timesteps and tokens have shapes alone."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, batch: DiffusionBatch) -> dict[str, Tensor]:
        prediction = self.unet(batch.latents, batch.timesteps, self.text_encoder(batch.ids), return_dict=False)[0]
        return {"loss": (prediction.float() - batch.noise).square().mean()}


def rehearse(config: DiffusionTrainingConfig) -> Rehearsal:
    """A step for `train.estimate`, without data; files that are not there are taken for Stable Diffusion's."""
    notes: list[str] = []
    path, shape = expand(config.autoencoder), AUTOENCODER_PRESETS["sd"]
    if path.is_file():
        shape = read_header(path).autoencoder
    else:
        notes.append(f"no autoencoder at {path}: the shape of Stable Diffusion's is assumed")
    autoencoder = CaT2IAutoencoder(shape).eval().requires_grad_(False)
    text = config.text.encoder or _CLIP_L
    if config.text.pretrained is not None:
        text = read_header(expand(config.text.pretrained)).text_encoder or text
    with torch.device("cpu"):
        tokenizer = train_tokenizer([""], text.vocab_size).to_str()
    text_encoder = TextEncoder(text, tokenizer).requires_grad_(config.text.clip is None)
    unet = build_unet(config.unet)
    if config.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    step = _RehearsedStep(unet, text_encoder)
    ema_of: nn.Module = step
    if config.lora is not None:
        text_encoder.requires_grad_(False)
        ema_of = nn.ParameterList(add_lora(unet, config.lora))
    side = config.data.size // shape.downscale

    def batch(count: int) -> DiffusionBatch:
        latents, coverage = (torch.zeros(count, channels, side, side) for channels in (config.unet.in_channels, 1))
        timesteps, ids = (torch.zeros(form, dtype=torch.long) for form in ((count,), (count, text.max_length)))
        return DiffusionBatch(latents, latents, coverage, timesteps, ids)

    def encode(count: int) -> object:
        return [autoencoder.encode_stack(torch.zeros(1, 7, config.data.size, config.data.size)) for _ in range(count)]

    return Rehearsal((Objective("diffusion", step),), ema_of, batch, (autoencoder,),
                     None if config.cached else encode, notes)


@torch.no_grad()
def _initialise_unet(unet: UNet2DConditionModel) -> None:
    """Starts every residual branch and the output at zero, as Latent Diffusion's code does and diffusers' does not."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    last: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Transformer2DModel):
            last.append(module.proj_out)
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()


def _use_plain_attention(model: DiffusionModel) -> None:
    """Attention written out: on a CPU a step takes 0.8 of the time, since the fused kernel is slow backwards there."""
    from diffusers.models.attention_processor import AttnProcessor

    model.unet.set_attn_processor(AttnProcessor())
    cast("PreTrainedModel", model.text_encoder.text_model).set_attn_implementation("eager")


def _sheet_prompts(data: DataConfig) -> list[str]:
    """Held-out captions; training ones where no shards are held out."""
    has_held_out = data.shards is None or bool(data.shards.held_out)
    return open_source(data, "held_out" if has_held_out else "train").captions(0, _SHEET_SAMPLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return launch(argv, "train.train_diffusion", DiffusionTrainingConfig, make_task, rehearse)


if __name__ == "__main__":
    raise SystemExit(main())
