"""One training step of the paper's networks in 24 GB: `python -m benchmarks.sd_step autoencoder|unet`."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.common import BUSY, machine_is_idle, make_parser, positive, print_table
from text2layer_core.autoencoder import CaT2IAutoencoder
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from train.config import load_config
from train.engine import Run, Task, TrainingConfig
from train.launch import peak_memory
from train.samples import LayeredBatch
from train.train_autoencoder import AutoencoderTask, AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTask, DiffusionTrainingConfig, LatentSource

MOST_GIGABYTES = 24.0
CONFIGS = Path(__file__).resolve().parent.parent / "train" / "configs"
SMALL_STEP = ["training.batch_size=1", "training.accumulation=1", "training.precision=fp32",
              "training.ema_half_life=0", "training.warmup_images=0"]
CPU = torch.device("cpu")


class RandomSource:
    """Noise instead of pictures: a step costs the same."""

    def __init__(self, size: int) -> None:
        """Pictures of `size` pixels a side."""
        self.size = size

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Noise in [0, 1]."""
        generator = torch.Generator().manual_seed(start)
        stack = torch.rand(count, 7, self.size, self.size, generator=generator)
        return LayeredBatch(stack.to(device), self.captions(start, count))

    def captions(self, start: int, count: int) -> list[str]:
        """One caption each."""
        return [f"a red fox in the snow, {index}" for index in range(start, start + count)]


def autoencoder_task(overrides: Sequence[str]) -> tuple[Task, TrainingConfig, int]:
    """The paper's autoencoder with its discriminator; the gradient loss stands for LPIPS, which needs weights."""
    chosen = [*SMALL_STEP, "losses.perceptual=gradient", *overrides]
    config = load_config(CONFIGS / "cat2i_ae_256.yaml", chosen, AutoencoderTrainingConfig)
    return AutoencoderTask(config, RandomSource(config.data.size)), config.training, config.data.size


def unet_task(overrides: Sequence[str]) -> tuple[Task, TrainingConfig, int]:
    """The paper's UNet and a frozen text encoder of CLIP ViT-L/14's size; latents are encoded in the step."""
    config = load_config(CONFIGS / "cat2i_sd_256.yaml", [*SMALL_STEP, *overrides], DiffusionTrainingConfig)
    source = RandomSource(config.data.size)
    frozen = load_config(CONFIGS / "cat2i_ae_256.yaml", [], AutoencoderTrainingConfig).autoencoder
    tokenizer = train_tokenizer(source.captions(0, 10), 600)
    clip = TextEncoderConfig(vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12)
    text_encoder = TextEncoder(clip, tokenizer.to_str()).requires_grad_(False).eval()
    latents = LatentSource(source, CaT2IAutoencoder(frozen), config, CPU)
    task = DiffusionTask(config, latents, text_encoder, config.schedule, source.captions(0, 1), CPU)
    return task, config.training, config.data.size


TASKS: dict[str, Callable[[Sequence[str]], tuple[Task, TrainingConfig, int]]] = {
    "autoencoder": autoencoder_task, "unet": unet_task
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if the memory suffices, 1 if not, 2 if nothing was measured."""
    parser = make_parser("sd_step", __doc__ or "", repeats=2)
    parser.add_argument("network", choices=list(TASKS))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE",
                        help="overrides a key of the paper's config, to try it out smaller")
    arguments = parser.parse_args(argv)
    positive(parser, arguments, "repeats")
    if not machine_is_idle(force=arguments.force):
        return BUSY
    torch.manual_seed(0)
    try:
        task, training, size = TASKS[arguments.network](arguments.set)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    run = Run(Path("unused"), training, Accelerator(cpu=True), task)
    seconds: list[float] = []
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        run.step()
        seconds.append(time.perf_counter() - began)
    trained = sum(p.numel() for objective in task.objectives for p in objective.module.parameters() if p.requires_grad)
    peak = peak_memory(CPU) / 1e9
    print(f"{arguments.network}: {trained / 1e6:.1f} M trained parameters, random weights, {size} px, "
          f"batch {training.batch_size}, {training.precision}, no EMA")
    print_table([("first step", f"{seconds[0]:.1f} s"), ("median step", f"{statistics.median(seconds):.1f} s")])
    print(f"peak memory: {peak:.1f} GB (at most {MOST_GIGABYTES:.0f}: {'met' if peak <= MOST_GIGABYTES else 'missed'})")
    return 0 if peak <= MOST_GIGABYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
