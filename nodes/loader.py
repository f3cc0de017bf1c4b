"""Text2LayerModelLoader: one file becomes MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.utils
from comfy_api.v0_0_2 import io

from .model_files import BUNDLED, model_names, model_path
from .schema import schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Text2LayerModelLoader(io.ComfyNode):
    """Loads a Text2Layer model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerModelLoader",
            display_name="Load Text2Layer Model",
            description="Loads a layered text-to-image model: MODEL for KSampler, CLIP for prompts, and a VAE whose "
            "latent holds foreground, background and mask. Stock nodes work on all three.",
            search_aliases=["layers", "layered", "transparent", "alpha", "checkpoint"],
            inputs=[
                io.Combo.Input("model", options=model_names(), default=BUNDLED,
                               tooltip="The bundled model, or a .safetensors file in models/text2layer.")
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The UNet, for KSampler and LoRA loaders."),
                io.Clip.Output("CLIP",
                               tooltip="The text encoder; none if the model was trained with CLIP-L, then load that."),
                io.Vae.Output("VAE", tooltip="The layered autoencoder."),
            ],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        """Loads all three parts; the host keeps them until another model is chosen."""
        from ..text2layer_core.checkpoint import read_header
        from .host_clip import load_clip
        from .host_unet import load_unet
        from .host_vae import LayeredVAE

        path = model_path(model)
        header = read_header(path)
        source = str(path)
        parts = _split(comfy.utils.load_torch_file(source, safe_load=True), source)
        return io.NodeOutput(
            load_unet(header, parts["unet"], source),
            load_clip(header, parts["text_encoder"], source),
            LayeredVAE(header, parts["autoencoder"], source),
        )


def _split(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part under its own names; CheckpointError for any that belongs to none."""
    from ..text2layer_core.checkpoint import check_keys

    parts: dict[str, dict[str, Tensor]] = {name: {} for name in ("unet", "text_encoder", "autoencoder")}
    strangers = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key.partition(".")[0] not in parts}
    check_keys(source, {}, strangers)
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return parts
