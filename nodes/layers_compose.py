"""Text2LayerCompose: a document, or a foreground before a background, as one picture."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.stack import Layer, LayerStack
from .convert import documents_from_stack, layer_from_image, stack_from_layers, to_bhwc, with_batch
from .layers_input import ALIASES, document_output
from .schema import Layers, schema


class Text2LayerCompose(io.ComfyNode):
    """Composes layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerCompose",
            display_name="Compose Layers",
            description="Puts layers over each other, bottom to top: the background, then the layers of a document "
            "with their positions, opacity and blend modes, then the foreground. Any of the three may be missing. "
            "Blended on stored sRGB values, as image editors do.",
            search_aliases=[*ALIASES, "composite", "flatten", "blend", "paste"],
            inputs=[
                Layers.Input("layers", optional=True, tooltip="A layer document: ours, or of Add Layer."),
                io.Image.Input("background", optional=True,
                               tooltip="RGB or RGBA, below everything; of the document's size if there is one."),
                io.Image.Input("foreground", optional=True,
                               tooltip="RGB or RGBA, above everything; of the same size. Its alpha counts."),
                io.Mask.Input("foreground_mask", optional=True,
                              tooltip="1 where the foreground shows; multiplies its alpha. Invert the MASK of Load "
                              "Image."),
                io.Boolean.Input("linear_light", default=False, optional=True,
                                 tooltip="Mix light instead of stored sRGB values: as ComfyUI's own compositor, "
                                 "unlike image editors."),
            ],
            outputs=[
                io.Image.Output("composed", display_name="composed",
                                tooltip="RGB; RGBA with straight alpha if something shows through."),
                io.Mask.Output("coverage", display_name="coverage",
                               tooltip="1 where the layers cover the canvas, 0 where nothing is."),
                document_output("All of it as one layer document per picture.", is_list=True),
            ],
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any] | None = None, background: Tensor | None = None, foreground: Tensor | None = None,
        foreground_mask: Tensor | None = None, linear_light: bool = False,
    ) -> io.NodeOutput:
        """Makes one document of what is connected, and composes it."""
        from ..text2layer_core.composition import compose_stack, without_full_alpha

        stack = _whole(layers, background, foreground, foreground_mask)
        composed = compose_stack(stack, linear_light=linear_light)
        return io.NodeOutput(to_bhwc(without_full_alpha(composed)), composed[:, 3], documents_from_stack(stack))


def _whole(
    document: dict[str, Any] | None, background: Tensor | None, foreground: Tensor | None, mask: Tensor | None
) -> LayerStack:
    """Background, document and foreground on one canvas, for as many pictures as there are."""
    if mask is not None and foreground is None:
        raise ValueError("foreground must be connected where foreground_mask is")
    middle = None if document is None else stack_from_layers(document)
    layers: list[Layer] = [] if background is None else [layer_from_image("background", background)]
    layers += [] if middle is None else middle.layers
    if foreground is not None:
        layers.append(layer_from_image("foreground", foreground, mask, mask_name="foreground_mask"))
    if not layers:
        raise ValueError("layers, background or foreground must be connected, got none of them")
    height, width = layers[0].picture.shape[-2:]
    canvas = (width, height) if middle is None else middle.canvas
    for name, image in (("background", background), ("foreground", foreground)):
        if image is not None and (image.shape[2], image.shape[1]) != canvas:
            raise ValueError(f"{name} must have the canvas's size {canvas[0]}x{canvas[1]}, "
                             f"got {image.shape[2]}x{image.shape[1]} (width x height)")
    count = max(layer.picture.shape[0] for layer in layers)
    return LayerStack(canvas=canvas, layers=tuple(with_batch(layer, count) for layer in layers))
