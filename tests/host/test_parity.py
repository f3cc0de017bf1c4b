"""The terminal, Generate and the native graph draw one picture."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.host.graphs import PROMPT, Graph, Sample, as_saved, generate, load, native, psnr_of, run
from text2layer_core.pipeline import Text2LayerPipeline

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

MIN_PSNR = 45  # the issue's
SEED, CFG = 7, 4.0


@cache
def pipeline() -> Text2LayerPipeline:
    return Text2LayerPipeline.from_pretrained()


@cache
def in_terminal(width: int, height: int, steps: int) -> Sample:
    drawn = pipeline()(PROMPT, width=width, height=height, seed=SEED, steps=steps, guidance_scale=CFG)
    pictures = (drawn.composed, drawn.layers.rgba, drawn.layers.background, drawn.layers.mask)
    return Sample(*map(as_saved, pictures))


def where(picture: Tensor, keep: Tensor) -> Tensor:
    """The pixels of `keep`, as a picture of one row."""
    return picture[:, :, keep].unsqueeze(2)


@pytest.mark.parametrize("steps", [20, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("width", "height"), [(256, 256), (250, 190)])
def test_one_picture_in_three_ways(client: ComfyClient, width: int, height: int, steps: int) -> None:
    graph = Graph()
    loader = load(graph)
    nodes = {name: build(graph, loader, seed=SEED, steps=steps, cfg=CFG, width=width, height=height)
             for name, build in (("Generate", generate), ("native", native))}
    shown = run(client, graph)
    terminal = in_terminal(width, height, steps)
    ways = {"terminal": terminal, **{name: shown[node.name].sample for name, node in nodes.items()}}
    visible = terminal.mask[0, 0] > 0
    assert visible.any()
    found = {}
    for (first, one), (second, other) in itertools.combinations(ways.items(), 2):
        for part in ("composed", "background", "mask"):
            found[first, second, part] = psnr_of(getattr(one, part), getattr(other, part))
        colours = (where(way.foreground[:, :3], visible) for way in (one, other))
        found[first, second, "foreground"] = psnr_of(*colours)
    assert {key: value for key, value in found.items() if not value >= MIN_PSNR} == {}


def test_another_seed_is_another_picture(client: ComfyClient) -> None:
    """The limit above means something: other seeds are far from it."""
    graph = Graph()
    loader = load(graph)
    nodes = [generate(graph, loader, seed=seed, steps=4) for seed in (1, 2)]
    shown = run(client, graph)
    first, second = (shown[node.name].sample.composed for node in nodes)
    assert not torch.equal(first, second)
    assert psnr_of(first, second) < MIN_PSNR - 10
