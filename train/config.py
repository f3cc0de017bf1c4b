"""Configs: YAML -> frozen dataclasses; an unknown key fails and names the nearest one."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

T = TypeVar("T")


def load_config(path: Path, overrides: Sequence[str], schema: type[T]) -> T:
    """Reads a YAML file into a dataclass.

    Args:
        path: the file.
        overrides: "a.b=value" each, value read as YAML; they win over the file.
        schema: a frozen dataclass, its fields scalars, `tuple[X, ...]`, `Literal`, `X | None` or dataclasses.

    Returns:
        An instance of the schema.

    Raises:
        ValueError: no such file, no valid YAML, an unknown key (with the nearest one), a missing key, a wrong type.
    """
    if not path.is_file():
        raise ValueError(f"config must be a YAML file, found none at {path}")
    try:
        values: object = yaml.safe_load(path.read_text(encoding="utf-8"))
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise ValueError(f"--set must look like a.b=value, got {override}")
            _assign(values, key.split("."), yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"config must be valid YAML, got {' '.join(str(error).split())}") from error
    return parse(values, schema, path.name)


def parse(values: object, schema: type[T], where: str) -> T:
    """Builds a dataclass from plain values; see `load_config`. `where` names the place in messages."""
    return cast("T", _convert(values, schema, where))


def _assign(values: object, keys: list[str], value: object) -> None:
    for depth, key in enumerate(keys):
        if not isinstance(values, dict):
            raise ValueError(f"--set {'.'.join(keys)} must name keys of sections, got no section before {key}")
        section = cast("dict[str, object]", values)
        if depth == len(keys) - 1:
            section[key] = value
        else:
            values = section.setdefault(key, {})


def _convert(value: object, kind: object, where: str) -> object:
    """The value as `kind`, one of the types that `load_config` names."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (present,) = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _convert(value, present, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        items = cast("Sequence[object]", value)
        return tuple(_convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(items))
    if isinstance(kind, type) and is_dataclass(kind):
        return _convert_dataclass(value, kind, where)
    if kind is float and type(value) is not bool and isinstance(value, int | str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not kind:
        raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def _convert_dataclass(value: object, kind: type[Any], where: str) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a section with keys, got {value!r}")
    section = cast("Mapping[str, object]", value)
    known = {field.name: field for field in fields(kind)}
    for key in section:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where} has an unknown key {key} (nearest: {nearest})")
    missing = [
        name for name, field in known.items()
        if name not in section and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{where} must set {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    arguments = {key: _convert(item, hints[key], f"{where}: {key}") for key, item in section.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
