"""Ids, inputs and outputs are fixed for ever: saved workflows address them by name and position.

A new input or output goes at the end of its node, and at the end of that node's list in contract.json.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.host.comfyui import Host, find_hosts
from tests.nodes.contract import Sockets, declared_by_source, frozen, sockets_of_host, sockets_of_source

HOSTS = find_hosts()
NODE = "Text2LayerDecode"


def broken(contract: Sockets, found: Sockets) -> list[str]:
    """What of the contract no longer holds, and what is new and not yet in it."""
    problems = [f"{name} is missing" for name in contract if name not in found]
    problems += [f"{name} is not in contract.json yet" for name in found if name not in contract]
    for name in contract.keys() & found.keys():
        for side in ("inputs", "outputs"):
            wanted, got = contract[name][side], found[name][side]
            if got[: len(wanted)] != wanted:
                problems.append(f"{name}: {side} must begin with {wanted}, got {got}")
            elif got != wanted:
                problems.append(f"{name}: {side} {got[len(wanted):]} are not in contract.json yet")
    return problems


def test_the_source_keeps_the_contract() -> None:
    assert broken(frozen(), sockets_of_source(declared_by_source())) == []


@pytest.mark.parametrize(("change", "problem"), [
    (lambda found: found.update(Other=found.pop(NODE)), "is missing"),
    (lambda found: found[NODE]["inputs"].reverse(), "inputs must begin with"),
    (lambda found: found[NODE]["outputs"].pop(), "outputs must begin with"),
    (lambda found: found[NODE]["outputs"][0].__setitem__(0, "cutout"), "outputs must begin with"),
    (lambda found: found[NODE]["outputs"][2].__setitem__(1, "IMAGE"), "outputs must begin with"),
    (lambda found: found[NODE]["inputs"].append(["crop", "BOOLEAN"]), "not in contract.json yet"),
])
def test_a_change_is_found(change: Callable[[Sockets], None], problem: str) -> None:
    """Renamed id, reordered, removed, renamed, other type; and appended without a word in the file."""
    found = copy.deepcopy(frozen())
    change(found)
    assert problem in "; ".join(broken(frozen(), found))


@pytest.mark.comfy
@pytest.mark.parametrize("host", HOSTS or [pytest.param(None, marks=pytest.mark.skip(reason="no ComfyUI found"))],
                         ids=[host.version for host in HOSTS] or ["none"])
def test_every_host_sees_the_contract(host: Host) -> None:
    """Exactly: the host's own Python imports the pack as the host does."""
    assert sockets_of_host(host) == frozen()
