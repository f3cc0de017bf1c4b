"""Queues a Text2Layer workflow on a running ComfyUI and fetches the layers: `python headless/client.py PROMPT`.

Needs nothing but the standard library and `pip install websocket-client`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "api" / "text2layer_basic.json"
LAYERED = ("Text2LayerGenerate", "Text2LayerDecode")  # each shows composed, foreground, background and mask
Graph = dict[str, dict[str, Any]]


class ComfyError(RuntimeError):
    """What the server said, in one readable text."""


class ComfyClient:
    """One connection to a ComfyUI server."""

    def __init__(self, server: str = "127.0.0.1:8188", timeout: float = 600) -> None:
        """Connects.

        Args:
            server: host and port.
            timeout: seconds without any message before giving up.
        """
        self.server, self.client_id = server, uuid.uuid4().hex
        try:
            self._socket = websocket.create_connection(f"ws://{server}/ws?clientId={self.client_id}", timeout=timeout)
        except (OSError, ValueError, websocket.WebSocketException) as error:
            raise ComfyError(f"no ComfyUI at {server}: {' '.join(str(error).split())[:200]}") from error

    def __enter__(self) -> ComfyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def upload(self, path: Path) -> str:
        """Sends a picture to the server's input folder; the name to use in LoadImage."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        body = b"".join([
            head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", path.read_bytes(),
            f"\r\n--{boundary}--\r\n".encode(),
        ])
        answer = self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        found = json.loads(answer)
        return f"{found['subfolder']}/{found['name']}" if found.get("subfolder") else found["name"]

    def queue(self, graph: Graph) -> str:
        """Queues a graph in API format; its prompt id. ComfyError lists what the server refuses."""
        body = json.dumps({"prompt": graph, "client_id": self.client_id}).encode()
        return json.loads(self._request("/prompt", body, "application/json"))["prompt_id"]

    def wait(self, prompt_id: str, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Waits for a queued graph; node id -> what the node shows ({"images": [...], ...}).

        Raises:
            ComfyError: a node failed, or the run was interrupted.
        """
        while True:
            message = self._receive()
            if not isinstance(message, str):
                continue  # a preview
            event = json.loads(message)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "progress" and progress is not None:
                progress(data["value"], data["max"])
            elif event["type"] == "execution_error":
                raise ComfyError(f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}")
            elif event["type"] == "execution_interrupted":
                raise ComfyError("interrupted")
            elif event["type"] == "execution_success":
                return self.history(prompt_id)["outputs"]

    def _receive(self) -> str | bytes:
        try:
            message = self._socket.recv()
        except (OSError, websocket.WebSocketException) as error:
            raise ComfyError(f"the connection to {self.server} broke off: {error}") from error
        if message == "":
            raise ComfyError(f"{self.server} closed the connection")
        return message

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server keeps of a finished run; it is written shortly after the last message."""
        while prompt_id not in (found := json.loads(self._request(f"/history/{prompt_id}"))):
            time.sleep(0.05)
        return found[prompt_id]

    def fetch(self, image: dict[str, str]) -> bytes:
        """The file of a picture that `wait` names, as it is, alpha included."""
        return self._request(f"/view?{urllib.parse.urlencode(image)}")

    def interrupt(self) -> None:
        """Stops the running graph."""
        self._request("/interrupt", b"", "application/json")

    def _request(self, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(f"http://{self.server}{path}", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ComfyError(_readable(error.read(), error.code)) from error
        except OSError as error:
            raise ComfyError(f"no ComfyUI at {self.server}: {error}") from error


def _readable(body: bytes, status: int) -> str:
    """The server's refusal of a graph: each node, each input, what is wrong."""
    try:
        answer = json.loads(body)
        lines = [answer["error"]["message"]]
        for node_id, node in answer.get("node_errors", {}).items():
            lines += [f"{node['class_type']} (node {node_id}): {error['message']}: {error['details']}"
                      for error in node["errors"]]
        return "; ".join(lines)
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {body.decode(errors='replace').strip()}"


def read_graph(path: Path) -> Graph:
    """A graph in API format; ValueError for a file that holds none, such as one that the editor saved."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the workflow must be JSON, got {path}: {error}") from error
    nodes = graph.values() if isinstance(graph, dict) else [graph]
    if not all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in nodes):
        raise ValueError(f"the workflow must be in API format (Export (API) in the editor's menu), got {path}")
    return graph


def change(graph: Graph, **inputs: object) -> Graph:
    """A copy with these inputs set wherever a node has them as plain values; ValueError where none has one."""
    changed: Graph = json.loads(json.dumps(graph))
    for name, value in inputs.items():
        nodes = [node for node in changed.values() if name in node["inputs"]
                 and not isinstance(node["inputs"][name], list)]
        if not nodes:
            raise ValueError(f"the workflow must have a node with the input {name}, found none")
        for node in nodes:
            node["inputs"][name] = value
    return changed


def change_prompt(graph: Graph, prompt: str) -> Graph:
    """A copy with another prompt: every plain input `prompt`, else the text that leads the first sampler.

    Raises:
        ValueError: the graph has neither.
    """
    if any(isinstance(node["inputs"].get("prompt"), str) for node in graph.values()):
        return change(graph, prompt=prompt)
    for number in sorted(graph, key=lambda name: (len(name), name)):
        source = _text_node(graph, graph[number]["inputs"].get("positive"))
        if source is not None:
            return {**graph, source: {**graph[source], "inputs": {**graph[source]["inputs"], "text": prompt}}}
    raise ValueError("the workflow must have an input prompt, or a text at a sampler's positive, found neither")


def _text_node(graph: Graph, link: object) -> str | None:
    """The node with a plain text that a conditioning comes from, through nodes that only change it."""
    seen: set[str] = set()
    while isinstance(link, list) and link[0] in graph and link[0] not in seen:
        seen.add(link[0])
        inputs = graph[link[0]]["inputs"]
        if isinstance(inputs.get("text"), str):
            return link[0]
        link = inputs.get("conditioning", inputs.get("positive"))
    return None


def set_inputs(graph: Graph, settings: list[str]) -> Graph:
    """A copy with inputs set by "NODE.INPUT=VALUE"; the value is JSON, or text as it stands.

    Raises:
        ValueError: a setting of another form, or of a node or input that is not there.
    """
    changed: Graph = json.loads(json.dumps(graph))
    for setting in settings:
        place, separator, text = setting.partition("=")
        number, _, name = place.partition(".")
        if not separator or name not in changed.get(number, {"inputs": {}})["inputs"]:
            raise ValueError(f"--set must be NODE.INPUT=VALUE with an input of the workflow, got {setting!r}")
        try:
            changed[number]["inputs"][name] = json.loads(text)
        except ValueError:
            changed[number]["inputs"][name] = text
    return changed


def _show(value: int, total: int) -> None:
    print(f"\rstep {value}/{total}", end="\n" if value == total else "", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 1 with one line when the server refuses or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="a graph in API format")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    parser.add_argument("--out", type=Path, default=Path("layers"))
    parser.add_argument("--image", type=Path, help="a picture to upload, for the workflow's LoadImage")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE",
                        help='another input, such as 8.text="a fox on a beach"')
    arguments = parser.parse_args(argv)
    try:
        graph = read_graph(arguments.workflow)
        with ComfyClient(arguments.server) as client:
            if arguments.image is not None:
                graph = change(graph, image=client.upload(arguments.image))
            graph = change(change_prompt(graph, arguments.prompt), seed=arguments.seed)
            prompt_id = client.queue(set_inputs(graph, arguments.set))
            outputs = client.wait(prompt_id, _show)
            arguments.out.mkdir(parents=True, exist_ok=True)
            images = [image for node_id, node in outputs.items() if graph[node_id]["class_type"] in LAYERED
                      for image in node.get("images", [])]
            for index, image in enumerate(images):
                name = ("composed", "foreground", "background", "mask")[index % 4]
                path = arguments.out / f"{name}-{arguments.seed}-{index // 4:02d}.png"
                path.write_bytes(client.fetch(image))
                print(path)
    except (ComfyError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
