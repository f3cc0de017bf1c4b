"""One latent for all layers against one per layer, as LayerDiffuse joins them: `python -m benchmarks.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report, seconds_in_turns
from text2layer_core.autoencoder import AUTOENCODER_PRESETS, CaT2IAutoencoder
from text2layer_core.checkpoint import CheckpointError, bundled_model_path, load_checkpoint
from text2layer_core.sampling import initial_noise, sample_ddim
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.unet import UNET_PRESETS, build_unet
from train.config import load_config
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTrainingConfig
from train.train_text_encoder import TextTrainingConfig

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor

GOAL = Goal(0.42)
LATENTS_PER_SAMPLE = 3  # LayerDiffuse joins foreground, background and composed picture as a batch of three
CLIP_TOKENS = 77
PROMPTS = ["", "a red fox on a beach"]
GUIDANCE_SCALE = 7.5
CONFIGS = Path(__file__).resolve().parent.parent / "train" / "configs"


@dataclass(frozen=True)
class Case:
    """What is sampled from.

    Attributes:
        origin: of the weights, in words.
        unet: the UNet, in eval mode.
        autoencoder: of its latents, in eval mode.
        schedule: its schedule.
        context: (2, L, D), the empty prompt and another, encoded; noise where there is no text encoder.
        size: pixels a side, where the command line does not say; the model's own.
        steps: of one sample, where the command line does not say.
    """

    origin: str
    unet: UNet2DConditionModel
    autoencoder: CaT2IAutoencoder
    schedule: ScheduleConfig
    context: Tensor
    size: int
    steps: int

    @property
    def side(self) -> int:
        """Cells along each side of the latent."""
        return self.size // self.autoencoder.config.downscale

    @property
    def stride(self) -> int:
        """Pixels that the size must be a multiple of."""
        return self.autoencoder.config.downscale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)


def bundled_case() -> Case:
    """The bundled model or, where there is none, its training configs with random weights, which cost the same."""
    try:
        path = bundled_model_path()
    except CheckpointError:
        autoencoder = CaT2IAutoencoder(
            load_config(CONFIGS / "mini_autoencoder.yaml", ("autoencoder.background_decoder=true",),
                        AutoencoderTrainingConfig).autoencoder
        ).eval()
        diffusion = load_config(CONFIGS / "mini_diffusion.yaml", (), DiffusionTrainingConfig)
        tokens = load_config(CONFIGS / "mini_text_encoder.yaml", (), TextTrainingConfig).encoder.max_length
        unet = build_unet(diffusion.unet).eval()
        context = torch.randn(len(PROMPTS), tokens, diffusion.unet.cross_attention_dim)
        return Case("train/configs, random weights", unet, autoencoder, diffusion.schedule, context, 256, 20)
    model = load_checkpoint(path)
    if model.unet is None or model.text_encoder is None:
        raise CheckpointError(f"{path} must hold a UNet and a text encoder")
    with torch.no_grad():
        context = model.text_encoder.encode(PROMPTS)
    return Case("bundled model", model.unet, model.autoencoder, model.schedule, context, 256, 20)


def sd_case() -> Case:
    """The networks of Stable Diffusion v1's size, random weights."""
    config = UNET_PRESETS["sd"]
    unet, autoencoder = build_unet(config).eval(), CaT2IAutoencoder(AUTOENCODER_PRESETS["sd"]).eval()
    context = torch.randn(len(PROMPTS), CLIP_TOKENS, config.cross_attention_dim)
    return Case("preset sd, random weights", unet, autoencoder, ScheduleConfig(), context, 512, 1)


CASES = {"bundled": bundled_case, "sd": sd_case}


def measure(name: str, case: Case, repeats: int) -> float:
    """Prints the medians of one case; seconds of one latent over seconds of three."""
    steps, side, config = case.steps, case.side, case.unet.config
    context = torch.randn(LATENTS_PER_SAMPLE, *case.context.shape[1:])
    noise = torch.cat([initial_noise(k, (1, config["in_channels"], side, side)) for k in range(LATENTS_PER_SAMPLE)])

    def sample(latents: int) -> None:
        sample_ddim(case.unet, case.schedule, noise[:latents], context[:latents], torch.zeros_like(context[:1]),
                    steps=steps, guidance_scale=GUIDANCE_SCALE)

    seconds = seconds_in_turns({"one": lambda: sample(1), "three": lambda: sample(LATENTS_PER_SAMPLE)}, repeats)
    parameters = sum(parameter.numel() for parameter in case.unet.parameters()) / 1e6
    print(f"{name} ({case.origin}): {parameters:.1f} M parameters, {case.size} px, latent {side}x{side}, "
          f"{steps} steps with guidance, median of {repeats}")
    print_table([
        ("one latent per sample", f"{seconds['one'] / steps:.3f} s a step"),
        ("three latents per sample", f"{seconds['three'] / steps:.3f} s a step"),
    ])
    return seconds["one"] / seconds["three"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if the goal is met, 1 if missed, 2 if nothing was measured."""
    parser = make_parser("sampling", __doc__ or "", repeats=5)
    parser.add_argument("--case", choices=list(CASES), help="one case alone (default: all)")
    parser.add_argument("--size", type=int, help="pixels a side (default: 256, for sd 512)")
    parser.add_argument("--steps", type=int, help="of one sample (default: 20, for sd 1)")
    arguments = parser.parse_args(argv)
    chosen = {name: getattr(arguments, name) for name in ("size", "steps") if getattr(arguments, name) is not None}
    positive(parser, arguments, "repeats", *chosen)
    if not machine_is_idle(force=arguments.force):
        return BUSY
    torch.manual_seed(0)
    ratios: dict[str, float] = {}
    for name in [arguments.case] if arguments.case else CASES:
        case = replace(CASES[name](), **chosen)
        if case.size % case.stride:
            parser.error(f"--size must be a multiple of {name}'s stride {case.stride}, got {case.size}")
        ratios[name] = measure(name, case, arguments.repeats)
    return report(ratios, GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
