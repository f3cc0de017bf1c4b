"""The training loop that every trainer shares.

Progress is counted in images. Data, noise and learning rate are functions of (seed, images seen), so a run that was
stopped and resumed computes what the uninterrupted one computes; the state on disk is weights, EMA, optimisers and
the count.
"""

from __future__ import annotations

import copy
import math
import pickle
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

KEEP_STATES = 2


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast.

    Attributes:
        images: samples to see in all.
        batch_size: samples per optimiser step, over all processes and accumulated parts.
        accumulation: parts a step is cut into.
        learning_rate: peak of the cosine schedule.
        final_learning_rate: its end, as a share of the peak.
        warmup_images: samples of linear warm-up.
        weight_decay: AdamW's, on tensors with two or more dimensions.
        beta2: AdamW's second momentum.
        grad_clip: largest norm of the gradient.
        ema_half_life: samples after which half of the EMA is new; at most a tenth of those seen. 0 switches it off.
        precision: "fp32", or "bf16" autocast.
        seed: of weights, noise and dropout.
        save_images: samples between saved states.
        sheet_images: samples between sample sheets.

    Raises:
        ValueError: numbers out of range, all in one line.
    """

    images: int
    batch_size: int
    learning_rate: float
    accumulation: int = 1
    final_learning_rate: float = 0.05
    warmup_images: int = 0
    weight_decay: float = 0.0
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema_half_life: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_images: int = 50_000
    sheet_images: int = 50_000

    def __post_init__(self) -> None:
        """Collects every problem and raises once."""
        problems = [f"{name} must be above 0, got {value}" for name, value in (
            ("images", self.images), ("batch_size", self.batch_size), ("learning_rate", self.learning_rate),
            ("accumulation", self.accumulation), ("grad_clip", self.grad_clip), ("save_images", self.save_images),
            ("sheet_images", self.sheet_images)) if not value > 0]
        if self.accumulation > 0 and self.batch_size % self.accumulation:
            problems.append(f"batch_size must be a multiple of accumulation={self.accumulation}, got {self.batch_size}")
        problems += [f"{name} must not be negative, got {value}" for name, value in (
            ("warmup_images", self.warmup_images), ("weight_decay", self.weight_decay),
            ("ema_half_life", self.ema_half_life), ("final_learning_rate", self.final_learning_rate),
            ("seed", self.seed)) if not value >= 0]
        if not 0 <= self.beta2 < 1:
            problems.append(f"beta2 must be in [0, 1), got {self.beta2}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class Part:
    """What one process computes at a time: samples start, ..., start + count - 1."""

    start: int
    count: int


@dataclass(frozen=True)
class Objective:
    """One optimiser's work: a module whose forward gives losses.

    Attributes:
        name: in the log and in the saved state.
        module: forward(batch) -> name -> scalar; "loss" is minimised. Its trained weights are all its parameters.
        learning_rate_scale: times the schedule.
    """

    name: str
    module: nn.Module
    learning_rate_scale: float = 1.0


class Task(Protocol):
    """A trainer: what to optimise, on which batches, and what to show and export."""

    objectives: Sequence[Objective]
    ema_of: nn.Module

    def batch(self, part: Part, device: torch.device) -> Any:  # noqa: ANN401 - the objectives' own
        """What the objectives' forward takes."""
        ...

    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Draws a picture of the state of training, with the EMA's weights in place."""
        ...

    def export(self, path: Path, images: int) -> None:
        """Writes the one-file checkpoint, with the EMA's weights in place."""
        ...


def learning_rate(config: TrainingConfig, images: int, start: int = 0) -> float:
    """Linear warm-up, then a cosine from the peak to its end, at a count of samples; `start` is where the run began."""
    warm = min(1.0, (images - start + config.batch_size) / max(config.warmup_images, 1))
    progress = min(1.0, images / config.images)
    cosine = config.final_learning_rate + (1 - config.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * cosine


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the EMA's parameters towards the model's; buffers (BatchNorm's running statistics) are copied."""
    for mean, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter.detach(), 1 - decay)
    for mean, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        mean.copy_(buffer)


def ema_decay(config: TrainingConfig, images: int) -> float:
    """Decay of one step; the half-life grows with the images seen (a tenth of them) up to the configured one."""
    half_life = min(config.ema_half_life, max(images, config.batch_size) / 10)
    return 0.5 ** (config.batch_size / half_life)


class Run:
    """A run folder: states, sheets, log."""

    def __init__(self, folder: Path, config: TrainingConfig, accelerator: Accelerator, task: Task) -> None:
        """Prepares optimisers and EMA; starts at zero images.

        Raises:
            ValueError: the batch cannot be shared out evenly.
        """
        parts = config.accumulation * accelerator.num_processes
        if config.batch_size % parts:
            raise ValueError(f"batch_size must be a multiple of accumulation x processes = {parts}, "
                             f"got {config.batch_size}")
        self.folder, self.config, self.accelerator, self.task = folder, config, accelerator, task
        self.images = self.start = 0
        self.modules = [accelerator.prepare_model(o.module.to(accelerator.device)) for o in task.objectives]
        self.optimizers = [_optimizer(o.module, config) for o in task.objectives]
        self.ema = copy.deepcopy(task.ema_of).requires_grad_(False) if config.ema_half_life else None

    def start_from(self, images: int) -> None:
        """Begins at a count of images, with the task's present weights in the EMA and a new warm-up.

        Raises:
            ValueError: nothing is left to train.
        """
        if images >= self.config.images:
            raise ValueError(f"training.images must be above the {images} images that --init-from has seen, "
                             f"got {self.config.images}")
        self.images = self.start = images
        if self.ema is not None:
            self.ema.load_state_dict(self.task.ema_of.state_dict())

    def save(self) -> None:
        """Writes the state to a temporary name, renames it, deletes what it replaces, and exports the model.

        The newest few states stay. Those with more images, left by a run that went further, are replaced too:
        else "auto" would go back to them.
        """
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        states = self.folder / "states"
        states.mkdir(parents=True, exist_ok=True)
        path = states / f"{self.images:010d}.pt"
        names = [objective.name for objective in self.task.objectives]
        state = {
            "images": self.images, "start": self.start,
            "modules": {o.name: o.module.state_dict() for o in self.task.objectives},
            "optimizers": {name: o.state_dict() for name, o in zip(names, self.optimizers, strict=True)},
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }
        temporary = path.with_suffix(".tmp")
        try:
            torch.save(state, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        found = sorted(states.glob("[0-9]*.pt"))
        kept = [old for old in found if old <= path][-KEEP_STATES:]
        for old in (*found, *states.glob("[0-9]*.tmp")):
            if old not in kept:
                old.unlink()
        with self.averaged_weights():
            self.task.export(self.folder / "model.safetensors", self.images)

    def load(self, path: Path) -> None:
        """Continues from a saved state; ValueError where it does not fit this config."""
        try:
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            for objective, optimizer in zip(self.task.objectives, self.optimizers, strict=True):
                objective.module.load_state_dict(state["modules"][objective.name])
                optimizer.load_state_dict(state["optimizers"][objective.name])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.images, self.start = int(state["images"]), int(state["start"])
        except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"--resume must name a state of this config, got {path}: {reason}") from error

    def sheet(self) -> None:
        """Draws the task's sheet, named by the images seen."""
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                path = self.folder / "sheets" / f"{self.images:010d}.png"
                self.task.sheet(path, self.images, self.accelerator.device)

    @contextmanager
    def averaged_weights(self) -> Generator[None]:
        """Puts the EMA's weights into the task's model for a while, in eval mode."""
        model = self.task.ema_of
        training = model.training
        kept = copy.deepcopy(model.state_dict()) if self.ema is not None else None
        if self.ema is not None:
            model.load_state_dict(self.ema.state_dict())
        model.eval()
        try:
            yield
        finally:
            if kept is not None:
                model.load_state_dict(kept)
            model.train(training)

    def step(self) -> dict[str, float]:
        """One optimiser step of every objective; this process's mean losses.

        Raises:
            FloatingPointError: a loss or a gradient is infinite or not a number.
        """
        parts = self._parts()
        batches = [self.task.batch(part, self.accelerator.device) for part in parts]
        report: dict[str, float] = {}
        rate = learning_rate(self.config, self.images, self.start)
        for objective, module, optimizer in zip(self.task.objectives, self.modules, self.optimizers, strict=True):
            totals: dict[str, Tensor] = {}
            for batch in batches:
                with self.accelerator.autocast():
                    losses: Mapping[str, Tensor] = module(batch)
                self.accelerator.backward(losses["loss"] / len(batches))
                for name, value in losses.items():
                    totals[name] = totals.get(name, torch.zeros_like(value.detach())) + value.detach() / len(batches)
            norm = nn.utils.clip_grad_norm_(objective.module.parameters(), self.config.grad_clip)
            for what, value in (("loss", totals["loss"]), ("gradient", norm)):
                if not value.isfinite():
                    raise FloatingPointError(f"the {what} of the {objective.name} must stay finite, "
                                             f"got {float(value)} after {self.images} images")
            for group in optimizer.param_groups:
                group["lr"] = rate * objective.learning_rate_scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            prefix = "" if objective is self.task.objectives[0] else f"{objective.name}."
            report |= {prefix + name: float(value) for name, value in {"gradient": norm, **totals}.items()}
        self.images += self.config.batch_size
        if self.ema is not None:
            update_ema(self.ema, self.task.ema_of, ema_decay(self.config, self.images))
        return report

    def _parts(self) -> list[Part]:
        """This process's share of the next step."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = self.config.batch_size // (self.config.accumulation * processes)
        return [Part(self.images + (i * processes + rank) * count, count) for i in range(self.config.accumulation)]


def fit(run: Run, *, log_every: float = 2.0) -> None:
    """Trains to the configured number of images; Ctrl-C or SIGTERM lets the step end, saves the state and returns.

    Args:
        run: fresh or resumed.
        log_every: least seconds between two lines of the log (`log.csv` in the run folder).
    """
    config, main = run.config, run.accelerator.is_main_process
    run.folder.mkdir(parents=True, exist_ok=True)
    last_log, saved, drawn = time.monotonic(), -1, -1
    with _interrupts() as interrupted, tqdm(
        total=config.images, initial=run.images, unit="image", file=sys.stderr, disable=not main
    ) as bar:
        while run.images < config.images and not _anywhere(run.accelerator, interrupted()):
            before = run.images
            report = run.step()
            bar.update(config.batch_size)
            if main and time.monotonic() - last_log >= log_every:
                last_log = time.monotonic()
                bar.set_postfix_str(f"loss {report['loss']:.4f}")
                _log(run.folder / "log.csv", run.images, report)
            if _crossed(before, run.images, config.save_images):
                run.save()
                saved = run.images
            if _crossed(before, run.images, config.sheet_images):
                run.sheet()
                drawn = run.images
        if saved != run.images:
            run.save()
        if drawn != run.images:
            run.sheet()
    if main and run.images < config.images:
        print(f"stopped at {run.images} images; the same command goes on from there", file=sys.stderr)


def resume(run: Run, choice: str) -> None:
    """Continues from "auto" (the newest state, if any), from a path, or with "none" from nothing.

    States of a run that is not continued stay until the first new one is saved.

    Raises:
        ValueError: the named state is not there or does not fit.
    """
    if choice == "none":
        return
    if choice == "auto":
        states = sorted((run.folder / "states").glob("[0-9]*.pt"))
        if states:
            run.load(states[-1])
        return
    if not Path(choice).is_file():
        raise ValueError(f"--resume must be auto, none or a state file, got {choice}")
    run.load(Path(choice))


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))


def _anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up in any process, so that all of them stop after the same step."""
    if accelerator.num_processes == 1:
        return flag
    if flag:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _log(path: Path, images: int, report: Mapping[str, float]) -> None:
    header = "" if path.is_file() else ",".join(["images", *report]) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(header + ",".join([str(images), *(f"{value:.6g}" for value in report.values())]) + "\n")


@contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Lets the current step finish on SIGINT and SIGTERM; a second SIGINT stops at once."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
