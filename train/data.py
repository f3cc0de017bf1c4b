"""Where samples come from: one interface for every source, and a cache of decoded samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from text2layer_core.atomic import write_text
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import load_sprites
from train.samples import LayeredBatch, epoch_rows
from train.shards import ShardsConfig, ShardSource


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The samples to train on.

    Attributes:
        source: "icons" or "shards"; the section of that name must be there.
        size: pixels a side.
        seed: of the data's own choices.
        icons: the icon scenes.
        shards: WebDataset shards of layered pictures.

    Raises:
        ValueError: a number out of range.
    """

    source: Literal["icons", "shards"]
    size: int
    seed: int = 0
    icons: IconsConfig | None = None
    shards: ShardsConfig | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.size < 1:
            raise ValueError(f"size must be above 0, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


class Source(Protocol):
    """Samples by index: the same index gives the same sample on every machine and at every batch size."""

    size: int

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1."""
        ...

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        ...


def open_source(config: DataConfig, split: Literal["train", "held_out", "all"] = "train") -> Source:
    """Opens the configured source.

    Args:
        config: which one.
        split: training samples, those never trained on, or (icons) all pairs of thing and place.

    Returns:
        The source.

    Raises:
        ValueError: its section is missing, or its files are.
    """
    if config.source == "icons":
        if config.icons is None:
            raise ValueError("data with source icons must have a section icons, got none")
        return IconSource(load_sprites(expand(config.icons.cache)), config.icons, config.size, config.seed, split)
    if config.shards is None:
        raise ValueError("data with source shards must have a section shards, got none")
    return ShardSource(config.shards, config.size, config.seed, split)


def read_ahead(source: Source, indices: Sequence[int]) -> None:
    """Lets a source of files begin to read the samples that it will be asked for next; the others draw on demand."""
    if isinstance(source, ShardSource):
        source.read_ahead(indices)


def held_out_source(source: Source | None) -> Source:
    """The held-out split that a validation figure needs; ValueError where a task was made without one."""
    if source is None:
        raise ValueError("validation needs a held-out split, got none")
    return source


def expand(path: str) -> Path:
    """A path from a config, "~" resolved."""
    return Path(path).expanduser()


class ArrayCache:
    """Arrays of known shapes on disk, filled in order once; stopping in between loses at most one block.

    Attributes:
        count: rows there are to be.
        filled: rows there are.
        arrays: name -> (count, *row shape), mapped from the disk.
    """

    def __init__(self, folder: Path, count: int, shapes: dict[str, tuple[tuple[int, ...], str]], key: object) -> None:
        """Opens or makes the cache.

        Args:
            folder: of its files.
            count: rows.
            shapes: array name -> (row shape, numpy dtype).
            key: what the content depends on (plain values).

        Another key, an unreadable state, and arrays that are missing or of other shapes start afresh.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._state_path = folder / "state.json"
        self._key: object = json.loads(json.dumps([key, count]))
        self.count, self.filled = count, self._stored_rows()
        paths = {folder / f"{name}.npy": (np.dtype(dtype), (count, *shape)) for name, (shape, dtype) in shapes.items()}
        if not all(_is_array(path, *form) for path, form in paths.items()):
            self.filled = 0
        if not self.filled:
            self._state_path.unlink(missing_ok=True)
        mode = "r+" if self.filled else "w+"
        self.arrays: dict[str, np.memmap[Any, Any]] = {
            path.stem: np.lib.format.open_memmap(path, mode, dtype=dtype, shape=shape)
            for path, (dtype, shape) in paths.items()
        }

    def store(self, rows: dict[str, np.ndarray]) -> None:
        """Appends a block of rows; they are on the disk before the state says so."""
        end = self.filled + len(next(iter(rows.values())))
        for name, values in rows.items():
            self.arrays[name][self.filled : end] = values
            self.arrays[name].flush()
        self.filled = end
        write_text(self._state_path, json.dumps({"key": self._key, "filled": self.filled}))

    def _stored_rows(self) -> int:
        try:
            state: dict[str, Any] = json.loads(self._state_path.read_text())
            return int(state["filled"]) if state["key"] == self._key else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def _is_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether a file holds a whole array of this form."""
    try:
        found = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError):
        return False
    return found.dtype == dtype and found.shape == shape


def fingerprint(source: Source, count: int = 16) -> list[object]:
    """What the first samples say and show, coarsely: changes where captions, icons or drawing code do."""
    batch = source.batch(0, count)
    colours = batch.stack.mean(dim=(0, 2, 3))
    return [batch.captions, [round(float(colour), 3) for colour in colours]]


class CachedSource:
    """The first samples of a source, drawn once as bytes on disk, then seen in a new order every epoch."""

    def __init__(
        self, source: Source, folder: Path, count: int, config: DataConfig, device: torch.device | str
    ) -> None:
        """Fills the cache where it is not full yet, with a progress bar.

        Args:
            source: what to cache.
            folder: where.
            count: how many samples.
            config: of the source; another one, or other samples, start afresh.
            device: where to draw them.
        """
        self._seed, self.size = config.seed, source.size
        shape = (7, source.size, source.size)
        key = [asdict(config), fingerprint(source)]
        self._cache = ArrayCache(folder, count, {"stack": (shape, "uint8")}, key)
        with tqdm(total=count, initial=self._cache.filled, desc="cache", unit="image", file=sys.stderr) as bar:
            while self._cache.filled < count:
                block = min(64, count - self._cache.filled)
                stack = source.batch(self._cache.filled, block, device).stack
                self._cache.store({"stack": (stack * 255).round().byte().cpu().numpy()})
                bar.update(block)
        self._captions = source.captions(0, count)

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1 of the endless reordering."""
        rows = epoch_rows(self._seed, start, count, self._cache.count)
        stack = torch.from_numpy(self._cache.arrays["stack"][rows]).to(device).float() / 255
        return LayeredBatch(stack, [self._captions[row] for row in rows])

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        return [self._captions[row] for row in epoch_rows(self._seed, start, count, self._cache.count)]


def sample_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that belongs to the samples: (len(indices), *shape) on the CPU."""
    rows = [np.random.default_rng((seed, 2, index)).standard_normal(shape, np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows))
