"""Text2LayerSaveDocument and Text2LayerLoadDocument: layer documents as files of other programs."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from .document_files import document_names, document_path, fingerprint, metadata, save_place, shown
from .schema import Layers, check_choice, schema

FORMATS = ["psd", "ora", "png"]
BITS = ["8", "16"]
MASKS = {"layer mask": "layer", "transparency": "alpha"}


class Text2LayerSaveDocument(io.ComfyNode):
    """Saves a document."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs; nothing comes out."""
        return schema(
            node_id="Text2LayerSaveDocument",
            display_name="Save Layered File",
            description="Saves a layer document to ComfyUI's output folder, for Photoshop, Krita, GIMP and others: "
            "names, order, places, opacity and blend modes, and pixels beyond the canvas. A list of documents gives "
            "a file each.",
            search_aliases=["layers", "psd", "ora", "openraster", "photoshop", "krita", "gimp", "export", "save"],
            inputs=[
                Layers.Input("layers", tooltip="A layer document: ours, or of Add Layer."),
                io.String.Input("filename_prefix", default="layers",
                                tooltip="Begins the name, a counter follows; subfolders with /. %width%, %height%, "
                                "%year%, %month%, %day%, %hour%, %minute% and %second% are filled in."),
                io.Combo.Input("format", options=FORMATS, default="psd",
                               tooltip="psd: Photoshop. ora: OpenRaster, for Krita, GIMP and MyPaint. png: a picture "
                               "of the canvas' size for each layer, and the composition."),
                io.Combo.Input("bits", options=BITS, default="8",
                               tooltip="Bits a channel; 16 with png alone."),
                io.Combo.Input("masks", options=list(MASKS), default="layer mask",
                               tooltip="layer mask: masks stay masks that can be edited, files of their own with png. "
                               "transparency: multiplied into alpha, as ora always has it."),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any], filename_prefix: str, format: str, bits: str, masks: str
    ) -> io.NodeOutput:
        """Checks, finds the name, saves, lists the files."""
        from ..text2layer_core.documents import save_document
        from .convert import stack_from_layers

        for name, value, choices in (("format", format, FORMATS), ("bits", bits, BITS), ("masks", masks, list(MASKS))):
            check_choice(name, value, choices)
        stack = stack_from_layers(layers)
        place = save_place(filename_prefix, stack.canvas)
        paths = save_document(
            place.folder, stack, stem=place.stem, format=format, bits=int(bits), masks=MASKS[masks], text=metadata(cls)
        )
        return io.NodeOutput(ui=shown(paths, place.subfolder, cls))


class Text2LayerLoadDocument(io.ComfyNode):
    """Loads a document."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerLoadDocument",
            display_name="Load Layered File",
            description="Loads a PSD or OpenRaster file of ComfyUI's input folder as a layer document. Groups are "
            "taken apart; what a document cannot hold is left out, and the notes name it.",
            search_aliases=["layers", "psd", "ora", "openraster", "photoshop", "krita", "gimp", "import", "load"],
            inputs=[
                io.Combo.Input("file", options=document_names(),
                               tooltip="A .psd or .ora file in ComfyUI's input folder: RGB or grey, 8 or 16 bits a "
                               "channel, at most 16384 pixels a side and 50 layers."),
            ],
            outputs=[
                Layers.Output("layers", display_name="layers",
                              tooltip="The document, for Compose Layers or Create Layered Image."),
                io.String.Output("notes", display_name="notes",
                                 tooltip="One line for each thing that the document does not hold as the file does; "
                                 "empty if there is none."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """The file's content: a file that was saved anew is loaded anew."""
        return fingerprint(document_path(file))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Loads."""
        from ..text2layer_core.documents import load_document
        from .convert import layers_from_stack

        loaded = load_document(document_path(file))
        return io.NodeOutput(layers_from_stack(loaded.stack), "\n".join(loaded.notes))
