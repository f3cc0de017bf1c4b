"""The shipped workflows: twins are the same graph, every graph is whole, tidy and says what to try next."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from scripts.check_workflows import NOTES, SOCKETS, WORKFLOWS, problems, to_api
from tests.nodes.contract import declared_by_source, frozen

NAMES = [
    "arrange_layers", "clean_edges_and_export", "collect_training_data", "decompose_photo", "decompose_with_mask",
    "move_subject", "replace_background", "text2layer_basic", "text2layer_compositor", "text2layer_edit_layers",
    "text2layer_native",
]
DRAWING = ("Text2LayerGenerate", "Text2LayerEmptyLatent", "KSampler")
CARD = Path(__file__).parents[2] / "models" / "README.md"
TITLE_HEIGHT = 30


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, graph: dict[str, Any]) -> None:
    path.write_text(json.dumps(graph), encoding="utf-8")


@pytest.fixture(params=NAMES)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(WORKFLOWS / f"{request.param}.json")


def test_the_folder_holds_these_workflows() -> None:
    """Each with its thumbnail."""
    assert sorted(path.stem for path in WORKFLOWS.glob("*.json")) == NAMES
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == NAMES


def test_twins_are_the_same_graph() -> None:
    assert problems() == []


@pytest.mark.parametrize("change", ["value", "link", "node", "order of values", "twin"])
def test_a_difference_is_found(tmp_path: Path, change: str) -> None:
    """One change to one of two equal files: exactly that file is named."""
    shutil.copytree(WORKFLOWS, tmp_path, dirs_exist_ok=True)
    name = "text2layer_native.json"
    saved, twin = read(tmp_path / name), read(tmp_path / "api" / name)
    sampler = next(node for node in saved["nodes"] if node["type"] == "KSampler")
    if change == "value":
        twin["5"]["inputs"]["cfg"] = 3.0
    elif change == "link":
        twin["6"]["inputs"]["vae"] = ["1", 1]
    elif change == "node":
        del twin["3"]
    elif change == "order of values":
        sampler["widgets_values"][2:4] = reversed(sampler["widgets_values"][2:4])
    write(tmp_path / name, saved)
    write(tmp_path / "api" / name, twin)
    if change == "twin":
        (tmp_path / "api" / name).unlink()
    found = problems(tmp_path)
    assert found
    assert all(line.startswith(name) for line in found)


@pytest.mark.parametrize(("values", "message"), [
    (["a fox", "b"], r"node 2 \(CLIPTextEncode\): values \['b'\] belong to no input"),
    ([], r"node 2 \(CLIPTextEncode\): no value for text"),
])
def test_values_that_fit_no_input(values: list[str], message: str) -> None:
    saved = read(WORKFLOWS / "text2layer_native.json")
    saved["nodes"] = [{**node, "widgets_values": values} if node["id"] == 2 else node for node in saved["nodes"]]
    with pytest.raises(ValueError, match=message):
        to_api(saved, frozen())


def test_our_nodes_have_the_sockets_of_the_contract(workflow: dict[str, Any]) -> None:
    """In its order, since links address them by position; the page puts those without a widget first."""
    contract = frozen()
    for node in workflow["nodes"]:
        if node["type"] in contract:
            for side in ("inputs", "outputs"):
                wanted = [[name, kind.removeprefix("list of ")] for name, kind in contract[node["type"]][side]]
                if side == "inputs":
                    wanted.sort(key=lambda slot: slot[1] not in SOCKETS)
                assert [[each["name"], each["type"]] for each in node[side]] == wanted


def test_links_agree_at_both_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[source]["outputs"][slot]["type"] == nodes[target]["inputs"][place]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number
    ends = [each["link"] for node in nodes.values() for each in node["inputs"] if each["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in workflow["links"])
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes)


def test_values_by_name_are_those_by_position(workflow: dict[str, Any]) -> None:
    """The page writes both since 1.49."""
    for node in workflow["nodes"]:
        assert list(node.get("widgets_values_named", {}).values()) == node.get("widgets_values", [])


def test_nodes_do_not_overlap(workflow: dict[str, Any]) -> None:
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in workflow["nodes"]]
    for (x, y, width, height, one), (x2, y2, width2, height2, other) in combinations(boxes, 2):
        beside = x + width <= x2 or x2 + width2 <= x
        below = y + height <= y2 - TITLE_HEIGHT or y2 + height2 <= y - TITLE_HEIGHT
        assert beside or below, f"{one} overlaps {other}"


def test_a_note_says_what_to_try_next(workflow: dict[str, Any]) -> None:
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES]
    assert len(notes) == 1
    assert 2 <= len([line for line in notes[0].splitlines() if line]) <= 4


def test_the_compositor_says_which_host_it_needs() -> None:
    nodes = read(WORKFLOWS / "text2layer_compositor.json")["nodes"]
    assert any("0.31" in node["widgets_values"][0] for node in nodes if node["type"] in NOTES)


@pytest.mark.parametrize("name", NAMES)
def test_they_draw_as_generate_does_by_default(name: str) -> None:
    """One place for steps, cfg, sampler, scheduler and size: the node's own defaults."""
    slots = declared_by_source()["Text2LayerGenerate"]["inputs"]
    wanted = {slot["name"]: slot["default"] for slot in slots}
    wanted["sampler_name"] = wanted["sampler"]
    fixed = ("steps", "cfg", "sampler", "sampler_name", "scheduler", "width", "height", "batch_size")
    nodes = read(WORKFLOWS / "api" / f"{name}.json").values()
    for node in (node for node in nodes if node["class_type"] in DRAWING):
        for key in fixed:
            value = node["inputs"].get(key, wanted[key])
            assert value == wanted[key], f"{key} of {node['class_type']}"


@pytest.mark.parametrize("name", NAMES)
def test_prompts_use_words_that_the_model_knows(name: str) -> None:
    """Thing and place are in the card's lists."""
    section = CARD.read_text(encoding="utf-8").split("## Things and places")[1].split("\n## ")[0]
    known = set(re.findall(r"[a-z]+", section)) | {"a", "in", "the", "on"}
    for node in read(WORKFLOWS / "api" / f"{name}.json").values():
        prompt = node["inputs"].get("prompt", node["inputs"].get("text", ""))
        assert set(prompt.split()) <= known, prompt
