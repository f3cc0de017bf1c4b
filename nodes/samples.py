"""Text2LayerSampleScore and Text2LayerWriteSample: two-layer samples judged and collected, as data to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.v0_0_2 import io
from server import PromptServer
from torch import Tensor

from .convert import layers_from_images, stack_from_layers, to_nchw
from .document_files import save_place, shown
from .mask_refine import mask_input, picture_and_mask
from .model_files import filter_names, filter_path
from .schema import Layers, check_score, schema

if TYPE_CHECKING:
    from ..text2layer_core.quality import QualityFilter

_NO_SCORE = -1.0


class Text2LayerSampleScore(io.ComfyNode):
    """Judges samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        files = {"options": filter_names(), "default": filter_names()[0]}
        return schema(
            node_id="Text2LayerSampleScore",
            display_name="Score Sample",
            description="Judges two-layer samples with the learned quality filters of the paper's data pipeline: is "
            "the mask good, is the background filled well, and should the sample be kept. Works without filter files "
            "too: what no filter judges is kept.",
            search_aliases=["quality", "filter", "training data", "dataset", "layers"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the whole picture; an alpha channel is left out."),
                mask_input(),
                io.Image.Input("background", tooltip="RGB, the picture without the foreground; of its size."),
                io.Combo.Input("mask_filter", **files, tooltip="A filter of kind mask in models/text2layer "
                               "(python -m train.train_quality makes them), or none."),
                io.Combo.Input("inpainting_filter", **files,
                               tooltip="A filter of kind inpainting in models/text2layer, or none."),
            ],
            outputs=[
                io.Float.Output("mask_score", display_name="mask_score", is_output_list=True,
                                tooltip="Probability that the mask is good, 0 to 1; -1 without a filter. One per "
                                "picture."),
                io.Float.Output("inpainting_score", display_name="inpainting_score", is_output_list=True,
                                tooltip="Probability that the background is filled well, 0 to 1; -1 without a filter."),
                io.Boolean.Output("keep", display_name="keep", is_output_list=True,
                                  tooltip="Whether no filter scores the sample below its own threshold."),
                io.String.Output("reason", display_name="reason", is_output_list=True,
                                 tooltip="The scores beside the thresholds, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, image: Tensor, foreground_mask: Tensor, background: Tensor, mask_filter: str, inpainting_filter: str
    ) -> io.NodeOutput:
        """Judges, writes the reasons on the node."""
        from ..text2layer_core.quality import decide_quality, score_samples

        picture, mask = picture_and_mask(image, foreground_mask)
        behind = layers_from_images(image, background, foreground_mask).background
        filters = _filters(mask=mask_filter, inpainting=inpainting_filter)
        scores = score_samples(picture, mask, behind, filters)
        thresholds = {kind: each.threshold for kind, each in filters.items()}
        decisions = [decide_quality({kind: found[index] for kind, found in scores.items()}, thresholds)
                     for index in range(len(picture))]
        reasons = [decision.reason for decision in decisions]
        text = "\n".join(reasons)
        PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        none = [_NO_SCORE] * len(picture)
        return io.NodeOutput(scores.get("mask", none), scores.get("inpainting", none),
                             [decision.keep for decision in decisions], reasons, ui={"text": (text,)})


class Text2LayerWriteSample(io.ComfyNode):
    """Collects samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerWriteSample",
            display_name="Write Sample",
            description="Writes a layer document and its caption into ComfyUI's output folder as a sample to train on: "
            "picture, foreground, background and mask as PNG, the caption as text. The lowest layer is the background, "
            "all above it the foreground. train.synthesize and the trainers read such a folder.",
            search_aliases=["training data", "dataset", "collect", "save", "layers"],
            inputs=[
                Layers.Input("layers", tooltip="A layer document of two or more layers; a list gives a sample each."),
                io.String.Input("caption", default="", multiline=True,
                                tooltip="What the picture shows, in words; it must not be empty."),
                io.String.Input("filename_prefix", default="samples/sample",
                                tooltip="Folder and the beginning of the name, a counter follows; subfolders with /. "
                                "No dots in the name."),
                io.Image.Input("image", optional=True,
                               tooltip="RGB, the picture that the layers were made of; else they are composed."),
                io.Boolean.Input("keep", default=True, optional=True,
                                 tooltip="Off writes nothing; link Score Sample's keep."),
                io.Float.Input("mask_score", default=_NO_SCORE, min=-1.0, max=1.0, step=0.001, optional=True,
                               tooltip="Stored with the sample, 0 to 1; -1 is none."),
                io.Float.Input("inpainting_score", default=_NO_SCORE, min=-1.0, max=1.0, step=0.001, optional=True,
                               tooltip="Stored with the sample, 0 to 1; -1 is none."),
            ],
            outputs=[
                io.String.Output("name", display_name="name",
                                 tooltip="The sample's name in the output folder; empty if it was not kept."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, layers: dict[str, Any], caption: str, filename_prefix: str, image: Tensor | None = None, keep: bool = True,
        mask_score: float = _NO_SCORE, inpainting_score: float = _NO_SCORE,
    ) -> io.NodeOutput:
        """Checks, finds the name, writes, lists the files."""
        from ..text2layer_core.samples import check_key, two_layers_of_stack, write_sample

        scores = {"mask_score": mask_score, "inpainting_score": inpainting_score}
        for name, score in scores.items():
            check_score(name, score)
        stack = stack_from_layers(layers)
        sample = two_layers_of_stack(stack)
        if not keep:
            PromptServer.instance.send_progress_text("not kept, nothing written", cls.hidden.unique_id)
            return io.NodeOutput("", ui={"text": ("not kept, nothing written",)})
        place = save_place(filename_prefix, stack.canvas)
        check_key(place.stem)
        facts = {name: score for name, score in scores.items() if score >= 0}
        whole = None if image is None else to_nchw(image[..., :3]).to(sample.mask).clamp(0, 1)
        paths = write_sample(place.folder, place.stem, sample, caption, composed=whole,
                             facts={**facts, "made_by": "Text2LayerWriteSample"})
        name = "/".join(part for part in (place.subfolder.replace("\\", "/"), place.stem) if part)
        return io.NodeOutput(name, ui=shown(paths, place.subfolder, cls))


def _filters(**names: str) -> dict[str, QualityFilter]:
    """Kind -> filter, of those that are not none."""
    from ..text2layer_core.quality import load_quality_filter

    device = comfy.model_management.get_torch_device()
    paths = {kind: filter_path(f"{kind}_filter", name) for kind, name in names.items()}
    return {kind: load_quality_filter(path, device) for kind, path in paths.items() if path is not None}
