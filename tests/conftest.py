"""Which tests share a worker of pytest-xdist."""

from __future__ import annotations

import pytest

from tests.host.comfyui import find_hosts

HOSTS = [host.version for host in find_hosts()]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A ComfyUI's tests share its server, a file's tests their fixtures."""
    for item in items:
        versions = [version for version in HOSTS if f"[{version}" in item.name]
        item.add_marker(pytest.mark.xdist_group(versions[0] if versions else item.path.name))
