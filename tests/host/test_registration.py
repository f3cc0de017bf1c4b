"""What the host knows of the pack after its start."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.host.comfyui import LINK, Host, Server, environment
from tests.host.graphs import get_json
from tests.nodes.contract import frozen

pytestmark = pytest.mark.comfy

IDS = sorted(frozen())
MAX_IMPORT_SECONDS = 0.3


def import_seconds(server: Server) -> float:
    """The host prints one decimal."""
    assert "IMPORT FAILED" not in server.log
    found = re.findall(rf"([\d.]+) seconds.*/{LINK}$", server.log, re.MULTILINE)
    assert len(found) == 1, server.log
    return float(found[0])


def test_pack_is_imported_fast(host: Host, server: Server) -> None:
    """The limit is the issue's; on a busy machine a second start decides."""
    seconds = import_seconds(server)
    if seconds > MAX_IMPORT_SECONDS:
        with Server(host) as again:
            seconds = import_seconds(again)
    assert seconds <= MAX_IMPORT_SECONDS


def test_diffusers_is_out_of_reach(host: Host) -> None:
    """Else the other tests would not notice an import of it."""
    command = [str(host.python), "-c", "import diffusers"]
    done = subprocess.run(command, cwd=host.folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must not be imported inside ComfyUI" in done.stderr


@pytest.mark.parametrize("node_id", IDS)
def test_node_is_registered_and_explained(server: Server, node_id: str) -> None:
    info = get_json(server, f"/object_info/{node_id}")[node_id]
    assert info["category"] == "text2layer"
    assert info["display_name"] != node_id
    assert info["description"]
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert inputs
    assert [name for name, (_, options) in inputs.items() if not options.get("tooltip")] == []
    assert info["output"] or info["output_node"]
    assert len(info["output_tooltips"] or []) == len(info["output"])
    assert all(info["output_tooltips"] or [])


def test_no_other_node_is_ours(server: Server) -> None:
    info = get_json(server, "/object_info")
    assert sorted(name for name, node in info.items() if LINK in node["python_module"]) == IDS
