"""Runs that end early, many runs in a row, and memory."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.host.comfyui import Server
from tests.host.graphs import Graph, Node, decode, empty, encode, generate, get_json, load, native, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

MAX_SECONDS_TO_STOP = 10  # one step takes well under a second on an idle machine
MAX_SLOPE = 0.3  # MB a prompt, the issue's
PROMPTS = 50
BATCH = 32


@pytest.mark.parametrize("build", [generate, native], ids=["Generate", "KSampler"])
def test_interrupted_and_run_again(client: ComfyClient, build: Callable[..., Node]) -> None:
    from headless.client import ComfyError

    graph = Graph()
    node = build(graph, load(graph), steps=40, width=128, height=128)
    steps: list[int] = []
    started: list[float] = []

    def stop_early(value: int, _: int) -> None:
        steps.append(value)
        if not started:  # newer hosts do not report every step
            started.append(time.monotonic())
            client.interrupt()

    with pytest.raises(ComfyError, match=r"^interrupted$"):
        client.wait(client.queue(graph.nodes), stop_early)
    assert time.monotonic() - started[0] < MAX_SECONDS_TO_STOP
    assert max(steps) < 40
    assert len(show(client, graph, node).samples) == 1


def encoded_batch(graph: Graph, loader: Node, scene: dict[str, str]) -> Node:
    parts = {name: graph("RepeatImageBatch", image=graph("LoadImage", image=scene[name]), amount=BATCH)
             for name in ("foreground", "background")}
    return encode(graph, loader, scene, **parts)


def empty_batch(graph: Graph, loader: Node, _: dict[str, str]) -> Node:
    return empty(graph, loader, batch_size=BATCH)


@pytest.mark.parametrize(
    ("latents", "full"), [(encoded_batch, 0), (empty_batch, 0), (empty_batch, 1)], ids=["Encode", "Decode", "previews"]
)
def test_a_batch_shows_a_bar_and_stops(
    client: ComfyClient, scene: dict[str, str], latents: Callable[..., Node], full: int
) -> None:
    """Encoding, decoding and the previews after it have a bar each; interrupted once `full` bars are."""
    from headless.client import ComfyError

    graph = Graph()
    loader = load(graph)
    decode(graph, loader, latents(graph, loader, scene))
    values: list[int] = []
    interrupted: list[int] = []

    def stop(value: int, total: int) -> None:
        assert total == BATCH
        values.append(value)
        if values.count(BATCH) == full and not interrupted:
            interrupted.append(value)
            client.interrupt()

    with pytest.raises(ComfyError, match=r"^interrupted$"):
        client.wait(client.queue(graph.nodes), stop)
    assert values[0] == 0
    assert values.count(BATCH) == full
    again = Graph()
    assert len(show(client, again, generate(again, load(again))).samples) == 1


def test_runs_after_free(server: Server, client: ComfyClient) -> None:
    """The loader runs again, since nothing is kept, and the picture is the same."""
    graph = Graph()
    node = generate(graph, load(graph), seed=5)
    before = show(client, graph, node).sample
    request = urllib.request.Request(
        f"http://{server.address}/free", data=b'{"unload_models": true, "free_memory": true}',
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310
    time.sleep(2)  # the host's worker, woken by the request, frees before it looks for the next prompt
    prompt_id = client.queue(graph.nodes)
    client.wait(prompt_id)
    cached = [data["nodes"] for kind, data in get_json(server, f"/history/{prompt_id}")[prompt_id]["status"]["messages"]
              if kind == "execution_cached"]
    after = show(client, graph, node).sample
    assert cached == [[]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.slow
def test_many_prompts_keep_memory_and_pictures(server: Server, client: ComfyClient) -> None:
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("the server's memory is read from /proc")

    def draw(seed: int) -> torch.Tensor:
        graph = Graph()
        return show(client, graph, generate(graph, load(graph), seed=seed, steps=4)).sample.composed

    def megabytes() -> float:
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    first = draw(0)
    memory = [megabytes()]
    for seed in range(1, PROMPTS):
        assert not torch.equal(draw(seed), first)
        memory.append(megabytes())
    window = np.arange(20, PROMPTS)
    slope = float(np.polyfit(window, np.array(memory)[window], 1)[0])
    assert slope < MAX_SLOPE, memory
    assert torch.equal(draw(0), first)
