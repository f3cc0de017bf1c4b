"""The nodes' contract (contract.json), and the same read from the source and from a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.host.comfyui import Host

HERE = Path(__file__).parent
Sockets = dict[str, dict[str, list[list[str]]]]
"""Node id -> "inputs" and "outputs", each [name, type] in order; a list output's type is "list of ..."."""


def frozen() -> Sockets:
    """What contract.json says."""
    return json.loads((HERE / "contract.json").read_text(encoding="utf-8"))


@cache
def declared_by_source() -> dict[str, Any]:
    """Node id -> display name, description, inputs and outputs with their tooltips; needs no host."""
    return _run(sys.executable, str(HERE / "stub_host.py"))


def sockets_of_source(declared: dict[str, Any]) -> Sockets:
    """The contract's part of it."""
    return {
        name: {
            "inputs": [_socket(slot["name"], slot["type"], False) for slot in node["inputs"]],
            "outputs": [_socket(slot["name"], slot["type"], slot["list"]) for slot in node["outputs"]],
        }
        for name, node in declared.items()
    }


def sockets_of_host(host: Host) -> Sockets:
    """What that host makes of the pack."""
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    nodes = _run(
        str(host.python), str(HERE / "host_contract.py"), str(HERE.parents[1]),
        cwd=host.folder, env={**environment, "PYTHONPATH": str(host.folder)},
    )
    return {name: _sockets_of_info(info) for name, info in nodes.items()}


def _sockets_of_info(info: dict[str, Any]) -> dict[str, list[list[str]]]:
    inputs = [item for group in ("required", "optional") for item in info["input"].get(group, {}).items()]
    outputs = zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
    return {
        "inputs": [_socket(name, "COMBO" if isinstance(kind, list) else kind, False) for name, (kind, *_) in inputs],
        "outputs": [_socket(*output) for output in outputs],
    }


def _socket(name: str, kind: str, is_list: bool) -> list[str]:
    return [name, f"list of {kind}" if is_list else kind]


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])
