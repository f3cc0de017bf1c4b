"""Runs each workflow and draws its thumbnail, workflows/<name>.jpg: `python -m scripts.make_thumbnails`.

Composed and foreground above background and mask; where a workflow ends in previews, before and after. Starts
the newest ComfyUI that it finds, unless --server names one.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from headless.client import ComfyClient
from tests.host.comfyui import Server, find_hosts

if TYPE_CHECKING:
    from headless.client import Graph

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
LAYER_NODES = ("Text2LayerDecode", "Text2LayerGenerate")
PREVIEWS = ("PreviewImage",)
SIDE = 512
QUALITY = 85
MAX_BYTES = 60_000
CHECKER_CELL = 16
CHECKER_GREYS = (160, 210)


def shown(graph: Graph, client: ComfyClient) -> list[Image.Image]:
    """Queues a graph and fetches what it is about.

    That is what its last node with layers shows (composed, foreground, background, mask), or, where the graph has
    previews, the first composed picture, if there is one, and what the last preview shows; or the last two previews.
    """
    outputs = client.wait(client.queue(graph), _show)
    ours, previews = (
        [outputs[number]["images"] for number in sorted(graph, key=int) if graph[number]["class_type"] in kinds]
        for kinds in (LAYER_NODES, PREVIEWS)
    )
    before_and_after = [ours[0][0] if ours else previews[-2][0], previews[-1][0]] if previews else []
    images = before_and_after or ours[-1][:4]
    return [Image.open(io.BytesIO(client.fetch(image))) for image in images]


def contact_picture(pictures: list[Image.Image]) -> Image.Image:
    """Two pictures in a row, SIDE pixels wide; RGBA over a checkerboard."""
    width = SIDE // 2
    height = round(width * pictures[0].height / pictures[0].width)
    sheet = Image.new("RGB", (2 * width, -(-len(pictures) // 2) * height))
    for index, picture in enumerate(pictures):
        enlarged = picture.convert("RGBA").resize((width, height), Image.Resampling.BICUBIC)
        panel = Image.alpha_composite(_checkerboard(width, height), enlarged)
        sheet.paste(panel.convert("RGB"), (index % 2 * width, index // 2 * height))
    return sheet


def _checkerboard(width: int, height: int) -> Image.Image:
    board = Image.new("RGBA", (width, height))
    for y in range(0, height, CHECKER_CELL):
        for x in range(0, width, CHECKER_CELL):
            grey = CHECKER_GREYS[(x + y) // CHECKER_CELL % 2]
            board.paste((grey, grey, grey, 255), (x, y, x + CHECKER_CELL, y + CHECKER_CELL))
    return board


@contextmanager
def _address(server: str | None) -> Iterator[str]:
    """That of the server named, or of one that is started for this and stopped after it."""
    if server is not None:
        yield server
        return
    hosts = find_hosts()
    if not hosts:
        raise SystemExit("error: no ComfyUI found: name one in COMFYUI_PATH, or a running one with --server")
    with Server(hosts[-1]) as started:
        yield started.address


def _show(value: int, total: int) -> None:
    print(f"\rstep {value}/{total}", end="\n" if value == total else "", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Writes the files and prints their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="host and port of a running ComfyUI with this pack, 0.31 or newer")
    parser.add_argument("--out", type=Path, default=WORKFLOWS)
    parser.add_argument("names", nargs="*", help="workflows to draw (default: all)")
    arguments = parser.parse_args(argv)
    with _address(arguments.server) as address, ComfyClient(address) as client:
        for path in sorted((WORKFLOWS / "api").glob("*.json")):
            if arguments.names and path.stem not in arguments.names:
                continue
            pictures = shown(json.loads(path.read_text(encoding="utf-8")), client)
            target = arguments.out / f"{path.stem}.jpg"
            contact_picture(pictures).save(target, quality=QUALITY, optimize=True)
            size = target.stat().st_size
            print(f"{target.name}: {size} bytes")
            if size > MAX_BYTES:
                raise SystemExit(f"error: {target} must not be larger than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
