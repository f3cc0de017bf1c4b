"""What the nodes declare, without a ComfyUI: the pack is imported over stand-ins for the host's modules.

`python tests/nodes/stub_host.py` prints it as JSON; host_contract.py asks a real host for the same. `import_pack` is
for tests that run nodes which need nothing of a host.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACK = Path(__file__).resolve().parents[2]
HOST_MODULES = ("comfy", "comfy_api", "folder_paths", "latent_preview", "server")
TYPES = ("Model", "Clip", "Vae", "Latent", "Image", "Mask", "String", "Int", "Float", "Boolean", "Combo")


class _Anything(type):
    """A class to inherit from; what it has, and what calling it gives, is such a class again; it lists nothing."""

    def __getattr__(cls, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})

    def __call__(cls, /, *_: object, **__: object) -> _Anything:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _StubModule(ModuleType):
    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Stubs:
    """Finds and makes the modules of HOST_MODULES and all below them."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HOST_MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        made = {"comfy_api.v0_0_2": _comfy_api, "folder_paths": _folder_paths}.get(spec.name)
        return made() if made else _StubModule(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        """Nothing to run."""


@dataclass
class _Slot:
    """An input or an output, as far as it matters here."""

    id: str
    type: str
    display_name: str | None = None
    tooltip: str | None = None
    default: Any = None
    is_output_list: bool = False


@dataclass
class _Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: Sequence[_Slot]
    outputs: Sequence[_Slot]

    def __post_init__(self) -> None:
        """As ComfyUI 0.3.64 does; later ones let an output have an input's id."""
        ids = [slot.id for slot in (*self.inputs, *self.outputs)]
        if len(ids) != len(set(ids)):
            raise ValueError(f"{self.node_id}: ids must be unique between inputs and outputs, got {ids}")


class _Type:
    """`io.Image`, `io.Int`, ...: makes inputs and outputs of one type."""

    def __init__(self, name: str) -> None:
        self.name = name

    def Input(self, id: str, **arguments: Any) -> _Slot:
        known = {field.name for field in fields(_Slot)}
        return _Slot(id, self.name, **{name: value for name, value in arguments.items() if name in known})

    Output = Input


class _NodeOutput:
    """What `execute` returns: its outputs, and what it shows."""

    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


def _comfy_api() -> ModuleType:
    module, io = _StubModule("comfy_api.v0_0_2"), _StubModule("io")
    for name in TYPES:
        setattr(io, name, _Type(name.upper()))
    io.Custom, io.Schema, io.ComfyNode, io.NodeOutput = _Type, _Schema, type("ComfyNode", (), {}), _NodeOutput
    module.io, module.ComfyExtension = io, type("ComfyExtension", (), {})
    return module


def _folder_paths() -> ModuleType:
    module = _StubModule("folder_paths")
    module.get_input_directory = lambda: str(PACK / "no input folder")
    return module


def import_pack(name: str = "pack") -> ModuleType:
    """The pack's nodes, imported under a package as the host does; the stand-ins are gone again afterwards."""
    stubs, before = _Stubs(), set(sys.modules)
    sys.meta_path.insert(0, stubs)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"{name}.nodes")
    finally:
        sys.meta_path.remove(stubs)  # type: ignore[arg-type]
        for module in set(sys.modules) - before:
            if module.partition(".")[0] in HOST_MODULES:
                del sys.modules[module]


def _input(slot: _Slot) -> dict[str, Any]:
    default = slot.default if isinstance(slot.default, str | int | float) else None
    return {"name": slot.id, "type": slot.type, "tooltip": slot.tooltip, "default": default}


def _output(slot: _Slot) -> dict[str, Any]:
    return {
        "name": slot.display_name or slot.type, "type": slot.type, "list": slot.is_output_list, "tooltip": slot.tooltip,
    }


if __name__ == "__main__":
    print(json.dumps({
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": [_input(slot) for slot in schema.inputs],
            "outputs": [_output(slot) for slot in schema.outputs],
        }
        for schema in (node.define_schema() for node in import_pack().NODES)
    }))
