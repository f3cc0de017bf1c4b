"""Tiny Stable Diffusion pipelines from diffusers' own classes, as a folder and under the original names."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from text2layer_core.conversion import ldm_key

LEVELS = 2
LAYERS = 1


def make_sd() -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """Random weights, SD v1's architecture at two levels; no weight is zero."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * LEVELS, up_block_types=("UpDecoderBlock2D",) * LEVELS,
        block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=32, latent_channels=4,
    ).eval()
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64), layers_per_block=LAYERS,
        attention_head_dim=8, cross_attention_dim=32,
    ).eval()
    return vae, unet


def save_folder(folder: Path) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """Written by diffusers itself."""
    vae, unet = make_sd()
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                  set_alpha_to_one=False, steps_offset=1).save_pretrained(folder / "scheduler")
    return vae, unet


def ldm_unet_key(key: str, unet: nn.Module) -> str:
    """The original code's name of a UNet's tensor, by the table of diffusers' script back to the original format."""
    whole = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    for ours, theirs in whole.items():
        if key.startswith(ours + "."):
            return key.replace(ours, theirs, 1)
    names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
             "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    place, *rest = key.split(".")
    step = LAYERS + 1
    if place == "mid_block":
        kind, index = rest[0], int(rest[1])
        start, rest = f"middle_block.{2 * index if kind == 'resnets' else 1}", rest[2:]
    else:
        level, kind, index = int(rest[0]), rest[1], int(rest[2])
        rest = rest[3:]
        if kind == "downsamplers":
            return ".".join([f"input_blocks.{step * (level + 1)}.0.op", *rest[1:]])
        if kind == "upsamplers":
            attends = bool(getattr(unet, place)[level].attentions) if hasattr(
                getattr(unet, place)[level], "attentions") else False
            return ".".join([f"output_blocks.{step * level + LAYERS}.{2 if attends else 1}", *rest])
        if place == "down_blocks":
            start = f"input_blocks.{step * level + index + 1}.{0 if kind == 'resnets' else 1}"
        else:
            start = f"output_blocks.{step * level + index}.{0 if kind == 'resnets' else 1}"
    if kind == "resnets":
        rest[0] = names[rest[0]]
    return ".".join([start, *rest])


def save_file_of_sd(path: Path) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """One file as the original code's checkpoints are, with an EMA and a text encoder beside them."""
    vae, unet = make_sd()
    tensors: dict[str, Tensor] = {
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(8),
        "model_ema.decay": torch.tensor(0.999), "betas": torch.ones(1000),
    }
    for key, tensor in vae.state_dict().items():
        name = ldm_key(key, LEVELS)
        is_attention = ".attn_1." in name and tensor.ndim == 2
        tensors["first_stage_model." + name] = tensor[:, :, None, None] if is_attention else tensor
    for key, tensor in unet.state_dict().items():
        tensors["model.diffusion_model." + ldm_unet_key(key, unet)] = tensor
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return vae, unet
