"""Sources by index and the caches on disk. Expected values are the source's own, or counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from train.data import ArrayCache, CachedSource, DataConfig, open_source, sample_noise
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache
from train.samples import epoch_rows

SHAPES = {"mean": ((2, 3), "float16"), "label": ((), "int64")}


def block(start: int, count: int) -> dict[str, np.ndarray]:
    rows = np.arange(start, start + count)
    return {"mean": np.broadcast_to(rows.reshape(-1, 1, 1), (count, 2, 3)).astype(np.float16), "label": rows}


def filled(folder: Path, rows: int, key: object = "a") -> ArrayCache:
    cache = ArrayCache(folder, 8, SHAPES, key)
    cache.store(block(0, rows))
    return cache


def test_array_cache_goes_on_where_it_stopped(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    cache = ArrayCache(tmp_path, 8, SHAPES, "a")
    assert cache.filled == 3
    cache.store(block(3, 5))
    again = ArrayCache(tmp_path, 8, SHAPES, "a")
    assert again.filled == 8
    assert again.arrays["label"].tolist() == list(range(8))
    assert np.array_equal(again.arrays["mean"], block(0, 8)["mean"])
    assert again.arrays["mean"].dtype == np.float16
    assert not list(tmp_path.glob("*.tmp"))


def test_array_cache_has_rows_on_the_disk_before_it_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(tmp_path, 3)
    counted: list[int] = []
    monkeypatch.setattr(np.memmap, "flush", lambda _: counted.append(
        json.loads((tmp_path / "state.json").read_text())["filled"]))
    cache.store(block(3, 2))
    assert counted == [3, 3]
    assert json.loads((tmp_path / "state.json").read_text())["filled"] == 5


@pytest.mark.parametrize("state", ["", '{"key": ["a", 8], "fil', "[]", "{}", '{"key": ["a", 8], "filled": null}'])
def test_array_cache_starts_afresh_from_an_unreadable_state(tmp_path: Path, state: str) -> None:
    filled(tmp_path, 3)
    (tmp_path / "state.json").write_text(state)
    cache = ArrayCache(tmp_path, 8, SHAPES, "a")
    assert cache.filled == 0
    cache.store(block(0, 1))
    assert json.loads((tmp_path / "state.json").read_text())["filled"] == 1


def test_array_cache_starts_afresh_for_another_key_count_or_shape(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    assert ArrayCache(tmp_path, 8, SHAPES, {"seed": 2}).filled == 0
    filled(tmp_path, 3)
    assert ArrayCache(tmp_path, 9, SHAPES, "a").filled == 0
    filled(tmp_path, 3)
    cache = ArrayCache(tmp_path, 8, {**SHAPES, "mean": ((2, 4), "float16")}, "a")
    assert (cache.filled, cache.arrays["mean"].shape) == (0, (8, 2, 4))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_array_cache_does_not_take_a_damaged_array_for_full(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 8)
    path = tmp_path / "mean.npy"
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-5])
    assert ArrayCache(tmp_path, 8, SHAPES, "a").filled == 0


def test_array_cache_that_starts_afresh_forgets_its_state_at_once(tmp_path: Path) -> None:
    filled(tmp_path, 8)
    ArrayCache(tmp_path, 8, SHAPES, "b")  # empties the arrays, is stopped before its first block
    assert ArrayCache(tmp_path, 8, SHAPES, "a").filled == 0


def test_epochs_see_every_row_once_in_new_orders() -> None:
    first, second = epoch_rows(7, 0, 10, 10), epoch_rows(7, 10, 10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    # Whatever the batches, also across the border of two epochs.
    pieces = [epoch_rows(7, start, 4, 10) for start in range(0, 20, 4)]
    assert np.concatenate(pieces).tolist() == [*first, *second]
    assert epoch_rows(8, 0, 10, 10).tolist() != first.tolist()


def test_noise_belongs_to_the_sample() -> None:
    noise = sample_noise(3, range(4), (2, 3))
    assert (noise.shape, noise.dtype) == ((4, 2, 3), torch.float32)
    assert torch.equal(sample_noise(3, [2], (2, 3))[0], noise[2])
    assert not torch.equal(sample_noise(4, [2], (2, 3))[0], noise[2])
    many = sample_noise(0, range(50), (1000,))
    assert abs(many.mean()) < 0.02  # five standard errors of 50,000 draws
    assert abs(many.std() - 1) < 0.02


def icons(sprites: SpriteCache) -> IconSource:
    return IconSource(sprites, IconsConfig(cache=""), 16, 1)


def test_cached_source_gives_the_sources_samples_as_bytes(tmp_path: Path, sprites: SpriteCache) -> None:
    source = icons(sprites)
    config = DataConfig(source="icons", size=16, seed=5)
    cached = CachedSource(source, tmp_path, 12, config, "cpu")
    rows = epoch_rows(5, 9, 6, 12)
    batch, plain = cached.batch(9, 6), source.batch(0, 12)
    assert torch.equal(batch.stack, (plain.stack[rows] * 255).round() / 255)
    assert batch.captions == [plain.captions[row] for row in rows] == cached.captions(9, 6)
    assert cached.size == 16


def test_cached_source_is_drawn_once(tmp_path: Path, sprites: SpriteCache) -> None:
    config = DataConfig(source="icons", size=16)
    first = CachedSource(icons(sprites), tmp_path, 6, config, "cpu").batch(0, 6)
    written = (tmp_path / "stack.npy").stat().st_mtime_ns
    again = CachedSource(icons(sprites), tmp_path, 6, config, "cpu").batch(0, 6)
    assert torch.equal(first.stack, again.stack)
    assert (tmp_path / "stack.npy").stat().st_mtime_ns == written


def test_open_source(sprite_file: Path) -> None:
    config = DataConfig(source="icons", size=16, icons=IconsConfig(cache=str(sprite_file)))
    assert open_source(config).captions(0, 3) != open_source(config, "held_out").captions(0, 3)
    with pytest.raises(ValueError, match="data with source icons must have a section icons, got none"):
        open_source(DataConfig(source="icons", size=16))
    with pytest.raises(ValueError, match="data with source shards must have a section shards, got none"):
        open_source(DataConfig(source="shards", size=16))


def test_config_checks_its_numbers() -> None:
    with pytest.raises(ValueError, match="size must be above 0, got 0"):
        DataConfig(source="icons", size=0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        DataConfig(source="icons", size=8, seed=-1)
