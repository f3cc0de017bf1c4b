"""Samples scored and written on a real host: filter files in its model folder, sets of files in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.host.comfyui import Server
from tests.host.graphs import SCENE, Graph, Node, run
from tests.host.test_bad_values import refusal, still_works
from tests.host.test_layers import build, pictures, stored_scene
from text2layer_core.quality import QualityConfig, QualityFilter, save_quality_filter
from train.quality_samples import SampleFiles
from train.shards import ShardsConfig, ShardSource

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

NONE = {"mask_filter": "none", "inpainting_filter": "none"}
FILTERS = {"mask_filter": "quality/mask.safetensors", "inpainting_filter": "quality/inpainting.safetensors"}
THRESHOLDS = {"mask": 0.9, "inpainting": 0.1}
"""Those of fresh networks, whose scores are near 0.5: the mask's drops everything, the inpainting's keeps it."""


@pytest.fixture(scope="module")
def filters(server: Server) -> Iterator[dict[str, QualityFilter]]:
    """One of each kind, its file in a subfolder of the server's models."""
    torch.manual_seed(0)
    size = QualityConfig(image_size=32, width=0.1, depth=0.1)
    made = {kind: QualityFilter(kind, size, threshold=each).eval() for kind, each in THRESHOLDS.items()}
    folder = server.folder / "models" / "text2layer" / "quality"
    for kind, each in made.items():
        save_quality_filter(folder / f"{kind}.safetensors", each)
    yield made
    for path in folder.iterdir():
        path.unlink()


def flat(graph: Graph, scene: dict[str, str]) -> dict[str, Node]:
    parts = pictures(graph, scene)
    composed = graph("Text2LayerCompose", background=parts["background"], foreground=parts["foreground"],
                     foreground_mask=parts["mask"], linear_light=False)
    return {"image": composed, "foreground_mask": parts["mask"], "background": parts["background"]}


def document(graph: Graph, scene: dict[str, str]) -> Node:
    parts = pictures(graph, scene)
    below = build(graph, images=parts["background"], names="below")
    return build(graph, images=parts["foreground"], names="above", masks=parts["mask"], layers=below)


def score(client: ComfyClient, scene: dict[str, str], files: dict[str, str]) -> str:
    """The reason."""
    graph = Graph()
    node = graph("Text2LayerSampleScore", **flat(graph, scene), **files)
    return run(client, graph)[node.name].text[0]


def write(graph: Graph, layers: Any, **inputs: Any) -> Node:
    return graph("Text2LayerWriteSample", **{
        "layers": layers, "caption": "an orange disc", "filename_prefix": "samples/disc", **inputs,
    })


def test_scores_in_the_host_are_ours(
    client: ComfyClient, scene: dict[str, str], filters: dict[str, QualityFilter]
) -> None:
    """The host's own transformers: the same scores to the digits that the reason shows."""
    foreground, background, mask = stored_scene()
    seen = {"mask": torch.cat([torch.lerp(background, foreground, mask), mask], dim=1), "inpainting": background}
    wanted = {kind: float(model.scores(seen[kind])[0]) for kind, model in filters.items()}
    reason = score(client, scene, FILTERS)
    assert reason.startswith("dropped: mask score ")
    assert float(reason.split()[3]) == pytest.approx(wanted["mask"], abs=0.0011)
    reason = score(client, scene, {**NONE, "inpainting_filter": FILTERS["inpainting_filter"]})
    assert reason.startswith("kept: inpainting score ")
    assert float(reason.split()[3]) == pytest.approx(wanted["inpainting"], abs=0.0011)


def test_without_filters_all_is_kept(client: ComfyClient, scene: dict[str, str]) -> None:
    assert score(client, scene, NONE) == "kept: no filter"


def test_samples_are_written_and_read(server: Server, client: ComfyClient, scene: dict[str, str]) -> None:
    """Twice the same: two samples of the known scene, as files and as the trainers read them."""
    foreground, background, mask = stored_scene()
    before = set((server.folder / "output").glob("samples/*"))
    for caption in ("an orange disc", "a disc again"):  # else the host would not run the same graph twice
        graph = Graph()
        node = write(graph, document(graph, scene), caption=caption, mask_score=0.25)
        files = client.wait(client.queue(graph.nodes))[node.name]["files"]
        assert len(files) == 6
        assert client.fetch(files[0]) == (server.folder / "output" / "samples" / files[0]["filename"]).read_bytes()
    assert len(set((server.folder / "output").glob("samples/*")) - before) == 12
    samples = SampleFiles(server.folder / "output" / "samples")
    first, second = samples.keys[-2:]
    assert int(second.split("_")[1]) == int(first.split("_")[1]) + 1
    step = 0.51 / 255
    torch.testing.assert_close(samples.picture(first, "background.png"), background, atol=step, rtol=0)
    torch.testing.assert_close(samples.picture(first, "mask.png"), mask, atol=step, rtol=0)
    composed = torch.lerp(background, foreground, mask)
    torch.testing.assert_close(samples.picture(first, "image.png"), composed, atol=step, rtol=0)
    assert samples.read(second, "txt") == b"a disc again\n"
    assert json.loads(samples.read(first, "json") or b"")["mask_score"] == 0.25
    source = ShardSource(ShardsConfig(files=str(server.folder / "output" / "samples")), size=min(SCENE), seed=0)
    batch = source.batch(0, len(source))
    left = (SCENE[0] - SCENE[1]) // 2  # the trainers cut the middle out
    read = batch.stack[batch.captions.index("a disc again"), 3:]
    written = torch.cat([background, mask], dim=1)[0, ..., left : left + SCENE[1]]
    torch.testing.assert_close(read, written, atol=step, rtol=0)


def test_the_score_decides(
    server: Server, client: ComfyClient, scene: dict[str, str], filters: dict[str, QualityFilter]
) -> None:
    """Links as in the workflow: dropped by the mask's filter, then kept without it."""
    folder = server.folder / "output" / "decided"
    for files, kept in ((FILTERS, 0), ({**FILTERS, "mask_filter": "none"}, 1)):
        graph = Graph()
        judged = graph("Text2LayerSampleScore", **flat(graph, scene), **files)
        node = write(graph, document(graph, scene), filename_prefix="decided/disc", mask_score=judged[0],
                     inpainting_score=judged[1], keep=judged[2])
        shown = run(client, graph)[node.name]
        assert (shown.text == ["not kept, nothing written"]) == (kept == 0)
        assert len(list(folder.glob("*.json"))) == kept
    (path,) = folder.glob("*.json")
    assert set(json.loads(path.read_text("utf-8"))) == {"inpainting_score", "made_by"}


BAD: dict[str, tuple[Any, list[str]]] = {
    "no such filter": (lambda graph, scene: graph(
        "Text2LayerSampleScore", **flat(graph, scene), **{**NONE, "mask_filter": "nothing.safetensors"}),
        ["mask_filter", "nothing.safetensors"]),
    "path as filter": (lambda graph, scene: graph(
        "Text2LayerSampleScore", **flat(graph, scene), **{**NONE, "inpainting_filter": "../../etc/passwd"}),
        ["inpainting_filter", "../../etc/passwd"]),
    "background of another size": (lambda graph, scene: graph(
        "Text2LayerSampleScore", **{**flat(graph, scene), "background": graph(
            "EmptyImage", width=64, height=48, batch_size=1, color=0)}, **NONE),
        ["background", f"{SCENE[0]}x{SCENE[1]}", "64x48"]),
    "no caption": (lambda graph, scene: write(graph, document(graph, scene), caption=""), ["caption"]),
    "out of the folder": (
        lambda graph, scene: write(graph, document(graph, scene), filename_prefix="../disc"),
        ["filename_prefix", "../disc"]),
    "dots in the name": (
        lambda graph, scene: write(graph, document(graph, scene), filename_prefix="v1.5"), ["name", "v1.5"]),
    "one layer": (
        lambda graph, scene: write(graph, build(graph, images=pictures(graph, scene)["background"])), ["layers", "1"]),
    "score above 1": (
        lambda graph, scene: write(graph, document(graph, scene), mask_score=2.0), ["mask_score", "2.0"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_value_is_named(client: ComfyClient, scene: dict[str, str], name: str) -> None:
    make, words = BAD[name]
    graph = Graph()
    make(graph, scene)
    message = refusal(client, graph)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    still_works(client)


def test_a_filter_of_the_other_kind_and_a_model_are_refused(
    server: Server, client: ComfyClient, scene: dict[str, str], filters: dict[str, QualityFilter]
) -> None:
    path = Path(server.folder / "models" / "text2layer" / "quality" / "text.safetensors")
    path.write_text("it is a text")
    other, text = FILTERS["inpainting_filter"], "quality/text.safetensors"
    for name, words in ((other, "must be of kind mask"), (text, "text.safetensors")):
        graph = Graph()
        graph("Text2LayerSampleScore", **flat(graph, scene), **{**NONE, "mask_filter": name})
        message = refusal(client, graph)
        assert words in message
        assert "\n" not in message
    still_works(client)
