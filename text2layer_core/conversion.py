"""Models as diffusers folders, and Stable Diffusion's autoencoder weights for CaT2I-AE's trunk (paper, "CaT2I-AE")."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .autoencoder import AutoencoderConfig, CaT2IAutoencoder, with_background_decoder
from .checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    Text2LayerModel,
    check_is_safetensors,
    check_keys,
    one_line,
    parse_config,
    unet_config,
)
from .schedule import ScheduleConfig
from .text_encoder import TextEncoder, clip_text_config
from .unet import build_unet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.")
_SCHEDULE_FIELDS = ("prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_UNET_FIELDS_WITHOUT_EFFECT = {"sample_size"}
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LDM_NAMES = (
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("resnets", "block"),
)


def to_diffusers(model: Text2LayerModel, folder: str | Path) -> None:
    """Write a model as a diffusers folder, every tensor as it is.

    `unet/`, `text_encoder/`, `tokenizer/` and `scheduler/` are those of Stable Diffusion v1 and open with diffusers and
    transformers; `autoencoder/` (config.json and safetensors) and `text2layer.json` (the training card) are ours. Parts
    that the model lacks are left out.

    Args:
        model: the model; it is not changed.
        folder: a new or empty folder. It appears only once everything in it is written.

    Raises:
        ValueError: if the folder holds something already, or the card cannot be written as JSON.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must be new or empty, got {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staging = Path(temporary) / folder.name
        staging.mkdir()
        _write_autoencoder(model, staging / "autoencoder")
        _write_scheduler(model.schedule, staging / "scheduler")
        if model.unet is not None:
            model.unet.save_pretrained(staging / "unet")
        if model.text_encoder is not None:
            _write_text_encoder(model.text_encoder, staging)
        card = {"format": FORMAT_VERSION, "card": model.card, "external_text_encoder": model.external_text_encoder}
        _write_json(staging / "text2layer.json", card)
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)


def from_diffusers(folder: str | Path) -> Text2LayerModel:
    """Read a folder of `to_diffusers`, in float32 on the CPU, every part in eval mode. Nothing is downloaded.

    Raises:
        CheckpointError: if the folder or a file is missing or damaged, if keys are missing, unexpected or wrongly
            shaped (all of a part's are named), or if the UNet is none that `UNetConfig` can describe.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no such folder: {folder}")
    autoencoder, latent_scale = _read_autoencoder(folder / "autoencoder")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    about = read_json(folder / "text2layer.json")
    try:
        known = {key: scheduler[key] for key in _SCHEDULE_FIELDS}
        schedule = parse_config(ScheduleConfig, {**known, "latent_scale": latent_scale})
        unet = read_sd_unet(folder / "unet") if (folder / "unet").is_dir() else None
        text_encoder = _read_text_encoder(folder) if (folder / "text_encoder").is_dir() else None
        external = about.get("external_text_encoder")
        return Text2LayerModel(autoencoder, unet, text_encoder, schedule, about["card"], external)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder} has no {error} in its configs") from error
    except (TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder} is damaged: {one_line(error)}") from error


def load_sd_autoencoder(autoencoder: CaT2IAutoencoder, weights: Mapping[str, Tensor] | str | Path) -> None:
    """Copy the weights of Stable Diffusion's `AutoencoderKL` into the trunk, in place.

    Widening the encoder's first convolution from 3 to 7 channels is our choice, since the paper trains from scratch:
    the foreground's channels take the weights, those of background and mask are zero, so that at first the encoder sees
    the foreground just as Stable Diffusion would. The decoder's last layer (`conv_out`) is dropped, as in the paper;
    the heads stay as they are, and a decoder of the background alone starts as the shared one.

    Args:
        autoencoder: a CaT2I-AE with a plain stem (patch size 1) and SD's widths; keeps its device and dtype.
        weights: a safetensors file or its tensors, under diffusers' names (older ones too) or those of the original
            LDM code, alone or within a whole Stable Diffusion checkpoint ("first_stage_model.", "vae.").

    Raises:
        ValueError: if the patch size is not 1.
        CheckpointError: for a file that cannot be read, or keys that are missing, unexpected or wrongly shaped; then
            the autoencoder is unchanged.
    """
    found = read_sd_autoencoder(autoencoder.config, weights)
    found = {key: tensor for key, tensor in found.items() if not key.startswith("decoder.conv_out.")}
    widened = "encoder.conv_in.weight"
    found[widened] = torch.cat([found[widened], found[widened].new_zeros(len(found[widened]), 4, 3, 3)], dim=1)
    if autoencoder.config.background_decoder:
        found = with_background_decoder(found)
    autoencoder.load_state_dict(found, strict=False)


def read_sd_autoencoder(config: AutoencoderConfig, weights: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    """The weights of Stable Diffusion's `AutoencoderKL` under diffusers' names, `decoder.conv_out` among them.

    Args:
        config: of a CaT2I-AE with a plain stem (patch size 1) and the weights' widths and latent channels.
        weights: as `load_sd_autoencoder` takes them.

    Raises:
        ValueError: if the patch size is not 1.
        CheckpointError: for a file that cannot be read, or keys that are missing, unexpected or wrongly shaped.
    """
    if config.patch_size != 1:
        raise ValueError(f"autoencoder must have patch_size 1 to take SD's weights, got {config.patch_size}")
    source, tensors = ("the state dict", weights) if not isinstance(weights, str | Path) else _read(Path(weights))
    with torch.device("meta"):
        own = CaT2IAutoencoder(replace(config, background_decoder=False)).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in own.items() if not key.startswith("heads.")}
    found = _under_diffusers_names(tensors, list(expected), levels=len(config.block_out_channels))
    width = config.block_out_channels[0]
    expected |= {"encoder.conv_in.weight": (width, 3, 3, 3), "decoder.conv_out.weight": (3, width, 3, 3),
                 "decoder.conv_out.bias": (3,)}
    check_keys(source, expected, {key: tuple(tensor.shape) for key, tensor in found.items()})
    return found


def ldm_key(key: str, levels: int) -> str:
    """Name of an autoencoder's tensor in the original LDM code.

    Args:
        key: diffusers' name, such as "decoder.up_blocks.0.resnets.1.conv1.weight".
        levels: number of resolutions; LDM counts the decoder's from the finest, diffusers from the coarsest.

    Returns:
        LDM's name, such as "decoder.up.3.block.1.conv1.weight".
    """
    for ours, theirs in _LDM_NAMES:
        key = re.sub(rf"\b{re.escape(ours)}\b", theirs, key)
    key = re.sub(r"\bdown_blocks\.(\d+)", r"down.\1", key)
    return re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)


def _under_diffusers_names(tensors: Mapping[str, Tensor], keys: list[str], levels: int) -> dict[str, Tensor]:
    """The autoencoder's tensors of a file, renamed; attention weights that are 1x1 convolutions become matrices."""
    dropped = [f"decoder.conv_out.{kind}" for kind in ("weight", "bias")]
    names = {ldm_key(key, levels): key for key in [*keys, *dropped]}
    prefix = next((start for start in AUTOENCODER_PREFIXES if any(key.startswith(start) for key in tensors)), "")
    renamed: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        if not original.startswith(prefix):
            continue
        key = original.removeprefix(prefix)
        key = names.get(key, re.sub(r"(?<=attentions\.0\.)\w+", lambda found: _new_name(found[0]), key))
        is_convolution = ".attentions." in key and tensor.ndim == 4
        renamed[key] = tensor[:, :, 0, 0] if is_convolution else tensor
    return renamed


def _new_name(name: str) -> str:
    return _OLD_ATTENTION_NAMES.get(name, name)


def _write_autoencoder(model: Text2LayerModel, folder: Path) -> None:
    folder.mkdir()
    config = {"_class_name": "CaT2IAutoencoder", "scaling_factor": model.schedule.latent_scale}
    _write_json(folder / "config.json", {**config, **asdict(model.autoencoder.config)})
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.autoencoder.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _write_scheduler(schedule: ScheduleConfig, folder: Path) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    arguments = {key: getattr(schedule, key) for key in _SCHEDULE_FIELDS}
    DDIMScheduler(
        **arguments, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading", steps_offset=1
    ).save_pretrained(folder)


def _write_text_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Keys with CLIP's "text_model." in front, which every version of transformers reads."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    config = CLIPTextConfig(**clip_text_config(encoder.config, start_id=encoder.start_id, end_id=encoder.end_id))
    with torch.device("meta"):
        shell = CLIPTextModel(config)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in encoder.state_dict().items()}
    shell.save_pretrained(folder / "text_encoder", state_dict=state)
    tokenizer = CLIPTokenizer(tokenizer_object=encoder.tokenizer, model_max_length=encoder.config.max_length)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer.json").write_text(encoder.tokenizer_json, encoding="utf-8")


def _read_autoencoder(folder: Path) -> tuple[CaT2IAutoencoder, float]:
    config = read_json(folder / "config.json")
    try:
        latent_scale = config.pop("scaling_factor")
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        parsed = parse_config(AutoencoderConfig, values)
    except KeyError as error:
        raise CheckpointError(f"{folder} has no {error} in its config.json") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} has a damaged config.json: {one_line(error)}") from error
    autoencoder = CaT2IAutoencoder(parsed)
    _load_strictly(autoencoder, *_read(folder / WEIGHTS))
    return autoencoder, latent_scale


def read_sd_unet(folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The UNet of a diffusers folder's `unet`, in eval mode.

    Args:
        folder: config.json and the weights, of full precision or, where only these are there, of the fp16 variant.
        dtype: of all parameters.

    Raises:
        CheckpointError: if a file is missing or damaged, or if the UNet is not of Stable Diffusion v1's kind.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    values = read_json(folder / "config.json")
    with torch.device("meta"):
        wanted = cast("UNet2DConditionModel", UNet2DConditionModel.from_config(values))
        unet = build_unet(unet_config(wanted))
    differing = sorted(
        key
        for key, value in _plain(dict(unet.config)).items()
        if not key.startswith("_") and key not in _UNET_FIELDS_WITHOUT_EFFECT and _plain(wanted.config[key]) != value
    )
    if differing:
        raise CheckpointError(f"{folder} must hold a UNet of Stable Diffusion v1's kind, it differs in {differing}")
    source, tensors = _read(diffusers_weights(folder))
    _load_strictly(unet, source, {key: tensor.to(dtype) for key, tensor in tensors.items()}, assign=True)
    return unet


def diffusers_weights(folder: Path) -> Path:
    """The weights of a part of a diffusers folder: full precision, else the fp16 variant."""
    half = folder / WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    return half if half.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A config's value as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def _read_text_encoder(folder: Path) -> TextEncoder:
    """The encoder with the tokenizer's own JSON where the folder has it; `from_clip` also knows CLIP's other files."""
    source, tensors = _read(folder / "text_encoder" / "model.safetensors")
    clip = TextEncoder.from_clip(folder)
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    tokenizer_json = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else clip.tokenizer_json
    encoder = TextEncoder(clip.config, tokenizer_json)
    named = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in tensors.items()}
    named = {key: tensor for key, tensor in named.items() if not key.endswith(".position_ids")}
    _load_strictly(encoder, source, named)
    return encoder


def _load_strictly(
    part: torch.nn.Module, source: str, tensors: Mapping[str, Tensor], *, assign: bool = False
) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
    check_keys(source, expected, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    part.load_state_dict(tensors, assign=assign)
    part.eval()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    check_is_safetensors(path)
    try:
        return str(path), load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card must hold only what JSON can: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object")
    return values
