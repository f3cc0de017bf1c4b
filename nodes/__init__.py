"""The node pack: thin adapters between ComfyUI's types and text2layer_core."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .generate import Text2LayerGenerate
from .latents import Text2LayerDecode, Text2LayerEmptyLatent, Text2LayerEncode
from .loader import Text2LayerModelLoader
from .model_files import register_model_folder

NODES: list[type[io.ComfyNode]] = [
    Text2LayerModelLoader,
    Text2LayerEmptyLatent,
    Text2LayerDecode,
    Text2LayerEncode,
    Text2LayerGenerate,
]
"""In the order of the menu; ids, inputs and outputs are fixed for ever (tests/nodes/contract.json)."""


class Text2LayerExtension(ComfyExtension):
    """What `comfy_entrypoint` returns."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Also registers the model folder: older hosts never call on_load."""
        register_model_folder()
        return NODES
