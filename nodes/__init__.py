"""The node pack: thin adapters between ComfyUI's types and text2layer_core."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .documents import Text2LayerLoadDocument, Text2LayerSaveDocument
from .generate import Text2LayerGenerate
from .latents import Text2LayerDecode, Text2LayerEmptyLatent, Text2LayerEncode
from .layers_arrange import Text2LayerBuild, Text2LayerMerge, Text2LayerReorder, Text2LayerSplit
from .layers_compose import Text2LayerCompose
from .layers_decompose import Text2LayerDecompose, Text2LayerPasteBack, Text2LayerPrepareInpaint
from .layers_effects import Text2LayerBlurBackground, Text2LayerShadow
from .layers_replace import Text2LayerReplaceLayer
from .layers_report import Text2LayerReport
from .layers_transform import Text2LayerTransform
from .loader import Text2LayerModelLoader
from .mask_refine import Text2LayerEstimateForeground, Text2LayerRefineMask
from .model_files import register_model_folder
from .samples import Text2LayerSampleScore, Text2LayerWriteSample

NODES: list[type[io.ComfyNode]] = [
    Text2LayerModelLoader,
    Text2LayerEmptyLatent,
    Text2LayerDecode,
    Text2LayerEncode,
    Text2LayerGenerate,
    Text2LayerCompose,
    Text2LayerTransform,
    Text2LayerReplaceLayer,
    Text2LayerBuild,
    Text2LayerSplit,
    Text2LayerReorder,
    Text2LayerMerge,
    Text2LayerDecompose,
    Text2LayerRefineMask,
    Text2LayerEstimateForeground,
    Text2LayerPrepareInpaint,
    Text2LayerPasteBack,
    Text2LayerBlurBackground,
    Text2LayerShadow,
    Text2LayerReport,
    Text2LayerSaveDocument,
    Text2LayerLoadDocument,
    Text2LayerSampleScore,
    Text2LayerWriteSample,
]
"""In the order of the menu; ids, inputs and outputs are fixed for ever (tests/nodes/contract.json)."""


class Text2LayerExtension(ComfyExtension):
    """What `comfy_entrypoint` returns."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Also registers the model folder: older hosts never call on_load."""
        register_model_folder()
        return NODES
