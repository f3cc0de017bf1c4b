"""The labelling page's server: keys, what is saved, where it goes on, and whom it answers."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.quality_files import random_stacks, write_folder
from text2layer_core.compositing import blend
from train.label_quality import LabelServer, main
from train.labelling import Session
from train.quality_samples import SampleFiles, read_labels, write_labels

ROOT = Path(__file__).parents[2]
KEYS = ["a", "b", "c", "d"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", random_stacks(4), KEYS)
    return tmp_path / "data"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.fixture
def server(data: Path, labels: Path) -> Iterator[LabelServer]:
    with LabelServer(Session(SampleFiles(data), labels, "mask")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LabelServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    """Status and answer; a header of None is left out."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if answer.getheader("Content-Type") == "application/json" else data
    finally:
        connection.close()


def press(server: LabelServer, action: str, index: int) -> dict[str, Any]:
    status, state = ask(server, "POST", "/act", json.dumps({"action": action, "index": index}).encode())
    assert status == 200, state
    return state


def test_an_hour_of_labelling(server: LabelServer, labels: Path) -> None:
    """Every key is in the file at once; undo takes back in the opposite order, to what was there before."""
    state = press(server, "start", 0)
    assert (state["index"], state["key"], state["label"], state["labelled"], state["count"]) == (0, "a", None, 0, 4)
    assert state["caption"] == "a ball"
    state = press(server, "good", 0)
    assert read_labels(labels) == {"a": True}
    assert (state["index"], state["labelled"]) == (1, 1)
    assert press(server, "skip", 1)["index"] == 2
    assert press(server, "bad", 2)["index"] == 3
    assert read_labels(labels) == {"a": True, "c": False}
    state = press(server, "back", 3)
    assert (state["index"], state["label"]) == (2, "bad")
    assert press(server, "good", 2)["label"] is None
    assert read_labels(labels) == {"a": True, "c": True}
    state = press(server, "undo", 3)
    assert (state["index"], state["label"]) == (2, "bad")
    assert press(server, "undo", 0)["index"] == 2
    assert read_labels(labels) == {"a": True}
    assert press(server, "undo", 3)["key"] == "a"
    assert read_labels(labels) == {}
    assert press(server, "undo", 3)["index"] == 3
    assert (press(server, "back", 0)["index"], press(server, "forward", 3)["index"]) == (0, 3)


def test_it_goes_on_at_the_first_without_a_label(data: Path, labels: Path) -> None:
    """Labels of other data stay; where all are labelled it shows the last."""
    write_labels(labels, {"elsewhere": False, "a": True, "c": True})
    session = Session(SampleFiles(data), labels, "inpainting")
    state = session.act("start", 0)
    assert (state["index"], state["labelled"]) == (1, 2)
    assert session.act("bad", 1)["index"] == 3
    assert session.act("good", 3)["index"] == 3
    assert read_labels(labels) == {"elsewhere": False, "a": True, "c": True, "b": False, "d": True}
    assert Session(SampleFiles(data), labels, "mask").act("start", 2)["index"] == 3


def test_what_it_shows(server: LabelServer) -> None:
    """The files themselves; the picture darkened outside the mask; cut out on a checkerboard."""
    foreground, background, mask = random_stacks(4)[1:2].split([3, 3, 1], dim=1)
    picture = blend(foreground, background, mask)
    found = {}
    for view in ("image", "overlay", "foreground", "background"):
        status, data = ask(server, "GET", f"/picture/1/{view}.png")
        assert status == 200
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        found[view] = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None] / 255
    step = 1.5 / 255
    torch.testing.assert_close(found["image"], picture, atol=step, rtol=0)
    torch.testing.assert_close(found["background"], background, atol=step, rtol=0)
    torch.testing.assert_close(found["overlay"], picture * (0.25 + 0.75 * mask), atol=2 * step, rtol=0)
    opaque = (mask > 0.97).expand_as(picture)
    torch.testing.assert_close(found["foreground"][opaque], picture[opaque], atol=0.04, rtol=0)
    assert set((found["foreground"][(mask < 0.1).expand_as(picture)] * 255).round().int().tolist()) <= {161, 209}


def test_the_page_is_whole(server: LabelServer) -> None:
    """It asks for nothing but what this server has."""
    status, page = ask(server, "GET", "/")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "evil.example:{port}"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1:1"},
    {"Host": "127.0.0.1:{port}.evil.example"}, {"Host": ""},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/picture/0/image.png"), ("POST", "/act")])
def test_other_pages_are_refused(
    server: LabelServer, labels: Path, headers: dict[str, str], method: str, path: str
) -> None:
    sent = {name: value.format(port=server.server_port) for name, value in headers.items()}
    status, answer = ask(server, method, path, b'{"action": "good", "index": 0}', **sent)
    assert status == 403
    assert "127.0.0.1" in answer["error"] or "other pages" in answer["error"]
    assert not labels.exists()


def test_its_own_page_is_not(server: LabelServer) -> None:
    for host in ("127.0.0.1", "localhost"):
        own = f"{host}:{server.server_port}"
        headers = {"Host": own, "Origin": f"http://{own}", "Sec_Fetch_Site": "same-origin"}
        assert ask(server, "POST", "/act", b'{"action": "start", "index": 0}', **headers)[0] == 200


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b'{"action": "good", "index": 4}', {}, 400), (b'{"action": "good", "index": -1}', {}, 400),
    (b'{"action": "delete", "index": 0}', {}, 400), (b'{"action": "good", "index": "0"}', {}, 400),
    (b'{"action": "good", "index": true}', {}, 400), (b'{"action": "good"}', {}, 400), (b"[]", {}, 400),
    (b"{", {}, 400), (b"\xff\xfe", {}, 400), (b'{"action": "good", "index": 0}', {"Content_Type": "text/plain"}, 415),
    (b" " * 5000, {}, 404),
])
def test_keys_that_are_none(
    server: LabelServer, labels: Path, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, answer = ask(server, "POST", "/act", body, **headers)
    assert found == status
    assert answer["error"]
    assert not labels.exists()
    assert press(server, "start", 0)["index"] == 0


@pytest.mark.parametrize("path", [
    "/picture/9/image.png", "/picture/0/secret.png", "/picture/-1/image.png", "/picture/0/../../x.png", "/labels.csv",
    "/../data/a.txt", "/picture/0", "/picture/%2e%2e/image.png",
])
def test_no_other_file(server: LabelServer, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


def test_a_file_that_is_gone_is_told(server: LabelServer, data: Path) -> None:
    (data / "b.mask.png").unlink()
    status, answer = ask(server, "GET", "/picture/1/overlay.png")
    assert status == 404
    assert answer["error"].startswith("sample b must hold a readable mask.png, got ")
    assert ask(server, "GET", "/picture/1/image.png")[0] == 200


def test_a_browser_that_cancels_a_picture(server: LabelServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Quick keys do; the connection is reset while the picture is made, and the next request is answered."""
    cancelled, answered = threading.Event(), threading.Event()
    view, shutdown = server.session.view, server.shutdown_request

    def slow(index: int, name: str) -> torch.Tensor:
        cancelled.wait(10)
        return view(index, name)

    def noted(request: Any) -> None:
        shutdown(request)
        answered.set()

    server.session.view, server.shutdown_request = slow, noted  # type: ignore[method-assign]
    with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        browser.sendall(f"GET /picture/0/image.png HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
        time.sleep(0.1)
    cancelled.set()
    assert answered.wait(10)
    assert capfd.readouterr().err == ""
    assert ask(server, "GET", "/picture/0/image.png")[0] == 200


def test_a_full_disk_is_told(server: LabelServer, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted as labelled, and the next key works."""
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    press(server, "good", 0)
    monkeypatch.setattr("train.labelling.write_labels", full)
    status, answer = ask(server, "POST", "/act", b'{"action": "bad", "index": 1}')
    assert (status, answer["error"]) == (507, "not saved: [Errno 28] No space left on device")
    monkeypatch.undo()
    assert press(server, "start", 0)["labelled"] == 1
    assert press(server, "bad", 1)["labelled"] == 2
    assert read_labels(labels) == {"a": True, "b": False}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "{tmp}/nothing"], "data must hold samples"),
    (["--labels", "{tmp}/none/labels.csv"], "labels must be a file in a folder that is there"),
    (["--labels", "{tmp}/wrong.csv"], "must have the columns key,label"),
    (["--labels", "{tmp}/latin.csv"], "latin.csv, line 2: a CSV must be in UTF-8"),
    (["--port", "70000"], "--port must lie in [0, 65535], got 70000"),
])
def test_bad_input(
    data: Path, labels: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.csv").write_text("name\n")
    (tmp_path / "latin.csv").write_bytes(b"key,label\ncaf\xe9,good\n")
    given = [each.format(tmp=tmp_path) for each in arguments]
    assert main(["--data", str(data), "--labels", str(labels), "--kind", "mask", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_command(data: Path, labels: Path) -> None:
    """It tells its address, listens there and nowhere else, and ends with 0 at Ctrl-C."""
    command = [sys.executable, "-m", "train.label_quality", "--data", str(data), "--labels", str(labels), "--kind",
               "inpainting"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - the address above
            assert b"Label samples" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
