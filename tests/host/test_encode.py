"""Known layers through Encode and Decode: polarity, and the chain that edits a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.host.graphs import Graph, decode, encode, generate, ksampler, load, psnr_of, run, scene_layers, show

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

MAX_MASK_ERROR = 0.03  # mean; measured 0.006 with the bundled autoencoder; inverted it would be 0.97
MIN_PSNR = 22  # measured 30 for the background, 28 for the foreground where it is opaque


def test_layers_come_back(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    loader = load(graph)
    node = decode(graph, loader, encode(graph, loader, scene))
    found = show(client, graph, node).sample
    foreground, background, mask = scene_layers()
    assert float((found.mask - mask).abs().mean()) < MAX_MASK_ERROR
    assert psnr_of(found.background, background) > MIN_PSNR
    opaque = mask[0, 0] == 1
    assert psnr_of(found.foreground[:, :3, opaque].unsqueeze(2), foreground[:, :, opaque].unsqueeze(2)) > MIN_PSNR


def test_every_way_to_give_the_foreground_is_the_same(client: ComfyClient, scene: dict[str, str]) -> None:
    """RGB; RGBA, whose alpha is left out; and a cutout with its MASK inverted: LoadImage has 1 where it is clear."""
    graph = Graph()
    loader = load(graph)
    cutout = graph("LoadImage", image=scene["cutout"])
    transparent = graph("SolidMask", value=1.0, width=160, height=128)
    rgba = graph("JoinImageWithAlpha", image=graph("LoadImage", image=scene["foreground"]), alpha=transparent)
    latents = [
        encode(graph, loader, scene),
        encode(graph, loader, scene, foreground=rgba),
        encode(graph, loader, scene, foreground=cutout, foreground_mask=graph("InvertMask", mask=cutout[1])),
    ]
    nodes = [decode(graph, loader, latent) for latent in latents]
    shown = run(client, graph)
    first, *others = (shown[node.name].sample for node in nodes)
    for other in others:
        assert all((one - two).abs().max() <= 1 / 255 for one, two in zip(first, other, strict=True))


def test_one_mask_serves_a_batch(client: ComfyClient, scene: dict[str, str]) -> None:
    graph = Graph()
    loader = load(graph)
    twice = {part: graph("RepeatImageBatch", image=graph("LoadImage", image=scene[part]), amount=2)
             for part in ("foreground", "background")}
    node = decode(graph, loader, encode(graph, loader, scene, **twice))
    first, second = show(client, graph, node).samples
    assert all((one - two).abs().max() <= 1 / 255 for one, two in zip(first, second, strict=True))


def test_edit_chain_runs(client: ComfyClient) -> None:
    """Drawn layers encoded again, noised half way, drawn anew: the same size, near the first but not the same."""
    graph = Graph()
    loader = load(graph)
    drawn = generate(graph, loader, width=90, height=70, steps=4)
    again = graph("Text2LayerEncode", foreground=drawn[0], background=drawn[1], foreground_mask=drawn[2],
                  vae=loader[2])
    edited = decode(graph, loader, ksampler(graph, loader, again, denoise=0.5, steps=4, seed=3))
    shown = run(client, graph)
    before, after = (shown[node.name].sample for node in (drawn, edited))
    assert [picture.shape for picture in after] == [picture.shape for picture in before]
    assert not torch.equal(after.composed, before.composed)
