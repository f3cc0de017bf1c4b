"""Text2LayerReplaceLayer: another foreground or background in a document."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.replacing import ColourMatch, Fit, replace_layer
from .convert import documents_from_stack, layer_from_image, stack_from_layers, with_batch
from .layers_input import ALIASES, document_input, document_output, layer_input, layer_position
from .schema import check_choice, check_finite, schema

FITS = [fit.value for fit in Fit]
MATCHES = [match.value for match in ColourMatch]


class Text2LayerReplaceLayer(io.ComfyNode):
    """Replaces a layer's picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerReplaceLayer",
            display_name="Replace Layer",
            description="Puts another picture in the place of one layer: a new background behind the subject, or a "
            "new subject before the background. Its colours can be matched, and light from behind can wrap round the "
            "edge of what is in front. All that is outside the masks stays exactly as it is.",
            search_aliases=[*ALIASES, "relayer", "replace background", "harmonize", "color match", "light wrap"],
            inputs=[
                document_input(),
                layer_input("background"),
                io.Image.Input("picture", tooltip="RGB or RGBA, of any size; its alpha counts. A batch gives one "
                               "document per picture."),
                io.Combo.Input("fit", options=FITS, default="cover",
                               tooltip="How it fills the layer's place (the lowest layer's is the canvas): cover it, "
                               "fit inside (contain), stretch, or keep its size (none)."),
                io.Combo.Input("colour_match", options=MATCHES, default="none",
                               tooltip="replaced: the new picture takes on the colours of the old one. background: "
                               "what is in front takes on the colours of what is behind it."),
                io.Float.Input("match_strength", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Of the colour match: 0 is off, 1 is full."),
                io.Float.Input("wrap_strength", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Light from behind round the edge of what is in front: 0 is off, 1 is full."),
                io.Float.Input("wrap_radius", default=2.0, min=0.1, max=50.0, step=0.1, round=0.001,
                               tooltip="How far that light reaches in, in percent of the canvas's shorter side."),
                io.Mask.Input("mask", optional=True,
                              tooltip="1 where the new picture shows; multiplies its alpha. Invert the MASK of Load "
                              "Image."),
            ],
            outputs=[document_output("One document per picture with the layer replaced.", is_list=True)],
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any], layer: str, picture: Tensor, fit: str, colour_match: str, match_strength: float,
        wrap_strength: float, wrap_radius: float, mask: Tensor | None = None,
    ) -> io.NodeOutput:
        """Replaces one layer."""
        check_choice("fit", fit, FITS)
        check_choice("colour_match", colour_match, MATCHES)
        for name, value in (("match_strength", match_strength), ("wrap_strength", wrap_strength),
                            ("wrap_radius", wrap_radius)):
            check_finite(name, value)
        stack = stack_from_layers(layers)
        new = layer_from_image("picture", picture, mask)
        stack = replace(stack, layers=tuple(with_batch(each, new.picture.shape[0]) for each in stack))
        stack = replace_layer(
            stack, layer_position(stack, layer), new.picture, new.mask, fit=fit, colour_match=colour_match,
            match_strength=match_strength, wrap_strength=wrap_strength, wrap_radius=wrap_radius / 100,
        )
        return io.NodeOutput(documents_from_stack(stack))
