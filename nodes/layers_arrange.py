"""Text2LayerBuild, Text2LayerSplit, Text2LayerReorder and Text2LayerMerge: documents put together and apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.blending import BlendMode
from ..text2layer_core.stack import Layer, LayerStack
from .convert import layer_from_image, layers_from_stack, stack_from_layers, to_bhwc
from .layers_input import ALIASES, document_input, document_output, layer_input, layer_position
from .schema import Layers, check_choice, schema

MODES = [mode.value for mode in BlendMode]
MOVES = ["to top", "to bottom", "up", "down"]
CANVASES = ["larger", "below", "above"]
_FAR = 16384


class Text2LayerBuild(io.ComfyNode):
    """Makes a document of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerBuild",
            display_name="Build Layers",
            description="Makes one layer document of pictures, the first one lowest, or puts them on top of a "
            "document. Each picture of a batch or a list becomes a layer.",
            search_aliases=[*ALIASES, "add layer", "stack"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="RGB or RGBA, of any size, a batch or a list: one layer each, bottom "
                               "first. Alpha counts."),
                io.String.Input("names", default="", multiline=True,
                                tooltip="One name per line, in the order of the images; lines may be missing."),
                io.Int.Input("x", default=0, min=-_FAR, max=_FAR,
                             tooltip="Left edge of the new layers on the canvas, in pixels."),
                io.Int.Input("y", default=0, min=-_FAR, max=_FAR,
                             tooltip="Upper edge of the new layers on the canvas, in pixels."),
                io.Float.Input("opacity", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Of the new layers: 0 is invisible, 1 is full."),
                io.Combo.Input("blend_mode", options=MODES, default="normal",
                               tooltip="How the new layers mix with what is below, as in image editors."),
                io.Int.Input("canvas_width", default=0, min=0, max=_FAR,
                             tooltip="Of the document, in pixels; 0 is the given document's, or the lowest image's."),
                io.Int.Input("canvas_height", default=0, min=0, max=_FAR,
                             tooltip="Of the document, in pixels; 0 is the given document's, or the lowest image's."),
                io.Mask.Input("masks", optional=True,
                              tooltip="1 where the layer shows, one per image or one for all; multiplies alpha. Invert "
                              "the MASK of Load Image."),
                Layers.Input("layers", optional=True, tooltip="A document to put the new layers on top of."),
            ],
            outputs=[document_output("The document, for Compose Layers or Create Layered Image.")],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], names: list[str], x: list[int], y: list[int], opacity: list[float],
        blend_mode: list[str], canvas_width: list[int], canvas_height: list[int], masks: list[Tensor] | None = None,
        layers: list[dict[str, Any]] | None = None,
    ) -> io.NodeOutput:
        """Every input comes as a list."""
        check_choice("blend_mode", blend_mode[0], MODES)
        if layers is not None and len(layers) != 1:
            raise ValueError(f"layers must be one document, got {len(layers)}: put Merge Layers before")
        below = stack_from_layers(layers[0]) if layers else None
        new = _layers_of_images(images, masks, names[0].splitlines(), len(below) if below else 0)
        new = [replace(layer, x=x[0], y=y[0], opacity=opacity[0], blend_mode=BlendMode(blend_mode[0])) for layer in new]
        first = below.canvas if below else (new[0].picture.shape[-1], new[0].picture.shape[-2])
        canvas = canvas_width[0] or first[0], canvas_height[0] or first[1]
        whole = LayerStack(canvas=canvas, layers=(*(below.layers if below else ()), *new))
        return io.NodeOutput(layers_from_stack(whole))


class Text2LayerSplit(io.ComfyNode):
    """Takes a document apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerSplit",
            display_name="Split Layers",
            description="Gives every layer of a document as a picture and a mask as large as the canvas, bottom first: "
            "placed, scaled and turned as it is, without opacity and blend mode. Three lists of one length.",
            search_aliases=[*ALIASES, "separate", "extract"],
            inputs=[document_input()],
            outputs=[
                io.Image.Output("images", display_name="images", is_output_list=True,
                                tooltip="RGB; colour goes on where the layer does not show."),
                io.Mask.Output("masks", display_name="masks", is_output_list=True,
                               tooltip="1 where the layer shows: its alpha times its mask."),
                io.String.Output("names", display_name="names", is_output_list=True, tooltip="The layers' names."),
            ],
        )

    @classmethod
    def execute(cls, layers: dict[str, Any]) -> io.NodeOutput:
        """Splits, hidden layers too."""
        from ..text2layer_core.arrange import split_stack

        parts = split_stack(stack_from_layers(layers))
        return io.NodeOutput(
            [to_bhwc(part.colour) for part in parts], [part.mask[:, 0] for part in parts], [part.name for part in parts]
        )


class Text2LayerReorder(io.ComfyNode):
    """Changes the order of layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerReorder",
            display_name="Reorder Layers",
            description="Moves one layer of a document up or down, or puts all of them in a new order.",
            search_aliases=[*ALIASES, "sort", "z order", "arrange"],
            inputs=[
                document_input(),
                layer_input(),
                io.Combo.Input("move", options=MOVES, default="to top",
                               tooltip="Where that layer goes: to an end, or one place up or down."),
                io.String.Input("order", default="",
                                tooltip="All layers in their new order, bottom first, names or present numbers (1 is "
                                "the lowest), separated by commas: then layer and move do not count. Empty: they do."),
            ],
            outputs=[document_output("The document in its new order.")],
        )

    @classmethod
    def execute(cls, layers: dict[str, Any], layer: str, move: str, order: str) -> io.NodeOutput:
        """Moves one layer or orders all."""
        from ..text2layer_core.arrange import move_layer, reorder_stack

        check_choice("move", move, MOVES)
        stack = stack_from_layers(layers)
        if order.strip():
            return io.NodeOutput(layers_from_stack(reorder_stack(stack, _positions(stack, order))))
        position = layer_position(stack, layer)
        target = {"to top": len(stack), "to bottom": 0, "up": position + 1, "down": position - 1}[move]
        return io.NodeOutput(layers_from_stack(move_layer(stack, position, target)))


class Text2LayerMerge(io.ComfyNode):
    """Makes one document of two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerMerge",
            display_name="Merge Layers",
            description="Puts the layers of one document on top of another's, their upper left corners together. The "
            "layers stay layers: Compose Layers makes one picture of them.",
            search_aliases=[*ALIASES, "combine", "join", "append"],
            inputs=[
                document_input("below", "The document whose layers come below."),
                document_input("above", "The document whose layers come on top; at most 50 layers together."),
                io.Combo.Input("canvas", options=CANVASES, default="larger",
                               tooltip="Size of the new document: the larger of both sides, or that of either one."),
            ],
            outputs=[document_output("One document.")],
        )

    @classmethod
    def execute(cls, below: dict[str, Any], above: dict[str, Any], canvas: str) -> io.NodeOutput:
        """Merges."""
        from ..text2layer_core.arrange import merge_stacks

        check_choice("canvas", canvas, CANVASES)
        stacks = {"below": stack_from_layers(below), "above": stack_from_layers(above)}
        size = None if canvas == "larger" else stacks[canvas].canvas
        return io.NodeOutput(layers_from_stack(merge_stacks(list(stacks.values()), canvas=size)))


def _layers_of_images(
    images: list[Tensor], masks: list[Tensor] | None, names: list[str], below: int
) -> list[Layer]:
    """One layer per picture; those without a name of their own are numbered from the layers that are below."""
    pictures = [image[index : index + 1] for image in images for index in range(image.shape[0])]
    given = [mask for each in masks or [] for mask in each.reshape(-1, 1, *each.shape[-2:])]
    if masks is not None and len(given) not in (1, len(pictures)):
        raise ValueError(f"masks must be one or as many as images ({len(pictures)}), got {len(given)}")
    if len(names) > len(pictures):
        raise ValueError(f"names must be at most as many as images ({len(pictures)}), got {len(names)}")
    layers: list[Layer] = []
    for index, picture in enumerate(pictures):
        name = names[index].strip() if index < len(names) else ""
        mask = given[index % len(given)] if given else None
        layers.append(layer_from_image(name or f"layer {below + index + 1}", picture, mask, mask_name="masks"))
    return layers


def _positions(stack: LayerStack, order: str) -> list[int]:
    """What a list of names and numbers stands for."""
    return [layer_position(stack, part) for part in order.split(",") if part.strip()]
