"""Weights, gradients, optimiser and EMA of a module sharded over the processes (FSDP2), beside a whole copy."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")
"""Classes whose instances are gathered one at a time; accelerate's fsdp_config is not asked."""


class Sharded:
    """The copy of a module that is trained, sharded.

    The whole module stays on the CPU of every process. `pull` brings the present weights there, before a state is
    saved or a picture is drawn; `push` sends the whole module's weights out. Weights are gathered in float32; autocast
    computes in bf16 where the config says so.

    Attributes:
        module: what the training steps call.
    """

    def __init__(self, whole: nn.Module, device: torch.device) -> None:
        """Copies and shards; every process must call it, as all methods."""
        self._whole = whole.cpu()
        self.module = copy.deepcopy(whole).to(device)
        for block in list(self.module.modules()):
            if type(block).__name__ in BLOCKS:
                fully_shard(block)
        fully_shard(self.module)
        self._average: dict[str, Tensor] | None = None

    @torch.no_grad()
    def push(self, ema: nn.Module | None) -> None:
        """The whole module's weights to the shards, and those of its EMA."""
        whole = self._whole.state_dict()
        for name, tensor in self.module.state_dict().items():
            if isinstance(tensor, Tensor):
                tensor.copy_(_like(whole[name], tensor))
        if ema is not None:
            averages = dict(ema.named_parameters())
            self._average = {name: _local(_like(averages[name], parameter)).clone()
                             for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def pull(self, ema: nn.Module | None) -> None:
        """The shards' weights to the whole module, and the average to its EMA."""
        whole = self._whole.state_dict()
        for name, tensor in self.module.state_dict().items():
            if isinstance(tensor, Tensor):
                whole[name].copy_(_full(tensor))
        if ema is None or self._average is None:
            return
        averages = dict(ema.named_parameters())
        for name, parameter in self.module.named_parameters():
            sharded = cast("DTensor", parameter)
            average = DTensor.from_local(self._average[name], sharded.device_mesh, sharded.placements,
                                         shape=sharded.shape, stride=sharded.stride())
            averages[name].copy_(average.full_tensor())
        for mine, theirs in zip(ema.buffers(), self._whole.buffers(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """One step of the EMA, each process on its shards."""
        if self._average is not None:
            for name, parameter in self.module.named_parameters():
                self._average[name].lerp_(_local(parameter), 1 - decay)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As `optimizer.state_dict()` of the whole module would be, on the CPU."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = optimizer.state_dict()
        state["state"] = {
            index: {key: _full(value).cpu() for key, value in optimizer.state[parameter].items()}
            for index, parameter in enumerate(parameters) if parameter in optimizer.state
        }
        return state

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Takes over a state of `optimizer_state`, or of the whole module's optimiser."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.load_state_dict({**state, "state": {}})
        for index, values in state["state"].items():
            parameter = parameters[index]
            optimizer.state[parameter] = {
                key: _like(value, parameter) if value.shape == parameter.shape else value.clone()
                for key, value in values.items()
            }


def _like(whole: Tensor, shard: Tensor) -> Tensor:
    """A whole tensor, sharded as another is."""
    if not isinstance(shard, DTensor):
        return whole.to(shard.device)
    return distribute_tensor(whole.detach().to(shard.device), shard.device_mesh, shard.placements)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
