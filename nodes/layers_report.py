"""Text2LayerReport: layers judged, in numbers and to the eye."""

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui
from server import PromptServer
from torch import Tensor

from .convert import layer_from_image, layers_from_images, to_bhwc
from .schema import schema


class Text2LayerReport(io.ComfyNode):
    """Judges layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerReport",
            display_name="Layer Report",
            description="Numbers and a picture that judge layers: area, softness and parts of the mask, fringe at the "
            "edge, ghost in the background, and, where known, consistency and the hidden background's PSNR.",
            search_aliases=["layers", "quality", "metrics", "fringe", "ghost"],
            inputs=[
                io.Image.Input("foreground", tooltip="RGB, or RGBA whose alpha is left out: the mask counts."),
                io.Image.Input("background", tooltip="RGB, of the foreground's size."),
                io.Mask.Input("foreground_mask",
                              tooltip="1 where the foreground shows. One mask, or one per picture."),
                io.Image.Input("predicted_composed", optional=True,
                               tooltip="RGB, another picture of the whole: how well the layers compose to it, in dB."),
                io.Image.Input("true_background", optional=True,
                               tooltip="RGB, the background as it is: PSNR under the mask, in dB."),
                io.Int.Input("side", default=256, min=16, max=2048, optional=True,
                             tooltip="Longest side of each thumbnail, pixels."),
            ],
            outputs=[
                io.String.Output("figures", display_name="figures", tooltip="One line of numbers per picture."),
                io.Image.Output("thumbnails", display_name="thumbnails",
                                tooltip="Composed, foreground on a checkerboard, background, mask, side by side."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, foreground: Tensor, background: Tensor, foreground_mask: Tensor, predicted_composed: Tensor | None = None,
        true_background: Tensor | None = None, side: int = 256,
    ) -> io.NodeOutput:
        """Judges, shows."""
        from ..text2layer_core.report import format_figures, layer_figures, layer_thumbnails

        image = layers_from_images(foreground, background, foreground_mask)
        known = {name: layer_from_image(name, given[..., :3]).picture.to(image.mask)
                 for name, given in (("predicted_composed", predicted_composed), ("true_background", true_background))
                 if given is not None}
        text = format_figures(layer_figures(image, **known))
        thumbnails = to_bhwc(layer_thumbnails(image, side))
        PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        shown = {"images": ui.PreviewImage(thumbnails, cls=cls).values, "text": (text,)}
        return io.NodeOutput(text, thumbnails, ui=shown)
