"""The pack over stand-ins for the host's modules, for nodes that need no more of a host than its types."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.nodes.stub_host import import_pack


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The package `nodes`; its classes, and those of the core below it, are not those that tests import by name."""
    return import_pack("stubbed_pack")
