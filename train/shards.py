"""The data source `shards`: WebDataset tar files of layered pictures, read by index so that resume is exact."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from text2layer_core.compositing import pad_foreground
from train.samples import LayeredBatch, epoch_rows

_PARTS = ("foreground.png", "background.png", "mask.png", "txt")


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """WebDataset shards; a sample holds foreground.png, background.png, mask.png and txt under one key.

    Attributes:
        files: glob of the training shards ("~/data/train-*.tar").
        held_out: glob of the shards that are never trained on.
    """

    files: str
    held_out: str = ""


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    spans: dict[str, tuple[int, int]]


class ShardSource:
    """The data source `shards`; needs seekable, uncompressed tar files."""

    def __init__(self, config: ShardsConfig, size: int, seed: int, split: str = "train") -> None:
        """Indexes the shards.

        Args:
            config: where they are.
            size: pixels a side; pictures are scaled so that the shorter side fits and cropped at the centre.
            seed: of the order, new in every epoch.
            split: "train" or "held_out".

        Raises:
            ValueError: no shard, a shard that is no tar file, or no complete sample.
        """
        pattern = config.files if split == "train" else config.held_out
        path = Path(pattern).expanduser()
        paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if pattern else []
        if not paths:
            raise ValueError(f"shards of the split {split} must exist, found none for {pattern!r}")
        self.size, self._seed = size, seed
        self._entries = [entry for path in paths for entry in _index(path)]
        if not self._entries:
            raise ValueError(f"shards must hold samples with {', '.join(_PARTS)}, found none in {pattern!r}")

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1 of the endless reordering."""
        entries = self._chosen(start, count)
        stack = torch.stack([self._stack(entry) for entry in entries]).to(device)
        foreground, background, mask = stack.split([3, 3, 1], dim=1)
        padded = pad_foreground(foreground, mask)
        return LayeredBatch(torch.cat([padded, background, mask], 1), [_caption(entry) for entry in entries])

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        return [_caption(entry) for entry in self._chosen(start, count)]

    def _chosen(self, start: int, count: int) -> list[_Entry]:
        return [self._entries[row] for row in epoch_rows(self._seed, start, count, len(self._entries))]

    def _stack(self, entry: _Entry) -> Tensor:
        modes = {"foreground.png": "RGB", "background.png": "RGB", "mask.png": "L"}
        try:
            return torch.cat([_picture(_read(entry, part), mode, self.size) for part, mode in modes.items()])
        except OSError as error:
            raise ValueError(f"sample {entry.key} of {entry.path} must hold readable pictures, got {error}") from error


def _index(path: Path) -> list[_Entry]:
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, _, part = name.name.partition(".")  # WebDataset's rule: the key ends at the name's first dot
                if member.isfile() and part in _PARTS:
                    spans.setdefault(f"{name.parent}/{stem}", {})[part] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"a shard must be an uncompressed tar file, got {path}: {error}") from error
    return [_Entry(path, key, parts) for key, parts in spans.items() if len(parts) == len(_PARTS)]


def _read(entry: _Entry, part: str) -> bytes:
    offset, length = entry.spans[part]
    with entry.path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _caption(entry: _Entry) -> str:
    return _read(entry, "txt").decode("utf-8").strip()


def _picture(data: bytes, mode: str, size: int) -> Tensor:
    image = Image.open(io.BytesIO(data)).convert(mode)
    scale = size / min(image.size)
    image = image.resize((max(size, round(image.width * scale)), max(size, round(image.height * scale))),
                         Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1)
