"""Text2LayerRefineMask and Text2LayerEstimateForeground: a better edge, and the true colour on it."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.refine import RefineMethod, RefineOptions, refine_mask
from ..text2layer_core.vitmatte import VitMatte, load_vitmatte, vitmatte_available
from .convert import layer_from_image, to_bhwc
from .schema import check_choice, check_finite, schema

METHODS = [method.value for method in RefineMethod if method is not RefineMethod.VITMATTE or vitmatte_available()]
_MOST_PIXELS = 16384 * 16384


def picture_and_mask(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """IMAGE and MASK as (N, 3, H, W) and (N, 1, H, W); an alpha channel is left out, one mask serves all pictures."""
    layer = layer_from_image("image", image[..., :3], mask, mask_name="foreground_mask")
    if layer.mask is None:
        raise ValueError("foreground_mask must be connected, got none")
    return layer.picture, layer.mask


def mask_input(name: str = "foreground_mask") -> io.Input:
    """Which part of a picture is meant."""
    return io.Mask.Input(name, tooltip="1 where the foreground shows; invert the MASK of Load Image. One "
                         "mask, or one per picture, of the picture's size.")


class Text2LayerRefineMask(io.ComfyNode):
    """Refines a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerRefineMask",
            display_name="Refine Mask",
            description="Fits a mask's edge to its picture: only a band along the edge, and what is soft already, may "
            "change. Also thresholds, drops specks, fills holes, grows or shrinks, and feathers, in this order.",
            search_aliases=["matting", "mask edge", "alpha", "guided filter", "grow", "feather", "layers"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, what the mask was made for; an alpha channel is left out."),
                mask_input(),
                io.Combo.Input("method", options=METHODS, default=RefineMethod.GUIDED.value,
                               tooltip="guided: fast, good everywhere. closed_form: slower, better on fine edges. "
                               "vitmatte: a matting network of yours. none: only the edits below."),
                io.Float.Input("radius", default=3.0, min=0.1, max=50.0, step=0.1, round=0.01,
                               tooltip="Half the band's width in per cent of the picture's shorter side."),
                io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From this value on a pixel becomes 1, others 0, before all else; 0 is off."),
                io.Int.Input("drop_specks", default=0, min=0, max=_MOST_PIXELS,
                             tooltip="Parts of fewer pixels than this are dropped; 0 is off."),
                io.Int.Input("fill_holes", default=0, min=0, max=_MOST_PIXELS,
                             tooltip="Holes of at most this many pixels are filled; 0 is off."),
                io.Float.Input("grow", default=0.0, min=-512.0, max=512.0, step=0.5,
                               tooltip="Pixels to grow after refining; below 0 the mask shrinks."),
                io.Float.Input("feather", default=0.0, min=0.0, max=256.0, step=0.5,
                               tooltip="Softness in pixels (sigma of a Gaussian), last of all."),
                io.String.Input("vitmatte_folder", default="vitmatte", optional=True,
                                tooltip="For vitmatte: a folder in ComfyUI's models folder with config.json and "
                                "model.safetensors. Nothing is downloaded."),
            ],
            outputs=[
                io.Mask.Output("refined", display_name="foreground_mask", tooltip="1 where the foreground shows."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, foreground_mask: Tensor, method: str, radius: float, threshold: float, drop_specks: int,
        fill_holes: int, grow: float, feather: float, vitmatte_folder: str = "vitmatte",
    ) -> io.NodeOutput:
        """Refines."""
        check_choice("method", method, METHODS)
        check_finite("radius", radius)
        options = RefineOptions(
            method=method, radius=radius / 100, threshold=threshold, drop_specks=drop_specks, fill_holes=fill_holes,
            grow=grow, feather=feather,
        )
        model = _matting_model(vitmatte_folder) if method == RefineMethod.VITMATTE.value else None
        refined = refine_mask(*picture_and_mask(image, foreground_mask), options, matting_model=model)
        return io.NodeOutput(refined[:, 0])


class Text2LayerEstimateForeground(io.ComfyNode):
    """True colours under a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="Text2LayerEstimateForeground",
            display_name="Estimate Foreground Colour",
            description="Takes the old background's colour out of soft edges: the mask stays, the foreground's own "
            "colour is found under it and goes on where the mask is 0, so that no fringe shows on a new background.",
            search_aliases=["decontaminate", "fringe", "halo", "matting", "foreground", "layers"],
            inputs=[
                io.Image.Input("image", tooltip="RGB, the flat picture; an alpha channel is left out."),
                mask_input(),
            ],
            outputs=[
                io.Image.Output("foreground", display_name="foreground",
                                tooltip="RGBA: the foreground's own colour, the mask as straight alpha."),
                io.Image.Output("background", display_name="background",
                                tooltip="RGB: the background's own colour at the edges; under the foreground it is "
                                "only continued."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, foreground_mask: Tensor) -> io.NodeOutput:
        """Estimates both colours."""
        from ..text2layer_core.foreground import estimate_foreground

        picture, mask = picture_and_mask(image, foreground_mask)
        foreground, background = estimate_foreground(picture, mask)
        return io.NodeOutput(to_bhwc(torch.cat([foreground, mask], dim=1)), to_bhwc(background))


def _matting_model(name: str) -> VitMatte:
    """The network in a folder of the host's models folder.

    Raises:
        ValueError: the folder lies elsewhere, or holds no ViTMatte.
    """
    models = Path(os.path.realpath(folder_paths.models_dir))
    folder = Path(os.path.realpath(models / name))
    if not name or folder == models or not folder.is_relative_to(models):
        raise ValueError(f"vitmatte_folder must be a folder in ComfyUI's models folder, got {name!r}")
    return load_vitmatte(folder, comfy.model_management.get_torch_device())
