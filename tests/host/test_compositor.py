"""LAYERS into core's ImageCompositor, where the host has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.host.comfyui import Server
from tests.host.graphs import Graph, decode, empty, encode, get_json, ksampler, load, preview, psnr_of, run

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy


@pytest.fixture(autouse=True)
def _needs_compositor(server: Server) -> None:
    if not get_json(server, "/object_info/ImageCompositor"):
        pytest.skip(f"ComfyUI {server.host.version} has no ImageCompositor (0.31 and later have)")


def test_hard_pixels_equal_ours(client: ComfyClient, scene: dict[str, str]) -> None:
    """Soft ones cannot: the compositor blends in linear light. ThresholdMask says where our mask is exactly 0 or 1."""
    graph = Graph()
    loader = load(graph)
    node = decode(graph, loader, encode(graph, loader, scene))
    composed = graph("ImageCompositor", layers=node[4], compositor={})
    over = [
        preview(graph, graph("MaskToImage", mask=graph("ThresholdMask", mask=mask, value=0.0)))
        for mask in (node[2], graph("InvertMask", mask=node[2]))
    ]
    shown = run(client, graph)
    visible, see_through = (shown[mask.name].pictures[0][:, :1] > 0.5 for mask in over)
    hard = (visible ^ see_through)[0, 0]
    assert hard.float().mean() > 0.3
    ours = shown[node.name].sample
    (theirs,) = shown[composed.name].pictures
    assert theirs.shape == ours.composed.shape
    assert (theirs - ours.composed)[:, :, hard].abs().max() <= 2 / 255


def test_each_sample_is_a_document(client: ComfyClient) -> None:
    """Three runs of the compositor, in the batch's order: each picture is nearest to its own sample."""
    graph = Graph()
    loader = load(graph)
    node = decode(graph, loader, ksampler(graph, loader, empty(graph, loader, batch_size=3), steps=4))
    composed = graph("ImageCompositor", layers=node[4], compositor={})
    shown = run(client, graph)
    ours, theirs = [sample.composed for sample in shown[node.name].samples], shown[composed.name].pictures
    assert len(theirs) == len(ours) == 3
    likeness = torch.tensor([[psnr_of(picture, sample) for sample in ours] for picture in theirs])
    assert likeness.argmax(dim=1).tolist() == [0, 1, 2]
