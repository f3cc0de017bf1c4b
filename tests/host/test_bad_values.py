"""Bad values: one readable line that names the input, and a server that still works."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.comfyui import Server
from tests.host.graphs import SCENE, Graph, Node, decode, empty, encode, generate, ksampler, load, run, show

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

Scene = dict[str, str]
Case = Callable[[Graph, Node, Scene], object]
WIDTH, HEIGHT = SCENE


def join_alpha(graph: Graph, scene: Scene) -> Node:
    solid = graph("SolidMask", value=0.5, width=WIDTH, height=HEIGHT)
    return graph("JoinImageWithAlpha", image=graph("LoadImage", image=scene["background"]), alpha=solid)


def twice(graph: Graph, scene: Scene, part: str) -> Node:
    return graph("RepeatImageBatch", image=graph("LoadImage", image=scene[part]), amount=2)


def loader_of(name: str) -> Case:
    return lambda graph, _, __: generate(graph, graph("Text2LayerModelLoader", model=name))


def generate_with(**inputs: object) -> Case:
    return lambda graph, loader, _: generate(graph, loader, **inputs)


def encode_with(**inputs: Callable[[Graph, Scene], Node]) -> Case:
    return lambda graph, loader, scene: decode(
        graph, loader,
        encode(graph, loader, scene, **{name: make(graph, scene) for name, make in inputs.items()}),
    )


def stock_vae(graph: Graph) -> Node:
    return graph("VAELoader", vae_name="pixel_space")


CASES: dict[str, tuple[Case, list[str]]] = {
    "unknown model": (loader_of("nothing.safetensors"), ["model", "nothing.safetensors"]),
    "path as model": (loader_of("../../etc/passwd"), ["model", "../../etc/passwd"]),
    "absolute path as model": (loader_of("/etc/passwd"), ["model", "/etc/passwd"]),
    "empty model": (loader_of(""), ["model", "''"]),
    "width 0": (generate_with(width=0), ["width", "0"]),
    "width 0 of an empty latent": (
        lambda graph, loader, _: decode(graph, loader, empty(graph, loader, 0, 64)), ["width", "0"]),
    "height too large": (generate_with(height=100000), ["height", "100000"]),
    "width as text": (generate_with(width="wide"), ["width", "wide"]),
    "batch of 0": (generate_with(batch_size=0), ["batch_size", "0"]),
    "steps 0": (generate_with(steps=0), ["steps", "0"]),
    "negative seed": (generate_with(seed=-1), ["seed", "-1"]),
    "NaN cfg": (generate_with(cfg=math.nan), ["cfg", "nan"]),
    "infinite cfg": (generate_with(cfg=math.inf), ["cfg", "inf"]),
    "unknown sampler": (generate_with(sampler="dreamy"), ["sampler", "dreamy"]),
    "unknown scheduler": (generate_with(scheduler="dreamy"), ["scheduler", "dreamy"]),
    "missing prompt": (
        lambda graph, loader, _: graph.nodes[generate(graph, loader).name]["inputs"].pop("prompt"), ["prompt"]),
    "mask as VAE": (
        lambda graph, loader, _: generate(
            graph, loader, vae=graph("SolidMask", value=1.0, width=WIDTH, height=HEIGHT)), ["vae", "MASK"]),
    "CLIP as model": (lambda graph, loader, _: generate(graph, loader, model=loader[1]), ["model", "CLIP"]),
    "stock VAE in Generate": (
        lambda graph, loader, _: generate(graph, loader, vae=stock_vae(graph)), ["vae", "Load Text2Layer Model"]),
    "stock VAE in Decode": (
        lambda graph, loader, _: graph("Text2LayerDecode", samples=empty(graph, loader), vae=stock_vae(graph)),
        ["vae", "Load Text2Layer Model"]),
    "stock VAE in Encode": (
        encode_with(vae=lambda graph, _: stock_vae(graph)), ["vae", "Load Text2Layer Model"]),
    "stock latent in Decode": (
        lambda graph, loader, _: decode(graph, loader, graph("EmptyLatentImage", width=64, height=64, batch_size=1)),
        ["samples", "8 channels", "4"]),
    "RGBA as background": (encode_with(background=join_alpha), ["background", "RGB", "4 channels"]),
    "mask of another size": (
        encode_with(foreground_mask=lambda graph, _: graph("SolidMask", value=1.0, width=64, height=48)),
        ["foreground_mask", f"{WIDTH}x{HEIGHT}", "64x48"]),
    "background of another size": (
        encode_with(background=lambda graph, _: graph("EmptyImage", width=64, height=48, batch_size=1, color=0)),
        ["background", f"{WIDTH}x{HEIGHT}", "64x48"]),
    "two foregrounds, one background": (
        encode_with(foreground=lambda graph, scene: twice(graph, scene, "foreground")), ["background", "2", "1"]),
    "one foreground, two backgrounds": (
        encode_with(background=lambda graph, scene: twice(graph, scene, "background")), ["background", "1", "2"]),
}


def refusal(client: ComfyClient, graph: Graph) -> str:
    from headless.client import ComfyError

    with pytest.raises(ComfyError) as caught:
        run(client, graph)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_bad_value_is_named(client: ComfyClient, scene: Scene, name: str) -> None:
    build, words = CASES[name]
    graph = Graph()
    loader = load(graph)
    build(graph, loader, scene)
    message = refusal(client, graph)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    still_works(client)


def test_bad_stock_latent_in_ksampler(client: ComfyClient, scene: Scene) -> None:
    """What the stock sampler makes of a latent with other channels is the host's; the server must live on."""
    graph = Graph()
    loader = load(graph)
    flat = graph("VAEEncode", pixels=graph("LoadImage", image=scene["foreground"]), vae=stock_vae(graph))
    decode(graph, loader, ksampler(graph, loader, flat))
    assert refusal(client, graph)
    still_works(client)


def test_model_without_text_encoder(server: Server, client: ComfyClient, external_model: Path) -> None:
    """Such a model gives no CLIP: Generate says what to do, and so does the stock CLIPTextEncode in its words."""
    target = server.folder / "models" / "text2layer" / external_model.name
    target.write_bytes(external_model.read_bytes())
    graph = Graph()
    generate(graph, graph("Text2LayerModelLoader", model=target.name))
    message = refusal(client, graph)
    assert "clip must be a text encoder" in message
    assert "CLIP-L" in message
    target.unlink()
    still_works(client)


def test_damaged_model_file(server: Server, client: ComfyClient, external_model: Path) -> None:
    target = server.folder / "models" / "text2layer" / "half.safetensors"
    data = external_model.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    graph = Graph()
    generate(graph, graph("Text2LayerModelLoader", model=target.name))
    message = refusal(client, graph)
    target.unlink()
    assert "half.safetensors" in message
    assert "\n" not in message
    still_works(client)


@pytest.fixture(scope="module")
def external_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose text encoder is CLIP-L's, which its file leaves out."""
    from tests.host.models import four_level_model
    from text2layer_core.checkpoint import CLIP_L, save_checkpoint

    path = tmp_path_factory.mktemp("models") / "external.safetensors"
    save_checkpoint(path, replace(four_level_model(), text_encoder=None, external_text_encoder=CLIP_L))
    return path


def still_works(client: ComfyClient) -> None:
    graph = Graph()
    node = generate(graph, load(graph), width=32, height=32, steps=1)
    assert len(show(client, graph, node).samples) == 1
