"""Graphs in API format, and the pictures that come back."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from text2layer_core.metrics import psnr

if TYPE_CHECKING:
    from headless.client import ComfyClient
    from tests.host.comfyui import Server

BUNDLED = "text2layer-mini (bundled)"
PROMPT = "a fox in the snow"
SCENE = (160, 128)
"""Width and height of the known scene."""


class Node:
    """A node of a graph; `node[slot]` is one of its outputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, slot: int) -> list[str | int]:
        return [self.name, slot]


class Graph:
    """Builds a graph node by node: `graph(class_type, input=value)`; a node as value is its first output."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def __call__(self, class_type: str, **inputs: Any) -> Node:
        node = Node(str(len(self.nodes) + 1))
        links = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self.nodes[node.name] = {"class_type": class_type, "inputs": links}
        return node


class Sample(NamedTuple):
    """The four pictures of one sample, each (1, C, H, W) in [0, 1], as stored in 8 bits."""

    composed: Tensor
    foreground: Tensor
    background: Tensor
    mask: Tensor


class Shown(NamedTuple):
    """What a node shows."""

    pictures: list[Tensor]
    text: list[str]

    @property
    def samples(self) -> list[Sample]:
        """Of our own nodes: four pictures per sample, in this order."""
        assert self.pictures and len(self.pictures) % 4 == 0
        groups = [self.pictures[start : start + 4] for start in range(0, len(self.pictures), 4)]
        for *_, mask in groups:
            assert mask.shape[1] == 3
            assert torch.equal(mask, mask[:, :1].expand_as(mask)), "the mask's picture must be grey"
        return [Sample(composed, foreground, background, mask[:, :1])
                for composed, foreground, background, mask in groups]

    @property
    def sample(self) -> Sample:
        """The only one."""
        (sample,) = self.samples
        return sample


def run(client: ComfyClient, graph: Graph | dict[str, dict[str, Any]]) -> dict[str, Shown]:
    """Queues, waits, fetches: node -> what it shows."""
    outputs = client.wait(client.queue(graph.nodes if isinstance(graph, Graph) else graph))
    return {
        name: Shown([read_picture(client.fetch(image)) for image in shown.get("images", [])],
                    list(shown.get("text", [])))
        for name, shown in outputs.items()
    }


def show(client: ComfyClient, graph: Graph, node: Node) -> Shown:
    """As `run`, of one node."""
    return run(client, graph)[node.name]


def read_picture(data: bytes) -> Tensor:
    """A picture file as (1, C, H, W) in [0, 1]."""
    pixels = np.array(Image.open(io.BytesIO(data)))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).movedim(-1, 0)[None] / 255


def as_saved(picture: Tensor) -> Tensor:
    """What ComfyUI's preview files make of values in [0, 1]: it cuts off below 1/255."""
    return torch.floor(picture * 255) / 255


def psnr_of(first: Tensor, second: Tensor) -> float:
    """PSNR in dB of two pictures."""
    return float(psnr(first, second))


def get_json(server: Server, path: str) -> Any:
    """What the server answers to a GET."""
    with urllib.request.urlopen(f"http://{server.address}{path}", timeout=60) as answer:
        return json.load(answer)


def load(graph: Graph) -> Node:
    """Our loader with the bundled model: MODEL, CLIP, VAE."""
    return graph("Text2LayerModelLoader", model=BUNDLED)


def generate(graph: Graph, loader: Node, **inputs: Any) -> Node:
    """Generate in little time: one small picture in two steps."""
    values = {"prompt": PROMPT, "negative": "", "seed": 0, "steps": 2, "cfg": 4.0, "sampler": "ddim",
              "scheduler": "ddim_uniform", "width": 64, "height": 64, "batch_size": 1}
    parts = {"model": loader[0], "clip": loader[1], "vae": loader[2]}
    return graph("Text2LayerGenerate", **{**parts, **values, **inputs})


def empty(graph: Graph, loader: Node, width: int = 64, height: int = 64, batch_size: int = 1) -> Node:
    """Our empty latent."""
    return graph("Text2LayerEmptyLatent", model=loader[0], width=width, height=height, batch_size=batch_size)


def ksampler(
    graph: Graph, loader: Node, latent: Node, *, clip: Any = None, prompt: str = PROMPT, **inputs: Any
) -> Node:
    """The stock sampler with stock prompts, in two steps."""
    clip = clip or loader[1]
    values = {"model": loader[0], "seed": 0, "steps": 2, "cfg": 4.0, "sampler_name": "ddim",
              "scheduler": "ddim_uniform", "denoise": 1.0}
    return graph(
        "KSampler", positive=graph("CLIPTextEncode", clip=clip, text=prompt),
        negative=graph("CLIPTextEncode", clip=clip, text=""), latent_image=latent, **{**values, **inputs},
    )


def decode(graph: Graph, loader: Node, latent: Node) -> Node:
    """Our decoder."""
    return graph("Text2LayerDecode", samples=latent, vae=loader[2])


def encode(graph: Graph, loader: Node, scene: dict[str, str], **inputs: Any) -> Node:
    """Our encoder on the known scene."""
    parts = {
        "foreground": graph("LoadImage", image=scene["foreground"]),
        "background": graph("LoadImage", image=scene["background"]),
        "foreground_mask": graph("LoadImageMask", image=scene["mask"], channel="red"),
        "vae": loader[2],
    }
    return graph("Text2LayerEncode", **{**parts, **inputs})


def native(graph: Graph, loader: Node, *, width: int = 64, height: int = 64, **inputs: Any) -> Node:
    """As `generate`, of stock nodes between our loader and our decoder."""
    return decode(graph, loader, ksampler(graph, loader, empty(graph, loader, width, height), **inputs))


def preview(graph: Graph, image: Node | list[str | int]) -> Node:
    """Stock preview of an IMAGE."""
    return graph("PreviewImage", images=image)


def scene_layers(width: int = SCENE[0], height: int = SCENE[1]) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground (orange, darker below), background (blue, lighter to the right), mask (a soft-edged disc)."""
    y = torch.linspace(0, 1, height).view(1, 1, height, 1).expand(1, 1, height, width)
    x = torch.linspace(0, 1, width).view(1, 1, 1, width).expand(1, 1, height, width)
    foreground = torch.cat([0.9 - 0.2 * y, 0.5 - 0.2 * y, 0.2 * x], dim=1)
    background = torch.cat([0.2 + 0.3 * x, 0.3 + 0.3 * x, 0.8 + 0 * x], dim=1)
    radius = torch.hypot((x - 0.5) * width, (y - 0.5) * height)
    return foreground, background, ((0.33 * height - radius) / 6 + 0.5).clamp(0, 1)


def save_scene(folder: Path) -> dict[str, Path]:
    """The known scene as files."""
    foreground, background, mask = scene_layers()
    parts = {"foreground": foreground, "background": background, "mask": mask.expand(-1, 3, -1, -1),
             "cutout": torch.cat([foreground, mask], dim=1)}
    return {name: save_picture(folder / f"scene-{name}.png", picture) for name, picture in parts.items()}


def save_picture(path: Path, picture: Tensor) -> Path:
    """(1, 3 or 4, H, W) in [0, 1] as a PNG."""
    Image.fromarray((picture[0].movedim(0, -1) * 255).round().to(torch.uint8).numpy()).save(path)
    return path
