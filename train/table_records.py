"""Figures as JSON: those of docs/tables.md beside it, so that later runs add to the page, and each beside its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from text2layer_core.atomic import write_text
from text2layer_core.checkpoint import bundled_model_path
from text2layer_core.conversion import read_json
from train.latents import weights_digest
from train.train_diffusion import load_text_encoder

if TYPE_CHECKING:
    from train.evaluator import IconEvaluator
    from train.tables import TablesConfig

T = TypeVar("T")


def stored(path: Path, key: object, make: Callable[[], T]) -> T:
    """The figures of a file; made, and written there, where it is not there or was made under another key.

    Args:
        path: the file.
        key: what the figures depend on (plain values).
        make: measures them; they are as JSON has them.
    """
    key = json.loads(json.dumps(key))
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return found["figures"]
    figures = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"key": key, "figures": figures}))
    return figures


def read_records(page: Path, config: TablesConfig, judge: IconEvaluator) -> dict[int, dict[str, Any]]:
    """The figures beside a page, seed -> system -> figures.

    Raises:
        ValueError: they are of another recipe, or the file was not written by `write_records`.
    """
    path = page.with_suffix(".json")
    if not path.is_file():
        return {}
    record = read_json(path)
    if not {"recipe", "seeds"} <= record.keys():
        raise ValueError(f"{path} must be the figures that train.tables wrote, got another file: choose another --out")
    wanted = recipe(config, judge)
    if changed := sorted(key for key in wanted.keys() | record["recipe"].keys()
                         if wanted.get(key) != record["recipe"].get(key)):
        raise ValueError(f"{path} must hold figures of the config's recipe, got another {', '.join(changed)}: "
                         "choose another --out")
    return {int(seed): systems for seed, systems in record["seeds"].items()}


def write_records(
    page: Path, config: TablesConfig, judge: IconEvaluator, results: Mapping[int, Mapping[str, Any]],
    truth: Mapping[str, Any],
) -> None:
    """Writes the figures beside a page, those of the systems and of true layers."""
    record = {"recipe": recipe(config, judge), "truth": truth,
              "seeds": {str(seed): results[seed] for seed in sorted(results)}}
    write_text(page.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def recipe(config: TablesConfig, judge: IconEvaluator) -> dict[str, Any]:
    """What the figures depend on, as JSON has it: what is not the default, so that new options change nothing.

    Of text encoder and judge the weights count, not the path.

    Raises:
        ValueError: the config's text is no checkpoint with a text encoder.
    """
    skipped = {"run", "seeds", "text", "filters", "trackers"}

    def chosen(section: Any) -> Any:  # noqa: ANN401 - any value of a config
        if not is_dataclass(section):
            return section
        return {item.name: chosen(getattr(section, item.name)) for item in fields(section)
                if item.name not in skipped and getattr(section, item.name) != item.default}

    return {**json.loads(json.dumps(chosen(config))), "text_encoder": text_digest(config),
            "judge": weights_digest(judge)}


def text_digest(config: TablesConfig) -> str:
    """Of the text encoder that all systems share; ValueError where there is none."""
    return weights_digest(load_text_encoder(config.text or str(bundled_model_path())))

