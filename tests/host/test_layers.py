"""Documents on a real host: our nodes among each other, core's Add Layer into ours, ours into core's compositor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from tests.host.comfyui import Server
from tests.host.graphs import Graph, Node, get_json, preview, run, scene_layers

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

BUILD = {"names": "", "x": 0, "y": 0, "opacity": 1.0, "blend_mode": "normal", "canvas_width": 0, "canvas_height": 0}
TRANSFORM = {"layer": "", "x": 0.0, "y": 0.0, "unit": "pixels", "width": 100.0, "height": 100.0, "size_unit": "percent",
             "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False, "anchor": "center", "anchor_x": 0.0,
             "anchor_y": 0.0, "rasterise": False}
REPLACE = {"layer": "background", "fit": "cover", "colour_match": "none", "match_strength": 1.0, "wrap_strength": 0.0,
           "wrap_radius": 2.0}
STEP = 1.01 / 255
"""Previews are cut off instead of rounded."""


@pytest.fixture
def needs_add_layer(server: Server) -> None:
    if not get_json(server, "/object_info/AddLayer"):
        pytest.skip(f"ComfyUI {server.host.version} has no AddLayer (0.31 and later have)")


def pictures(graph: Graph, scene: dict[str, str]) -> dict[str, Node]:
    """Foreground and background (IMAGE), mask (MASK, 1 where the foreground shows)."""
    loaded = {name: graph("LoadImage", image=scene[name]) for name in ("foreground", "background")}
    return {**loaded, "mask": graph("LoadImageMask", image=scene["mask"], channel="red")}


def stored_scene() -> list[Tensor]:
    """Foreground, background and mask as the files have them."""
    return [(part * 255).round() / 255 for part in scene_layers()]


def build(graph: Graph, **inputs: Any) -> Node:
    return graph("Text2LayerBuild", **{**BUILD, **inputs})


def test_two_pictures_are_eq_1(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    parts = pictures(graph, scene)
    composed = graph("Text2LayerCompose", foreground=parts["foreground"], background=parts["background"],
                     foreground_mask=parts["mask"], linear_light=False)
    shown = preview(graph, composed)
    (found,) = run(client, graph)[shown.name].pictures
    foreground, background, mask = stored_scene()
    assert found.shape[1] == 3
    assert (found - torch.lerp(background, foreground, mask)).abs().max() <= STEP


def test_a_document_through_every_node(client: ComfyClient, scene: dict[str, str]) -> None:
    """Built, moved by (20, 10), split, built again, reordered and back, merged onto the background, composed."""
    graph = Graph()
    parts = pictures(graph, scene)
    document = build(graph, images=parts["background"], names="background")
    document = build(graph, images=parts["foreground"], masks=parts["mask"], names="thing", layers=document)
    moved = graph("Text2LayerTransform", layers=document, **{**TRANSFORM, "layer": "thing", "x": 20.0, "y": 10.0})
    split = graph("Text2LayerSplit", layers=moved)
    again = build(graph, images=split[0], masks=split[1])
    turned = graph("Text2LayerReorder", layers=again, layer="layer 1", move="to top", order="")
    back = graph("Text2LayerReorder", layers=turned, layer="", move="to top", order="2, 1")
    merged = graph("Text2LayerMerge", below=build(graph, images=parts["background"]), above=back, canvas="below")
    shown = preview(graph, graph("Text2LayerCompose", layers=merged))
    (found,) = run(client, graph)[shown.name].pictures
    foreground, background, mask = stored_scene()
    expected = background.clone()
    expected[..., 10:, 20:] = torch.lerp(
        background[..., 10:, 20:], foreground[..., :-10, :-20], mask[..., :-10, :-20]
    )
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= STEP


def test_a_batch_of_backgrounds_is_a_list_of_documents(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    parts = pictures(graph, scene)
    document = build(graph, images=parts["background"], names="background")
    document = build(graph, images=parts["foreground"], masks=parts["mask"], names="foreground", layers=document)
    batch = graph("ImageBatch", image1=parts["foreground"], image2=parts["background"])
    replaced = graph("Text2LayerReplaceLayer", layers=document, picture=batch, **REPLACE)
    shown = preview(graph, graph("Text2LayerCompose", layers=replaced))
    found = run(client, graph)[shown.name].pictures
    foreground, background, mask = stored_scene()
    assert len(found) == 2
    for each, behind in zip(found, (foreground, background), strict=True):
        assert (each - torch.lerp(behind, foreground, mask)).abs().max() <= STEP


@pytest.mark.usefixtures("needs_add_layer")
@pytest.mark.parametrize("changes", [
    {}, {"x": -30, "y": 17}, {"rotation": 90.0}, {"rotation": 90.0, "flip_h": True, "x": 5}, {"flip_v": True},
    {"width": 80, "height": 64, "x": 12},
])
def test_cores_documents_are_composed_as_core_does(
    client: ComfyClient, scene: dict[str, str], changes: dict[str, Any]
) -> None:
    """Opaque layers, where linear light makes no difference; core rounds each layer to 8 bits.

    Resized ones (core: Lanczos) and turned ones but for the rim: core takes the floor of -1e-14 there, and puts a layer
    that is turned by quarters a pixel too far to the upper left.
    """
    graph = Graph()
    parts = pictures(graph, scene)
    document = graph("AddLayer", image=parts["background"])
    document = graph("AddLayer", image=parts["foreground"], layers=document, name="thing", **changes)
    merged = graph("Text2LayerMerge", below=build(graph, images=parts["background"]), above=document, canvas="below")
    ours = preview(graph, graph("Text2LayerCompose", layers=merged))
    theirs = graph("ImageCompositor", layers=merged, compositor={})
    shown = run(client, graph)
    (found,), (expected,) = shown[ours.name].pictures, shown[theirs.name].pictures
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.quantile(0.98) <= 2 * STEP
    if not {"width", "rotation"} & changes.keys():
        assert difference.max() <= STEP


@pytest.mark.usefixtures("needs_add_layer")
def test_masks_of_add_layer_are_1_where_transparent(client: ComfyClient, scene: dict[str, str]) -> None:
    """LoadImage's MASK of the cut-out goes in as it comes, as it does in core."""
    graph = Graph()
    parts, cutout = pictures(graph, scene), graph("LoadImage", image=scene["cutout"])
    document = graph("AddLayer", image=parts["background"])
    document = graph("AddLayer", image=cutout, mask=cutout[1], layers=document, opacity=0.5, blend_mode="multiply")
    shown = preview(graph, graph("Text2LayerCompose", layers=document))
    (found,) = run(client, graph)[shown.name].pictures
    foreground, background, mask = stored_scene()
    expected = torch.lerp(background, background * foreground, 0.5 * mask)
    assert (found - expected).abs().max() <= STEP


def test_what_does_not_fit_is_said_in_one_line(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    parts = pictures(graph, scene)
    size = {"upscale_method": "bilinear", "width": 64, "height": 48, "crop": "disabled"}
    small = graph("ImageScale", image=parts["background"], **size)
    preview(graph, graph("Text2LayerCompose", foreground=parts["foreground"], background=small))
    with pytest.raises(Exception, match="foreground must have the canvas's size 64x48, got 160x128"):
        run(client, graph)
