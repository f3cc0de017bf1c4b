"""The gallery: every prompt once, and below them what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.train.evaluators import PLACES, make_evaluator
from tests.train.test_check import make_model
from text2layer_core.checkpoint import save_checkpoint
from train import gallery
from train.evaluator import save_evaluator
from train.gallery import failures, main
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache


def test_failures_are_the_things_that_look_like_others(sprites: SpriteCache, sprite_file: Path) -> None:
    """As many as the evaluator's own top-1 misses, the surest first, none named as what was asked."""
    torch.manual_seed(0)
    source = IconSource(sprites, IconsConfig(cache=str(sprite_file), places=PLACES), 32, 0, "held_out")
    evaluator = make_evaluator(sprites)
    drawn = [source.batch(gallery._BEYOND + i, 1).image for i in range(12)]
    found = failures(evaluator, source, drawn)
    asked = [scene.thing.name for scene in source.scenes(gallery._BEYOND, 12)]
    assert found
    assert all(seen != asked[i] for i, seen in found)
    assert len({i for i, _ in found}) == len(found)


def test_the_page(sprites: SpriteCache, sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.safetensors", make_model(sprite_file))
    save_evaluator(tmp_path / "evaluator.safetensors", make_evaluator(sprites))
    page = tmp_path / "page.jpg"
    command = ["--model", str(tmp_path / "model.safetensors"), "--evaluator", str(tmp_path / "evaluator.safetensors"),
               "--count", "4", "--failures", "0", "--steps", "1", "--out", str(page)]
    assert main(command) == 0
    with Image.open(page) as image:
        assert image.width == 2 * 640
        height = image.height
    assert main([*command, "--failures", "2"]) == 0
    with Image.open(page) as image:
        assert image.height == pytest.approx(1.5 * height, abs=2)
    assert main([*command, "--evaluator", "none"]) == 2
    assert "found none at none" in capsys.readouterr().err
