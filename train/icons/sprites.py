"""The rasterised icons: one safetensors file with premultiplied RGBA at several sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from text2layer_core.atomic import write_tensors
from train.icons.vocabulary import Thing

SPRITE_SIZES = (48, 64, 96, 128, 192, 256)
_COLOURS = {
    "red": (0.85, 0.15, 0.15), "orange": (0.95, 0.55, 0.15), "yellow": (0.97, 0.85, 0.25), "green": (0.25, 0.65, 0.25),
    "blue": (0.2, 0.5, 0.9), "purple": (0.55, 0.3, 0.75), "pink": (0.95, 0.55, 0.7), "brown": (0.5, 0.32, 0.2),
    "grey": (0.55, 0.56, 0.58), "white": (0.93, 0.93, 0.95), "black": (0.15, 0.15, 0.17),
}


@dataclass(frozen=True)
class SpriteCache:
    """Sprites of some things in some styles.

    Attributes:
        things: what the rows show.
        styles: what the columns are ("fluent", "noto").
        sprites: side in pixels -> (things, styles, 4, side, side) bytes, premultiplied RGBA.
    """

    things: tuple[Thing, ...]
    styles: tuple[str, ...]
    sprites: Mapping[int, Tensor]

    @cached_property
    def colours(self) -> tuple[tuple[str, ...], ...]:
        """The dominant colour's name of each thing in each style, (things, styles)."""
        sprites = self.sprites[min(self.sprites)].float() / 255
        names = list(_COLOURS)
        palette = torch.tensor([_COLOURS[name] for name in names])
        alpha = sprites[:, :, 3].flatten(2)
        straight = sprites[:, :, :3].flatten(3) / alpha.clamp_min(1e-3).unsqueeze(2)
        votes = torch.cdist(straight.transpose(2, 3), palette).argmin(-1)
        weights = torch.zeros(*votes.shape[:2], len(names)).scatter_add_(2, votes, alpha)
        return tuple(tuple(names[int(i)] for i in row) for row in weights.argmax(-1))

    def level(self, pixels: float) -> int:
        """The smallest cached side that is at least so many pixels, or the largest there is."""
        return min((side for side in self.sprites if side >= pixels), default=max(self.sprites))


def save_sprites(path: Path, cache: SpriteCache) -> None:
    """Writes the cache to a temporary name, then renames it."""
    metadata = {
        "things": json.dumps([asdict(thing) for thing in cache.things]),
        "styles": json.dumps(cache.styles),
    }
    write_tensors(path, {f"sprites.{side}": tensor for side, tensor in cache.sprites.items()}, metadata)


def load_sprites(path: Path) -> SpriteCache:
    """Reads a cache made by `python -m train.rasterise`.

    Raises:
        ValueError: there is no such file, or it is not a sprite cache.
    """
    if not path.is_file():
        raise ValueError(f"the sprite cache must exist (python -m train.rasterise --out {path}), found nothing there")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            sprites = {int(key.partition(".")[2]): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        things = tuple(
            Thing(row["key"], row["name"], tuple(row["synonyms"])) for row in json.loads(metadata["things"])
        )
        return SpriteCache(things, tuple(json.loads(metadata["styles"])), dict(sorted(sprites.items())))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the sprite cache must be a file made by train.rasterise, got {path}: {error}") from error
