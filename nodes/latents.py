"""Text2LayerEmptyLatent, Text2LayerEncode and Text2LayerDecode: between latents and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io

from .schema import layer_sockets, schema, size_inputs

if TYPE_CHECKING:
    import comfy.model_patcher
    from torch import Tensor

    from .host_vae import LayeredVAE

MAX_BATCH = 64


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
        from .host_unet import empty_latent

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
            outputs=layer_sockets(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict, vae: LayeredVAE) -> io.NodeOutput:
        """Decodes, crops, shows."""
        from .decoding import decode
        from .host_vae import check_vae

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
        from .convert import SIZE, layers_from_images
        from .host_vae import check_vae

        vae = check_vae(vae)
        layers = layers_from_images(foreground, background, foreground_mask)
        samples = vae.encode_layers(layers.pad(vae.stride))
        return io.NodeOutput({"samples": samples, SIZE: (layers.width, layers.height)})
