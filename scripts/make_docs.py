"""Draws the pictures of docs/layers.md: `python -m scripts.make_docs [NAME ...]`.

On pictures of the bundled model and on a photograph that scikit-image carries (coffee.png, CC0, Rachel Michetti), whose
mask is two rough ellipses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from scripts.make_thumbnails import WORKFLOWS, contact_picture
from text2layer_core.blending import BlendMode
from text2layer_core.blur import blur_background
from text2layer_core.compositing import compose
from text2layer_core.composition import compose_stack
from text2layer_core.decompose import decompose, prepare_inpaint
from text2layer_core.foreground import estimate_foreground
from text2layer_core.layers import TwoLayerImage
from text2layer_core.refine import RefineOptions, refine_mask
from text2layer_core.replacing import replace_layer
from text2layer_core.report import on_checkerboard
from text2layer_core.shadow import ShadowOptions, add_shadow
from text2layer_core.stack import LayerStack
from text2layer_core.transform import transform_layer

OUT = Path(__file__).resolve().parents[1] / "docs" / "layers"
PANEL = 300
QUALITY = 88
ELLIPSES = ((279, 214, 200, 168, 12), (290, 113, 118, 95, 4))  # saucer and cup: centre, half axes, degrees
Panels = dict[str, Tensor]


@cache
def drawn() -> TwoLayerImage:
    """A crown on a beach by the bundled model, its seed not chosen."""
    from text2layer_core.pipeline import Text2LayerPipeline

    return Text2LayerPipeline.from_pretrained()("a crown on a beach", seed=0).layers


@cache
def drawn_elsewhere() -> TwoLayerImage:
    """Another picture of it, for its background."""
    from text2layer_core.pipeline import Text2LayerPipeline

    return Text2LayerPipeline.from_pretrained()("a fox in the snow", seed=0).layers


@cache
def photograph() -> Tensor:
    """(1, 3, 400, 600)."""
    from skimage.data import coffee

    return torch.from_numpy(coffee().astype(np.float32) / 255).permute(2, 0, 1)[None]


@cache
def rough_mask() -> Tensor:
    """Two ellipses, near the cup and its saucer."""
    height, width = photograph().shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    mask = torch.zeros(height, width)
    for centre_x, centre_y, half_x, half_y, degrees in ELLIPSES:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        across, down = (x - centre_x) * cosine + (y - centre_y) * sine, (y - centre_y) * cosine - (x - centre_x) * sine
        mask = torch.maximum(mask, ((across / half_x).square() + (down / half_y).square() <= 1).float())
    return mask[None, None]


@cache
def fitted_mask() -> Tensor:
    """The same, fitted to the photograph."""
    return refine_mask(photograph(), rough_mask(), RefineOptions(method="closed_form"))


def refine() -> Panels:
    """A rough mask and what the two methods make of it."""
    picture, mask = photograph(), rough_mask()
    return {"picture": picture, "rough mask": mask, "guided": refine_mask(picture, mask),
            "closed_form": fitted_mask()}


def colour() -> Panels:
    """The edge's colour: cut out of the picture, and estimated; both on white."""
    picture, mask = photograph(), functional.avg_pool2d(fitted_mask(), 9, 1, 4)
    foreground, _ = estimate_foreground(picture, mask)
    white = torch.ones_like(picture)
    window = (..., slice(200, 400), slice(40, 340))
    return {name: compose(TwoLayerImage(front, white, mask))[window]
            for name, front in (("cut out, on white", picture), ("estimated, on white", foreground))}


def decomposed() -> Panels:
    """A photograph as layers."""
    layers = decompose(photograph(), fitted_mask())
    return {"picture": photograph(), "foreground": on_checkerboard(layers.foreground, layers.mask),
            "background": layers.background}


def inpaint() -> Panels:
    """What goes to an inpainter."""
    crop = prepare_inpaint(photograph(), fitted_mask())
    return {"crop": crop.image, "hole": crop.hole, "blend": crop.blend}


def transformed() -> Panels:
    """A drawn subject smaller, turned and moved."""
    layers = drawn()
    stack = LayerStack.from_two_layers(layers)
    moved = transform_layer(stack.layers[1], move=(-30, 10), scale=(0.6, 0.6), rotation=math.radians(-15))
    return {"before": compose(layers), "moved, scaled, turned": compose_stack(stack.replaced(1, moved))[:, :3]}


def replaced() -> Panels:
    """Another background, without and with its colours."""
    layers, other = drawn(), drawn_elsewhere()
    stack = LayerStack.from_two_layers(layers)
    plain = replace_layer(stack, 0, other.background)
    matched = replace_layer(stack, 0, other.background, colour_match="background", wrap_strength=0.5)
    return {"before": compose(layers), "replaced": compose_stack(plain)[:, :3],
            "colour match and light wrap": compose_stack(matched)[:, :3]}


def blended() -> Panels:
    """The subject in five blend modes."""
    stack = LayerStack.from_two_layers(drawn())
    modes = (BlendMode.NORMAL, BlendMode.MULTIPLY, BlendMode.SCREEN, BlendMode.OVERLAY, BlendMode.LUMINOSITY)
    return {mode.value: compose_stack(stack.replaced(1, replace(stack.layers[1], blend_mode=mode)))[:, :3]
            for mode in modes}


def blurred() -> Panels:
    """The photograph's background out of focus."""
    layers = decompose(photograph(), fitted_mask())
    return {"picture": photograph(), "gaussian": compose(blur_background(layers, 16, "gaussian")),
            "lens": compose(blur_background(layers, 16, "lens"))}


def shadowed() -> Panels:
    """A shadow under a drawn subject."""
    layers = drawn()
    stack = LayerStack.from_two_layers(layers)
    shadow = add_shadow(stack, 1, ShadowOptions(height=0.4, slant=-0.6, blur=3))
    return {"before": compose(layers), "with a cast shadow": compose_stack(shadow)[:, :3]}


PICTURES: dict[str, Callable[[], Panels]] = {
    "refine": refine, "colour": colour, "decompose": decomposed, "inpaint": inpaint, "transform": transformed,
    "replace": replaced, "blend": blended, "blur": blurred, "shadow": shadowed,
}


def sheet(panels: Panels) -> Image.Image:
    """The panels side by side, named below."""
    font = ImageFont.load_default(size=16)
    pictures = [_panel(picture) for picture in panels.values()]
    height = max(picture.height for picture in pictures)
    page = Image.new("RGB", ((PANEL + 8) * len(pictures) - 8, height + 26), "white")
    draw = ImageDraw.Draw(page)
    for index, (name, picture) in enumerate(zip(panels, pictures, strict=True)):
        page.paste(picture, (index * (PANEL + 8), 0))
        draw.text((index * (PANEL + 8) + 2, height + 4), name, fill="black", font=font)
    return page


def photograph_thumbnail() -> Image.Image:
    """For the workflow decompose_photo, whose mask needs a model of ComfyUI's that may not be there."""
    return contact_picture([_image(picture) for picture in (*decomposed().values(), fitted_mask())])


def _panel(picture: Tensor) -> Image.Image:
    image = _image(picture)
    return image.resize((PANEL, round(PANEL * image.height / image.width)), Image.Resampling.BICUBIC)


def _image(picture: Tensor) -> Image.Image:
    pixels = picture.expand(-1, 3, -1, -1)[0].clamp(0, 1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def main(argv: list[str] | None = None) -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], help="which (default: all)")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        path = arguments.out / f"{name}.jpg"
        sheet(PICTURES[name]()).save(path, quality=QUALITY, optimize=True)
        print(f"{path.name}: {path.stat().st_size} bytes")
    if not arguments.names:
        photograph_thumbnail().save(WORKFLOWS / "decompose_photo.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
