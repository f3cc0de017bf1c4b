"""Real ComfyUI checkouts and servers for the tests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

PACK = Path(__file__).resolve().parents[2]
LINK = "ComfyUI-Text2Layer"
_START_SECONDS = 300


@dataclass(frozen=True)
class Host:
    """A checkout of ComfyUI and the Python to run it with."""

    folder: Path
    python: Path

    @property
    def version(self) -> str:
        """As its own file says."""
        text = (self.folder / "comfyui_version.py").read_text(encoding="utf-8")
        found = re.search(r'__version__ = "(.+)"', text)
        return found[1] if found else "unknown"

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """For comparisons."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


def find_hosts() -> list[Host]:
    """Every checkout that `scripts/comfyui_hosts` finds and that has a Python of its own, oldest version first."""
    found = subprocess.run([str(PACK / "scripts" / "comfyui_hosts")], capture_output=True, text=True, check=True)
    hosts = []
    for line in found.stdout.splitlines():
        folder = Path(line)
        named = os.environ.get("COMFYUI_PYTHON")
        candidates = [Path(named)] if named else [folder / env / "bin" / "python" for env in (".venv", "venv")]
        python = next((path for path in candidates if path.exists()), None)
        if python is not None:
            hosts.append(Host(folder, python))
    return sorted(hosts, key=lambda host: host.version_tuple)


class Server:
    """A running server with this pack linked in and no other."""

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

