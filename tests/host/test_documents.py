"""Layered files on a real host: saved in its output folder, loaded from its input folder, shown and refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from tests.host.comfyui import Server
from tests.host.graphs import Graph, Node, get_json, preview, run
from tests.host.test_layers import STEP, build, pictures, stored_scene

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

SAVE = {"filename_prefix": "documents/scene", "format": "ora", "bits": "8", "masks": "layer mask"}
MOVED = 7


def document(graph: Graph, scene: dict[str, str]) -> Node:
    """The scene as two layers, the upper one moved to the right, beyond the canvas."""
    parts = pictures(graph, scene)
    below = build(graph, images=parts["background"], names="below")
    return build(graph, images=parts["foreground"], names="above", masks=parts["mask"], x=MOVED, layers=below)


def composed_scene() -> torch.Tensor:
    foreground, background, mask = stored_scene()
    result = background.clone()
    result[..., MOVED:] = torch.lerp(background, foreground.roll(MOVED, -1), mask.roll(MOVED, -1))[..., MOVED:]
    return result


def save(client: ComfyClient, scene: dict[str, str], **inputs: Any) -> list[dict[str, str]]:
    """The files that the node lists."""
    graph = Graph()
    node = graph("Text2LayerSaveDocument", layers=document(graph, scene), **{**SAVE, **inputs})
    return client.wait(client.queue(graph.nodes))[node.name]["files"]


def load_and_compose(client: ComfyClient, name: str) -> tuple[torch.Tensor, str]:
    graph = Graph()
    loaded = graph("Text2LayerLoadDocument", file=name)
    shown = preview(graph, graph("Text2LayerCompose", layers=loaded[0], linear_light=False))
    notes = graph("PreviewAny", source=loaded[1])
    outputs = run(client, graph)
    return outputs[shown.name].pictures[0], outputs[notes.name].text[0]


@pytest.mark.parametrize("format", ["ora", "psd"])
def test_there_and_back(server: Server, client: ComfyClient, scene: dict[str, str], format: str) -> None:
    if format == "psd" and subprocess.run([server.host.python, "-c", "import psd_tools"], check=False).returncode:
        pytest.skip(f"the Python of ComfyUI {server.host.version} has no psd-tools")
    (file,) = save(client, scene, format=format)
    assert file["subfolder"] == "documents"
    assert file["filename"].startswith("scene_0")
    saved = server.folder / "output" / "documents" / file["filename"]
    assert client.fetch(file) == saved.read_bytes()
    shutil.copy(saved, server.folder / "input" / f"loaded.{format}")
    options = json.dumps(get_json(server, "/object_info/Text2LayerLoadDocument"))
    assert f"loaded.{format}" in options
    found, notes = load_and_compose(client, f"loaded.{format}")
    assert notes == ""
    assert found.shape[1] == 3
    assert (found - composed_scene()).abs().max() <= STEP + 1 / 255


def test_a_set_of_pngs_holds_the_workflow(client: ComfyClient, scene: dict[str, str]) -> None:
    files = save(client, scene, format="png", bits="16")
    assert [file["filename"].partition("_0")[2][5:] for file in files] == [
        "01_below.png", "02_above.png", "02_above_mask.png", "composed.png",
    ]
    picture = Image.open(io.BytesIO(client.fetch(files[-1])))
    picture.load()
    nodes = json.loads(picture.info["prompt"]).values()
    assert "Text2LayerSaveDocument" in [node["class_type"] for node in nodes]


def test_a_file_saved_anew_is_loaded_anew(server: Server, client: ComfyClient, scene: dict[str, str]) -> None:
    path = server.folder / "input" / "anew.ora"
    for x in (MOVED, 0):
        graph = Graph()
        parts = pictures(graph, scene)
        node = graph("Text2LayerSaveDocument", layers=build(graph, images=parts["background"], x=x), **SAVE)
        (file,) = client.wait(client.queue(graph.nodes))[node.name]["files"]
        path.write_bytes(client.fetch(file))
        found, _ = load_and_compose(client, path.name)
        assert (found.shape[1] == 4) == (x == MOVED)  # the canvas shows where the layer is moved away


@pytest.mark.parametrize(("inputs", "message"), [
    ({"filename_prefix": "../scene"}, "filename_prefix must stay within the output folder, got '../scene'"),
    ({"bits": "16"}, "bits must be 8 for psd and ora, got 16"),
])
def test_refused(client: ComfyClient, scene: dict[str, str], inputs: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        save(client, scene, **inputs)


@pytest.mark.parametrize("name", ["../outside.ora", "/etc/passwd", "no.ora"])
def test_no_file_but_those_of_the_list(server: Server, client: ComfyClient, name: str) -> None:
    (server.folder / "outside.ora").write_bytes(b"x")
    with pytest.raises(Exception, match=r"(file must be a .psd or .ora file|Value not in list)"):
        load_and_compose(client, name)
