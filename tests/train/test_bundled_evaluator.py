"""The evaluator that the repository carries, on scenes that it has not seen, and the bundled model's pictures under it.

`fluent.png` has eight of its 64 things side by side: Fluent Emoji (MIT, Microsoft Corporation), straight RGBA. Floors
are what these very pictures reach, less two or three of the things, or some percent of the rest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.metrics import psnr, soft_iou
from text2layer_core.pipeline import Text2LayerPipeline
from train.check_evaluator import held_out_figures
from train.config import parse
from train.data import DataConfig
from train.evaluator import IconEvaluator, evaluator_path, load_evaluator, place_texts, thing_texts
from train.icons.source import IconSource
from train.icons.sprites import SpriteCache
from train.icons.vocabulary import Thing
from train.judge import Drawn, IconJudge, code

THINGS = ("banana", "fox", "octopus", "penguin", "rocket", "sailboat", "sunflower", "teapot")
MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def evaluator() -> IconEvaluator:
    return load_evaluator()


@pytest.fixture(scope="module")
def source(evaluator: IconEvaluator) -> IconSource:
    """The evaluator's own kind of scenes, of another seed."""
    with Image.open(Path(__file__).with_name("fluent.png")) as file:
        pixels = torch.from_numpy(np.array(file)).permute(2, 0, 1).float()
    pixels[:3] *= pixels[3:] / 255
    side = pixels.shape[1]
    sprites = torch.stack(pixels.round().byte().split(side, dim=2))[:, None]
    cache = SpriteCache(tuple(Thing(key, key, ()) for key in THINGS), ("fluent",), {side: sprites})
    data = parse(evaluator.card["data"], DataConfig, "card: data")
    assert data.icons is not None
    return IconSource(cache, replace(data.icons, things=THINGS), data.size, data.seed + 1, "all")


def test_the_file_is_small() -> None:
    assert evaluator_path().stat().st_size <= MOST_BYTES


def test_it_sees_scenes_that_it_was_not_trained_on(evaluator: IconEvaluator, source: IconSource) -> None:
    """Things among all 64, places among ten."""
    found = held_out_figures(evaluator, source, 64)
    assert found["thing_top1"] >= 0.92
    assert found["place_top1"] >= 0.98
    assert found["segmenter_iou"] >= 0.96
    assert found["segmenter_soft_iou"] >= 0.955
    assert found["segmenter_mask_on_backgrounds"] <= 0.0003


def test_leakage_catches_a_thing_left_in_the_background(evaluator: IconEvaluator, source: IconSource) -> None:
    """Composed pictures as backgrounds all do, and have a ghost; of true ones one in a hundred may."""
    judge = IconJudge(evaluator, source, 256)
    image = source.batch(0, 48).image
    left = judge.figures(Drawn(TwoLayerImage(image.foreground, compose(image), image.mask), None))
    true = judge.figures(Drawn(image, None))
    assert float(left["leakage"].mean()) >= 0.9
    assert float(left["leakage_other_thing"].mean()) <= float(left["leakage"].mean()) - 0.2
    assert float(true["leakage"].mean()) <= 0.05
    assert float(true["leakage_other_thing"].mean()) <= 0.1
    assert float(left["ghost"].nanmean()) > 1.3
    assert float(true["ghost"].nanmean()) < 1.1


def test_the_fainter_a_trace_the_less_often_it_is_seen(evaluator: IconEvaluator, source: IconSource) -> None:
    """A thing at a fifth of its opacity nearly always, at 3 % hardly more often than none."""
    judge = IconJudge(evaluator, source, 256)
    image = source.batch(0, 48).image
    traced = TwoLayerImage(image.foreground, compose(replace(image, mask=0.1 * image.mask)), image.mask)
    found = {opacity: figure.value for opacity, figure in judge.traces(image).items()}
    assert found["0.1"] == pytest.approx(float(judge.figures(Drawn(traced, None))["leakage"].mean()))
    assert list(found.values()) == sorted(found.values())
    assert found["0.03"] <= 0.15
    assert found["0.2"] >= 0.7


def test_true_layers_through_the_bundled_autoencoder(source: IconSource) -> None:
    """Two batches; what the file's decoder keeps (models/README.md has the mask's soft IoU at 0.973)."""
    image = source.batch(0, 24).image.crop(120, 104)
    coded = code(Text2LayerPipeline.from_pretrained(), image, 16)
    assert coded.layers.stack().shape == image.stack().shape
    assert float(soft_iou(coded.layers.mask, image.mask).mean()) >= 0.95
    assert coded.predicted_composed is not None
    for pictures in (compose(coded.layers), coded.predicted_composed):
        assert float(psnr(pictures, compose(image)).mean()) >= 25
    torch.testing.assert_close(coded.layers.stack() * 255, (coded.layers.stack() * 255).round(), rtol=0, atol=1e-4)


def test_the_bundled_model_draws_what_is_asked(evaluator: IconEvaluator) -> None:
    """Every fourth thing, at the places in turn, in eight steps."""
    things = torch.arange(0, len(evaluator.things), 4)
    places = torch.arange(len(things)) % len(evaluator.places)
    names, where = thing_texts(evaluator.things), place_texts(evaluator.places)
    prompts = [f"{names[thing]} {where[place]}" for thing, place in zip(things, places, strict=True)]
    pipeline = Text2LayerPipeline.from_pretrained()
    layers = pipeline(prompts, steps=8, guidance_scale=pipeline.model.card["guidance_scale"], sampler="dpmpp").layers
    composed = compose(layers)
    assert float((evaluator.thing_scores(composed).argmax(1) == things).float().mean()) >= 0.8
    assert float((evaluator.place_scores(composed).argmax(1) == places).float().mean()) >= 0.85
    assert float(soft_iou(layers.mask, evaluator.segment(composed)).mean()) >= 0.93
