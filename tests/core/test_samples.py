"""Samples as files: documents as two layers, and sets of files that trainers read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core.blending import BlendMode
from text2layer_core.compositing import compose
from text2layer_core.composition import compose_stack
from text2layer_core.layers import TwoLayerImage
from text2layer_core.samples import two_layers_of_stack, write_sample
from text2layer_core.stack import Layer, LayerStack
from train.quality_samples import SampleFiles
from train.shards import ShardsConfig, ShardSource

STEP = 0.5 / 255 + 1e-6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture() -> TwoLayerImage:
    return TwoLayerImage(random(1, 3, 6, 8), random(1, 3, 6, 8, seed=1), random(1, 1, 6, 8, seed=2))


def document() -> LayerStack:
    """A background, a layer with a mask, and a half transparent one that reaches beyond the canvas."""
    return LayerStack(canvas=(8, 6), layers=(
        Layer(name="ground", picture=random(1, 3, 6, 8, seed=1)),
        Layer(name="fox", picture=random(1, 3, 6, 8), mask=random(1, 1, 6, 8, seed=2)),
        Layer(name="hat", picture=random(1, 4, 4, 4, seed=3), x=6, y=-2, opacity=0.5),
    ))


def test_two_layers_of_two_layers() -> None:
    found, wanted = two_layers_of_stack(LayerStack.from_two_layers(picture())), picture()
    torch.testing.assert_close(found.foreground, wanted.foreground)
    assert torch.equal(found.background, wanted.background)
    torch.testing.assert_close(found.mask, wanted.mask)


def test_many_layers_compose_to_the_same_picture() -> None:
    """Source-over is associative: what is above the background may be put together first."""
    found = two_layers_of_stack(document())
    torch.testing.assert_close(compose(found), compose_stack(document())[:, :3], atol=1e-5, rtol=0)
    assert torch.equal(found.background, document().layers[0].picture)


def test_hidden_layers_do_not_count() -> None:
    stack = document()
    stack = replace(stack, layers=(replace(stack.layers[2], name="hidden", visible=False), *stack.layers[:2]))
    assert torch.equal(two_layers_of_stack(stack).background, stack.layers[1].picture)


@pytest.mark.parametrize(("change", "message"), [
    (lambda stack: replace(stack, layers=stack.layers[:1]), "a background and something above it, got 1 visible"),
    (lambda stack: stack.with_layer(1, blend_mode=BlendMode.MULTIPLY), 'blend mode normal, got multiply of "fox"'),
    (lambda stack: stack.with_layer(0, x=1), 'must cover the whole canvas, and "ground" does not'),
    (lambda stack: stack.with_layer(0, opacity=0.9), "must cover the whole canvas"),
])
def test_documents_that_are_no_two_layers(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_layers_of_stack(change(document()))


def test_a_sample_there_and_back(tmp_path: Path) -> None:
    """To half a step of 8 bits; the caption in one line."""
    folder = tmp_path / "a" / "b"
    facts = {"mask_score": 0.5, "by": "狐"}
    files = write_sample(folder, "fox_00001_", picture(), " a fox\nin the  snow ", facts=facts)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in files) == [
        f"fox_00001_.{part}" for part in
        ("background.png", "foreground.png", "image.png", "json", "mask.png", "txt")
    ]
    samples = SampleFiles(folder)
    assert samples.keys == ["fox_00001_"]
    wanted = {"image.png": compose(picture()), "foreground.png": picture().foreground,
              "background.png": picture().background, "mask.png": picture().mask}
    for part, truth in wanted.items():
        torch.testing.assert_close(samples.picture("fox_00001_", part), truth, atol=STEP, rtol=0)
    assert samples.read("fox_00001_", "txt") == b"a fox in the snow\n"
    assert json.loads(samples.read("fox_00001_", "json") or b"") == facts


def test_the_trainers_read_what_is_written(tmp_path: Path) -> None:
    """Folders of samples as a data source: captions, and layers to half a step of 8 bits.

    Where the mask is at most 0.1 the trainers continue the foreground's colour themselves.
    """
    wanted: dict[str, TwoLayerImage] = {}
    for seed, caption in enumerate(("a fox", "an owl", "a hat")):
        wanted[caption] = TwoLayerImage.from_stack(random(1, 7, 8, 8, seed=seed))
        write_sample(tmp_path / f"samples-{seed % 2}", f"sample_{seed:05d}_", wanted[caption], caption, facts={})
    source = ShardSource(ShardsConfig(files=str(tmp_path / "samples-*")), size=8, seed=0)
    assert len(source) == 3
    batch = source.batch(0, 3)
    assert sorted(batch.captions) == sorted(wanted)
    for caption, found in zip(batch.captions, batch.stack.split(1), strict=True):
        truth = wanted[caption]
        torch.testing.assert_close(found[:, 3:], truth.stack()[:, 3:], atol=STEP, rtol=0)
        known = (truth.mask > 0.1 + STEP).expand(-1, 3, -1, -1)
        torch.testing.assert_close(found[:, :3][known], truth.foreground[known], atol=STEP, rtol=0)


def test_the_picture_it_was_made_of(tmp_path: Path) -> None:
    write_sample(tmp_path, "a", picture(), "a", composed=random(1, 3, 6, 8, seed=9))
    torch.testing.assert_close(SampleFiles(tmp_path).picture("a", "image.png"), random(1, 3, 6, 8, seed=9), atol=STEP,
                               rtol=0)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"key": "a.b"}, "a sample's name must not be empty nor hold"),
    ({"key": "../a"}, "a sample's name must not be empty nor hold"),
    ({"key": ""}, "got ''"),
    ({"key": "taken"}, r"must be new in its folder, found taken\.txt"),
    ({"caption": " \n"}, "caption must not be empty"),
    ({"composed": random(1, 3, 6, 7)}, r"composed must have shape \(1, 3, 6, 8\), got \(1, 3, 6, 7\)"),
    ({"image": TwoLayerImage(*(part.expand(2, -1, -1, -1) for part in (
        picture().foreground, picture().background, picture().mask)))}, "must hold one sample, got 2"),
])
def test_what_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "taken.txt").write_text("mine")
    with pytest.raises(ValueError, match=message):
        write_sample(tmp_path, **{"key": "a", "image": picture(), "caption": "a", **changes})
    assert [path.name for path in tmp_path.iterdir()] == ["taken.txt"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_sample(tmp_path, "a", picture(), "a")
    assert not list(tmp_path.iterdir())
