"""The gallery: every prompt once, and below them what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.train.evaluators import PLACES, make_evaluator
from tests.train.test_check import make_model
from text2layer_core.checkpoint import save_checkpoint
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from train import gallery
from train.evaluator import save_evaluator, thing_texts
from train.gallery import failures, main
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache


def test_failures_come_first(sprites: SpriteCache, sprite_file: Path) -> None:
    """Other things, the surest first, named as what the evaluator takes them for; other sides; the rest by similarity.

    The first half of the pictures are those of the scenes after them. The others show what was asked for, some of them
    mirrored: their sprites are the nearest, and what the untrained evaluator says of the thing does not count.
    """
    torch.manual_seed(0)
    config = IconsConfig(cache=str(sprite_file), places=PLACES, effect_share=0.0)
    source = IconSource(sprites, config, 32, 0, "held_out")
    evaluator = make_evaluator(sprites)
    drawn = [source.batch(gallery._BEYOND + (i + 1 if i < 12 else i), 1).image for i in range(24)]
    drawn[16:] = [TwoLayerImage.from_stack(layers.stack().flip(3)) for layers in drawn[16:]]
    asked = [scene.thing.name for scene in source.scenes(gallery._BEYOND, 24)]
    prompts = source.captions(gallery._BEYOND, 24)
    words = [prompt.replace(",", " ").split() for prompt in prompts]
    leads: dict[int, float] = {}
    named: dict[int, str] = {}
    for i, layers in enumerate(drawn):
        scores = evaluator.similarities(compose(layers), thing_texts(evaluator.things)[:-1])[0]
        named[i] = evaluator.things[int(scores.argmax())]
        leads[i] = float(scores.max() - scores[evaluator.things.index(asked[i])])
    seen_wrong = [i for i in range(24) if named[i] != asked[i]]
    missed = [i for i in seen_wrong if i < 12 and asked[i + 1] != asked[i]]
    assert 3 <= len(missed) < len(seen_wrong)
    expected = [(i, f"seen as {named[i]}") for i in sorted(missed, key=lambda i: leads[i], reverse=True)]
    found = failures(evaluator, source, drawn)
    assert found[: len(missed)] == expected
    sided = [(i, reason) for i, reason in found if reason == "on the other side"]
    assert found[len(missed) : len(missed) + len(sided)] == sided
    assert {i for i in range(16, 24) if {"left", "right"} & set(words[i])} <= {i for i, _ in sided}
    assert all({"left", "right"} & set(words[i]) for i, _ in sided)
    rest = [i for i, _ in found[len(missed) + len(sided) :]]
    similarity = evaluator.similarity(torch.cat([compose(layers) for layers in drawn]), prompts)
    assert rest == sorted(set(range(24)) - set(missed) - {i for i, _ in sided}, key=lambda i: float(similarity[i]))


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
