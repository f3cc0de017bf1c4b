"""The labelling page in a real browser: pictures, keys, the file after each of them, and what a reload shows."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.quality_files import write_folder
from train.label_quality import LabelServer
from train.labelling import Session
from train.quality_samples import SampleFiles, read_labels

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
SHOTS = Path(os.environ.get("TEXT2LAYER_SCREENSHOTS", Path(__file__).parents[2] / "out" / "screenshots"))
KEYS = ["ball", "cone", "egg"]
SIDE = 96
TIMEOUT = 60_000  # ms


def scenes() -> torch.Tensor:
    """Three discs of growing size before a gradient."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    stacks = []
    for radius in (0.3, 0.5, 0.7):
        mask = ((radius - (x**2 + y**2).sqrt()) * 12 + 0.5).clamp(0, 1)
        orange, blue = [0.9 + 0 * x, 0.5 + 0.2 * y, 0.1 + 0 * x], [0.3 + 0.3 * x, 0.5 + 0.2 * y, 0.8 + 0 * x]
        stacks.append(torch.stack([*orange, *blue, mask]))
    return torch.stack(stacks).clamp(0, 1)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.fixture
def server(tmp_path: Path, labels: Path) -> Iterator[LabelServer]:
    write_folder(tmp_path / "data", scenes(), KEYS)
    with LabelServer(Session(SampleFiles(tmp_path / "data"), labels, "mask")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def page(server: LabelServer) -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser found: install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 700})
        page.set_default_timeout(TIMEOUT)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.address)
        shows(page, "ball", "0 of 3 labelled")
        yield page
        browser.close()
        assert [text for text in problems if "507" not in text] == []


def shows(page: Any, key: str, progress: str) -> None:
    """Waits until that sample and its four pictures are there.

    wait_for_function would poll by eval, which the page's Content-Security-Policy rightly forbids.
    """
    sync_api.expect(page.locator("#key")).to_have_text(re.compile(re.escape(key) + "$"), timeout=TIMEOUT)
    sync_api.expect(page.locator("#progress")).to_have_text(progress, timeout=TIMEOUT)
    widths = [image.evaluate("i => i.decode().then(() => i.naturalWidth)") for image in page.locator("main img").all()]
    assert widths == [SIDE] * 4


def test_labelling_with_the_keyboard(page: Any, labels: Path) -> None:
    """Good, bad, undo, arrows, skip; the file is right after every key, and a reload goes on where it was."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "label_quality.png")
    page.keyboard.press("g")
    shows(page, "cone", "1 of 3 labelled")
    assert read_labels(labels) == {"ball": True}
    page.keyboard.press("b")
    shows(page, "egg", "2 of 3 labelled")
    assert read_labels(labels) == {"ball": True, "cone": False}
    page.keyboard.press("u")
    shows(page, "cone", "1 of 3 labelled")
    assert read_labels(labels) == {"ball": True}
    page.keyboard.press("ArrowLeft")
    shows(page, "ball", "1 of 3 labelled")
    assert page.inner_text("#label") == "good"
    page.screenshot(path=SHOTS / "label_quality_good.png")
    page.keyboard.press("ArrowRight")
    shows(page, "cone", "1 of 3 labelled")
    page.keyboard.press("s")
    shows(page, "egg", "1 of 3 labelled")
    page.keyboard.press("Control+b")
    page.reload()
    shows(page, "cone", "1 of 3 labelled")
    assert read_labels(labels) == {"ball": True}


def test_what_could_not_be_saved_is_said(page: Any, labels: Path) -> None:
    labels.mkdir()
    page.keyboard.press("g")
    sync_api.expect(page.locator("#error")).to_have_text(re.compile("^not saved"), timeout=TIMEOUT)
    assert page.inner_text("#progress") == "0 of 3 labelled"
    labels.rmdir()
    page.keyboard.press("g")
    shows(page, "cone", "1 of 3 labelled")
    assert page.inner_text("#error") == ""
