"""The stages one after the other in this process, as Ray runs them; pictures and expected pixels are made here."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.clip import tiny_clip
from text2layer_core.distribution import clip_score
from text2layer_core.foreground import estimate_foreground
from text2layer_core.layers import TwoLayerImage
from text2layer_core.samples import write_sample
from train.synthesis import stages
from train.synthesis.config import (
    FiltersConfig,
    InpainterConfig,
    InputConfig,
    LayersConfig,
    PictureConfig,
    SaliencyConfig,
    SynthesisConfig,
)
from train.synthesis.inputs import list_shards, plan
from train.synthesis.rows import Sample, from_table, to_table
from train.synthesis.tensors import to_tensor

SIZE = 64


def scene(seed: int = 0, radius: float = 14) -> np.ndarray:
    """A red disc on noisy green, bytes."""
    y, x = np.mgrid[:SIZE, :SIZE]
    inside = ((y - 32) ** 2 + (x - 32) ** 2 < radius**2)[..., None]
    picture = np.where(inside, (230, 20, 20), (30, 150, 60))
    return np.clip(picture + np.random.default_rng(seed).integers(-8, 9, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def config(tmp_path: Path) -> SynthesisConfig:
    """Two discs, a flat picture, a torn one, and one without a caption."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, pixels in {"0": scene(0), "1": scene(1), "2": np.full((SIZE, SIZE, 3), 90, np.uint8),
                         "4": scene(4)}.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "3.png").write_bytes(b"torn")
    for name in "0123":
        (folder / f"{name}.txt").write_text(f"thing {name}", encoding="utf-8")
    return SynthesisConfig(output=str(tmp_path / "out"), input=InputConfig(kind="folder", path=str(folder)),
                           picture=PictureConfig(size=SIZE))


def run(config: SynthesisConfig) -> list[Sample]:
    table = to_table(plan(list_shards(config.input)[0], config.input))
    table = stages.decode(table, config)
    table = stages.FindMask(config)(table)
    table = stages.cut(table, config)
    table = stages.FillHole(config)(table)
    return from_table(stages.encode(table, config))


def pixels(sample: Sample, part: str) -> np.ndarray:
    data = sample.parts[part]
    assert isinstance(data, bytes)
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_picture_becomes_layers(config: SynthesisConfig) -> None:
    """The disc is found, gone from the background, and nothing but the dilated hole has changed, to the bit."""
    samples = run(config)
    assert [(s.refused, s.dropped) for s in samples] == [
        ("", ""), ("", ""), ("", "mask_empty"), ("corrupt", ""), ("missing_caption", "")]
    assert sorted(samples[0].parts) == ["background", "image", "mask", "thumbnail"]
    assert sorted(samples[2].parts) == ["thumbnail"], "a dropped sample has a small picture alone"
    image, background, mask = (pixels(samples[0], part) for part in ("image", "background", "mask"))
    assert np.array_equal(image, scene(0))
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.sqrt((y - 32) ** 2 + (x - 32) ** 2)
    assert mask[distance < 12].min() > 250
    assert mask[distance > 19].max() == 0
    assert np.array_equal(background[distance > 22], image[distance > 22])
    assert background[distance < 14][:, 0].max() < 60, "no red is left"
    assert samples[0].facts["source"] == {"name": "0.png", "width": SIZE, "height": SIZE, "format": "PNG", "record": {}}
    assert samples[0].facts["components"] == 1
    assert all("thumbnail" in sample.parts for sample in run(replace(config, sheet=1))[:3]), "the writer chooses"
    assert not any("thumbnail" in sample.parts for sample in run(replace(config, sheet=0)))
    assert samples[0].facts["area"] == pytest.approx(np.pi * 14**2 / SIZE**2, rel=0.1)


def test_the_true_foreground_colour(config: SynthesisConfig) -> None:
    sample = run(replace(config, layers=LayersConfig(foreground="estimated")))[0]
    image, mask = (torch.from_numpy(pixels(sample, part).copy()).float() / 255 for part in ("image", "mask"))
    expected, _ = estimate_foreground(image.permute(2, 0, 1)[None], mask[None, None])
    found = torch.from_numpy(pixels(sample, "foreground").copy()).float() / 255
    assert torch.allclose(found.permute(2, 0, 1), expected[0], atol=0.51 / 255)
    assert found[10, 10, 0] > 0.8, "the disc's red continues where the mask is 0"


class Filter:
    """A classifier with the members of text2layer_core.quality's; the score is the mean of what it sees."""

    def __init__(self, kind: str) -> None:
        self.kind, self.threshold = kind, 0.2
        self.shapes: list[tuple[int, ...]] = []

    def scores(self, pictures: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(pictures.shape))
        return pictures[:, -1].mean(dim=(1, 2))


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Filter]:
    made = {kind: Filter(kind) for kind in ("mask", "inpainting")}
    module: Any = types.ModuleType("text2layer_core.quality")
    module.load_quality_filter = lambda path, device, *, kind: made[Path(path).name]
    monkeypatch.setitem(sys.modules, "text2layer_core.quality", module)
    return made


def test_classifiers_score_and_drop(config: SynthesisConfig, filters: dict[str, Filter]) -> None:
    """The mask's mean is about 0.15; the filled background's blue about 60 / 255 = 0.24."""
    both = FiltersConfig(mask="mask", inpainting="inpainting", mask_threshold=0.1)
    sample = run(replace(config, filters=both))[0]
    assert sample.dropped == ""
    assert sample.facts["mask_score"] == pytest.approx(0.15, abs=0.02)
    assert sample.facts["inpainting_score"] == pytest.approx(0.236, abs=0.02)
    assert filters["mask"].shapes[0] == (2, 4, SIZE, SIZE), "as one batch"
    assert filters["inpainting"].shapes[0] == (2, 3, SIZE, SIZE)
    dropped = run(replace(config, filters=FiltersConfig(mask="mask", inpainting="inpainting")))[0]
    assert dropped.dropped == "mask_score"
    assert "inpainting_score" not in dropped.facts, "no time is spent on the hole of a bad mask"
    strict = replace(both, inpainting_threshold=0.9)
    assert run(replace(config, filters=strict))[0].dropped == "inpainting_score"


def test_classifiers_of_the_real_class(config: SynthesisConfig, tmp_path: Path) -> None:
    """Random weights: the score in the sample is that of the classifier called by hand; the wrong kind is refused."""
    quality = pytest.importorskip("text2layer_core.quality")
    torch.manual_seed(0)
    for kind in ("mask", "inpainting"):
        model = quality.QualityFilter(kind, quality.QualityConfig(image_size=32, width=0.1, depth=0.1), threshold=0.0)
        quality.save_quality_filter(tmp_path / f"{kind}.safetensors", model)
    paths = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("mask", "inpainting")}
    sample = run(replace(config, filters=FiltersConfig(**paths)))[0]
    image, mask, background = (to_tensor(pixels(sample, part)) for part in ("image", "mask", "background"))
    for kind, picture in (("mask", torch.cat([image, mask])), ("inpainting", background)):
        expected = quality.load_quality_filter(paths[kind]).scores(picture[None])[0]
        assert sample.facts[f"{kind}_score"] == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(ValueError, match="the mask filter must be of kind mask, got one of kind inpainting"):
        stages.FindMask(replace(config, filters=FiltersConfig(mask=str(tmp_path / "inpainting.safetensors"))))


def test_clips_score(config: SynthesisConfig, tmp_path: Path) -> None:
    """A small CLIP from its folder, against itself called by hand."""
    model, processor = tiny_clip()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "clip")
    sample = run(replace(config, filters=FiltersConfig(clip=str(tmp_path / "clip"))))[0]
    expected = clip_score(model.eval(), processor, [to_tensor(scene(0))], ["thing 0"])
    assert sample.facts["clip_score"] == pytest.approx(float(expected[0]), abs=1e-4)


def test_layered_samples_are_taken_as_they_are(
    config: SynthesisConfig, filters: dict[str, Filter], tmp_path: Path
) -> None:
    folder = tmp_path / "layered"
    folder.mkdir()
    rng = np.random.default_rng(3)
    layers = {name: rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for name in ("image", "background", "foreground")}
    layers["mask"] = rng.integers(0, 256, (SIZE, SIZE), np.uint8)
    for name, values in layers.items():
        Image.fromarray(values).save(folder / f"k.{name}.png")
    (folder / "k.txt").write_text("made by hand", encoding="utf-8")
    (folder / "k.json").write_text(json.dumps({"seed": 4}), encoding="utf-8")
    (sample,) = run(replace(config, input=InputConfig(kind="layered", path=str(folder)),
                            filters=FiltersConfig(mask="mask", inpainting="inpainting")))
    assert sample.dropped == ""
    assert (sample.caption, sample.facts["source"]["record"]) == ("made by hand", {"seed": 4})
    assert sample.facts["mask_score"] == pytest.approx(0.5, abs=0.05)
    for name, values in layers.items():
        assert np.array_equal(pixels(sample, name), values), name
    Image.fromarray(np.tile(layers["mask"], 2)).save(folder / "k.mask.png")
    (sample,) = run(replace(config, input=InputConfig(kind="layered", path=str(folder))))
    assert sample.refused == "sizes_differ"


def test_samples_of_write_sample_are_an_input(config: SynthesisConfig, tmp_path: Path) -> None:
    """As Write Sample leaves them, in a folder of the folder that is named: each file comes out as it went in."""
    folder, key = tmp_path / "made" / "samples", "disc_00001_"
    generator = torch.Generator().manual_seed(5)
    layers = TwoLayerImage(*(torch.rand(1, channels, SIZE, SIZE, generator=generator) for channels in (3, 3, 1)))
    write_sample(folder, key, layers, "a disc", facts={"made_by": "Text2LayerWriteSample"})
    (sample,) = run(replace(config, input=InputConfig(kind="layered", path=str(folder.parent))))
    assert (sample.name, sample.refused, sample.dropped) == (f"samples/{key}", "", "")
    assert (sample.caption, sample.facts["source"]["record"]) == ("a disc", {"made_by": "Text2LayerWriteSample"})
    for part in ("image", "foreground", "background", "mask"):
        assert np.array_equal(pixels(sample, part), np.asarray(Image.open(folder / f"{key}.{part}.png"))), part


def test_a_mask_that_leaves_no_ground(config: SynthesisConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped before the inpainter; layers that are there already have their background."""
    monkeypatch.setattr(stages, "open_saliency", lambda config: lambda images: [
        torch.full((1, *image.shape[1:]), 0.85) for image in images])
    monkeypatch.setattr(stages, "open_inpainter", lambda config: None)
    samples = run(config)
    assert [sample.dropped for sample in samples[:3]] == ["no_ground"] * 3
    assert sorted(samples[0].parts) == ["thumbnail"]


class Failing:
    """A model that finds a left half, and fails on the pictures with these numbers, in the order that it sees them."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.seen: list[torch.Tensor] = []

    def __call__(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        masks: list[torch.Tensor] = []
        for image in images:
            number = next((k for k, known in enumerate(self.seen) if torch.equal(known, image)), len(self.seen))
            if number == len(self.seen):
                self.seen.append(image)
            if number in self.numbers:
                raise RuntimeError("out of memory")
            mask = torch.zeros(1, *image.shape[1:])
            mask[..., : image.shape[2] // 2] = 1
            masks.append(mask)
        return masks


def test_a_picture_that_a_model_fails_on_is_dropped_alone_and_a_model_that_always_fails_stops_the_run(
    config: SynthesisConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "open_saliency", lambda config: Failing(1))
    samples = run(config)
    assert [s.dropped for s in samples[:3]] == ["", "saliency_failed", ""], "the others of its batch go on"
    half = pytest.approx(0.5, abs=0.01)
    assert [s.facts.get("area") for s in samples[:3]] == [half, None, half]
    monkeypatch.setattr(stages, "open_saliency", lambda config: Failing(0))
    worker = stages.FindMask(config)
    table = stages.decode(to_table(plan(list_shards(config.input)[0], config.input)[:1] * 20), config)
    with pytest.raises(RuntimeError, match=r"saliency failed on 16 pictures in a row, .*: out of memory"):
        worker(table)


def test_the_stand_ins_go_through_all_stages(config: SynthesisConfig) -> None:
    waiting = replace(config, saliency=SaliencyConfig(backend="wait", seconds=0),
                      inpainting=InpainterConfig(backend="wait", seconds=0))
    samples = run(waiting)
    assert [s.alive for s in samples] == [True, True, True, False, False]
    assert samples[0].facts["area"] == pytest.approx(0.25)
