"""Real ComfyUI servers for the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

from scripts import comfyui
from scripts.comfyui import LINK, PACK, Host

_START_SECONDS = 300
NO_HOST = (
    "no ComfyUI found: name checkouts in COMFYUI_PATH, or pip install comfy-cli && comfy install; each needs a .venv "
    "of its own or COMFYUI_PYTHON"
)


def find_hosts() -> list[Host]:
    """Every checkout with a Python, oldest version first."""
    return sorted(comfyui.find_hosts(), key=lambda host: host.version_tuple)


class Server:
    """A running server with this pack linked in and no other; `with` ends it and removes its folder."""

    def __init__(
        self, host: Host, *options: str, pack: bool = True, frontend: bool = False,
        nodes: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it on a free port in a folder of its own and waits until it answers.

        Args:
            host: which.
            options: more of main.py's.
            pack: whether this pack is there.
            frontend: the host's own web page instead of an empty one.
            nodes: custom nodes of the test's own, file name -> source.
        """
        self.host = host
        self.folder = Path(mkdtemp(prefix="text2layer-host-"))
        for name in ("custom_nodes", "input", "output", "temp", "user", "models/text2layer", "models/loras", "page"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "page" / "index.html").write_text("<!doctype html>", encoding="utf-8")
        if pack:
            (self.folder / "custom_nodes" / LINK).symlink_to(PACK)
        for name, source in (nodes or {}).items():
            (self.folder / "custom_nodes" / name).write_text(source, encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.log_path = self.folder / "log.txt"
        page = [] if frontend else ["--front-end-root", str(self.folder / "page")]
        command = [
            str(host.python), "main.py", "--cpu", "--base-directory", str(self.folder), "--disable-api-nodes",
            "--database-url", "sqlite:///:memory:", "--port", str(port), "--listen", "127.0.0.1", *page, *options,
        ]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=host.folder, stdout=log, stderr=log, env=environment())
        self._wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        """Everything that the server printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI {self.host.version} ended at start:\n{self.log[-4000:]}")
            try:
                with urllib.request.urlopen(f"http://{self.address}/system_stats", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI {self.host.version} did not answer in {_START_SECONDS} s:\n{self.log[-4000:]}")


def environment() -> dict[str, str]:
    """Ours, without what would lead the host to our own packages; import of diffusers is refused."""
    block = PACK / "tests" / "host" / "blocked"
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PYTHONPATH": str(block), "PYTHONUNBUFFERED": "1"}

