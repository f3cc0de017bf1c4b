"""Text2LayerDecompose, Text2LayerPrepareInpaint and Text2LayerPasteBack: for those who start with a photograph."""

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from .convert import layer_outputs, to_bhwc, to_nchw
from .mask_refine import mask_input, picture_and_mask
from .preview import layers_preview
from .schema import MAX_SIDE, layer_sockets, schema

_FILLED = "background: smoothed over from around the mask; connect an inpainted one for detail"
_GIVEN = "background: as connected"


class Text2LayerDecompose(io.ComfyNode):
    """Takes a flat picture apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerDecompose",
            display_name="Decompose Picture",
            description="A flat picture and a mask become layers: the foreground with its own colour at soft edges, "
            "and a whole background. Without a background from an inpainter the hole is smoothed over from around.",
            search_aliases=["layers", "image to layers", "cut out", "extract", "remove background"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the flat picture; an alpha channel is left out."),
                mask_input("mask"),
                io.Image.Input("filled_background", optional=True,
                               tooltip="RGB, the picture without the foreground, from any inpainting; of its size."),
            ],
            outputs=layer_sockets(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, filled_background: Tensor | None = None) -> io.NodeOutput:
        """Decomposes, shows."""
        from ..text2layer_core.compositing import compose
        from ..text2layer_core.decompose import decompose

        picture, alpha = picture_and_mask(image, mask)
        behind = None if filled_background is None else to_nchw(filled_background[..., :3]).to(picture).clamp(0, 1)
        layers = decompose(picture, alpha, behind)
        text = _FILLED if behind is None else _GIVEN
        composed = compose(layers)
        return io.NodeOutput(*layer_outputs(layers, composed), ui=layers_preview(layers, composed, None, cls, text))


class Text2LayerPrepareInpaint(io.ComfyNode):
    """Prepares a hole for an inpainter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        pixels = {"min": 0, "max": 1024}
        return schema(
            node_id="Text2LayerPrepareInpaint",
            display_name="Prepare Inpaint",
            description="Where a foreground is to go: its mask dilated to a hole, and a crop around it for any "
            "inpainting. Paste Back puts the result into the picture and changes no pixel outside the hole.",
            search_aliases=["inpaint", "crop", "hole", "remove object", "layers"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the whole picture; an alpha channel is left out."),
                mask_input(),
                io.Int.Input("dilate", default=16, **pixels,
                             tooltip="Pixels that the hole reaches beyond the mask, so that no rim or shadow stays."),
                io.Int.Input("feather", default=8, **pixels,
                             tooltip="Pixels of the seam, inside the hole; at most half of dilate."),
                io.Int.Input("context", default=64, min=0, max=MAX_SIDE,
                             tooltip="Pixels around the hole that the crop shows."),
                io.Int.Input("multiple", default=8, min=1, max=256,
                             tooltip="The crop's sides are multiples of this many pixels, if there is room."),
            ],
            outputs=[
                io.Image.Output("crop", display_name="crop", tooltip="RGB, for the inpainting."),
                io.Mask.Output("hole", display_name="hole", tooltip="1 where it is to be filled, of the crop's size."),
                io.Mask.Output("blend", display_name="blend", tooltip="For Paste Back: the hole with its soft seam."),
                io.Int.Output("x", display_name="x", tooltip="For Paste Back: the crop's left edge in pixels."),
                io.Int.Output("y", display_name="y", tooltip="For Paste Back: the crop's upper edge in pixels."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, foreground_mask: Tensor, dilate: int, feather: int, context: int, multiple: int
    ) -> io.NodeOutput:
        """Makes the crop."""
        from ..text2layer_core.decompose import InpaintOptions, prepare_inpaint

        options = InpaintOptions(dilate=dilate, feather=feather, context=context, multiple=multiple)
        crop = prepare_inpaint(*picture_and_mask(image, foreground_mask), options)
        return io.NodeOutput(to_bhwc(crop.image), crop.hole[:, 0], crop.blend[:, 0], crop.x, crop.y)


class Text2LayerPasteBack(io.ComfyNode):
    """Puts an inpainted crop back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerPasteBack",
            display_name="Paste Back",
            description="Puts an inpainted crop back into its picture, with a soft seam inside the hole; every pixel "
            "outside the hole stays exactly as it was.",
            search_aliases=["inpaint", "stitch", "uncrop", "layers"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the whole picture that Prepare Inpaint got."),
                io.Image.Input("inpainted", tooltip="RGB, the crop after inpainting, of the same size as before."),
                io.Mask.Input("blend", tooltip="Of Prepare Inpaint."),
                io.Int.Input("x", default=0, min=0, max=16384, tooltip="Of Prepare Inpaint, pixels."),
                io.Int.Input("y", default=0, min=0, max=16384, tooltip="Of Prepare Inpaint, pixels."),
            ],
            outputs=[
                io.Image.Output("pasted", display_name="image", tooltip="RGB, for Decompose Picture's background."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, inpainted: Tensor, blend: Tensor, x: int, y: int) -> io.NodeOutput:
        """Pastes."""
        from ..text2layer_core.decompose import paste_back

        picture, filled = to_nchw(image[..., :3]), to_nchw(inpainted[..., :3]).clamp(0, 1)
        seam = blend.reshape(-1, 1, *blend.shape[-2:]).expand(len(picture), -1, -1, -1)
        return io.NodeOutput(to_bhwc(paste_back(picture, filled, seam, x, y)))
