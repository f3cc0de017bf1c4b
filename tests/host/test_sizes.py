"""Any size, stale sizes, and batches in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.graphs import Graph, decode, empty, generate, ksampler, load, native, psnr_of, run

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

SIZES = [(250, 190), (96, 136), (17, 33), (1, 1)]
COUNT = 3


def test_pictures_have_the_size_asked_for(client: ComfyClient) -> None:
    graph = Graph()
    loader = load(graph)
    nodes = {}
    for width, height in SIZES:
        for build in (native, generate):
            nodes[build(graph, loader, width=width, height=height, steps=1).name] = (width, height)
    shown = run(client, graph)
    found = {name: {tuple(picture.shape[:1:-1]) for picture in shown[name].sample} for name in nodes}
    assert found == {name: {size} for name, size in nodes.items()}


@pytest.mark.parametrize("late", [False, True], ids=["before sampling", "after sampling"])
def test_a_stale_size_is_left_out(client: ComfyClient, late: bool) -> None:
    """90x70 is padded to 96x80; scaled up to 160x128 the latent remembers a size that is not its own any more."""
    graph = Graph()
    loader = load(graph)

    def scaled(latent: object) -> object:
        return graph("LatentUpscale", samples=latent, upscale_method="bilinear", width=160, height=128,
                     crop="disabled")

    latent = empty(graph, loader, 90, 70)
    if late:
        latent = scaled(ksampler(graph, loader, latent, steps=1))
    else:
        latent = ksampler(graph, loader, scaled(latent), steps=1)
    node = decode(graph, loader, latent)
    shown = run(client, graph)[node.name].sample
    assert [tuple(picture.shape[:1:-1]) for picture in shown] == [(160, 128)] * 4


def test_a_batch_keeps_its_order(client: ComfyClient) -> None:
    """Decoded whole it equals each latent decoded alone, and there is one LAYERS document for each."""
    graph = Graph()
    loader = load(graph)
    latent = ksampler(graph, loader, empty(graph, loader, 64, 48, COUNT), steps=4)
    whole = decode(graph, loader, latent)
    alone = [
        decode(graph, loader, graph("LatentFromBatch", samples=latent, batch_index=index, length=1))
        for index in range(COUNT)
    ]
    documents = graph("PreviewAny", source=whole[4])
    shown = run(client, graph)
    batch = shown[whole.name].samples
    assert len(batch) == COUNT
    for index, node in enumerate(alone):
        for of_batch, single in zip(batch[index], shown[node.name].sample, strict=True):
            assert (of_batch - single).abs().max() <= 1 / 255
        assert psnr_of(batch[index].composed, batch[index - 1].composed) < 40  # another order would be noticed
    texts = shown[documents.name].text
    assert len(texts) == COUNT
    assert all("'canvas': (64, 48)" in text for text in texts)
