"""For the tests of data and training: a small sprite cache, drawn instead of rasterised, and a fresh accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from train.icons.sprites import SpriteCache, save_sprites
from train.icons.vocabulary import Thing

THINGS = {  # key -> colours in the styles fluent and noto, opacity, width of the rim in fractions of the side
    "ball": ((0.85, 0.15, 0.15), (0.2, 0.5, 0.9), 1.0, 0.0),
    "box": ((0.25, 0.65, 0.25), (0.95, 0.55, 0.15), 1.0, 0.0),
    "cone": ((0.97, 0.85, 0.25), (0.55, 0.3, 0.75), 1.0, 0.0),
    "egg": ((0.93, 0.93, 0.95), (0.5, 0.32, 0.2), 1.0, 0.2),
    "pane": ((0.2, 0.5, 0.9), (0.55, 0.56, 0.58), 0.5, 0.0),
    "unicorn": ((0.95, 0.55, 0.7), (0.15, 0.15, 0.17), 1.0, 0.1),
}
SYNONYMS = {"ball": ("sphere",), "box": ("cube", "crate")}


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its state for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def draw(key: str, style: int, side: int) -> Tensor:
    """Premultiplied RGBA bytes (4, side, side): a disc, a square or a triangle."""
    *colours, opacity, rim = THINGS[key]
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="ij")
    if key in ("box", "pane"):
        inside = 0.7 - torch.maximum(x.abs(), y.abs())
    elif key == "cone":
        inside = 0.4 * (y + 0.8).clamp_max(1.4) - x.abs()
        inside = torch.where(y < 0.8, inside, -1.0)
    else:
        inside = 0.8 - (x**2 + y**2).sqrt()
    alpha = opacity * (inside / max(rim, 2 / side) + 0.5).clamp(0, 1)
    colour = torch.tensor(colours[style]).view(3, 1, 1)
    return (torch.cat([colour * alpha, alpha[None]]) * 255).round().byte()


@pytest.fixture(scope="session")
def sprites() -> SpriteCache:
    """Six things in two styles at three sizes; one has a soft rim, one is half transparent."""
    things = tuple(Thing(key, key, SYNONYMS.get(key, ())) for key in THINGS)
    levels = {
        side: torch.stack([torch.stack([draw(key, style, side) for style in range(2)]) for key in THINGS])
        for side in (16, 32, 64)
    }
    return SpriteCache(things, ("fluent", "noto"), levels)


@pytest.fixture(scope="session")
def sprite_file(sprites: SpriteCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as the file that training reads."""
    path = tmp_path_factory.mktemp("sprites") / "icons.safetensors"
    save_sprites(path, sprites)
    return path
