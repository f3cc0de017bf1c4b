"""The command line that every trainer shares."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from train.config import load_config
from train.data import expand
from train.engine import Run, Task, TrainingConfig, fit, resume


class TrainerConfig(Protocol):
    """What every trainer's config has."""

    @property
    def run(self) -> str:
        """The run folder."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""
        ...


class InitialisableTask(Task, Protocol):
    """A task that can start from a checkpoint's weights."""

    def load_weights(self, path: Path) -> int:
        """Loads weights alone from a one-file checkpoint; the images it has seen."""
        ...


C = TypeVar("C", bound=TrainerConfig)


def launch(
    argv: Sequence[str] | None, program: str, schema: type[C],
    make_task: Callable[[C, torch.device], InitialisableTask],
) -> int:
    """Parses arguments, trains, and returns the exit status: 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see train/configs")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a key of the config")
    parser.add_argument("--resume", default="auto", metavar="auto|PATH|none", help="state to go on from (default: auto)")
    parser.add_argument("--init-from", type=Path, metavar="FILE",
                        help="checkpoint whose weights to start from: new optimiser and warm-up, images counted on")
    parser.add_argument("--dry-run", action="store_true", help="report parameters, memory and images/s, then stop")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.set, schema)
        training = config.training
        accelerator = Accelerator(mixed_precision="bf16" if training.precision == "bf16" else "no")
        set_seed(training.seed)
        task = make_task(config, accelerator.device)
        run = Run(expand(config.run), training, accelerator, task)
        if arguments.dry_run:
            print(_dry_run(run))
            return 0
        resume(run, arguments.resume)
        if arguments.init_from is not None and run.images == 0:
            run.start_from(task.load_weights(arguments.init_from))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    fit(run)
    return 0


def _dry_run(run: Run, steps: int = 3) -> str:
    """Parameters, peak memory and images/s of a few steps; nothing is saved."""
    lines = [
        f"{objective.name}: {sum(p.numel() for p in objective.module.parameters()) / 1e6:.2f} M parameters"
        for objective in run.task.objectives
    ]
    run.step()
    began = time.perf_counter()
    for _ in range(steps):
        run.step()
    seconds = (time.perf_counter() - began) / steps
    if run.accelerator.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines.append(f"peak memory {memory:.2f} GiB, {seconds:.2f} s a step of {run.config.batch_size}, "
                 f"{run.config.batch_size / seconds:.1f} images/s on {run.accelerator.device}")
    return "\n".join(lines)
