"""The headless client as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from tests.host.comfyui import PACK, Server
from tests.host.graphs import read_picture

pytestmark = pytest.mark.comfy

CLIENT = PACK / "headless" / "client.py"
BASIC = PACK / "workflows" / "api" / "text2layer_basic.json"

CONTENTS = [
    "not JSON", "[]", '{"nodes": [{"id": 1}], "links": [], "version": 0.4}',
    '{"1": {"class_type": "EmptyImage", "inputs": {}}}',
]


def run_client(
    server: Server, *arguments: str, prompt: str = "a fox in the snow"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLIENT), prompt, "--server", server.address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def workflow(tmp_path: Path, **inputs: object) -> str:
    from headless.client import change

    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(change(json.loads(BASIC.read_text(encoding="utf-8")), **inputs)), encoding="utf-8")
    return str(path)


def test_four_pictures_with_alpha(server: Server, tmp_path: Path) -> None:
    options = ["--workflow", workflow(tmp_path, steps=3, width=50, height=40), "--seed", "3"]
    done = run_client(server, *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    names = ["background-3-00.png", "composed-3-00.png", "foreground-3-00.png", "mask-3-00.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    background, composed, foreground, mask = (read_picture((tmp_path / "out" / name).read_bytes()) for name in names)
    assert foreground.shape == (1, 4, 40, 50)
    assert background.shape == composed.shape == (1, 3, 40, 50)
    assert torch.equal(foreground[:, 3:], mask[:, :1])
    assert "step 3/3" in done.stderr


@pytest.mark.parametrize("name", ["text2layer_native", "text2layer_edit_layers"])
def test_stock_nodes_get_prompt_and_seed(server: Server, tmp_path: Path, name: str) -> None:
    """Another prompt, another seed, another text of the last prompt node, named by --set: four different pictures."""
    from headless.client import change, read_graph

    graph = change(read_graph(BASIC.with_name(f"{name}.json")), steps=2)
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    last = max((number for number, node in graph.items() if node["class_type"] == "CLIPTextEncode"), key=int)
    pictures: set[bytes] = set()
    for prompt, seed, text in (("a fox", 3, ""), ("a crown", 3, ""), ("a fox", 4, ""), ("a fox", 3, "a cow at sea")):
        out = tmp_path / f"out{len(pictures)}"
        options = ["--set", f"{last}.text={text}"] if text else []
        done = run_client(server, "--workflow", str(path), "--seed", str(seed), "--out", str(out), *options,
                          prompt=prompt)
        assert done.returncode == 0, done.stderr
        pictures.add(sorted(out.glob("composed-*"))[-1].read_bytes())
    assert len(pictures) == 4


@pytest.mark.parametrize("setting", ["2.prompts=x", "9.prompt=x", "prompt=x", "2.prompt"])
def test_a_setting_that_fits_nothing_is_one_line(server: Server, setting: str) -> None:
    done = run_client(server, "--set", setting)
    assert done.returncode == 1
    assert done.stderr == f"error: --set must be NODE.INPUT=VALUE with an input of the workflow, got {setting!r}\n"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"width": 0}, ["Text2LayerGenerate", "width"]), ({"model": "none.safetensors"}, ["model", "none.safetensors"])],
)
def test_a_refusal_is_one_line(server: Server, tmp_path: Path, inputs: dict[str, object], words: list[str]) -> None:
    done = run_client(server, "--workflow", workflow(tmp_path, **inputs), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []
    assert not (tmp_path / "out").exists()


def test_a_missing_node_is_one_line(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "missing.json"
    path.write_text(json.dumps({"1": {"class_type": "NoSuchNode", "inputs": {"prompt": "", "seed": 0}}}),
                    encoding="utf-8")
    done = run_client(server, "--workflow", str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "NoSuchNode" in line


@pytest.mark.parametrize("content", CONTENTS, ids=["no JSON", "no graph", "the editor's format", "no prompt"])
def test_a_file_that_is_no_workflow_is_one_line(server: Server, tmp_path: Path, content: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content, encoding="utf-8")
    done = run_client(server, "--workflow", str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_no_server_is_one_line(tmp_path: Path) -> None:
    """Port 9 (discard) has no web server."""
    command = [sys.executable, str(CLIENT), "a fox", "--server", "127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no ComfyUI at 127.0.0.1:9")


def test_a_server_that_is_no_comfyui_is_one_line(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{other.server_address[1]}"
        command = [sys.executable, str(CLIENT), "a fox", "--server", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
        other.shutdown()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no ComfyUI at {address}: ")
