"""Our UNet as the host's own MODEL: its classes, filled with our tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..text2layer_core.checkpoint import CheckpointError, CheckpointHeader, check_keys
from .convert import SIZE

if TYPE_CHECKING:
    from ..text2layer_core.unet import UNetConfig

_MODEL_TYPES = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}
_BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear"}  # diffusers' names -> the host's


class Text2LayerLatent(comfy.latent_formats.LatentFormat):
    """One latent for all layers.

    Attributes:
        stride: pixels that a picture's sides are padded to a multiple of.
        downscale: pixels per latent cell along each side.
    """

    def __init__(self, header: CheckpointHeader) -> None:
        """Previews need the card's "latent_rgb": factors (C, 3) and bias (3,)."""
        self.latent_channels = header.autoencoder.latent_channels
        self.scale_factor = header.schedule.latent_scale
        self.downscale = self.spacial_downscale_ratio = header.autoencoder.downscale
        self.stride = header.stride
        preview = header.card.get("latent_rgb", {})
        self.latent_rgb_factors = preview.get("factors")
        self.latent_rgb_factors_bias = preview.get("bias")


class _ModelConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of a model it does not recognise by itself."""

    memory_usage_factor = 1.0  # Stable Diffusion v1's

    def __init__(self, header: CheckpointHeader, unet_config: Mapping[str, Any]) -> None:
        self.unet_extra_config = {}
        super().__init__(dict(unet_config))
        schedule = header.schedule
        self.latent_format = Text2LayerLatent(header)
        self.sampling_settings = {
            "beta_schedule": _BETA_SCHEDULES[schedule.beta_schedule],
            "linear_start": schedule.beta_start,
            "linear_end": schedule.beta_end,
            "timesteps": schedule.num_train_timesteps,
        }
        self._model_type = _MODEL_TYPES[schedule.prediction_type]

    def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return self._model_type

    def inpaint_model(self) -> bool:
        return False  # more than four channels are no inpainting model here


def load_unet(header: CheckpointHeader, tensors: Mapping[str, Tensor], path: str) -> comfy.model_patcher.ModelPatcher:
    """The UNet as the host's MODEL.

    Args:
        header: of the checkpoint.
        tensors: of its UNet, under diffusers' names.
        path: of the checkpoint, for messages.

    Returns:
        What a MODEL socket carries.

    Raises:
        CheckpointError: the file has no UNet, or tensors that do not fit.
    """
    if header.unet is None:
        raise CheckpointError(f"{path} has no UNet: it is the autoencoder alone, which cannot draw from a prompt")
    config = _ModelConfig(header, _host_unet_config(header.unet))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(tensors),
    )
    config.set_inference_dtype(
        dtype, comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    )
    model = config.get_model({}, "")
    shapes = module_shapes(model.diffusion_model)
    expected = {theirs: shapes[ours] for theirs, ours in names.items() if ours in shapes}
    check_keys(path, expected, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    model.to(offload_device)
    model.load_model_weights({names[key]: tensor for key, tensor in tensors.items()}, "")
    return patcher


def module_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors. With dynamic VRAM the host makes Linear's only at loading: its numbers give them."""
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for prefix, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[f"{prefix}.weight"] = (module.out_features, module.in_features)
            if getattr(module, "comfy_need_lazy_init_bias", module.bias is not None):
                shapes[f"{prefix}.bias"] = (module.out_features,)
    return shapes


def _host_unet_config(unet: UNetConfig) -> dict[str, Any]:
    """Arguments of the host's UNetModel for a UNet of Stable Diffusion v1's kind."""
    widths, blocks = unet.block_out_channels, unet.layers_per_block
    depths = [int(attends) for attends in unet.attention_levels]
    return {
        "image_size": 32,
        "in_channels": unet.in_channels,
        "out_channels": unet.in_channels,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [blocks] * len(widths),
        "transformer_depth": [depth for depth in depths for _ in range(blocks)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [depth for depth in depths for _ in range(blocks + 1)],
        "context_dim": unet.cross_attention_dim,
        "num_heads": unet.num_heads,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "adm_in_channels": None,
        "use_checkpoint": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }


def empty_latent(model: comfy.model_patcher.ModelPatcher, width: int, height: int, batch_size: int) -> dict:
    """A LATENT of zeros for a picture of any size; it remembers the size.

    Raises:
        ValueError: the model is none of ours.
    """
    latent_format = model.get_model_object("latent_format")
    if not isinstance(latent_format, Text2LayerLatent):
        raise ValueError(
            f"model must come from Load Text2Layer Model, got one whose latent is {type(latent_format).__name__}"
        )
    stride = latent_format.stride
    rows, columns = (-(-side // stride) * stride // latent_format.downscale for side in (height, width))
    samples = torch.zeros(
        batch_size, latent_format.latent_channels, rows, columns, device=comfy.model_management.intermediate_device()
    )
    return {"samples": samples, SIZE: (width, height)}
