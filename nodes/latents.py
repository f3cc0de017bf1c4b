"""Text2LayerEmptyLatent, Text2LayerEncode and Text2LayerDecode: between latents and layers."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from .convert import layer_outputs as converted
from .convert import layers_from_images
from .host_unet import Text2LayerLatent
from .host_vae import LayeredVAE
from .preview import layers_preview
from .schema import layer_outputs, schema, size_inputs

SIZE = "text2layer_size"
MAX_BATCH = 64


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


def visible_size(samples: Tensor, size: tuple[int, int] | None, vae: LayeredVAE) -> tuple[int, int]:
    """Width and height to crop to: the size that the latent remembers, if it is still that latent's."""
    height, width = (cells * vae.downscale_ratio for cells in samples.shape[-2:])
    if size is not None and all(
        -(-wanted // vae.stride) * vae.stride == found for wanted, found in zip(size, (width, height), strict=True)
    ):
        return size
    return width, height


def check_vae(vae: object) -> LayeredVAE:
    """The VAE, if it is ours.

    Raises:
        ValueError: it is another.
    """
    if not isinstance(vae, LayeredVAE):
        raise ValueError(f"vae must come from Load Text2Layer Model, got {type(vae).__name__}")
    return vae


def decode(latent: dict, vae: LayeredVAE, cls: type[io.ComfyNode]) -> io.NodeOutput:
    """The outputs and the preview of a latent, cropped to the size that it remembers."""
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != vae.latent_channels:
        raise ValueError(
            f"samples must have the VAE's {vae.latent_channels} channels, got a latent of shape {tuple(samples.shape)}"
        )
    comfy.model_management.throw_exception_if_processing_interrupted()
    decoded = vae.decode_layers(samples)
    width, height = visible_size(samples, latent.get(SIZE), vae)
    layers = decoded.layers.crop(height, width)
    predicted = None if decoded.predicted_composed is None else decoded.predicted_composed[..., :height, :width]
    return io.NodeOutput(*converted(layers), ui=layers_preview(layers, predicted, cls))


class Text2LayerEmptyLatent(io.ComfyNode):
    """Makes the latent to start from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerEmptyLatent",
            display_name="Empty Layered Latent",
            description="The latent to start from, at any size: sides are padded for the model, and Decode Layers "
            "crops them back.",
            search_aliases=["empty latent", "size", "layers"],
            inputs=[
                io.Model.Input("model", tooltip="Of Load Text2Layer Model: it knows the latent's channels."),
                *size_inputs(),
                io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH,
                             tooltip=f"Pictures to draw at once, 1 to {MAX_BATCH}."),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="For KSampler's latent_image.")],
        )

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, width: int, height: int, batch_size: int
    ) -> io.NodeOutput:
        """Zeros of the padded size."""
        return io.NodeOutput(empty_latent(model, width, height, batch_size))


class Text2LayerDecode(io.ComfyNode):
    """Decodes a latent to its layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerDecode",
            display_name="Decode Layers",
            description="Decodes one latent to foreground, background, mask and their composition, and to a layer "
            "document. Everything is blended on stored sRGB values; ComfyUI's own compositor blends in linear light.",
            search_aliases=["layers", "vae decode", "transparent", "alpha", "rgba"],
            inputs=[
                io.Latent.Input("samples", tooltip="Of KSampler or Encode Layers."),
                io.Vae.Input("vae", tooltip="Of Load Text2Layer Model."),
            ],
            outputs=layer_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict, vae: LayeredVAE) -> io.NodeOutput:
        """Decodes, crops, shows."""
        return decode(samples, check_vae(vae), cls)


class Text2LayerEncode(io.ComfyNode):
    """Encodes layers to a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerEncode",
            display_name="Encode Layers",
            description="Encodes foreground, background and mask to the one latent that holds all of them, for "
            "KSampler at a denoise below 1. Foreground colour under mask 0 is continued from its edge first.",
            search_aliases=["layers", "vae encode", "img2img"],
            inputs=[
                io.Image.Input("foreground", tooltip="RGB, or RGBA whose alpha is left out: the mask counts."),
                io.Image.Input("background", tooltip="RGB, of the foreground's size."),
                io.Mask.Input("foreground_mask",
                              tooltip="1 where the foreground shows; invert the MASK of Load Image. One mask, or one "
                              "per picture."),
                io.Vae.Input("vae", tooltip="Of Load Text2Layer Model."),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="For KSampler or Decode Layers.")],
        )

    @classmethod
    def execute(
        cls, foreground: Tensor, background: Tensor, foreground_mask: Tensor, vae: LayeredVAE
    ) -> io.NodeOutput:
        """Checks, pads, encodes."""
        vae = check_vae(vae)
        layers = layers_from_images(foreground, background, foreground_mask)
        samples = vae.encode_layers(layers.pad(vae.stride))
        return io.NodeOutput({"samples": samples, SIZE: (layers.width, layers.height)})
