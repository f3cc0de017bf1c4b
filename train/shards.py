"""The data source `shards`: layered pictures in WebDataset tar files or folders, read by index for an exact resume."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from text2layer_core.atomic import write_bytes
from text2layer_core.compositing import pad_foreground
from train.samples import KNOWN_ABOVE, LayeredBatch, epoch_rows

_PARTS = ("background.png", "mask.png", "txt")
_COLOURS = ("foreground.png", "image.png")  # the true foreground's colour, else that of the picture it was cut from
_READERS = 8  # also on few cores: storage on a network takes its time
INDEX_FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "text2layer" / "shards"


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


class ShardSource:
    """The data source `shards`; tar files must be seekable and uncompressed.

    Where a tar's samples lie takes 32 bytes a sample in memory (their order 16 more, for two epochs), and is kept in
    ~/.cache/text2layer/shards (or under XDG_CACHE_HOME), so that its headers are read once. A few threads decode.
    """

    def __init__(self, config: ShardsConfig, size: int, seed: int, split: str = "train") -> None:
        """Indexes the shards.

        Args:
            config: where they are.
            size: pixels a side; pictures are scaled so that the shorter side fits and cropped at the centre.
            seed: of the order, new in every epoch.
            split: "train" or "held_out".

        Raises:
            ValueError: no shard, a shard that is no tar file, or no complete sample.
            OSError: a shard cannot be read.
        """
        pattern = config.files if split == "train" else config.held_out
        paths = matching(pattern) if pattern else []
        if not paths:
            raise ValueError(f"shards of the split {split} must exist, found none for {pattern!r}")
        self.size, self._seed = size, seed
        bar = tqdm(paths, desc="index", unit="shard", delay=2, file=sys.stderr)
        self._shards = [_Folder(path) if path.is_dir() else _Tar(path) for path in bar]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._ahead: dict[int, Future[tuple[Tensor, str]]] = {}
        if not len(self):
            raise ValueError(f"shards must hold samples with {' or '.join(_COLOURS)}, {', '.join(_PARTS)}, "
                             f"found none in {pattern!r}")

    def __len__(self) -> int:
        """Samples of an epoch."""
        return int(self._ends[-1])

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1 of the endless reordering.

        Raises:
            ValueError: a sample cannot be read.
        """
        indices = range(start, start + count)
        self._ahead |= self._begun([index for index in indices if index not in self._ahead])
        stacks, captions = zip(*[self._ahead.pop(index).result() for index in indices], strict=True)
        return LayeredBatch(torch.cat(stacks).to(device), list(captions))

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        return [self._ahead[index].result()[1] if index in self._ahead else self._caption(*self._place(index))
                for index in range(start, start + count)]

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begins to read the samples that will be asked for next; gives up those that it was told before."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead = self._begun(indices)

    def _begun(self, indices: Sequence[int]) -> dict[int, Future[tuple[Tensor, str]]]:
        """What is read and decoded in the background, by index; the threads end with the work."""
        pool = ThreadPoolExecutor(_READERS, "shards")
        found = {index: pool.submit(self._sample, *self._place(index)) for index in indices}
        pool.shutdown(wait=False)
        return found

    def _place(self, index: int) -> tuple[_Tar | _Folder, int]:
        """The shard of a sample of the reordering, and its row there."""
        (row,) = epoch_rows(self._seed, index, 1, len(self))
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._shards[number], int(row - self._ends[number]) + len(self._shards[number])

    def _sample(self, shard: _Tar | _Folder, row: int) -> tuple[Tensor, str]:
        """(1, 7, size, size) and the caption.

        The foreground is padded before it is scaled, so that no black is mixed into its rim.
        """
        pieces = shard.pieces(row)
        try:
            foreground, background, mask = (
                decode_picture(piece.read(), mode) for piece, mode in zip(pieces[:3], ("RGB", "RGB", "L"), strict=True))
        except (OSError, ValueError) as error:
            raise ValueError(f"sample {shard.key(row)} of {shard.path} must hold readable pictures, "
                             f"got {error}") from error
        if not foreground.shape[2:] == background.shape[2:] == mask.shape[2:]:
            sizes = ", ".join(f"{part.shape[3]}x{part.shape[2]}" for part in (foreground, background, mask))
            raise ValueError(f"sample {shard.key(row)} of {shard.path} must hold pictures of one size, got {sizes}")
        padded = pad_foreground(foreground, torch.where(mask > KNOWN_ABOVE, mask, 0))
        return _fit(torch.cat([padded, background, mask], dim=1), self.size), self._caption(shard, row)

    def _caption(self, shard: _Tar | _Folder, row: int) -> str:
        try:
            return shard.pieces(row)[-1].read().decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"sample {shard.key(row)} of {shard.path} must hold a txt in UTF-8, "
                             f"got {error}") from error


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


def decode_picture(data: bytes, mode: str) -> Tensor:
    """A picture file in Pillow's mode "RGB" or "L": (1, 3 or 1, H, W) in [0, 1].

    Raises:
        ValueError: it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(data)).convert(mode)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError of Pillow's
        raise ValueError(str(error)) from error
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return pixels.view(1, image.height, image.width, -1).permute(0, 3, 1, 2)


class _Folder:
    """The complete samples of a folder: colour, background, mask and caption of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._samples = list(_complete(folder_members(path)))

    def __len__(self) -> int:
        return len(self._samples)

    def pieces(self, row: int) -> list[Piece]:
        return self._samples[row][1]

    def key(self, row: int) -> str:
        return self._samples[row][0]


class _Tar:
    """The same of a tar file: an array (samples, 4, 2) of each part's offset in blocks of 512 bytes, and its length."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        stamp = struct.pack("<8sqq", b"shards 1", status.st_size, status.st_mtime_ns)
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        spans = _stored_spans(name, stamp)
        if spans is None:
            spans = _read_spans(path)
            data = spans.tobytes()
            with suppress(OSError, RuntimeError):  # it only saves time; a user may have no home folder
                folder = INDEX_FOLDER.expanduser()
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / name, stamp + _checksum(data) + data)
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)

    def pieces(self, row: int) -> list[Piece]:
        return [Piece(str(self.path), block * tarfile.BLOCKSIZE, length) for block, length in self.spans[row].tolist()]

    def key(self, row: int) -> str:
        """Read in the tar again: for errors alone, names would take more room than all else."""
        mask = self.pieces(row)[2]
        with suppress(OSError, tarfile.TarError):
            for key, _, piece in tar_members(self.path):
                if piece == mask:
                    return key
        return f"at byte {mask.offset}"


def _complete(members: Iterable[tuple[str, str, Piece]]) -> Iterator[tuple[str, list[Piece]]]:
    """Key and colour, background, mask and caption of the samples that have them all."""
    samples: dict[str, dict[str, Piece]] = {}
    for key, part, piece in members:
        if part in _PARTS + _COLOURS:
            samples.setdefault(key, {})[part] = piece
    for key, parts in samples.items():
        colours = [parts[part] for part in _COLOURS if part in parts]
        if colours and parts.keys() >= set(_PARTS):
            yield key, [colours[0], *(parts[part] for part in _PARTS)]


def _read_spans(path: Path) -> np.ndarray[Any, np.dtype[np.uint32]]:
    try:
        spans = [[(piece.offset // tarfile.BLOCKSIZE, piece.length) for piece in pieces]
                 for _, pieces in _complete(tar_members(path))]
        found = np.array(spans, np.int64).reshape(-1, 4, 2)
        if found.size and found.max() >= 1 << 32:
            raise tarfile.TarError("its pictures must have less than 4 GiB, it less than 2 TiB")
        return found.astype("<u4")
    except tarfile.TarError as error:
        raise ValueError(f"a shard must be an uncompressed tar file, got {path}: {error}") from error


def _stored_spans(name: str, stamp: bytes) -> np.ndarray[Any, np.dtype[np.uint32]] | None:
    """None where there is no file, one of another state of the shard, or a broken one."""
    try:
        data = (INDEX_FOLDER.expanduser() / name).read_bytes()
    except (OSError, RuntimeError):
        return None
    start = len(stamp) + 4
    if data[:start] != stamp + _checksum(data[start:]):
        return None
    return np.frombuffer(data, "<u4", offset=start).reshape(-1, 4, 2)


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _fit(stack: Tensor, size: int) -> Tensor:
    """Scaled so that the shorter side is `size`, cropped at the centre."""
    height, width = stack.shape[-2:]
    scale = size / min(height, width)
    sides = max(size, round(height * scale)), max(size, round(width * scale))
    if sides != (height, width):
        stack = functional.interpolate(stack, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return stack[..., top : top + size, left : left + size]
