"""Text2LayerTransform: moves, scales, turns and flips one layer of a document."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.v0_0_2 import io

from ..text2layer_core.placement import rasterise
from ..text2layer_core.stack import Layer
from ..text2layer_core.transform import Anchor, transform_layer
from .convert import layers_from_stack, stack_from_layers
from .layers_input import ALIASES, document_input, document_output, layer_input, layer_position
from .schema import check_choice, check_finite, schema

UNITS = ["pixels", "percent"]
POINT = "point"
ANCHORS = [Anchor.CENTER.value, *(anchor.value for anchor in Anchor if anchor != Anchor.CENTER), POINT]
_FAR = 16384.0


class Text2LayerTransform(io.ComfyNode):
    """Transforms a layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerTransform",
            display_name="Transform Layer",
            description="Flips, scales, turns and moves one layer, in this order, about an anchor. Only its numbers "
            "change: nothing is resampled until the layers are composed, and what leaves the canvas is kept.",
            search_aliases=[*ALIASES, "move", "scale", "rotate", "flip", "resize"],
            inputs=[
                document_input(),
                layer_input(),
                io.Float.Input("x", default=0.0, min=-_FAR, max=_FAR, step=1.0, round=0.001,
                               tooltip="Move to the right, in the unit below; negative to the left."),
                io.Float.Input("y", default=0.0, min=-_FAR, max=_FAR, step=1.0, round=0.001,
                               tooltip="Move down, in the unit below; negative up."),
                io.Combo.Input("unit", options=UNITS, default="pixels",
                               tooltip="Of x, y and the anchor point: pixels, or percent of the canvas's width and "
                               "height."),
                io.Float.Input("width", default=100.0, min=0.0, max=_FAR, step=1.0, round=0.001,
                               tooltip="New width of the layer, in the unit below; 0 keeps its proportions."),
                io.Float.Input("height", default=100.0, min=0.0, max=_FAR, step=1.0, round=0.001,
                               tooltip="New height of the layer, in the unit below; 0 keeps its proportions."),
                io.Combo.Input("size_unit", options=[*reversed(UNITS)], default="percent",
                               tooltip="Of width and height: percent of the layer's present size, or pixels."),
                io.Float.Input("rotation", default=0.0, min=-360.0, max=360.0, step=1.0, round=0.001,
                               tooltip="Degrees, clockwise. Quarter turns keep every pixel."),
                io.Boolean.Input("flip_horizontal", default=False, tooltip="Mirror left to right, as seen."),
                io.Boolean.Input("flip_vertical", default=False, tooltip="Mirror top to bottom, as seen."),
                io.Combo.Input("anchor", options=ANCHORS, default="center",
                               tooltip="What stays where it is: a point of the layer's box, or the point below."),
                io.Float.Input("anchor_x", default=0.0, min=-_FAR, max=_FAR, step=1.0, round=0.001,
                               tooltip="Anchor point, from the canvas's left edge, in the unit of x; only with anchor "
                               "\"point\"."),
                io.Float.Input("anchor_y", default=0.0, min=-_FAR, max=_FAR, step=1.0, round=0.001,
                               tooltip="Anchor point, from the canvas's upper edge, in the unit of y; only with anchor "
                               "\"point\"."),
                io.Boolean.Input("rasterise", default=False,
                                 tooltip="Work the geometry into the layer's pixels now; what is off the canvas is "
                                 "kept even so."),
            ],
            outputs=[document_output("The document with that layer transformed.")],
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any], layer: str, x: float, y: float, unit: str, width: float, height: float,
        size_unit: str, rotation: float, flip_horizontal: bool, flip_vertical: bool, anchor: str, anchor_x: float,
        anchor_y: float, rasterise: bool,
    ) -> io.NodeOutput:
        """Transforms one layer."""
        check_choice("unit", unit, UNITS)
        check_choice("size_unit", size_unit, UNITS)
        check_choice("anchor", anchor, ANCHORS)
        for name, value in (("width", width), ("height", height), ("anchor_x", anchor_x), ("anchor_y", anchor_y)):
            check_finite(name, value)
        stack = stack_from_layers(layers)
        position = layer_position(stack, layer)
        share = (1.0, 1.0) if unit == "pixels" else (stack.canvas[0] / 100, stack.canvas[1] / 100)
        old = stack.layers[position]
        new = transform_layer(
            old, move=(x * share[0], y * share[1]), scale=_scale(old, (width, height), size_unit),
            rotation=math.radians(rotation), flip_horizontal=flip_horizontal, flip_vertical=flip_vertical,
            anchor=(anchor_x * share[0], anchor_y * share[1]) if anchor == POINT else anchor,
        )
        return io.NodeOutput(layers_from_stack(stack.replaced(position, _rasterised(new) if rasterise else new)))


def _scale(layer: Layer, size: tuple[float, float], unit: str) -> tuple[float, float]:
    """Factors of width and height; a side of 0 goes with the other, two of them stay."""
    whole = (100.0, 100.0) if unit == "percent" else layer.box[2:]
    factors = size[0] / whole[0], size[1] / whole[1]
    if factors == (0, 0):
        return 1.0, 1.0
    return factors[0] or factors[1], factors[1] or factors[0]


def _rasterised(layer: Layer) -> Layer:
    return rasterise(layer) or layer
