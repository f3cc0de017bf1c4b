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
from torch.nn import functional

from text2layer_core.compositing import pad_foreground
from train.samples import LayeredBatch, epoch_rows

_KNOWN_ABOVE = 0.1  # the paper's F holds the picture's colour where m > 0.1
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
        stack = torch.cat([self._stack(entry) for entry in entries]).to(device)
        return LayeredBatch(stack, [_caption(entry) for entry in entries])

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        return [_caption(entry) for entry in self._chosen(start, count)]

    def _chosen(self, start: int, count: int) -> list[_Entry]:
        return [self._entries[row] for row in epoch_rows(self._seed, start, count, len(self._entries))]

    def _stack(self, entry: _Entry) -> Tensor:
        """(1, 7, size, size); the foreground is padded before it is scaled, so that no black is mixed into its rim."""
        modes = {"foreground.png": "RGB", "background.png": "RGB", "mask.png": "L"}
        try:
            foreground, background, mask = (_picture(_read(entry, part), mode) for part, mode in modes.items())
        except OSError as error:
            raise ValueError(f"sample {entry.key} of {entry.path} must hold readable pictures, got {error}") from error
        if not foreground.shape[2:] == background.shape[2:] == mask.shape[2:]:
            sizes = ", ".join(f"{part.shape[3]}x{part.shape[2]}" for part in (foreground, background, mask))
            raise ValueError(f"sample {entry.key} of {entry.path} must hold pictures of one size, got {sizes}")
        padded = pad_foreground(foreground, torch.where(mask > _KNOWN_ABOVE, mask, 0))
        return _fit(torch.cat([padded, background, mask], dim=1), self.size)


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


def _picture(data: bytes, mode: str) -> Tensor:
    image = Image.open(io.BytesIO(data)).convert(mode)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return pixels.view(1, image.height, image.width, -1).permute(0, 3, 1, 2)


def _fit(stack: Tensor, size: int) -> Tensor:
    """Scaled so that the shorter side is `size`, cropped at the centre."""
    height, width = stack.shape[-2:]
    scale = size / min(height, width)
    sides = max(size, round(height * scale)), max(size, round(width * scale))
    if sides != (height, width):
        stack = functional.interpolate(stack, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return stack[..., top : top + size, left : left + size]
