"""Each trainer's step against the bare forward and backward of its objective: `python -m benchmarks.training`."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report, seconds_in_turns
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import Text2LayerModel, save_checkpoint
from text2layer_core.schedule import ScheduleConfig
from train import train_autoencoder, train_diffusion
from train.config import load_config
from train.engine import Part, Run, Task, TrainingConfig
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTrainingConfig, TextConfig
from train.train_text_encoder import TextTrainingConfig

GOAL = Goal(0.85, at_least=True)
CONFIGS = Path(__file__).resolve().parent.parent / "train" / "configs"
MakeTask = Callable[[int], Task]
"""Builds a trainer's task from the number of samples to cache, 0 for none."""


def autoencoder_trainer(
    folder: Path, size: int | None, batch: int | None, icons: Path | None
) -> tuple[MakeTask, TrainingConfig]:
    """The bundled model's autoencoder as its config trains it."""
    config = load_config(CONFIGS / "mini_autoencoder.yaml", _overrides(size, batch, icons), AutoencoderTrainingConfig)
    return lambda cached: train_autoencoder.make_task(
        replace(config, run=str(folder / "autoencoder"), cached=cached), torch.device("cpu")
    ), config.training


def diffusion_trainer(
    folder: Path, size: int | None, batch: int | None, icons: Path | None
) -> tuple[MakeTask, TrainingConfig]:
    """The bundled model's UNet and text encoder as their config trains them, all of random weights."""
    overrides = _overrides(size, batch, icons)
    config = load_config(CONFIGS / "mini_diffusion.yaml", overrides, DiffusionTrainingConfig)
    frozen = load_config(CONFIGS / "mini_autoencoder.yaml", overrides, AutoencoderTrainingConfig).autoencoder
    encoder = load_config(CONFIGS / "mini_text_encoder.yaml", (), TextTrainingConfig).encoder
    path = folder / "autoencoder.safetensors"
    _save_autoencoder(path, frozen)
    return lambda cached: train_diffusion.make_task(
        replace(config, run=str(folder / "diffusion"), autoencoder=str(path), text=TextConfig(encoder=encoder),
                cached=cached, latent_scale=1.0),
        torch.device("cpu"),
    ), config.training


TRAINERS = {"autoencoder": autoencoder_trainer, "diffusion": diffusion_trainer}


def bare_step(task: Task, training: TrainingConfig) -> Callable[[], None]:
    """Forward and backward of copies of a task's objectives on one batch in memory, nothing else."""
    modules: list[nn.Module] = copy.deepcopy([objective.module for objective in task.objectives])
    batch: Any = task.batch(Part(0, training.batch_size), torch.device("cpu"))

    def step() -> None:
        for module in modules:
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = module(batch)["loss"]
            loss.backward()
            module.zero_grad(set_to_none=True)

    return step


def measure(name: str, make_task: MakeTask, training: TrainingConfig, *, steps: int, repeats: int) -> float:
    """Prints images/s of one trainer; its rate with cached data over that of the bare objective."""
    training = replace(training, accumulation=1)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if training.precision == "bf16" else "no")
    torch.manual_seed(training.seed)
    cached_task = make_task(4 * training.batch_size)
    bare = bare_step(cached_task, training)
    cached, uncached = (
        Run(Path("unused"), training, accelerator, task) for task in (cached_task, make_task(0))
    )
    variants: dict[str, Callable[[], object]] = {
        "bare forward and backward": lambda: _repeat(bare, steps),
        "trainer, data cached": lambda: _repeat(cached.step, steps),
        "trainer, data drawn afresh": lambda: _repeat(uncached.step, steps),
    }
    seconds = seconds_in_turns(variants, repeats)
    size = sum(p.numel() for objective in cached_task.objectives for p in objective.module.parameters()) / 1e6
    print(f"{name}: {size:.1f} M parameters, batch {training.batch_size}, {training.precision}, "
          f"{steps} steps a turn, median of {repeats}")
    images = steps * training.batch_size
    print_table([(variant, f"{images / value:.1f} images/s") for variant, value in seconds.items()])
    return seconds["bare forward and backward"] / seconds["trainer, data cached"]


def _repeat(step: Callable[[], object], count: int) -> None:
    for _ in range(count):
        step()


def _overrides(size: int | None, batch: int | None, icons: Path | None) -> list[str]:
    chosen = {"data.size": size, "training.batch_size": batch, "data.icons.cache": icons}
    return [f"{key}={value}" for key, value in chosen.items() if value is not None]


def _save_autoencoder(path: Path, config: AutoencoderConfig) -> None:
    save_checkpoint(path, Text2LayerModel(CaT2IAutoencoder(config), None, None, ScheduleConfig()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if the goal is met, 1 if missed, 2 if nothing was measured."""
    parser = make_parser("training", __doc__ or "", repeats=5)
    parser.add_argument("--trainer", choices=list(TRAINERS), help="one trainer alone (default: both)")
    parser.add_argument("--size", type=int, help="pixels a side (default: the config's)")
    parser.add_argument("--batch", type=int, help="samples a step (default: the config's)")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn (default: 4)")
    parser.add_argument("--icons", type=Path, help="sprite cache of train.rasterise (default: the config's)")
    arguments = parser.parse_args(argv)
    optional = [name for name in ("size", "batch") if getattr(arguments, name) is not None]
    positive(parser, arguments, "repeats", "steps", *optional)
    if not machine_is_idle(force=arguments.force):
        return BUSY
    ratios: dict[str, float] = {}
    try:
        for name in [arguments.trainer] if arguments.trainer else TRAINERS:
            with tempfile.TemporaryDirectory() as folder:
                make_task, training = TRAINERS[name](Path(folder), arguments.size, arguments.batch, arguments.icons)
                ratios[name] = measure(name, make_task, training, steps=arguments.steps, repeats=arguments.repeats)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    return report(ratios, GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
