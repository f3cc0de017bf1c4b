"""LoRA (Hu et al. 2022) on the UNet, by peft: a small adapter that goes on any checkpoint with the same base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from text2layer_core.atomic import write_tensors
from text2layer_core.checkpoint import unet_config
from text2layer_core.unet import build_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """What is adapted.

    Attributes:
        base: checkpoint whose UNet (and small text encoder) stays as it is.
        rank: of each update.
        alpha: each update counts alpha / rank.
        targets: ends of the names of the linear and convolutional layers that are adapted; the default is attention's.
    """

    base: str
    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise ValueError("lora must have a rank of at least 1, an alpha above 0 and targets, got rank "
                             f"{self.rank}, alpha {self.alpha}, targets {list(self.targets)}")


def add_lora(unet: UNet2DConditionModel, section: LoraSection) -> list[nn.Parameter]:
    """Puts adapters into a UNet and freezes all else.

    Each starts as no change (its second matrix is zero).

    Returns:
        The adapters' parameters.

    Raises:
        ValueError: no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=list(section.targets),  # pyright: ignore[reportArgumentType] - floats are fine
                        init_lora_weights="gaussian")
    try:
        inject_adapter_in_model(config, unet, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ValueError(f"lora: targets must name layers of the UNet, got {list(section.targets)}") from error
    parameters = [parameter for name, parameter in unet.named_parameters() if ".lora_" in name]
    unet.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@torch.no_grad()
def merged_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A plain UNet with the adapters worked into its weights, on the same device, in eval mode."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in unet.state_dict().items()
             if ".lora_" not in name}
    for name, layer in _adapted(unet):
        weight = f"{name}.weight"
        delta: Tensor = layer.get_delta_weight(_ADAPTER)
        state[weight] = state[weight] + delta.to(state[weight])
    with torch.device("meta"):
        merged = build_unet(unet_config(unet))
    merged.load_state_dict(state, assign=True)
    return merged.eval()


def save_lora(path: Path, unet: UNet2DConditionModel, section: LoraSection, card: dict[str, Any]) -> None:
    """Writes the adapters alone, to a temporary name first.

    The names are those of diffusers' layers in kohya's form ("lora_unet_down_blocks_..._to_q.lora_down.weight", with
    an alpha each), which ComfyUI's LoRA loaders and diffusers' `load_lora_weights` both read; ComfyUI reads neither
    PEFT's names nor diffusers' dotted ones for models of this kind.

    Args:
        path: a .safetensors file.
        unet: of `add_lora`.
        section: what it was made with.
        card: goes into the metadata beside the section.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in _adapted(unet):
        flat = "lora_unet_" + name.replace(".", "_")
        for ours, theirs in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            weight: Tensor = getattr(layer, ours)[_ADAPTER].weight
            tensors[f"{flat}.{theirs}.weight"] = weight.detach().cpu().clone().contiguous()
        tensors[f"{flat}.alpha"] = torch.tensor(float(section.alpha))
    metadata = {"text2layer.lora": json.dumps(asdict(section)), "text2layer.card": json.dumps(card)}
    write_tensors(path, tensors, metadata)


def _adapted(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
