"""The figures of docs/tables.md as JSON beside it, so that later runs add to the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2layer_core.atomic import write_text

if TYPE_CHECKING:
    from train.tables import TablesConfig


def read_records(page: Path, config: TablesConfig) -> dict[int, dict[str, Any]]:
    """The figures beside a page, seed -> system -> figures.

    Raises:
        ValueError: they are of another recipe.
    """
    path = page.with_suffix(".json")
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["recipe"] != recipe(config):
        raise ValueError(f"{path} must hold figures of the config's recipe, got another's: choose another --out")
    return {int(seed): systems for seed, systems in stored["seeds"].items()}


def write_records(page: Path, config: TablesConfig, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes the figures beside a page."""
    record = {"recipe": recipe(config), "seeds": {str(seed): results[seed] for seed in sorted(results)}}
    write_text(page.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def recipe(config: TablesConfig) -> dict[str, Any]:
    """What the figures depend on, as JSON has it: what is not the default, so that new options change nothing."""
    skipped = {"run", "seeds", "text", "filters", "trackers"}

    def chosen(section: Any) -> Any:  # noqa: ANN401 - any value of a config
        if not is_dataclass(section):
            return section
        return {item.name: chosen(getattr(section, item.name)) for item in fields(section)
                if item.name not in skipped and getattr(section, item.name) != item.default}

    return json.loads(json.dumps(chosen(config)))
