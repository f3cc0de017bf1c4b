"""The training loop that every trainer shares.

Progress is counted in images. Data, noise and learning rate are functions of (seed, images seen), so a run that was
stopped and resumed computes what the uninterrupted one computes; the state on disk is weights, EMA, optimisers and
the count.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from text2layer_core.atomic import TEMPORARY, write_file
from text2layer_core.checkpoint import one_line
from train.fitting import fit as fit
from train.sharding import Sharded
from train.tracking import check_trackers
from train.training_config import TrainingConfig, ema_decay, learning_rate

KEEP_STATES = 2


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


@runtime_checkable
class Validating(Protocol):
    """A task with a held-out split."""

    def validation_batch(self, part: Part, device: torch.device) -> Any:  # noqa: ANN401 - the objectives' own
        """What the first objective's forward takes, of samples that are never trained on."""
        ...


@runtime_checkable
class ReadingAhead(Protocol):
    """A task whose samples take time to read."""

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read samples that `batch` will be asked for next, in the background; gives up all others."""
        ...


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the EMA's parameters towards the model's; buffers (BatchNorm's running statistics) are copied.

    The EMA may be on another device than the model.
    """
    for mean, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter.detach().to(mean.device), 1 - decay)
    for mean, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        mean.copy_(buffer)


class Run:
    """A run folder: states, sheets, log."""

    def __init__(
        self, folder: Path, config: TrainingConfig, accelerator: Accelerator, task: Task, *, shard: bool | None = None
    ) -> None:
        """Prepares optimisers and EMA; starts at zero images.

        Args:
            folder: of states, sheets and logs.
            config: how long and how fast.
            accelerator: processes and precision.
            task: what to train.
            shard: whether the module is sharded over the processes; None does as the accelerate config says (FSDP).

        Raises:
            ValueError: the batch cannot be shared out evenly, a tracker is not installed, validation figures are asked
                for without a held-out split or with fewer samples than processes, or a task with several objectives is
                to be sharded.
        """
        check_trackers(config.trackers)
        parts = config.accumulation * accelerator.num_processes
        if config.batch_size % parts:
            raise ValueError(f"batch_size must be a multiple of accumulation x processes = {parts}, "
                             f"got {config.batch_size}")
        if config.validation_images and not isinstance(task, Validating):
            raise ValueError(f"validation_images must be 0 for a task without a held-out split, got "
                             f"{config.validation_images}")
        if config.validation_images and config.validation_samples < accelerator.num_processes:
            raise ValueError(f"validation_samples must be at least the {accelerator.num_processes} processes, got "
                             f"{config.validation_samples}")
        self.folder, self.config, self.accelerator, self.task = folder, config, accelerator, task
        self.images = self.start = 0
        shard = accelerator.distributed_type == DistributedType.FSDP if shard is None else shard
        if shard and [objective.module for objective in task.objectives] != [task.ema_of]:
            raise ValueError("FSDP is for the diffusion trainer without LoRA (use DDP), got another")
        self.sharded: Sharded | None = None
        if shard:
            self.sharded = Sharded(task.objectives[0].module, accelerator.device)
            self.modules = [self.sharded.module]
        else:
            self.modules = [_prepared(o.module, accelerator) for o in task.objectives]
        self.optimizers = [_optimizer(module, config) for module in self.modules]
        self.ema = copy.deepcopy(task.ema_of).requires_grad_(False) if config.ema_half_life else None
        if self.ema is not None and config.ema_device == "cpu":
            self.ema.cpu()
        self._push()

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
        self._push()

    def save(self) -> None:
        """Writes the state onto the disk, then deletes what it replaces, and exports the model.

        The newest few states stay. Those with more images, left by a run that went further, are replaced too:
        else "auto" would go back to them.

        Raises:
            OSError: a file cannot be written.
        """
        self.accelerator.wait_for_everyone()
        self._pull()
        optimizers = [o.state_dict() if self.sharded is None else self.sharded.optimizer_state(o)
                      for o in self.optimizers]
        if not self.accelerator.is_main_process:
            return
        states = self.folder / "states"
        states.mkdir(parents=True, exist_ok=True)
        path = states / f"{self.images:010d}.pt"
        names = [objective.name for objective in self.task.objectives]
        state = {
            "images": self.images, "start": self.start,
            "modules": {o.name: o.module.state_dict() for o in self.task.objectives},
            "optimizers": dict(zip(names, optimizers, strict=True)),
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }
        try:
            write_file(path, lambda temporary: torch.save(state, temporary))
        except RuntimeError as error:  # torch's for a full disk, which it does not name
            raise OSError(f"cannot write {path}, the disk may be full: {one_line(error)}") from error
        found = sorted(states.glob("[0-9]*.pt"))
        kept = [old for old in found if old <= path][-KEEP_STATES:]
        for old in (*found, *states.glob(TEMPORARY)):
            if old not in kept:
                old.unlink()
        with self.averaged_weights():
            self.task.export(self.folder / "model.safetensors", self.images)

    def load(self, path: Path) -> None:
        """Continues from a saved state; ValueError where it does not fit this config."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for objective, optimizer in zip(self.task.objectives, self.optimizers, strict=True):
                objective.module.load_state_dict(state["modules"][objective.name])
                found = state["optimizers"][objective.name]
                if self.sharded is None:
                    optimizer.load_state_dict(found)
                else:
                    self.sharded.load_optimizer_state(optimizer, found)
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self._push()
            self.images, self.start = int(state["images"]), int(state["start"])
        except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"--resume must name a state of this config, got {path}: {reason}") from error

    def sheet(self) -> Path | None:
        """Draws the task's sheet, named by the images seen.

        Returns:
            Where it is; None in other processes than the main one, and where the task draws none.
        """
        self._pull()
        if not self.accelerator.is_main_process:
            return None
        path = self.folder / "sheets" / f"{self.images:010d}.png"
        with self.averaged_weights():
            self.task.sheet(path, self.images, self.accelerator.device)
        self._leave_device()
        return path if path.is_file() else None

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The first objective's mean losses over the first held-out samples, with the EMA's weights."""
        task = cast("Validating", self.task)
        self._pull()
        device = self.accelerator.device
        module = self.task.objectives[0].module.to(device)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        samples = self.config.validation_samples
        count = min(self.config.batch_size // (self.config.accumulation * processes), samples // processes)
        starts = range(rank * count, samples, processes * count)
        totals: dict[str, Tensor] = {}
        with self.averaged_weights():
            for start in starts:
                part = Part(start, min(count, samples - start))
                with self.accelerator.autocast():
                    losses: Mapping[str, Tensor] = module(task.validation_batch(part, device))
                for name, value in losses.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value * part.count
        self._leave_device()
        return self._mean_over_processes({name: value * processes / samples for name, value in totals.items()})

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
        """One optimiser step of every objective; the mean losses of the whole batch.

        Raises:
            FloatingPointError: a loss or a gradient is infinite or not a number.
        """
        batches = [self.task.batch(part, self.accelerator.device) for part in self._parts(self.images)]
        self._read_ahead(self.images + self.config.batch_size)
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
            norm = nn.utils.clip_grad_norm_(module.parameters(), self.config.grad_clip)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            means = {"gradient": float(norm), **self._mean_over_processes(totals)}
            for what in ("loss", "gradient"):
                if not math.isfinite(means[what]):
                    raise FloatingPointError(f"the {what} of the {objective.name} must stay finite, "
                                             f"got {means[what]} after {self.images} images")
            for group in optimizer.param_groups:
                group["lr"] = rate * objective.learning_rate_scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            prefix = "" if objective is self.task.objectives[0] else f"{objective.name}."
            report |= {prefix + name: value for name, value in means.items()}
        self.images += self.config.batch_size
        if self.ema is not None:
            decay = ema_decay(self.config, self.images)
            if self.sharded is None:
                update_ema(self.ema, self.task.ema_of, decay)
            else:
                self.sharded.update_average(decay)
        return report

    def close(self) -> None:
        """Gives up what was to be read for a next step."""
        self._read_ahead(self.config.images)

    def _push(self) -> None:
        """From the task's module and the EMA to the shards, where there are any."""
        if self.sharded is not None:
            self.sharded.push(self.ema)

    def _pull(self) -> None:
        """The other way."""
        if self.sharded is not None:
            self.sharded.pull(self.ema)

    def _leave_device(self) -> None:
        """The whole module beside shards lives on the CPU."""
        if self.sharded is not None:
            self.task.objectives[0].module.cpu()

    def _mean_over_processes(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return {name: float(value) for name, value in values.items()}
        stacked = torch.stack([value.float() for value in values.values()])
        means = cast("Tensor", self.accelerator.reduce(stacked, reduction="mean"))
        return dict(zip(values, means.tolist(), strict=True))

    def _read_ahead(self, images: int) -> None:
        """Lets the task read what the step after so many images will compute; nothing at the end."""
        if isinstance(self.task, ReadingAhead):
            parts = self._parts(images) if images < self.config.images else []
            self.task.read_ahead([part.start + i for part in parts for i in range(part.count)])

    def _parts(self, images: int) -> list[Part]:
        """This process's share of the step after so many images."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = self.config.batch_size // (self.config.accumulation * processes)
        return [Part(images + (i * processes + rank) * count, count) for i in range(self.config.accumulation)]


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


def _prepared(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """On its device, for several processes in DDP; on GPUs then with BatchNorm over all of them."""
    module.to(accelerator.device)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # replaces layers within: the task's own modules have them too
    return accelerator.prepare_model(module)


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))
