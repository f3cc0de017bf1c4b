"""Samples as files, for the tests of quality filters."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from text2layer_core.compositing import blend

PARTS = ("image.png", "mask.png", "background.png")


def png(picture: Tensor) -> bytes:
    """(C, H, W) in [0, 1]."""
    pixels = (picture * 255).round().byte()
    image = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).contiguous().numpy())
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def members(key: str, stack: Tensor, caption: str = "a ball") -> dict[str, bytes]:
    """The files of one sample, of its stack (7, H, W)."""
    foreground, background, mask = stack[None].split([3, 3, 1], dim=1)
    pictures = (blend(foreground, background, mask)[0], mask[0], background[0])
    found = {f"{key}.{part}": png(picture) for part, picture in zip(PARTS, pictures, strict=True)}
    return {**found, f"{key}.txt": caption.encode()}


def write_folder(folder: Path, stacks: Tensor, keys: Sequence[str]) -> None:
    """A sample of each stack, as loose files."""
    for key, stack in zip(keys, stacks, strict=True):
        for name, data in members(key, stack).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def write_shard(path: Path, stacks: Tensor, keys: Sequence[str]) -> None:
    """The same in a tar file."""
    with tarfile.open(path, "w") as tar:
        for key, stack in zip(keys, stacks, strict=True):
            for name, data in members(key, stack).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def random_stacks(count: int, side: int = 12, seed: int = 0) -> Tensor:
    """(count, 7, side, side)."""
    return torch.rand(count, 7, side, side, generator=torch.Generator().manual_seed(seed))
