"""The newest ComfyUI in a real browser: our workflows open from the template browser, whole, and `basic` draws."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.comfyui import LINK, PACK, Server, find_hosts

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.comfy]
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
FILE_LOADERS = {"LoadImage", "LoadBackgroundRemovalModel"}
"""Core's own, known everywhere, marked where the user's picture or model is not there yet."""
SHOTS = Path(os.environ.get("TEXT2LAYER_SCREENSHOTS", PACK / "out" / "screenshots"))
MINUTES = 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    hosts = find_hosts()
    if not hosts:
        pytest.skip("no ComfyUI found: COMFYUI_PATH, or pip install comfy-cli && comfy install")
    with Server(hosts[-1], frontend=True) as server:
        yield server


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser found: install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(2 * MINUTES)
        page.goto(f"http://{server.address}/", wait_until="domcontentloaded")
        page.wait_for_function("window.app?.extensionManager && window.app.graph")
        yield page
        browser.close()


def open_template(page: Any, name: str) -> None:
    """Through the template browser, as a user does; a fresh ComfyUI shows it by itself."""
    browser = page.get_by_test_id("template-workflows-content")
    if not browser.is_visible():
        page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(LINK, exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    browser.wait_for(state="hidden")
    page.wait_for_function("window.app.graph.nodes.length > 0")
    page.wait_for_timeout(1000)


def screenshot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    page.screenshot(path=SHOTS / f"{name}.png")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_template_opens_whole(page: Any, name: str) -> None:
    """Against the file: the same nodes, every type known to the server, every link between two of them."""
    wanted = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    open_template(page, name)
    screenshot(page, name)
    graph = page.evaluate("window.app.graph.serialize()")
    assert {node["id"]: node["type"] for node in graph["nodes"]} == {n["id"]: n["type"] for n in wanted["nodes"]}
    wrong = page.evaluate("window.app.graph.nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type])"
                          ".map(n => n.type)")
    assert set(wrong) <= FILE_LOADERS
    assert sorted(link[:5] for link in graph["links"]) == sorted(link[:5] for link in wanted["links"])
    values = {node["id"]: node.get("widgets_values") for node in graph["nodes"]}
    assert values == {node["id"]: node.get("widgets_values") for node in wanted["nodes"]}


def test_basic_draws_four_pictures(page: Any, server: Server) -> None:
    open_template(page, "text2layer_basic")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.app.graph.nodes.some(n => n.type === 'Text2LayerGenerate' && n.imgs?.length === 4)")
    screenshot(page, "text2layer_basic_run")
    sizes = page.evaluate("window.app.graph.nodes.find(n => n.type === 'Text2LayerGenerate')"
                          ".imgs.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[128, 128]] * 4
    assert "consistency" in page.content()
    assert "Exception during processing" not in server.log
