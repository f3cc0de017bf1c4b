"""The icon evaluator: its file, its scores, its training, and what it is checked on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from tests.train.evaluators import PLACES, make_evaluator, training_values
from text2layer_core.checkpoint import CheckpointError
from text2layer_core.compositing import compose
from train import check_evaluator, train_evaluator
from train.config import parse
from train.data import open_source
from train.engine import Part
from train.evaluator import NOTHING, IconEvaluator, load_evaluator, place_texts, save_evaluator, thing_texts
from train.icons.source import IconSource
from train.icons.sprites import SpriteCache
from train.train_evaluator import EvaluatorBatch, EvaluatorTrainingConfig, SegmenterObjective, make_task

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a tokenizer here."""
    monkeypatch.setattr(train_evaluator, "_TOKENIZER_CAPTIONS", 200)


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path) -> dict[str, Any]:
    return training_values(tmp_path, sprite_file)


def pictures(seed: int = 0, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def test_a_file_gives_the_same_judge(sprites: SpriteCache, tmp_path: Path) -> None:
    """Half precision on disk: scores differ by its rounding, nothing else."""
    torch.manual_seed(0)
    model = make_evaluator(sprites)
    model.card["images"] = 3
    save_evaluator(tmp_path / "a.safetensors", model)
    loaded = load_evaluator(tmp_path / "a.safetensors")
    assert (loaded.config, loaded.things, loaded.places) == (model.config, model.things, model.places)
    assert loaded.card == {"images": 3}
    torch.testing.assert_close(loaded.features(pictures()), model.features(pictures()), atol=2e-3, rtol=0)
    torch.testing.assert_close(loaded.segment(pictures()), model.segment(pictures()), atol=2e-3, rtol=0)


def test_files_that_are_no_evaluator(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none at"):
        load_evaluator(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        load_evaluator(tmp_path / "text.safetensors")


def test_another_checkpoint_is_no_evaluator(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="must be an icon evaluator, got another file"):
        load_evaluator(tmp_path / "a.safetensors")


def test_scores(sprites: SpriteCache) -> None:
    """Features have length 1; similarity is the diagonal of all pairs; a thing's score is against an empty place."""
    torch.manual_seed(0)
    model = make_evaluator(sprites)
    features = model.features(pictures())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    captions = ["a ball on the beach", "an egg in space", "nothing"]
    pairs = model.similarities(pictures(), captions)
    torch.testing.assert_close(model.similarity(pictures(), captions), pairs.diagonal())
    scale = model.matcher.scale.detach()
    names = scale * model.similarities(pictures(), thing_texts(model.things))
    torch.testing.assert_close(model.thing_scores(pictures()), names[:, :-1] - names[:, -1:])
    torch.testing.assert_close(
        model.place_scores(pictures()), scale * model.similarities(pictures(), place_texts(PLACES))
    )
    assert thing_texts(["egg"]) == ["an egg", NOTHING]
    assert model.segment(pictures()).shape == (3, 1, 32, 48)


def test_batches(values: dict[str, Any]) -> None:
    """Sizes in turn, every eighth picture without its thing, the same for any share of the batch."""
    task = make_task(parse(values, EvaluatorTrainingConfig, "test"), CPU)
    batch = task.batch(Part(0, 16), CPU)
    assert batch.pictures.shape == (16, 3, 32, 32)
    assert task.batch(Part(32, 16), CPU).pictures.shape == (16, 3, 48, 48)
    empty = batch.masks.amax(dim=(1, 2, 3)) == 0
    assert empty.nonzero().flatten().tolist() == [0, 8]
    assert (batch.things == len(task.evaluator.things)).nonzero().flatten().tolist() == [0, 8]
    half = task.batch(Part(8, 8), CPU)
    for part, whole in zip(vars(half).values(), vars(batch).values(), strict=True):
        torch.testing.assert_close(part, whole[8:])


@pytest.mark.slow
def test_it_learns_to_see(values: dict[str, Any], tmp_path: Path) -> None:
    """4,800 pictures of six plain things: most are found and outlined on scenes that it has not seen."""
    values["training"]["images"] = 4800
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert train_evaluator.main(["--config", str(config)]) == 0
    model = load_evaluator(tmp_path / "run" / "model.safetensors")
    source = open_source(replace(parse(values, EvaluatorTrainingConfig, "test").data, seed=1), "all")
    assert isinstance(source, IconSource)
    figures = check_evaluator.held_out_figures(model, source, 128)
    assert figures["thing_top1"] > 0.5  # chance: 0.17
    assert figures["place_top1"] > 0.5
    assert figures["segmenter_soft_iou"] > 0.6
    assert figures["segmenter_mask_on_backgrounds"] < 0.1
    image = source.batch(0, 32).image
    things, empty = model.thing_scores(compose(image)), model.thing_scores(image.background)
    assert float((things.amax(1) > empty.amax(1)).float().mean()) > 0.8


def test_init_from_brings_its_tokenizer(values: dict[str, Any], tmp_path: Path) -> None:
    """The names of things are tokenised by the loaded one: the loss is that of the loaded weights at once."""
    config = parse(values, EvaluatorTrainingConfig, "test")
    torch.manual_seed(0)
    first = make_task(config, CPU)
    save_evaluator(tmp_path / "a.safetensors", first.evaluator)
    train_evaluator._TOKENIZER_CAPTIONS = 20
    other = make_task(config, CPU)
    assert other.evaluator.matcher.text.tokenizer_json != first.evaluator.matcher.text.tokenizer_json
    other.load_weights(tmp_path / "a.safetensors")
    with torch.no_grad():
        losses = [float(task.objectives[0].module(task.batch(Part(0, 16), CPU))["loss"]) for task in (first, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def segmenter_losses(logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The objective on a segmenter that says `logits`."""
    count = len(logits)
    evaluator = SimpleNamespace(segmenter=lambda pictures: pictures)
    objective = SegmenterObjective(cast("IconEvaluator", evaluator))
    nothing = torch.zeros(count, dtype=torch.long)
    return objective(EvaluatorBatch(logits, masks, nothing[:, None], nothing, nothing))


def test_segmenter_losses_by_hand() -> None:
    """A bare picture counts for neither IoU, a mask below 0.5 not for the outline's."""
    masks = torch.tensor([[1.0, 0.6], [0.4, 0.2], [0.0, 0.0]]).view(3, 1, 1, 2)
    found = torch.tensor([[0.9, 0.4], [0.4, 0.1], [0.1, 0.1]]).view(3, 1, 1, 2)
    losses = segmenter_losses(found.logit(), masks)
    assert float(losses["iou"]) == pytest.approx((1.3 / 1.6 + 0.5 / 0.6) / 2)
    sharp = [(6 * math.log(p / (1 - p))) for p in (0.9, 0.4)]
    assert float(losses["outline"]) == pytest.approx(sum(1 / (1 + math.exp(-x)) for x in sharp) / 2, rel=1e-5)
    entropy = -(masks * found.log() + (1 - masks) * (1 - found).log()).mean()
    assert float(losses["loss"]) == pytest.approx(float(entropy + 2 - losses["iou"] - losses["outline"]), rel=1e-5)


def test_segmenter_gradients_are_finite_where_nothing_is_found() -> None:
    """Logits whose sigmoid is 0 in float32, on a bare picture; also in a batch of bare pictures alone."""
    for alpha in (1.0, 0.0):
        logits = torch.full((2, 1, 4, 4), -120.0, requires_grad=True)
        masks = torch.zeros(2, 1, 4, 4)
        masks[1, 0, 0, 0] = alpha
        losses = segmenter_losses(logits, masks)
        losses["loss"].backward()
        assert bool(losses["loss"].isfinite())
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())


def test_one_network_alone(values: dict[str, Any], tmp_path: Path) -> None:
    """The segmenter is trained, and no tensor of the other changes, BatchNorm's statistics among them."""
    values["networks"] = ["segmenter"]
    torch.manual_seed(0)
    first = make_task(parse(values, EvaluatorTrainingConfig, "test"), CPU).evaluator
    save_evaluator(tmp_path / "a.safetensors", first)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert train_evaluator.main(["--config", str(config), "--init-from", str(tmp_path / "a.safetensors")]) == 0
    before, after = (load_evaluator(path).state_dict() for path in (
        tmp_path / "a.safetensors", tmp_path / "run" / "model.safetensors"))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"segmenter"}


@pytest.mark.parametrize(("key", "value", "message"), [
    ("cached", 8, "cached must be 0, got 8"), ("sizes", [40], "sizes must be multiples of 16"),
    ("networks", [], r"networks must be matcher, segmenter or both, got \[\]"),
    ("networks", ["segmenter", "segmenter"], "networks must be matcher, segmenter or both"),
])
def test_bad_config(values: dict[str, Any], key: str, value: object, message: str) -> None:
    values[key] = value
    with pytest.raises(ValueError, match=message):
        parse(values, EvaluatorTrainingConfig, "test")


def test_the_check_writes_its_figures_into_the_card(
    sprites: SpriteCache, values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = make_evaluator(sprites)
    model.card["data"] = values["data"]
    save_evaluator(tmp_path / "a.safetensors", model)
    out = tmp_path / "out.safetensors"
    arguments = ["--model", str(tmp_path / "a.safetensors"), "--scenes", "64", "--out", str(out)]
    assert check_evaluator.main(arguments) == 0
    assert load_evaluator(out).card["figures"] == json.loads(capsys.readouterr().out)
    assert check_evaluator.main(["--model", str(tmp_path / "none")]) == 2
    assert "found none at" in capsys.readouterr().err
