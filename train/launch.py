"""The command line that every trainer shares."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed

from train.commands import STOPPED
from train.config import load_config
from train.data import expand
from train.engine import Run, Task, TrainingConfig, fit, resume
from train.estimate import UTILISATION, Rehearsal, estimate, memory_line, parse_gpus, report

if TYPE_CHECKING:
    from dataclasses import Field

_CACHE_TIME = timedelta(hours=12)  # for which other processes wait while the main one fills a cache


class TrainerConfig(Protocol):
    """What every trainer's config has: a dataclass with these fields."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    @property
    def run(self) -> str:
        """The run folder."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""
        ...

    @property
    def cached(self) -> int:
        """Samples cached on disk."""
        ...


class InitialisableTask(Task, Protocol):
    """A task that can start from a checkpoint's weights."""

    def load_weights(self, path: Path) -> int:
        """Loads weights alone from a one-file checkpoint; the images it has seen."""
        ...


C = TypeVar("C", bound=TrainerConfig)


def launch(
    argv: Sequence[str] | None, program: str, schema: type[C],
    make_task: Callable[[C, torch.device], InitialisableTask], rehearse: Callable[[C], Rehearsal] | None = None,
) -> int:
    """Parses arguments and trains.

    Args:
        argv: command line; None reads the process's own.
        program: the module's name, for the help.
        schema: dataclass of the config file.
        make_task: builds the task, once per process; it may cache data in the run folder.
        rehearse: a step without data and weights, for the estimates of --dry-run; None leaves them out.

    Returns:
        Exit status: 0, also when it was interrupted and its state saved; 1 when training failed (a loss that became
        infinite, a sample that cannot be read, a full disk); 2 on bad input; 130 when it was interrupted while a cache
        filled, or twice. All but 0 print one line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see train/configs")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a key of the config")
    parser.add_argument("--resume", default="auto", metavar="auto|PATH|none",
                        help="state to go on from; none starts anew (default: auto, the newest if any)")
    parser.add_argument("--init-from", type=Path, metavar="FILE",
                        help="checkpoint whose weights to start from: new optimiser and warm-up, images counted on")
    parser.add_argument("--dry-run", action="store_true", help="report parameters, memory and images/s, then stop")
    parser.add_argument("--gpus", metavar="8xA100",
                        help="with --dry-run: estimate memory and days on these GPUs; needs no data, no weights")
    parser.add_argument("--utilisation", type=float, default=UTILISATION,
                        help=f"share of the GPUs' peak that training reaches, for --gpus (default: {UTILISATION})")
    parser.add_argument("--seen", type=int, default=0, help="images that --init-from has seen, for --gpus (default: 0)")
    arguments = parser.parse_args(argv)
    failed = 2
    try:
        config = load_config(arguments.config, arguments.set, schema)
        if arguments.gpus is not None:
            if not arguments.dry_run or rehearse is None:
                raise ValueError(f"--gpus must come with --dry-run of a trainer that has estimates, got {program}")
            print("\n".join(_estimates(config, rehearse, arguments)))
            return 0
        accelerator = Accelerator(mixed_precision="bf16" if config.training.precision == "bf16" else "no",
                                  kwargs_handlers=[InitProcessGroupKwargs(timeout=_CACHE_TIME)])
        if arguments.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                cached = min(config.cached, config.training.batch_size)
                run, _ = prepare(replace(config, run=folder, cached=cached), accelerator, make_task)
                report = _dry_run(run, config, rehearse)
            accelerator.print(report)
            return 0
        run, task = prepare(config, accelerator, make_task)
        resume(run, arguments.resume)
        if arguments.init_from is not None and run.images == 0:
            run.start_from(task.load_weights(arguments.init_from))
        run.folder.mkdir(parents=True, exist_ok=True)
        failed = 1
        fit(run)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return failed
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    return 0


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that was held: by PyTorch on a CUDA device, by this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def prepare(
    config: C, accelerator: Accelerator, make_task: Callable[[C, torch.device], InitialisableTask]
) -> tuple[Run, InitialisableTask]:
    """Weights from the config's seed; the main process goes first, so that only one fills a cache."""
    set_seed(config.training.seed)
    with accelerator.main_process_first():
        task = make_task(config, accelerator.device)
    return Run(expand(config.run), config.training, accelerator, task), task


def _estimates(config: C, rehearse: Callable[[C], Rehearsal], arguments: argparse.Namespace) -> list[str]:
    """Parameters, memory, operations and days on GPUs."""
    notes: list[str] = []

    def made() -> Rehearsal:
        found = rehearse(config)
        notes.extend(found.notes)
        return found

    found = estimate(made, config.training, parse_gpus(arguments.gpus)[0])
    lines = [f"{name}: {count / 1e6:.2f} M parameters" for name, count in found.parameters.items()]
    return lines + report(found, config.training, arguments.gpus, utilisation=arguments.utilisation,
                          seen=arguments.seen, notes=notes)


def _dry_run(run: Run, config: C, rehearse: Callable[[C], Rehearsal] | None, steps: int = 3) -> str:
    """Parameters, memory by parts, peak memory and images/s of a few steps; nothing is saved."""
    lines = [
        f"{objective.name}: {sum(p.numel() for p in objective.module.parameters()) / 1e6:.2f} M parameters"
        for objective in run.task.objectives
    ]
    if rehearse is not None:
        found = estimate(lambda: rehearse(config), config.training, run.accelerator.num_processes)
        lines.append(memory_line(found))
    run.step()
    began = time.perf_counter()
    for _ in range(steps):
        run.step()
    seconds = (time.perf_counter() - began) / steps
    run.close()
    memory = peak_memory(run.accelerator.device) / 2**30
    lines.append(f"peak memory {memory:.2f} GiB, {seconds:.2f} s a step of {run.config.batch_size}, "
                 f"{run.config.batch_size / seconds:.1f} images/s on {run.accelerator.device}")
    return "\n".join(lines)
