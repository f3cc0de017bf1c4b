"""Stable Diffusion 1.x weights as people have them: a diffusers folder, or one file with the original key names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from text2layer_core.autoencoder import AutoencoderConfig
from text2layer_core.checkpoint import CheckpointError, check_is_safetensors, check_keys, one_line
from text2layer_core.conversion import (
    AUTOENCODER_PREFIXES,
    diffusers_weights,
    read_json,
    read_sd_autoencoder,
    read_sd_unet,
)
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.unet import UNetConfig, build_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_UNET_PREFIX = "model.diffusion_model."
_SD_HEADS, _SD_GROUPS = 8, 32  # not to be read off a file's shapes
_SCHEDULER_FIELDS = ("prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


@dataclass(frozen=True)
class StableDiffusion:
    """What is taken over.

    Attributes:
        autoencoder: the autoencoder's shape as a CaT2I-AE's.
        autoencoder_weights: of `AutoencoderKL`, under diffusers' names.
        unet: in eval mode; None where only an autoencoder was asked for.
        schedule: with the latent scale.
    """

    autoencoder: AutoencoderConfig
    autoencoder_weights: Mapping[str, Tensor]
    unet: UNet2DConditionModel | None
    schedule: ScheduleConfig


def read_sd(path: Path, dtype: torch.dtype = torch.float32, *, unet: bool = True) -> StableDiffusion:
    """Reads Stable Diffusion 1.x; nothing is downloaded, and the text encoder is left alone.

    Args:
        path: a diffusers folder (`vae/`, `unet/`, `scheduler/`), or a .safetensors checkpoint with the original names
            ("first_stage_model.", "model.diffusion_model."). The weights that training ended with are taken, an EMA
            beside them is not.
        dtype: of the UNet; the autoencoder is float32.
        unet: False reads the autoencoder alone; then a folder or file of a VAE alone will do.

    Raises:
        CheckpointError: something is missing, damaged, pickled, or of another kind than Stable Diffusion 1.x.
    """
    if path.is_dir():
        return _read_folder(path, dtype, unet=unet)
    if not path.exists():
        raise CheckpointError("Stable Diffusion must be a diffusers folder or a .safetensors file, found "
                              f"neither at {path}")
    return _read_file(path, dtype, unet=unet)


@torch.no_grad()
def widen_unet(wide: nn.Module, narrow: nn.Module) -> None:
    """Copies a UNet into one with several times its latent channels, as the paper widens SD v1's at both ends.

    The paper is silent about how: here every part of the wide latent enters through the narrow weights, divided by the
    number of parts, and leaves through them.
    """
    state = dict(narrow.state_dict())
    shapes = {key: tensor.shape for key, tensor in wide.state_dict().items()}
    parts = shapes["conv_in.weight"][1] // state["conv_in.weight"].shape[1]
    state["conv_in.weight"] = state["conv_in.weight"].repeat(1, parts, 1, 1) / parts
    for key in ("conv_out.weight", "conv_out.bias"):
        state[key] = state[key].repeat(parts, *[1] * (state[key].ndim - 1))
    wide.load_state_dict(state)


def _read_folder(path: Path, dtype: torch.dtype, *, unet: bool) -> StableDiffusion:
    folder = path / "vae" if (path / "vae").is_dir() else path
    values = read_json(folder / "config.json")
    try:
        config = AutoencoderConfig(
            latent_channels=values["latent_channels"], block_out_channels=tuple(values["block_out_channels"]),
            layers_per_block=values["layers_per_block"], norm_num_groups=values["norm_num_groups"],
        )
        scale = values["scaling_factor"] if "scaling_factor" in values else ScheduleConfig().latent_scale
        schedule = ScheduleConfig(latent_scale=scale)
        if (path / "scheduler" / "scheduler_config.json").is_file():
            scheduler = read_json(path / "scheduler" / "scheduler_config.json")
            schedule = replace(schedule, **{key: scheduler[key] for key in _SCHEDULER_FIELDS if key in scheduler})
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json must be an AutoencoderKL's, it has no {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} must be Stable Diffusion 1.x: {one_line(error)}") from error
    tensors = {key: tensor.float() for key, tensor in _tensors(diffusers_weights(folder), "").items()}
    weights = read_sd_autoencoder(config, tensors)
    found = read_sd_unet(path / "unet", dtype) if unet else None
    return StableDiffusion(config, weights, found, schedule)


def _read_file(path: Path, dtype: torch.dtype, *, unet: bool) -> StableDiffusion:
    prefixes = [start for start in AUTOENCODER_PREFIXES if _tensors(path, start + "encoder.conv_in.")]
    tensors = {key: tensor.float() for key, tensor in _tensors(path, prefixes[0] if prefixes else "").items()}
    config = _autoencoder_config(path, tensors)
    weights = read_sd_autoencoder(config, tensors)
    found = None
    if unet:
        found = _convert_unet(path, _tensors(path, _UNET_PREFIX), dtype)
    return StableDiffusion(config, weights, found, ScheduleConfig())


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin with a prefix, under the rest of their names."""
    check_is_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            names: Iterable[str] = handle.keys()
            return {name.removeprefix(prefix): handle.get_tensor(name) for name in names if name.startswith(prefix)}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error


def _autoencoder_config(path: Path, tensors: Mapping[str, Tensor]) -> AutoencoderConfig:
    """The shape of an autoencoder under the original names or diffusers'."""
    block = re.compile(r"encoder\.(?:down|down_blocks)\.(\d+)\.(?:block|resnets)\.(\d+)\.conv1\.weight")
    found = {(int(match[1]), int(match[2])): len(tensor) for key, tensor in tensors.items()
             if (match := block.fullmatch(key))}
    if not found or "post_quant_conv.weight" not in tensors:
        raise CheckpointError(f"{path} must hold Stable Diffusion's autoencoder, found no tensors of one")
    return AutoencoderConfig(
        latent_channels=len(tensors["post_quant_conv.weight"]),
        block_out_channels=tuple(width for (_, layer), width in sorted(found.items()) if layer == 0),
        layers_per_block=1 + max(layer for _, layer in found), norm_num_groups=_SD_GROUPS,
    )


def _convert_unet(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet from the original names, by diffusers' own conversion."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = _unet_config(path, tensors)
    named: dict[str, Any] = {_UNET_PREFIX + key: tensor for key, tensor in tensors.items()}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(named, {"layers_per_block": config.layers_per_block})
    with torch.device("meta"):
        unet = build_unet(config)
    expected = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    check_keys(str(path), expected, {key: tuple(tensor.shape) for key, tensor in converted.items()})
    unet.load_state_dict({key: tensor.to(dtype) for key, tensor in converted.items()}, assign=True)
    return unet.eval()


def _unet_config(path: Path, tensors: Mapping[str, Tensor]) -> UNetConfig:
    """The UNet's shape, read off its tensors; the heads are Stable Diffusion 1.x's eight.

    Raises:
        CheckpointError: there is no UNet, or one of another kind.
    """
    missing = [key for key in ("input_blocks.0.0.weight", "out.2.weight") if key not in tensors]
    if missing:
        raise CheckpointError(f"{path} must hold Stable Diffusion's UNet under {_UNET_PREFIX}, found no "
                              f"{', '.join(missing)}")
    entering, leaving = tensors["input_blocks.0.0.weight"].shape[1], len(tensors["out.2.weight"])
    widths: list[list[int]] = [[]]
    attends: list[bool] = [False]
    context = [tensor.shape[1] for key, tensor in tensors.items() if key.endswith("attn2.to_k.weight")]
    linear = any(key.endswith("proj_in.weight") and tensor.ndim == 2 for key, tensor in tensors.items())
    if entering != leaving or linear or any(key.startswith("label_emb.") for key in tensors) or not context:
        raise CheckpointError(
            f"{path} must hold a text-to-image UNet of Stable Diffusion 1.x, got one with {entering} channels in, "
            f"{leaving} out, {'linear' if linear else 'convolutional'} projections"
        )
    block = 1
    while any(key.startswith(f"input_blocks.{block}.") for key in tensors):
        weight = tensors.get(f"input_blocks.{block}.0.in_layers.2.weight")
        if weight is None:
            widths.append([])
            attends.append(False)
        else:
            widths[-1].append(len(weight))
            attends[-1] |= any(key.startswith(f"input_blocks.{block}.1.") for key in tensors)
        block += 1
    if len({len(level) for level in widths}) != 1 or not all(len(set(level)) == 1 for level in widths):
        raise CheckpointError(f"{path} must hold a UNet with equal levels, got widths {json.dumps(widths)}")
    try:
        return UNetConfig(
            in_channels=entering, block_out_channels=tuple(level[0] for level in widths),
            layers_per_block=len(widths[0]), attention_levels=tuple(attends), num_heads=_SD_HEADS,
            cross_attention_dim=context[0],
        )
    except ValueError as error:
        raise CheckpointError(f"{path} must hold Stable Diffusion 1.x's UNet: {error}") from error
