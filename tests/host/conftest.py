"""One server per ComfyUI for the whole session, and the versions in the summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.comfyui import missing_pythons
from tests.host.comfyui import Host, Server, find_hosts

if TYPE_CHECKING:
    from headless.client import ComfyClient

NO_HOST = (
    "no ComfyUI found: name checkouts in COMFYUI_PATH, or pip install comfy-cli && comfy install; each needs a .venv "
    "of its own or COMFYUI_PYTHON"
)
HOSTS = find_hosts()


@pytest.fixture(
    scope="session",
    params=HOSTS or [pytest.param(None, marks=pytest.mark.skip(reason=NO_HOST))],
    ids=[host.version for host in HOSTS] or ["none"],
)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


@pytest.fixture(scope="session")
def server(host: Host) -> Iterator[Server]:
    with Server(host, "--preview-method", "latent2rgb") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[ComfyClient]:
    from headless.client import ComfyClient

    with ComfyClient(server.address) as client:
        yield client


@pytest.fixture(scope="session")
def scene_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scene whose layers are known, as picture files: foreground, background, mask, and cutout (RGBA)."""
    from tests.host.graphs import save_scene

    return save_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def scene(client: ComfyClient, scene_files: dict[str, Path]) -> dict[str, str]:
    """The same on the server: part -> the name for LoadImage."""
    return {name: client.upload(path) for name, path in scene_files.items()}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in missing_pythons():
        terminalreporter.write_line(f"host tests: {line}")
    if not HOSTS:
        terminalreporter.write_line(f"host tests: {NO_HOST}")
    ran = {report.nodeid for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])}
    if tested := [host.version for host in HOSTS if any(f"[{host.version}" in name for name in ran)]:
        terminalreporter.write_line(f"host tests: ran on ComfyUI {', '.join(tested)}")
