"""A small evaluator of the drawn icons, for the tests of what judges with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text2layer_core.text_encoder import TextEncoderConfig, train_tokenizer
from train.evaluator import EvaluatorConfig, IconEvaluator
from train.icons.sprites import SpriteCache

PLACES = ("meadow", "beach", "snow", "desert", "underwater", "space")
TEXT = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2,
        "max_length": 32}
SIZES: dict[str, Any] = {"picture_size": 32, "picture_channels": (8, 16, 32), "embedding": 16,
                         "segmenter_channels": (8, 8, 16)}


def make_evaluator(sprites: SpriteCache, places: tuple[str, ...] = PLACES) -> IconEvaluator:
    """Random weights."""
    tokenizer = train_tokenizer(["a ball on the beach"] * 3, 600)
    config = EvaluatorConfig(text=TextEncoderConfig(**TEXT), **SIZES)
    return IconEvaluator(config, tokenizer.to_str(), [thing.name for thing in sprites.things], places).eval()


def training_values(folder: Path, sprite_file: Path) -> dict[str, Any]:
    """A config file's content."""
    return {
        "run": str(folder / "run"),
        "data": {"source": "icons", "size": 32, "icons": {
            "cache": str(sprite_file), "places": list(PLACES), "styles": ["fluent"], "effect_share": 0.0}},
        "evaluator": {"text": TEXT, **{key: list(value) if isinstance(value, tuple) else value
                                       for key, value in SIZES.items()}},
        "sizes": [32, 48],
        "training": {"images": 64, "batch_size": 32, "learning_rate": 0.003, "ema_half_life": 32},
    }
