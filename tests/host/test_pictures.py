"""The nodes on pictures and masks on a real host: from a flat picture to layers, to an inpainter and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.host.graphs import Graph, Node, preview, run, scene_layers

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

EDITS = {"radius": 3.0, "threshold": 0.0, "drop_specks": 0, "fill_holes": 0, "grow": 0.0, "feather": 0.0}
SHADOW = {"x": 0.0, "y": 0.0, "blur": 0.0, "height": 1.0, "slant": 0.0, "opacity": 1.0, "colour": "#000000"}
STEP = 1.01 / 255
"""Previews are cut off instead of rounded."""


def stored_scene() -> list[Tensor]:
    """Foreground, background and mask as the files have them."""
    return [(part * 255).round() / 255 for part in scene_layers()]


def flat(graph: Graph, scene: dict[str, str]) -> tuple[Node, Node]:
    """The composed picture, and the mask (1 where the foreground shows)."""
    loaded = {name: graph("LoadImage", image=scene[name]) for name in ("foreground", "background")}
    mask = graph("LoadImageMask", image=scene["mask"], channel="red")
    return graph("Text2LayerCompose", foreground_mask=mask, linear_light=False, **loaded), mask


def composed_scene() -> Tensor:
    foreground, background, mask = stored_scene()
    return torch.lerp(background, foreground, mask)


def test_a_flat_picture_comes_apart_and_together(client: ComfyClient, scene: dict[str, str]) -> None:
    """Decomposed, its layers compose to the picture they were made of."""
    graph = Graph()
    picture, mask = flat(graph, scene)
    layers = graph("Text2LayerDecompose", image=picture, mask=mask)
    shown = preview(graph, graph("Text2LayerCompose", layers=layers[4], linear_light=False))
    results = run(client, graph)
    (found,) = results[shown.name].pictures
    away = stored_scene()[2] == 0
    assert (found - composed_scene()).abs()[away.expand_as(found)].max() < 0.1
    assert (found - composed_scene()).abs().mean() < 0.02
    assert len(results[layers.name].pictures) == 4


@pytest.mark.parametrize("method", ["none", "guided", "closed_form"])
def test_a_mask_is_refined(client: ComfyClient, scene: dict[str, str], method: str) -> None:
    graph = Graph()
    picture, mask = flat(graph, scene)
    refined = graph("Text2LayerRefineMask", image=picture, foreground_mask=mask, method=method, **EDITS)
    colour = graph("Text2LayerEstimateForeground", image=picture, foreground_mask=refined)
    shown, cutout = preview(graph, graph("MaskToImage", mask=refined)), preview(graph, colour)
    results = run(client, graph)
    (found,) = results[shown.name].pictures
    truth = stored_scene()[2]
    assert (found[:, :1] - truth).abs().mean() < (STEP if method == "none" else 0.1)
    assert results[cutout.name].pictures[0].shape[1] == 4


def test_a_crop_filled_and_pasted_back_changes_the_hole_alone(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    picture, _ = flat(graph, scene)
    dot = graph("SolidMask", value=1.0, width=20, height=16)
    nothing = graph("SolidMask", value=0.0, width=160, height=128)
    mask = graph("MaskComposite", destination=nothing, source=dot, x=60, y=50, operation="add")
    crop = graph("Text2LayerPrepareInpaint", image=picture, foreground_mask=mask, dilate=4, feather=2, context=8,
                 multiple=8)
    filled = graph("ImageInvert", image=crop)
    pasted = graph("Text2LayerPasteBack", image=picture, inpainted=filled, blend=crop[2], x=crop[3], y=crop[4])
    before, after = preview(graph, picture), preview(graph, pasted)
    results = run(client, graph)
    (old,), (new,) = results[before.name].pictures, results[after.name].pictures
    outside = torch.ones(128, 160, dtype=torch.bool)
    outside[46:70, 56:84] = False
    assert torch.equal(old[..., outside], new[..., outside])
    inside = (new - (1 - old))[..., 50:66, 60:80]
    assert inside.abs().max() <= 2 * STEP


def test_blur_shadow_and_report(client: ComfyClient, scene: dict[str, str]) -> None:
    """A shadow without blur or offset is hidden under an opaque thing: only its soft rim darkens."""
    graph = Graph()
    picture, mask = flat(graph, scene)
    blurred = graph("Text2LayerBlurBackground", image=picture, foreground_mask=mask, radius=6.0, kind="lens")
    shadow = graph("Text2LayerShadow", layers=blurred[2], layer="foreground", **SHADOW)
    plain, shaded = preview(graph, blurred), preview(graph, graph("Text2LayerCompose", layers=shadow))
    report = graph("Text2LayerReport", foreground=picture, background=blurred[1], foreground_mask=mask)
    results = run(client, graph)
    (without,), (found,) = results[plain.name].pictures, results[shaded.name].pictures
    clear = (stored_scene()[2] == 0).expand_as(found)
    assert (found - without).abs()[clear].max() <= STEP
    assert (found - without).max() <= STEP
    assert results[report.name].pictures[0].shape[-1] == 4 * 160
