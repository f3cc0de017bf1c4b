"""What the nodes that work on a LAYERS document have in common: which layer is meant, and its document."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..text2layer_core.stack import LayerStack
from .schema import Layers

ALIASES = ["layers", "layer", "document"]


def document_input(name: str = "layers", tooltip: str = "A layer document: ours, or of Add Layer.") -> io.Input:
    """A document that must be there."""
    return Layers.Input(name, tooltip=tooltip)


def layer_input(default: str = "") -> io.Input:
    """Which layer is meant; see `layer_position`."""
    return io.String.Input(
        "layer", default=default,
        tooltip="Name of the layer; of several with one name the topmost. Or its number, 1 is the lowest. Empty: the "
        "topmost layer.",
    )


def document_output(tooltip: str, *, is_list: bool = False) -> io.Output:
    """A changed document; its id is not "layers", for older hosts want no input and output of one id."""
    return Layers.Output("document", display_name="layers", is_output_list=is_list, tooltip=tooltip)


def layer_position(stack: LayerStack, text: str) -> int:
    """The position of the layer that a text names: by name, by number from 1, or the topmost if it is empty.

    Raises:
        ValueError: there is none.
    """
    text = text.strip()
    if not text:
        return len(stack) - 1
    names = [layer.name for layer in stack]
    if text not in names and text.isdecimal() and 1 <= int(text) <= len(stack):
        return int(text) - 1
    return stack.index(text)
