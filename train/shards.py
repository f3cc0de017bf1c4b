"""The data source `shards`: layered pictures in WebDataset tar files or folders, read by index for an exact resume."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from text2layer_core.compositing import pad_foreground
from train.samples import LayeredBatch, epoch_rows

_KNOWN_ABOVE = 0.1  # the paper's F holds the picture's colour where m > 0.1
_PARTS = ("background.png", "mask.png", "txt")
_COLOURS = ("foreground.png", "image.png")  # the true foreground's colour, else that of the picture it was cut from


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """WebDataset shards; a sample holds background.png, mask.png and txt under one key, and its foreground's colour.

    The colour is foreground.png or, without one, image.png where the mask is above 0.1 (paper, data step 2).

    Attributes:
        files: glob of the training shards ("~/data/train-*.tar"), or of folders that hold the same files.
        held_out: glob of the shards that are never trained on.
    """

    files: str
    held_out: str = ""


class Piece(NamedTuple):
    """Bytes of a file: a tar's member or, with a length of -1, all of it."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes.

        Raises:
            OSError: the file cannot be read.
        """
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    parts: dict[str, Piece]


class ShardSource:
    """The data source `shards`; tar files must be seekable and uncompressed."""

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
        paths = matching(pattern) if pattern else []
        if not paths:
            raise ValueError(f"shards of the split {split} must exist, found none for {pattern!r}")
        self.size, self._seed = size, seed
        self._entries = [entry for path in paths for entry in _index(path)]
        if not self._entries:
            raise ValueError(f"shards must hold samples with {' or '.join(_COLOURS)}, {', '.join(_PARTS)}, "
                             f"found none in {pattern!r}")

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._entries)

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1 of the endless reordering.

        Raises:
            ValueError: a sample cannot be read.
        """
        entries = self._chosen(start, count)
        stack = torch.cat([self._stack(entry) for entry in entries]).to(device)
        return LayeredBatch(stack, [_caption(entry) for entry in entries])

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        return [_caption(entry) for entry in self._chosen(start, count)]

    def _chosen(self, start: int, count: int) -> list[_Entry]:
        return [self._entries[row] for row in epoch_rows(self._seed, start, count, len(self))]

    def _stack(self, entry: _Entry) -> Tensor:
        """(1, 7, size, size); the foreground is padded before it is scaled, so that no black is mixed into its rim."""
        colour = next(part for part in _COLOURS if part in entry.parts)
        modes = {colour: "RGB", "background.png": "RGB", "mask.png": "L"}
        try:
            foreground, background, mask = (_picture(entry.parts[part].read(), mode) for part, mode in modes.items())
        except (OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError of Pillow's
            raise ValueError(f"sample {entry.key} of {entry.path} must hold readable pictures, got {error}") from error
        if not foreground.shape[2:] == background.shape[2:] == mask.shape[2:]:
            sizes = ", ".join(f"{part.shape[3]}x{part.shape[2]}" for part in (foreground, background, mask))
            raise ValueError(f"sample {entry.key} of {entry.path} must hold pictures of one size, got {sizes}")
        padded = pad_foreground(foreground, torch.where(mask > _KNOWN_ABOVE, mask, 0))
        return _fit(torch.cat([padded, background, mask], dim=1), self.size)


def matching(pattern: str) -> list[Path]:
    """Files and folders that a glob names, sorted; "~" is the home folder, relative patterns begin here."""
    path = Path(pattern).expanduser()
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def tar_members(path: Path) -> Iterator[tuple[str, str, Piece]]:
    """Key, part and bytes of each member of an uncompressed tar; the key ends at the name's first dot (WebDataset).

    Raises:
        tarfile.TarError: no tar, or from where it is damaged.
        OSError: the file cannot be read.
    """
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            stem, _, part = name.name.partition(".")
            if member.isfile():
                yield f"{name.parent}/{stem}", part, Piece(str(path), member.offset_data, member.size)
        rest = Piece(str(path), tar.offset, tarfile.BLOCKSIZE).read()
        if rest.strip(b"\0"):  # tarfile takes a torn header for the end
            raise tarfile.ReadError("unexpected end of data")


def folder_members(folder: Path) -> Iterator[tuple[str, str, Piece]]:
    """The same of a folder's files and those of its folders, sorted."""
    for file in sorted(folder.rglob("*")):
        stem, _, part = file.name.partition(".")
        if stem and file.is_file():
            yield f"{file.parent.relative_to(folder).as_posix()}/{stem}", part, Piece(str(file))


def _index(path: Path) -> list[_Entry]:
    samples: dict[str, dict[str, Piece]] = {}
    try:
        for key, part, piece in folder_members(path) if path.is_dir() else tar_members(path):
            if part in _PARTS + _COLOURS:
                samples.setdefault(key, {})[part] = piece
    except tarfile.TarError as error:
        raise ValueError(f"a shard must be an uncompressed tar file, got {path}: {error}") from error
    return [_Entry(path, key, parts) for key, parts in samples.items()
            if parts.keys() >= set(_PARTS) and any(part in parts for part in _COLOURS)]


def _caption(entry: _Entry) -> str:
    try:
        return entry.parts["txt"].read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"sample {entry.key} of {entry.path} must hold a txt in UTF-8, got {error}") from error


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
