"""The quality filters: what they see, their one file, and what is decided from their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from text2layer_core.checkpoint import CheckpointError
from text2layer_core.quality import (
    QualityConfig,
    QualityFilter,
    decide_quality,
    load_quality_filter,
    pretrained_quality_filter,
    save_quality_filter,
    score_samples,
    widen_stem,
)

SMALL = QualityConfig(image_size=32, width=0.1, depth=0.1)
B0_WEIGHTS = 4_007_548
"""EfficientNet-b0 without its last layer: the whole has 5,288,548, of which 1,281,000 are that layer."""


def make(kind: str = "mask", **arguments: Any) -> QualityFilter:
    torch.manual_seed(0)
    return QualityFilter(kind, SMALL, **arguments).eval()


def pictures(channels: int = 4, count: int = 3, height: int = 20, width: int = 30) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_the_papers_network() -> None:
    """b0 and one neuron; the mask filter's first convolution has 32 x 3 x 3 weights more, of the fourth channel."""
    found = {kind: sum(p.numel() for p in QualityFilter(kind, QualityConfig()).parameters())
             for kind in ("inpainting", "mask")}
    assert found == {"inpainting": B0_WEIGHTS + 1281, "mask": B0_WEIGHTS + 1281 + 288}


@pytest.mark.parametrize(("kind", "channels"), [("mask", 4), ("inpainting", 3)])
def test_scores_of_any_size(kind: str, channels: int) -> None:
    """In [0, 1], each picture for itself, as many as asked, whatever mode the filter is in."""
    model = make(kind)
    found = model.scores(pictures(channels))
    assert found.shape == (3,)
    assert bool(((found >= 0) & (found <= 1)).all())
    torch.testing.assert_close(model.scores(pictures(channels)[1:2]), found[1:2])
    assert model.train().scores(pictures(channels)).tolist() == found.tolist()
    assert model.training
    assert model.scores(pictures(channels, 0)).shape == (0,)
    assert model.scores(pictures(channels, 40, 70, 33)).shape == (40,)


def test_large_pictures_are_brought_to_the_networks_size() -> None:
    """A flat picture stays what it is at any size."""
    model, small = make(), pictures(height=32, width=32)
    flat = small.mean(dim=(2, 3), keepdim=True).expand_as(small)
    torch.testing.assert_close(model.scores(flat.repeat_interleave(3, 2)), model.scores(flat))


@torch.no_grad()
def test_the_mask_is_seen_from_the_start() -> None:
    """With its kernels at zero, two masks of one picture would have one score."""
    model, first = make(), pictures()
    second = torch.cat([first[:, :3], 1 - first[:, 3:]], dim=1)
    stem = model.trunk.get_submodule("embeddings.convolution")
    assert float((stem(first) - stem(second)).abs().max()) > 0.1 * float(stem(first).abs().max())


def test_the_widened_stem() -> None:
    """By hand: the colours' kernels as they were, then their mean."""
    weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert widen_stem(weight, 4).flatten().tolist() == [1, 2, 6, 3]
    assert torch.equal(widen_stem(weight, 3), weight)


@pytest.mark.parametrize(("given", "message"), [
    (pictures(3), r"shape \(N, 4, H, W\) for the mask filter, got \(3, 3, 20, 30\)"),
    (pictures()[0], r"shape \(N, 4, H, W\)"),
    (pictures() * 2, r"pictures must"),
    ((pictures() * 255).byte(), "pictures must"),
])
def test_pictures_that_are_none(given: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().scores(given)


@pytest.mark.parametrize(("make_it", "message"), [
    (lambda: QualityFilter("colour", SMALL), "kind must be one of mask, inpainting, got 'colour'"),
    (lambda: make(threshold=1.5), r"threshold must lie in \[0, 1\], got 1.5"),
    (lambda: QualityConfig(image_size=8), "image_size must be at least 32, got 8"),
    (lambda: QualityConfig(width=0), "width must be above 0, got 0"),
])
def test_no_such_filter(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_a_file_gives_the_same_filter(tmp_path: Path) -> None:
    """Bit for bit, with everything that it says of itself."""
    path = tmp_path / "new" / "mask.safetensors"
    model = make(threshold=0.625, card={"images": 3})
    save_quality_filter(path, model)
    loaded = load_quality_filter(str(path))
    assert (loaded.kind, loaded.threshold, loaded.config, loaded.card) == ("mask", 0.625, SMALL, {"images": 3})
    assert loaded.scores(pictures()).tolist() == model.scores(pictures()).tolist()
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert [each.name for each in path.parent.iterdir()] == ["mask.safetensors"]


def changed(path: Path, change: Any) -> Path:
    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(("change", "message"), [
    (lambda metadata, tensors: metadata.clear(), "is no quality filter"),
    (lambda metadata, tensors: metadata.update({"text2layer.quality": "9"}), "format version '9'"),
    (lambda metadata, tensors: metadata.pop("text2layer.quality.kind"), "has no 'text2layer.quality.kind'"),
    (lambda metadata, tensors: metadata.update({"text2layer.quality.threshold": "nan"}), "damaged metadata: threshold"),
    (lambda metadata, tensors: metadata.update({"text2layer.quality.config": "{"}), "damaged metadata"),
    (lambda metadata, tensors: metadata.update({"text2layer.quality.kind": "inpainting"}), "does not fit its config"),
    (lambda metadata, tensors: tensors.pop("classifier.bias"), r"missing \(1\): classifier.bias"),
    (lambda metadata, tensors: tensors.update({"more": torch.zeros(1)}), r"unexpected \(1\): more"),
])
def test_files_that_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_quality_filter(path, make())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_quality_filter(changed(path, change))
    assert "\n" not in str(caught.value)


def test_no_file_and_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no such model"):
        load_quality_filter(path)
    save_quality_filter(path, make())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_quality_filter(path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = make(card={"model": make})
    with pytest.raises(ValueError, match="card must hold only what JSON can"):
        save_quality_filter(tmp_path / "a.safetensors", model)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"finite, got others in classifier\.bias"):
        save_quality_filter(tmp_path / "a.safetensors", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "channels"), [("mask", 4), ("inpainting", 3)])
def test_imagenet_weights_from_a_folder(tmp_path: Path, kind: str, channels: int) -> None:
    """The trunk gives the features of transformers' own classifier on the same picture; grey where the mask is mean."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    torch.manual_seed(0)
    config = EfficientNetConfig(image_size=64, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
    whole = EfficientNetForImageClassification(config).eval()
    whole.save_pretrained(tmp_path)
    model = pretrained_quality_filter(kind, tmp_path).eval()
    assert model.config == QualityConfig(image_size=64, width=0.1, depth=0.1)
    given = pictures(channels, height=64, width=64)
    if channels == 4:
        given[:, 3] = 0.5  # normalised to 0, so that the fourth channel adds nothing
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        features = whole.efficientnet((given[:, :3] - mean) / deviation).pooler_output
        torch.testing.assert_close(model(given), model.classifier(features)[:, 0], atol=1e-5, rtol=1e-4)


def test_folders_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold config\.json and model\.safetensors"):
        pretrained_quality_filter("mask", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="of type efficientnet, got resnet"):
        pretrained_quality_filter("mask", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "efficientnet"}')
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 12345\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged: "):
        pretrained_quality_filter("mask", tmp_path)


def test_samples_are_scored_by_the_papers_inputs() -> None:
    filters = {"mask": make(), "inpainting": make("inpainting")}
    image, mask, background = pictures(3), pictures(1), pictures(3).flip(0)
    found = score_samples(image, mask, background, filters)
    assert found["mask"] == filters["mask"].scores(torch.cat([image, mask], dim=1)).tolist()
    assert found["inpainting"] == filters["inpainting"].scores(background).tolist()
    assert score_samples(image, mask, background, {}) == {}
    with pytest.raises(ValueError, match="the mask filter must be of kind mask, got one of kind inpainting"):
        score_samples(image, mask, background, {"mask": filters["inpainting"]})
    with pytest.raises(ValueError, match="mask must match image"):
        score_samples(image, mask[:2], background, filters)


@pytest.mark.parametrize(("scores", "dropped_by", "reason"), [
    ({"mask": 0.5, "inpainting": 0.7}, (), "kept: mask score 0.500 of at least 0.500, "
     "inpainting score 0.700 of at least 0.600"),
    ({"mask": 0.4999, "inpainting": 0.7}, ("mask",), "dropped: mask score 0.500 below 0.500"),
    ({"mask": 0.1, "inpainting": 0.2}, ("mask", "inpainting"),
     "dropped: mask score 0.100 below 0.500, inpainting score 0.200 below 0.600"),
    ({"inpainting": 0.2}, ("inpainting",), "dropped: inpainting score 0.200 below 0.600"),
    ({}, (), "kept: no filter"),
])
def test_decisions(scores: dict[str, float], dropped_by: tuple[str, ...], reason: str) -> None:
    """A score at its threshold is good."""
    decision = decide_quality(scores, {"mask": 0.5, "inpainting": 0.6})
    assert (decision.keep, decision.dropped_by, decision.reason) == (not dropped_by, dropped_by, reason)


@pytest.mark.parametrize(("scores", "message"), [
    ({"mask": float("nan")}, r"the mask score must lie in \[0, 1\], got nan"),
    ({"mask": 1.5}, r"the mask score must lie in \[0, 1\], got 1.5"),
    ({"colour": 0.5}, "must be of a kind with a threshold"),
    ({"inpainting": 0.5}, "must be of a kind with a threshold"),
])
def test_scores_that_are_none(scores: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide_quality(scores, {"mask": 0.5})


@torch.no_grad()
def test_a_fresh_network_sees_differences() -> None:
    """Its features of different pictures differ: transformers' own start leaves 1e-12 of them in training mode."""
    torch.manual_seed(0)
    model = QualityFilter("inpainting", QualityConfig(image_size=64, width=0.25, depth=0.5)).train()
    features = model.trunk(pixel_values=pictures(3, 8, 64, 64)).pooler_output
    assert float(features.std(dim=0).mean()) > 0.01
