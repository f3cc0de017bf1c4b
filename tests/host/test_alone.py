"""Servers of their own. The file's name puts them before the session's server starts: one runs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.host.comfyui import LINK, Host, Server
from tests.host.graphs import Graph, Sample, decode, encode, generate, load, psnr_of, run, show

pytestmark = pytest.mark.comfy

PROBE = '''"""Says what is imported."""
import sys


class ModulesProbe:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"time": ("INT", {"default": 0})}}

    def run(self, time):
        return {"ui": {"text": sorted(sys.modules)}}


NODE_CLASS_MAPPINGS = {"ModulesProbe": ModulesProbe}
'''
HEAVY = {"diffusers", "psd_tools", "accelerate", "cv2"}
"""The issue's list."""
SCHEMAS = {
    "", "blending", "blur", "closed_form", "compositing", "composition", "guided", "harmonise", "layers", "masks",
    "placement", "refine", "replacing", "stack", "transform", "vitmatte",
}
"""Of our core: where the choices that the schemas offer are defined, and what those modules are built on."""
MIN_BF16_PSNR = 38  # measured 45 for the foreground, more for the others


@contextmanager
def running(host: Host, *options: str, **arguments: Any) -> Iterator[Any]:
    from headless.client import ComfyClient

    with Server(host, *options, **arguments) as server, ComfyClient(server.address) as client:
        yield client


def modules(client: Any, time: int) -> set[str]:
    graph = Graph()
    return set(show(client, graph, graph("ModulesProbe", time=time)).text)


def test_modules_of_the_running_host(host: Host) -> None:
    """With the pack and without; once more after a picture was drawn."""
    probe = {"modules_probe.py": PROBE}
    with running(host, pack=False, nodes=probe) as client:
        without = modules(client, 0)
    with running(host, nodes=probe) as client:
        more = modules(client, 0) - without
        graph = Graph()
        generate(graph, load(graph), width=32, height=32, steps=1)
        run(client, graph)
        later = modules(client, 1) - without
    ours = {name.partition(LINK)[2] for name in more if LINK in name}
    assert {name for name in more if LINK not in name and not name.endswith("modules_probe")} == set()
    core = {name.partition(".text2layer_core")[2].removeprefix(".") for name in ours if ".text2layer_core" in name}
    assert core <= SCHEMAS
    assert any(name.endswith(".text2layer_core.autoencoder") for name in later)
    assert HEAVY & {name.partition(".")[0] for name in later} == set()


@pytest.mark.slow
def test_vae_in_bfloat16(host: Host, scene_files: dict[str, Path]) -> None:
    """Against float32, there and back. --lowvram and --novram exclude --cpu, see scripts/units.py for them."""
    found: list[Sample] = []
    for option in ("--fp32-vae", "--bf16-vae"):
        with running(host, option) as client:
            scene = {name: client.upload(path) for name, path in scene_files.items()}
            graph = Graph()
            loader = load(graph)
            found.append(show(client, graph, decode(graph, loader, encode(graph, loader, scene))).sample)
    assert not found[0].composed.equal(found[1].composed)
    for one, other in zip(*found, strict=True):
        assert psnr_of(one, other) > MIN_BF16_PSNR
