"""Text2LayerBlurBackground and Text2LayerShadow: what layers make easy."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.blur import BlurKind, blur_background
from .convert import layer_outputs, layers_from_stack, stack_from_layers, to_nchw
from .layers_input import ALIASES, document_input, document_output, layer_input, layer_position
from .mask_refine import mask_input, picture_and_mask
from .schema import check_choice, schema

KINDS = [kind.value for kind in BlurKind]


class Text2LayerBlurBackground(io.ComfyNode):
    """Blurs what is behind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerBlurBackground",
            display_name="Blur Background",
            description="Puts the background out of focus; the foreground stays sharp and does not bleed into the "
            "blur, for it is taken out first.",
            search_aliases=[*ALIASES, "bokeh", "depth of field", "lens blur", "portrait"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the flat picture; an alpha channel is left out."),
                mask_input(),
                io.Float.Input("radius", default=12.0, min=0.0, max=512.0, step=0.5, tooltip="Pixels; 0 is off."),
                io.Combo.Input("kind", options=KINDS, default=BlurKind.LENS.value,
                               tooltip="lens: discs, bright lights stay bright. gaussian: sigma half the radius."),
                io.Image.Input("background", optional=True,
                               tooltip="RGB, the picture without the foreground; without it the hole is smoothed "
                               "over from around, which a blur hides."),
            ],
            outputs=[
                io.Image.Output("composed", display_name="composed", tooltip="RGB, blurred behind the foreground."),
                io.Image.Output("blurred", display_name="background", tooltip="RGB, the blurred background alone."),
                document_output("Both as layers, one document per picture.", is_list=True),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, foreground_mask: Tensor, radius: float, kind: str, background: Tensor | None = None
    ) -> io.NodeOutput:
        """Takes apart, blurs, composes."""
        from ..text2layer_core.compositing import compose
        from ..text2layer_core.decompose import decompose

        check_choice("kind", kind, KINDS)
        picture, mask = picture_and_mask(image, foreground_mask)
        behind = None if background is None else to_nchw(background[..., :3]).to(picture).clamp(0, 1)
        blurred = blur_background(decompose(picture, mask, behind), radius, kind)
        _, backgrounds, _, composed, documents = layer_outputs(blurred, compose(blurred))
        return io.NodeOutput(composed, backgrounds, documents)


class Text2LayerShadow(io.ComfyNode):
    """Casts a shadow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerShadow",
            display_name="Cast Shadow",
            description="Adds a soft shadow under a layer, as a multiply layer of its own that can be moved and "
            "edited. Upright as on a wall, or lying on the ground.",
            search_aliases=[*ALIASES, "drop shadow"],
            inputs=[
                document_input(),
                layer_input(),
                io.Float.Input("x", default=10.0, min=-4096.0, max=4096.0, step=1.0, tooltip="To the right, pixels."),
                io.Float.Input("y", default=10.0, min=-4096.0, max=4096.0, step=1.0, tooltip="Downwards, pixels."),
                io.Float.Input("blur", default=8.0, min=0.0, max=512.0, step=0.5,
                               tooltip="Softness in pixels (sigma of a Gaussian)."),
                io.Float.Input("height", default=1.0, min=0.05, max=4.0, step=0.05,
                               tooltip="Of the shadow as a share of the thing's: 1 on a wall, less on the ground."),
                io.Float.Input("slant", default=0.0, min=-4.0, max=4.0, step=0.05,
                               tooltip="How far its top leans to the right, as a share of the thing's height."),
                io.Float.Input("opacity", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="0 is none, 1 is full."),
                io.String.Input("colour", default="#000000", tooltip="Of the shadow, #rrggbb in sRGB."),
            ],
            outputs=[document_output("The document with the shadow under that layer.")],
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any], layer: str, x: float, y: float, blur: float, height: float, slant: float,
        opacity: float, colour: str,
    ) -> io.NodeOutput:
        """Adds the layer."""
        from ..text2layer_core.shadow import ShadowOptions, add_shadow

        stack = stack_from_layers(layers)
        options = ShadowOptions(
            x=x, y=y, blur=blur, height=height, slant=slant, opacity=opacity, colour=_colour(colour),
        )
        return io.NodeOutput(layers_from_stack(add_shadow(stack, layer_position(stack, layer), options)))


def _colour(text: str) -> tuple[float, float, float]:
    """#rrggbb as three values in [0, 1].

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text.strip())
    if found is None:
        raise ValueError(f"colour must be written as #rrggbb, got {text!r}")
    red, green, blue = (int(part, 16) / 255 for part in found.groups())
    return red, green, blue
