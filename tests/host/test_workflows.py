"""Every workflow of the pack, as the headless client would run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.comfyui import PACK, Server
from tests.host.graphs import get_json, run
from text2layer_core.compositing import blend

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

WORKFLOWS = sorted((PACK / "workflows" / "api").glob("*.json"))
OURS = ("Text2LayerGenerate", "Text2LayerDecode")
LOADERS = ("LoadImage", "LoadImageMask")
NEWER = {"ImageCompositor", "LoadBackgroundRemovalModel"}
"""Nodes of core that older hosts lack; the workflow's note says so."""


def background_models(server: Server) -> list[str]:
    info = get_json(server, "/object_info/LoadBackgroundRemovalModel")["LoadBackgroundRemovalModel"]
    return info["input"]["required"]["bg_removal_name"][1]["options"]


def test_there_are_workflows() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_workflow_draws_layers(
    server: Server, client: ComfyClient, path: Path, scene_files: dict[str, Path]
) -> None:
    """In six steps instead of the workflow's number; a picture to load is the known scene's cutout."""
    from headless.client import change

    graph: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if any("steps" in node["inputs"] for node in graph.values()):
        graph = change(graph, steps=6)
    missing = {node["class_type"] for node in graph.values()} - set(get_json(server, "/object_info"))
    if missing & NEWER:
        pytest.skip(f"ComfyUI {server.host.version} has no {', '.join(missing & NEWER)}")
    assert not missing
    if path.stem == "decompose_photo" and not background_models(server):
        pytest.skip("no model in models/background_removal")
    for node in graph.values():
        if node["class_type"] == "Text2LayerSaveDocument":
            node["inputs"]["format"] = "ora"  # PSD needs psd-tools in the host's Python; see test_documents.py
        if node["class_type"] in LOADERS:
            node["inputs"]["image"] = client.upload(scene_files["cutout"])
    shown = run(client, graph)
    ours = [name for name, node in graph.items() if node["class_type"] in OURS]
    assert ours
    for name in ours:
        check_layers(shown[name].samples, size=wanted_size(graph))
        assert len(shown[name].text) == 1
        assert shown[name].text[0].startswith("consistency: ")
        assert shown[name].text[0].endswith(" dB")


def check_layers(samples: list[Any], size: tuple[int, int] | None) -> None:
    for composed, foreground, background, mask in samples:
        if size is not None:
            assert tuple(composed.shape[:1:-1]) == size
        shape = composed.shape[2:]
        assert composed.shape == (1, 3, *shape)
        assert foreground.shape == (1, 4, *shape)
        assert background.shape == (1, 3, *shape)
        assert (foreground[:, 3:] - mask).abs().max() <= 1 / 255
        # Each picture lost up to 1/255 below its true value; eq. 1 of the three is then less than 2/255 off.
        assert (composed - blend(foreground[:, :3], background, mask)).abs().max() <= 2 / 255


def wanted_size(graph: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height where the graph says them once."""
    sizes = {(node["inputs"]["width"], node["inputs"]["height"]) for node in graph.values()
             if "width" in node["inputs"] and "height" in node["inputs"]}
    return sizes.pop() if len(sizes) == 1 else None
