"""Checks that each workflow and its twin in workflows/api are the same graph: `python -m scripts.check_workflows`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
NOTES = ("Note", "MarkdownNote")
SEEDS = ("seed", "noise_seed")
"""Inputs after whose value the page writes one more: what becomes of the seed after a run."""
CONTROLS = ("fixed", "increment", "decrement", "randomize")
SOCKETS = ("MODEL", "CLIP", "VAE", "LATENT", "IMAGE", "MASK", "LAYERS")
"""Types of our inputs that only a link can fill; every other has a widget."""

Graph = dict[str, dict[str, Any]]


def to_api(workflow: dict[str, Any], contract: dict[str, Any]) -> Graph:
    """The graph of a saved workflow as /prompt takes it.

    Args:
        workflow: as ComfyUI's page saves it (version 0.4).
        contract: node id -> "inputs", each [name, type]; the order of the values of our nodes. That of every other
            node is in the workflow itself.

    Returns:
        Node number -> class_type and inputs.

    Raises:
        ValueError: a link or a value is not what the node's inputs need.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): {"class_type": node["type"], "inputs": {**_values(node, contract), **_links(node, sources)}}
        for node in workflow["nodes"] if node["type"] not in NOTES
    }


def _links(node: dict[str, Any], sources: dict[int, list[Any]]) -> dict[str, list[Any]]:
    linked = {each["name"]: each["link"] for each in node["inputs"] if each["link"] is not None}
    unknown = [name for name, link in linked.items() if link not in sources]
    if unknown:
        raise ValueError(f"node {node['id']} ({node['type']}): no such link at {', '.join(unknown)}")
    return {name: sources[link] for name, link in linked.items()}


def _values(node: dict[str, Any], contract: dict[str, Any]) -> dict[str, Any]:
    """The widgets' values by name."""
    if node["type"] in contract:
        names = [name for name, kind in contract[node["type"]]["inputs"] if kind not in SOCKETS]
    else:
        names = [each["name"] for each in node["inputs"] if "widget" in each]
    remaining = list(node.get("widgets_values", ()))
    values: dict[str, Any] = {}
    for name in names:
        if not remaining:
            raise ValueError(f"node {node['id']} ({node['type']}): no value for {name}")
        values[name] = remaining.pop(0)
        if name in SEEDS and remaining and remaining[0] in CONTROLS:
            remaining.pop(0)
    if remaining:
        raise ValueError(f"node {node['id']} ({node['type']}): values {remaining} belong to no input")
    return values


def problems(workflows: Path = WORKFLOWS) -> list[str]:
    """One line for each way in which the folder's workflows and their API twins differ."""
    contract = json.loads((ROOT / "tests" / "nodes" / "contract.json").read_text(encoding="utf-8"))
    saved = {path.name: path for path in workflows.glob("*.json")}
    twins = {path.name: path for path in (workflows / "api").glob("*.json")}
    found = [f"{name}: has no twin" for name in sorted(saved.keys() ^ twins.keys())]
    for name in sorted(saved.keys() & twins.keys()):
        twin: Graph = json.loads(twins[name].read_text(encoding="utf-8"))
        try:
            graph = to_api(json.loads(saved[name].read_text(encoding="utf-8")), contract)
        except ValueError as error:
            found.append(f"{name}: {error}")
            continue
        found += [
            f"{name}: node {number} is {graph.get(number)} in the workflow, {twin.get(number)} in its twin"
            for number in sorted(graph.keys() | twin.keys(), key=int) if graph.get(number) != twin.get(number)
        ]
    return found


def main() -> int:
    """Prints what differs; 1 if anything does."""
    found = problems()
    print("\n".join(found) or "workflows and API twins are the same graphs")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
