"""What a training needs before it is begun: memory, and days on given GPUs. No weights, no data, no GPU.

One step is run on fake tensors, which have shapes alone. Its floating-point operations are those that
`torch.utils.flop_counter` counts forwards and backwards (matrix products, convolutions, attention). Days are these
over the GPUs' peak times a utilisation. That of 35 % is an assumption, not a measurement; data that does not keep up
lowers it. What gradient checkpointing computes anew is counted.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from train.engine import Objective
from train.training_config import TrainingConfig

UTILISATION = 0.35
GIB = 2**30
_ATTENTION: dict[Any, Any] = {  # the counter knows the kernels of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value),
}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: dense peak in TFLOP/s by its maker's data sheet, and memory in GB."""

    bf16: float
    fp32: float
    memory: int


GPUS = {
    "A10G": Gpu(70, 31.2, 24),
    "RTX3090": Gpu(71, 35.6, 24),
    "RTX4090": Gpu(165, 82.6, 24),
    "L40S": Gpu(362, 91.6, 48),
    "A100": Gpu(312, 19.5, 80),
    "H100": Gpu(989, 67, 80),
    "H200": Gpu(989, 67, 141),
    "B200": Gpu(2250, 80, 180),
}


@dataclass(frozen=True)
class Rehearsal:
    """A step to be run on fake tensors.

    Attributes:
        objectives: built on the meta device.
        ema_of: what has an EMA.
        batch: the objectives' input of n samples.
        frozen: modules beside them that take memory.
        prepare: what is computed for n samples without gradients; None where it is cached.
        notes: what the figures leave out.
    """

    objectives: Sequence[Objective]
    ema_of: nn.Module
    batch: Callable[[int], Any]
    frozen: Sequence[nn.Module] = ()
    prepare: Callable[[int], object] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Estimate:
    """What a step takes on one GPU, in bytes; floating-point operations are for one sample.

    Attributes:
        parameters: objective -> values, frozen ones included.
        weights: of everything, frozen networks too, in float32.
        gradients: of what is trained.
        optimizer: AdamW's two momenta.
        ema: 0 where there is none or it is on the CPU.
        activations: the most that the passes forwards and backwards held at once, for `count` samples.
        count: samples that one GPU computes at a time.
        operations: forwards and backwards, and of what is computed without gradients.
    """

    parameters: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    count: int
    operations: float

    @property
    def memory(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations

    def days(self, gpu: Gpu, count: int, images: int, utilisation: float, precision: str) -> float:
        """Days for so many images on `count` GPUs."""
        peak = gpu.bf16 if precision == "bf16" else gpu.fp32
        return self.operations * images / (count * peak * 1e12 * utilisation) / 86_400


class _Peak(TorchDispatchMode):
    """Counts the bytes that tensors made within hold, and the most they ever held."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, found)
        return found

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that were there before."""
        self._seen |= {_key(tensor) for tensor in tensors}

    def _note(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _key(tensor: Tensor) -> int:
    """Tells storages apart; fake ones have no address."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def estimate(rehearse: Callable[[], Rehearsal], config: TrainingConfig, processes: int) -> Estimate:
    """Rehearses one part of a step as one of so many processes computes it.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    parts = config.accumulation * processes
    if config.batch_size % parts:
        raise ValueError(f"batch_size must be a multiple of accumulation x processes = {parts}, "
                         f"got {config.batch_size}")
    count = config.batch_size // parts
    with torch.device("meta"):
        made = rehearse()
    modules = [objective.module for objective in made.objectives]
    everything = nn.ModuleList([*modules, *made.frozen])
    with FakeTensorMode(allow_non_fake_inputs=True):
        nn.Module.to_empty(everything, device="cpu")
        autocast = torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext()
        trained = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        counter, peak = FlopCounterMode(display=False, custom_mapping=_ATTENTION), _Peak()
        peak.ignore([*everything.parameters(), *everything.buffers(), *(p.grad for p in trained if p.grad is not None)])
        with counter, peak:
            if made.prepare is not None:
                with torch.no_grad(), autocast:
                    made.prepare(count)
            batch = made.batch(count)
            for module in modules:
                with autocast:
                    loss = module(batch)["loss"]
                loss.backward()
    trained_bytes = 4 * sum(parameter.numel() for parameter in trained)
    has_ema = config.ema_half_life > 0 and config.ema_device == "model"
    return Estimate(
        parameters={o.name: sum(p.numel() for p in o.module.parameters()) for o in made.objectives},
        weights=4 * sum(parameter.numel() for parameter in everything.parameters()),
        gradients=trained_bytes, optimizer=2 * trained_bytes,
        ema=4 * sum(parameter.numel() for parameter in made.ema_of.parameters()) if has_ema else 0,
        activations=peak.peak, count=count, operations=counter.get_total_flops() / count,
    )


def parse_gpus(text: str) -> tuple[int, str]:
    """"8xA100" -> (8, "A100").

    Raises:
        ValueError: no such kind, or no such form.
    """
    match = re.fullmatch(r"(\d+)x([A-Za-z0-9]+)", text)
    if match is None or int(match[1]) < 1 or match[2].upper() not in GPUS:
        raise ValueError(f"--gpus must be like 8xA100, of {', '.join(GPUS)}, got {text}")
    return int(match[1]), match[2].upper()


def memory_line(found: Estimate) -> str:
    """Where the memory goes, in one line."""
    parts = (("weights", found.weights), ("gradients", found.gradients), ("optimiser", found.optimizer),
             ("EMA", found.ema), (f"activations of {found.count}", found.activations))
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
    return f"memory estimate {found.memory / GIB:.2f} GiB: {listed}"


def report(
    found: Estimate, config: TrainingConfig, gpus: str, *, utilisation: float, seen: int, notes: Sequence[str] = ()
) -> list[str]:
    """Memory and days on some GPUs, a line each.

    Args:
        found: for the count of GPUs.
        config: how many images.
        gpus: see `parse_gpus`.
        utilisation: share of the peak, in (0, 1].
        seen: images that the training goes on from.
        notes: what the figures leave out.

    Raises:
        ValueError: a number out of range.
    """
    count, kind = parse_gpus(gpus)
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation must be in (0, 1], got {utilisation}")
    if not 0 <= seen < config.images:
        raise ValueError(f"--seen must be in [0, {config.images}), got {seen}")
    gpu, images = GPUS[kind], config.images - seen
    days = found.days(gpu, count, images, utilisation, config.precision)
    fits = "fits" if found.memory < 0.92 * gpu.memory * 1e9 else "does not fit"
    peak = gpu.bf16 if config.precision == "bf16" else gpu.fp32
    return [
        f"{memory_line(found)}; {fits} on a {kind} of {gpu.memory} GB",
        f"{found.operations / 1e12:.3f} TFLOP an image, forwards and backwards",
        f"{days:.1f} days for {images:,} images on {count} {kind} at {utilisation:.0%} of {peak:g} TFLOP/s "
        f"({images / days / 86_400:.0f} images/s)",
        "FSDP (fsdp.yaml) is not counted: it shares weights, gradients, optimiser and EMA out among the GPUs",
        *notes,
    ]
