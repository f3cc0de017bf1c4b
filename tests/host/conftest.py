"""One server per ComfyUI for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.comfyui import NO_HOST, Host, Server, find_hosts

if TYPE_CHECKING:
    from headless.client import ComfyClient

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
