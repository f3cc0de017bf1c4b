"""Data through learned filters: which samples stay, in which order, found once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from text2layer_core.quality import QualityConfig, QualityFilter, save_quality_filter
from train.baselines import UnfilteredSource
from train.filtered import FilteredSource, FilterFiles, load_filters
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache

SIZE = QualityConfig(image_size=32, width=0.1, depth=0.1)


@pytest.fixture
def source(sprites: SpriteCache, sprite_file: Path) -> UnfilteredSource:
    return UnfilteredSource(IconSource(sprites, IconsConfig(cache=str(sprite_file), effect_share=0.0), 32, 0), 0.5, 0)


@pytest.fixture
def filters(source: UnfilteredSource) -> dict[str, QualityFilter]:
    """Fresh networks whose thresholds are the median score of 64 samples: each drops about a half."""
    torch.manual_seed(0)
    made = {kind: QualityFilter(kind, SIZE).eval() for kind in ("mask", "inpainting")}
    for kind, each in made.items():
        each.threshold = float(scores(source, each, kind, 0, 64).median())
    return made


def scores(source: UnfilteredSource, model: QualityFilter, kind: str, start: int, count: int) -> Tensor:
    """By hand, of the layers themselves."""
    foreground, background, mask = source.batch(start, count).stack.split([3, 3, 1], dim=1)
    image = mask * foreground + (1 - mask) * background
    return model.scores((torch.cat([image, mask], dim=1) if kind == "mask" else background).clamp(0, 1))


def test_what_both_call_good_stays(
    source: UnfilteredSource, filters: dict[str, QualityFilter], tmp_path: Path
) -> None:
    """In the source's order, with their captions, whatever the batches are."""
    filtered = FilteredSource(source, filters, tmp_path / "kept.json")
    good = [scores(source, model, kind, 0, 64) >= model.threshold for kind, model in filters.items()]
    wanted = (good[0] & good[1]).nonzero().flatten().tolist()
    assert 4 < len(wanted) < 60
    assert [filtered.index(sample) for sample in range(len(wanted))] == wanted
    batch = filtered.batch(1, 4)
    rows = wanted[1:5]
    assert torch.equal(batch.stack, torch.cat([source.batch(row, 1).stack for row in rows]))
    assert batch.captions == filtered.captions(1, 4) == [source.captions(row, 1)[0] for row in rows]
    assert torch.equal(filtered.batch(3, 1).stack, batch.stack[2:3])


def test_it_is_found_once(
    source: UnfilteredSource, filters: dict[str, QualityFilter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and opened again it judges nothing anew; other filters start afresh; half a file too."""
    path = tmp_path / "a" / "kept.json"
    whole = FilteredSource(source, filters, tmp_path / "other.json")
    first = FilteredSource(source, filters, path)
    assert first.share == 1.0
    first.batch(0, 3)
    again = FilteredSource(source, filters, path)
    assert 0 < again.share == first.share < 1
    judged: list[int] = []
    judge = FilteredSource._judged
    monkeypatch.setattr(FilteredSource, "_judged", lambda self, start: (judged.append(start), judge(self, start))[1])
    again.batch(0, 3)
    assert judged == []
    assert [again.index(sample) for sample in range(60)] == [whole.index(sample) for sample in range(60)]
    assert judged[0] == 64
    filters["mask"].threshold += 0.01
    assert FilteredSource(source, filters, path).share == 1.0
    filters["mask"].threshold -= 0.01
    path.write_text(path.read_text()[:-9])
    assert FilteredSource(source, filters, path).share == 1.0


def test_filters_that_keep_nothing(
    source: UnfilteredSource, filters: dict[str, QualityFilter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.filtered._MOST_BLOCKS", 2)
    filters["mask"].threshold = 1.0
    with pytest.raises(ValueError, match="filters must keep some samples, got none of 128"):
        FilteredSource(source, filters, tmp_path / "kept.json").batch(0, 1)


def test_files_of_the_wrong_kind(filters: dict[str, QualityFilter], tmp_path: Path) -> None:
    for kind, each in filters.items():
        save_quality_filter(tmp_path / f"{kind}.safetensors", each)
    files = {kind: str(tmp_path / f"{kind}.safetensors") for kind in filters}
    assert [(kind, each.kind) for kind, each in load_filters(FilterFiles(**files)).items()] == [
        ("mask", "mask"), ("inpainting", "inpainting")]
    with pytest.raises(ValueError, match="the mask filter must be of kind mask, got one of kind inpainting"):
        load_filters(FilterFiles(mask=files["inpainting"], inpainting=files["inpainting"]))
