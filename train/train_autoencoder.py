"""Trains CaT2I-AE (paper, eq. 3 and 4): `python -m train.train_autoencoder --config FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from text2layer_core import losses
from text2layer_core.autoencoder import (
    AutoencoderConfig,
    CaT2IAutoencoder,
    Head,
    LatentDistribution,
    with_background_decoder,
)
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.compositing import blend
from text2layer_core.schedule import ScheduleConfig
from train.alignment import AlignLatents, LatentReference, open_reference
from train.data import (
    CachedSource,
    DataConfig,
    Source,
    expand,
    held_out_source,
    open_source,
    read_ahead,
    sample_noise,
)
from train.engine import Objective, Part, TrainingConfig
from train.estimate import Rehearsal
from train.launch import launch
from train.pictures import save_grid

_SHEET_ROWS = 8
_WEIGHED = ("foreground", "background", "composed", "perceptual", "mask")  # by uncertainty, where so configured
_GOLDEN = 0.6180339887498949  # its multiples spread evenly in [0, 1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of L = L_img + lambda L_mask (eq. 3, 4) and of what we add.

    The defaults are the paper's weights with the three terms of ours that came out best in docs/tables.md;
    configs/cat2i_ae_256.yaml has the paper's alone.

    Attributes:
        mask: lambda.
        perceptual: "lpips" (the package `lpips`, whose weights it needs), its stated substitute "gradient"
            (`losses.gradient_loss`), or "none".
        perceptual_weight: times the perceptual term of each of F, B, I.
        adversarial: weight of the patch-adversarial term, before LDM's adaptive factor; 0 trains no discriminator.
        adversarial_from: images before it sets in.
        kl: weight of the KL term per pixel value, LDM's 1e-6.
        foreground_by_area: the foreground's L1 normalised by the mask's area (ours) instead of over the whole picture.
        foreground_outside: with foreground_by_area, weight of F's L1 over the whole picture (the padded colour).
        hidden_background: weight of B's L1 where the mask covers it, normalised by the mask's area (ours).
        hidden_scales: number of scales of that L1: 1 is pixel by pixel, each further one of means over squares of twice
            the side (`losses.masked_l1`).
        composition: weight of |I - compose(F^, B^, m^)| (ours).
        consistency: weight of |I^ - compose(F^, B^, m^)| (ours).
        uncertainty: the terms of F, B, I, the mask and the perceptual one count as exp(-s) L + s with learnt s
            (Kendall et al. 2018, in the form for L1) instead of equally.
    """

    mask: float = 1.0
    perceptual: Literal["lpips", "gradient", "none"] = "lpips"
    perceptual_weight: float = 1.0
    adversarial: float = 0.5
    adversarial_from: int = 0
    kl: float = 1e-6
    foreground_by_area: bool = True
    foreground_outside: float = 0.1
    hidden_background: float = 0.0
    hidden_scales: int = 1
    composition: float = 1.0
    consistency: float = 0.2
    uncertainty: bool = False

    def __post_init__(self) -> None:
        """Checks the number of scales."""
        if self.hidden_scales < 1:
            raise ValueError(f"losses: hidden_scales must be at least 1, got {self.hidden_scales}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig:
    """The whole config file.

    Attributes:
        run: run folder, outside the checkout.
        cached: samples drawn once to disk and seen again in new orders; 0 draws every sample afresh.
        frozen_encoder: train only what decodes (with --init-from), so that a UNet trained on the latents still fits.
        latent_noise: most noise that the decoder gets on top of the posterior's, in standard deviations of a sample's
            latents, at a level for each sample between 0 and this. A UNet's latents are never exact: a decoder that
            has seen such ones leaves less of the thing in the background. 0 is the paper's.
        frozen_batch_norm: the heads' BatchNorm stays in eval mode, with the running statistics it has: for small
            batches, and so that several processes compute what one does. For that, losses.adversarial must be 0 too:
            each process weighs the adversarial term by its own samples, and on CPUs the discriminator's BatchNorm is
            of those alone. On several GPUs BatchNorm is SyncBatchNorm wherever it trains.
        align_latents: keeps z near a flat model's latents of the composed picture; None is the paper's.
    """

    run: str
    data: DataConfig
    autoencoder: AutoencoderConfig
    training: TrainingConfig
    losses: LossConfig = field(default_factory=LossConfig)
    cached: int = 0
    frozen_encoder: bool = False
    latent_noise: float = 0.0
    frozen_batch_norm: bool = False
    align_latents: AlignLatents | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in (("cached", self.cached), ("latent_noise", self.latent_noise)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.data.size % 2 ** (self.losses.hidden_scales - 1):
            raise ValueError("data: size must be a multiple of 2^(losses.hidden_scales - 1), "
                             f"got {self.data.size} and {self.losses.hidden_scales}")


@dataclass
class AutoencoderBatch:
    """One part of a step.

    Attributes:
        stack: truth, (n, 7, H, W).
        noise: of the latents, (n, C, h, w).
        adversarial: whether the adversarial terms have set in.
        noise_level: of each sample, (n, 1, 1, 1), in standard deviations of its latents; see `latent_noise`.
        reconstructions: what the autoencoder makes of it, for the discriminator.
    """

    stack: Tensor
    noise: Tensor
    adversarial: bool
    noise_level: Tensor | None = None
    reconstructions: list[Tensor] = field(default_factory=list[Tensor])


class AutoencoderObjective(nn.Module):
    """The autoencoder's losses."""

    def __init__(
        self, autoencoder: CaT2IAutoencoder, config: LossConfig, discriminator: nn.Module | None,
        perceptual: losses.PerceptualNetwork | None, *, frozen_batch_norm: bool = False,
        reference: LatentReference | None = None,
    ) -> None:
        """Discriminator and LPIPS's network are looked through, not trained; the network may be None without LPIPS."""
        super().__init__()
        self._reference = reference
        self._frozen_batch_norm = frozen_batch_norm
        self.autoencoder = autoencoder
        self._config = config
        self._discriminator = (discriminator,)  # in a tuple, so that it is no submodule
        self._perceptual = (perceptual,)
        if config.uncertainty:
            self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in _WEIGHED})

    def forward(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """The sum "loss" and its terms."""
        config = self._config
        if self._frozen_batch_norm:
            for head in self.autoencoder.heads.values():
                cast("Head", head).norm.eval()
        foreground, background, mask = batch.stack.split([3, 3, 1], dim=1)
        distribution, outputs = self.autoencoder(batch.stack, lambda d: _inexact(d, batch))
        outputs = {name: output.float() for name, output in outputs.items()}
        outputs["mask"] = _saturated(outputs["mask"])
        truths = {"foreground": foreground, "background": background, "composed": blend(foreground, background, mask)}
        pictures = [name for name in truths if name in outputs]
        terms: dict[str, Tensor] = {}
        for name in pictures:
            terms[name] = losses.reconstruction_l1(outputs[name], truths[name])
        if config.foreground_by_area:
            terms["foreground"] = (losses.masked_l1(outputs["foreground"], foreground, mask)
                                   + config.foreground_outside * terms["foreground"])
        reconstruction = dict(terms)
        if config.perceptual_weight and config.perceptual != "none":
            perceptual = [self._perceptual_loss(outputs[name], truths[name], mask if name == "foreground" else None)
                          for name in pictures]
            terms["perceptual"] = config.perceptual_weight * torch.stack(perceptual).sum()
            for name, value in zip(pictures, perceptual, strict=True):
                reconstruction[name] = reconstruction[name] + config.perceptual_weight * value
        if config.hidden_background:
            terms["hidden_background"] = config.hidden_background * losses.masked_l1(
                outputs["background"], background, mask, scales=config.hidden_scales)
        terms["mask"] = config.mask * losses.mask_loss(outputs["mask"], mask, foreground, background)
        if config.uncertainty:
            terms |= {name: terms[name] * torch.exp(-scale) + scale for name, scale in self.log_scales.items()
                      if name in terms}
        pixel_values = batch.stack[:, :3].numel() / len(batch.stack)
        terms["kl"] = config.kl / pixel_values * losses.kl_loss(distribution.mean.float(), distribution.logvar.float())
        if self._reference is not None:
            terms["alignment"] = self._reference.loss(batch.stack, distribution.mean)
        composition = blend(outputs["foreground"], outputs["background"], outputs["mask"])
        if config.composition:
            terms["composition"] = config.composition * losses.reconstruction_l1(composition, truths["composed"])
        if config.consistency and "composed" in outputs:
            terms["consistency"] = config.consistency * losses.reconstruction_l1(outputs["composed"], composition)
        discriminator = self._discriminator[0]
        if discriminator is not None:
            batch.reconstructions = [outputs[name].detach() for name in pictures]
            terms["adversarial"] = torch.zeros_like(terms["mask"])
            if batch.adversarial:
                terms["adversarial"] = self._adversarial(discriminator, outputs, reconstruction)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _perceptual_loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Of one picture; the foreground's is looked at where it shows, when its L1 is."""
        if mask is not None and self._config.foreground_by_area:
            prediction, target = prediction * mask, target * mask
        network = self._perceptual[0]
        if network is None:
            return losses.gradient_loss(prediction, target)
        return losses.lpips_loss(network, prediction, target)

    def _adversarial(
        self, discriminator: nn.Module, outputs: Mapping[str, Tensor], reconstruction: Mapping[str, Tensor]
    ) -> Tensor:
        """The hinge loss of each picture, weighed against its own reconstruction loss at its own head."""
        discriminator.requires_grad_(False)
        total = torch.zeros((), device=outputs["mask"].device)
        for name, loss in reconstruction.items():
            adversarial = losses.generator_hinge_loss(discriminator(outputs[name]))
            last = cast("nn.Conv2d", self.autoencoder.heads[name].conv2).weight
            weight = losses.adaptive_weight(loss, adversarial, last)
            total = total + self._config.adversarial * weight * adversarial
        discriminator.requires_grad_(True)
        return total


class DiscriminatorObjective(nn.Module):
    """LDM's patch discriminator on true and reconstructed F, B and I."""

    def __init__(self, composed_head: bool) -> None:
        """One discriminator for all pictures; the paper is silent."""
        super().__init__()
        self.discriminator = losses.PatchDiscriminator()
        self._composed_head = composed_head

    def forward(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """The hinge loss; 0 until it sets in, as in Latent Diffusion."""
        foreground, background, mask = batch.stack.split([3, 3, 1], dim=1)
        real = [foreground, background, *([blend(foreground, background, mask)] if self._composed_head else [])]
        loss = losses.discriminator_hinge_loss(
            self.discriminator(torch.cat(real)), self.discriminator(torch.cat(batch.reconstructions))
        )
        return {"loss": loss * float(batch.adversarial)}


class AutoencoderTask:
    """What `engine.fit` trains."""

    def __init__(
        self, config: AutoencoderTrainingConfig, source: Source, perceptual: losses.PerceptualNetwork | None = None,
        held_out: Source | None = None, reference: LatentReference | None = None,
    ) -> None:
        """Builds the networks with the current seed; LPIPS's network is needed where the config asks for LPIPS."""
        self._config, self._source, self._held_out = config, source, held_out
        self.autoencoder = CaT2IAutoencoder(config.autoencoder)
        if config.training.gradient_checkpointing:
            self.autoencoder.checkpoint_blocks()
        if config.frozen_encoder:
            for part in (self.autoencoder.encoder, self.autoencoder.quant_conv):
                part.requires_grad_(False)
        objectives: list[Objective] = []
        discriminator = None
        if config.losses.adversarial:
            discriminator = DiscriminatorObjective(config.autoencoder.composed_head)
            objectives.append(Objective("discriminator", discriminator))
        critic = discriminator.discriminator if discriminator is not None else None
        objective = AutoencoderObjective(self.autoencoder, config.losses, critic, perceptual,
                                         frozen_batch_norm=config.frozen_batch_norm, reference=reference)
        objectives.insert(0, Objective("autoencoder", objective))
        self.objectives: Sequence[Objective] = objectives
        self.ema_of: nn.Module = self.autoencoder

    def batch(self, part: Part, device: torch.device) -> AutoencoderBatch:
        """Samples and their latent noise."""
        return draw_batch(self._config, self._source, part, device)

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read the samples of the next step."""
        read_ahead(self._source, indices)

    def validation_batch(self, part: Part, device: torch.device) -> AutoencoderBatch:
        """Held-out samples, without the adversarial term, which needs gradients."""
        batch = draw_batch(self._config, held_out_source(self._held_out), part, device)
        return replace(batch, adversarial=False)

    @torch.no_grad()
    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Truth above reconstruction: composed, foreground, background, mask of a few samples."""
        truth = self._source.batch(0, _SHEET_ROWS, device).image
        decoded = self.autoencoder.decode(self.autoencoder.encode(truth).mode()).layers
        rows = [row for image in (truth, decoded) for row in (
            blend(image.foreground, image.background, image.mask), image.foreground, image.background,
            image.mask.expand(-1, 3, -1, -1))]
        save_grid(path, rows)

    def export(self, path: Path, images: int) -> None:
        """The autoencoder alone, in one file."""
        data = self._config.data
        card: dict[str, Any] = {"images": images, "resolution": data.size, "seed": self._config.training.seed,
                                "stage": "autoencoder", "data": asdict(data)}
        save_checkpoint(path, Text2LayerModel(self.autoencoder, None, None, ScheduleConfig(), card))

    def load_weights(self, path: Path) -> int:
        """The autoencoder's weights of any checkpoint of the same shape, or of one without a decoder for B alone."""
        model = load_checkpoint(path)
        wanted, state = self._config.autoencoder, model.autoencoder.state_dict()
        if wanted.background_decoder and not model.autoencoder.config.background_decoder:
            wanted, state = replace(wanted, background_decoder=False), with_background_decoder(state)
        if model.autoencoder.config != wanted:
            raise ValueError(f"--init-from must hold the configured autoencoder, got {model.autoencoder.config}")
        self.autoencoder.load_state_dict(state)
        return int(model.card.get("images", 0)) if model.card.get("stage") == "autoencoder" else 0


def draw_batch(
    config: AutoencoderTrainingConfig, source: Source, part: Part, device: torch.device
) -> AutoencoderBatch:
    """Samples and their latent noise, both functions of their indices."""
    stack = source.batch(part.start, part.count, device).stack
    side = source.size // config.autoencoder.downscale
    shape = (config.autoencoder.latent_channels, side, side)
    noise = sample_noise(config.training.seed, range(part.start, part.start + part.count), shape)
    batch = AutoencoderBatch(stack, noise.to(device), part.start >= config.losses.adversarial_from)
    if config.latent_noise:
        levels = np.arange(part.start, part.start + part.count) * _GOLDEN % 1 * config.latent_noise
        batch.noise_level = torch.from_numpy(levels.astype(np.float32)).view(-1, 1, 1, 1).to(device)
    return batch


def _inexact(distribution: LatentDistribution, batch: AutoencoderBatch) -> Tensor:
    """Draws of z with the posterior's noise and the batch's on top, which sum to one Gaussian."""
    if batch.noise_level is None:
        return distribution.mean + torch.exp(0.5 * distribution.logvar) * batch.noise
    added = (batch.noise_level * distribution.mean.detach().float().std(dim=(1, 2, 3), keepdim=True)).square()
    return distribution.mean + (torch.exp(distribution.logvar) + added).sqrt() * batch.noise


def make_task(config: AutoencoderTrainingConfig, device: torch.device) -> AutoencoderTask:
    """Opens the data and builds the task."""
    source = open_source(config.data)
    stride = config.autoencoder.downscale
    if source.size % stride:
        raise ValueError(f"data: size must be a multiple of the autoencoder's stride {stride}, got {source.size}")
    if config.cached:
        source = CachedSource(source, expand(config.run) / "cache", config.cached, config.data, device)
    lpips = config.losses.perceptual == "lpips" and config.losses.perceptual_weight > 0
    held_out = open_source(config.data, "held_out") if config.training.validation_images else None
    reference = None
    if config.align_latents is not None:
        reference = open_reference(config.align_latents, config.autoencoder, source, device)
    return AutoencoderTask(config, source, _lpips(device) if lpips else None, held_out, reference)


def rehearse(config: AutoencoderTrainingConfig) -> Rehearsal:
    """A step for `train.estimate`, without data and without LPIPS's network."""
    side, cells = config.data.size, config.data.size // config.autoencoder.downscale
    wanted = config.losses.perceptual == "lpips" and config.losses.perceptual_weight > 0
    if wanted:
        config = replace(config, losses=replace(config.losses, perceptual="none"))
    task = AutoencoderTask(config, cast("Source", None))

    def batch(count: int) -> AutoencoderBatch:
        noise = torch.zeros(count, config.autoencoder.latent_channels, cells, cells)
        return AutoencoderBatch(torch.zeros(count, 7, side, side), noise, adversarial=True)

    notes = ["LPIPS's network (VGG-16) is left out: it adds to both operations and memory"] if wanted else []
    return Rehearsal(task.objectives, task.ema_of, batch, notes=notes)


def _saturated(mask: Tensor) -> Tensor:
    """The mask clamped to [0, 1] as decoding clamps it, with a slope of 0.1 outside so that gradients go on.

    The paper is silent about the head's range. Regressing 0 and 1 exactly leaves a haze around the thing; past the ends
    the head may overshoot.
    """
    clamped = mask.clamp(0, 1)
    return clamped + 0.1 * (mask - clamped)


def _lpips(device: torch.device) -> losses.PerceptualNetwork:
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "losses: perceptual lpips needs the package lpips and its weights (pip install lpips), not found; "
            "set losses.perceptual=gradient for the stated substitute"
        ) from error
    return cast("losses.PerceptualNetwork", lpips.LPIPS(net="vgg").eval().requires_grad_(False).to(device))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return launch(argv, "train.train_autoencoder", AutoencoderTrainingConfig, make_task, rehearse)


if __name__ == "__main__":
    raise SystemExit(main())
