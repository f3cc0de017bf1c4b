"""Images a second and peak memory of preset sd on CUDA in half precision, as `benchmarks.speed` prints them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.common import print_table
from text2layer_core.autoencoder import AUTOENCODER_PRESETS, CaT2IAutoencoder
from text2layer_core.sampling import initial_noise, sample_ddim
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNET_PRESETS, build_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

STEPS = 50
GUIDANCE_SCALE = 7.5
MOST_GIGABYTES = {True: 4.0, False: 8.0}  # with and without offload, at 512 px
PROMPTS = ["", "a red fox on a beach"]


@dataclass(frozen=True)
class Parts:
    """The three networks of a model that draws."""

    text_encoder: TextEncoder
    unet: UNet2DConditionModel
    autoencoder: CaT2IAutoencoder


def sd_parts() -> Parts:
    """Random weights: UNet and CLIP ViT-L/14's encoder in float16, the autoencoder, which overflows in it, bfloat16."""
    tokenizer = train_tokenizer(PROMPTS, 600).to_str()
    clip = TextEncoderConfig(vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12)
    return Parts(
        TextEncoder(clip, tokenizer).half().eval(),
        build_unet(UNET_PRESETS["sd"]).half().eval(),
        CaT2IAutoencoder(AUTOENCODER_PRESETS["sd"]).bfloat16().eval(),
    )


@contextmanager
def on(device: torch.device, part: nn.Module, *, offload: bool) -> Iterator[None]:
    """Brings a part to the device and, with offload, back to the CPU afterwards."""
    part.to(device)
    yield
    if offload:
        part.to("cpu")


@torch.no_grad()
def draw(parts: Parts, device: torch.device, size: int, steps: int, *, offload: bool) -> Tensor:
    """One picture's stack of layers, on the CPU; with offload one part at a time is on the device."""
    unet, autoencoder, schedule = parts.unet, parts.autoencoder, ScheduleConfig()
    with on(device, parts.text_encoder, offload=offload):
        context = parts.text_encoder.encode(PROMPTS)
    side = size // autoencoder.config.downscale
    noise = initial_noise(0, (1, unet.config["in_channels"], side, side)).to(device)
    with on(device, unet, offload=offload):
        latents = sample_ddim(unet, schedule, noise, context[1:], context[:1],
                              steps=steps, guidance_scale=GUIDANCE_SCALE)
    with on(device, autoencoder, offload=offload):
        layers = autoencoder.decode((latents / schedule.latent_scale).to(autoencoder.quant_conv.weight.dtype)).layers
        return layers.stack().float().cpu()


def measure_cuda(repeats: int, sizes: Sequence[int] = (256, 512)) -> bool:
    """Prints every size with and without offload; whether the memory at 512 px meets the goals."""
    device, parts, met, rows = torch.device("cuda"), sd_parts(), True, []
    for offload in (True, False):
        for size in sizes:
            seconds, peak = _timed(lambda size=size, offload=offload: draw(parts, device, size, STEPS, offload=offload),
                                   repeats)
            name = f"{size} px, {'with' if offload else 'without'} offload"
            rows.append((name, f"{1 / seconds:.2f} images/s, peak {peak:.2f} GB"))
            met &= size != 512 or peak < MOST_GIGABYTES[offload]
    print(f"{torch.cuda.get_device_name(device)}: preset sd, random weights, {STEPS} steps with guidance, "
          f"UNet float16, autoencoder bfloat16, batch 1, median of {repeats}")
    print_table(rows)
    goal = f"below {MOST_GIGABYTES[True]:.0f} GB with offload, {MOST_GIGABYTES[False]:.0f} GB without"
    print(f"memory at 512 px ({goal}: {'met' if met else 'missed'})")
    return met


def _timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds, after one call to warm up, and the allocator's peak in GB, weights included."""
    run()
    torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 1e9
