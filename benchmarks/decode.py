"""Decoding two layers, mask and composed picture against a plain KL autoencoder: `python -m benchmarks.decode`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report, seconds_in_turns
from text2layer_core.autoencoder import AUTOENCODER_PRESETS, AutoencoderConfig, CaT2IAutoencoder

GOAL = Goal(1.15)


def plain_decoder(config: AutoencoderConfig) -> Callable[[Tensor], object]:
    """`decode` of an `AutoencoderKL` with the same trunk and three output channels, random weights, in eval mode."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(config.block_out_channels)
    arguments: dict[str, Any] = {
        "latent_channels": config.latent_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return cast("Callable[[Tensor], object]", AutoencoderKL(**arguments).eval().decode)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that a call holds at once, beyond what was there before it.

    Counted by PyTorch's CPU allocator, which also serves oneDNN's reordered copies and scratch memory, so the figure
    is the same in every run and on a busy machine, unlike the process's resident size.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def measure(size: int, repeats: int) -> dict[str, float]:
    """Prints medians and peaks; ours over diffusers', "time" and "peak memory"."""
    config = AUTOENCODER_PRESETS["sd"]
    ours, decode_plain = CaT2IAutoencoder(config).eval(), plain_decoder(config)
    side = size // config.downscale
    latents = torch.randn(1, config.latent_channels, side, side)
    variants: dict[str, Callable[[], object]] = {
        "CaT2IAutoencoder.decode": lambda: ours.decode(latents),
        "AutoencoderKL.decode": lambda: decode_plain(latents),
    }
    with torch.inference_mode():
        seconds = seconds_in_turns(variants, repeats)
        peaks = {name: peak_bytes(run) for name, run in variants.items()}
    print(f"preset sd, {size} px, batch 1, float32, median of {repeats}; peak is the allocator's, without the weights")
    print_table([(name, f"{seconds[name]:.2f} s, peak {peaks[name] / 2**20:.0f} MiB") for name in variants])
    layered, single = variants
    return {"time": seconds[layered] / seconds[single], "peak memory": peaks[layered] / peaks[single]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if the goal is met, 1 if missed, 2 if nothing was measured."""
    parser = make_parser("decode", __doc__ or "", repeats=5)
    parser.add_argument("--size", type=int, default=512, help="pixels a side (default: 512)")
    arguments = parser.parse_args(argv)
    positive(parser, arguments, "repeats", "size")
    stride = AUTOENCODER_PRESETS["sd"].downscale
    if arguments.size % stride:
        parser.error(f"--size must be a multiple of the stride {stride}, got {arguments.size}")
    if not machine_is_idle(force=arguments.force):
        return BUSY
    torch.manual_seed(0)
    return report(measure(arguments.size, arguments.repeats), GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
