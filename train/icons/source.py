"""Endless two-layer pictures with exact F, B and m: picture i of a seed is the same on every machine and batch size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core.compositing import pad_foreground
from train.icons.captions import EFFECTS, POSITIONS, SIZES, SceneDescription, describe
from train.icons.effects import apply_effect
from train.icons.scenes import NOISE_VALUES, PLACES, SURFACE_COLOURS, TIMES, UNIFORMS, SceneParameters, render_scenes
from train.icons.sprites import SpriteCache
from train.samples import LayeredBatch

HELD_OUT_SHARE = 0.05
_SIDE = {"small": (0.36, 0.44), "medium": (0.50, 0.62), "large": (0.68, 0.82)}
_CENTRE = {"left": (0.26, 0.34), "centre": (0.45, 0.55), "right": (0.66, 0.74)}
_LEFT_BELOW, _RIGHT_ABOVE = 0.4, 0.6
_STRAIGHT_FROM = 0.08
_SPLIT_SALT = {"train": 0, "held_out": 1, "all": 2}


@dataclass(frozen=True, kw_only=True)
class IconsConfig:
    """What the icon scenes show.

    Attributes:
        cache: file made by `python -m train.rasterise`.
        things: keys to keep; empty keeps all in the cache.
        styles: styles to keep; empty keeps all in the cache.
        places: places to keep; empty keeps all.
        effect_share: share of scenes with a deliberate soft effect.
        flip_share: share of mirrored things.
        rotation: largest tilt, degrees.
        snap: pixels that a thing's box is a multiple of, in place and size; 0 leaves both free. At multiples of the
            autoencoder's stride a moved thing has moved latents, not others: a small UNet learns the things much
            sooner, and the sooner the fewer places and sizes there are.
    """

    cache: str
    things: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    effect_share: float = 0.2
    flip_share: float = 0.5
    rotation: float = 8.0
    snap: int = 0

    def __post_init__(self) -> None:
        """Checks what would otherwise draw nonsense; ValueError for a snap below 0."""
        if self.snap < 0:
            raise ValueError(f"snap must not be negative, got {self.snap}")


@dataclass(frozen=True)
class _Draw:
    """All random choices of one picture."""

    thing: int
    style: int
    scene: SceneDescription
    caption: str
    placement: tuple[float, float, float, float, float]  # centre x and y, side, angle in radians, mirror (+1 or -1)
    strength: float


def is_held_out(thing: str, place: str) -> bool:
    """Whether a (thing, place) pair is never trained on; hashed on these alone, so nothing else can leak it."""
    digest = hashlib.sha256(f"{thing}|{place}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


class IconSource:
    """The data source `icons`."""

    def __init__(self, cache: SpriteCache, config: IconsConfig, size: int, seed: int, split: str = "train") -> None:
        """Makes a source.

        Args:
            cache: the rasterised icons.
            config: what to show.
            size: pixels a side of the pictures.
            seed: of all choices.
            split: "train", "held_out" for the pairs never trained on, or "all" of them, which is for judges alone.

        Raises:
            ValueError: a thing, style, place or split does not exist.
        """
        keys = [thing.key for thing in cache.things]
        self._rows = _indices("things", config.things, keys)
        self._columns = _indices("styles", config.styles, list(cache.styles))
        places = list(PLACES)
        self.places = [places[i] for i in _indices("places", config.places, places)]
        if split not in _SPLIT_SALT:
            raise ValueError(f"split must be one of {', '.join(_SPLIT_SALT)}, got {split}")
        self.things = [cache.things[row] for row in self._rows]
        self._cache, self._config, self.size, self._seed, self._split = cache, config, size, seed, split
        held = split == "held_out"
        self._pairs = [
            (row, place) for row in self._rows for place in self.places
            if split == "all" or is_held_out(keys[row], place) == held
        ]
        if not self._pairs:
            raise ValueError(f"split {split} must hold a (thing, place) pair, got none of {len(self._rows)} things "
                             f"and {len(self.places)} places")

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Pictures start, ..., start + count - 1.

        Args:
            start: index of the first.
            count: how many.
            device: where to draw them.

        Returns:
            The batch, on that device.
        """
        draws = [self._draw(index) for index in range(start, start + count)]
        textures = [self._rng(index, 1) for index in range(start, start + count)]
        uniforms = torch.from_numpy(np.stack([rng.random(UNIFORMS, np.float32) for rng in textures])).to(device)
        texture = np.stack([rng.standard_normal(NOISE_VALUES, np.float32) for rng in textures])
        noise = torch.from_numpy(texture).to(device)
        background = self._backgrounds(draws, uniforms, noise)
        sprite = self._sprites(draws, noise)
        mask = torch.where(sprite[:, 3:] < 1 / 255, 0.0, sprite[:, 3:])
        straight = (sprite[:, :3] / mask.clamp_min(1e-4)).clamp(0, 1)
        foreground = pad_foreground(straight, torch.where(mask > _STRAIGHT_FROM, mask, 0.0))
        stack = torch.cat([foreground, background, mask], dim=1)
        return LayeredBatch(stack, [draw.caption for draw in draws])

    def captions(self, start: int, count: int) -> list[str]:
        """The captions of `batch`, without drawing it."""
        return [self._draw(index).caption for index in range(start, start + count)]

    def scenes(self, start: int, count: int) -> list[SceneDescription]:
        """What `batch` shows, without drawing it."""
        return [self._draw(index).scene for index in range(start, start + count)]

    def labels(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Which of `things` and of `places` each picture of `batch` shows, (count,) long each, without drawing it."""
        scenes = self.scenes(start, count)
        keys = [thing.key for thing in self.things]
        return (torch.tensor([keys.index(scene.thing.key) for scene in scenes]),
                torch.tensor([self.places.index(scene.place) for scene in scenes]))

    def sprites(self, side: int) -> tuple[Tensor, Tensor]:
        """Every sprite of this source as straight RGBA (n, 4, side, side) in [0, 1], and which thing it shows (n,)."""
        level = self._cache.level(side)
        rows = self._cache.sprites[level][self._rows][:, self._columns].float() / 255
        labels = torch.arange(len(self._rows)).repeat_interleave(len(self._columns))
        pixels = functional.interpolate(rows.flatten(0, 1), size=(side, side), mode="bilinear", antialias=True)
        return torch.cat([pixels[:, :3] / pixels[:, 3:].clamp_min(1e-4), pixels[:, 3:]], 1).clamp(0, 1), labels

    def _draw(self, index: int) -> _Draw:
        rng = self._rng(index, 0)
        row, place = self._pairs[int(rng.integers(len(self._pairs)))]
        column = self._columns[int(rng.integers(len(self._columns)))]
        position, size = str(rng.choice(POSITIONS, p=(0.25, 0.5, 0.25))), str(rng.choice(SIZES, p=(0.2, 0.5, 0.3)))
        effect = str(rng.choice(EFFECTS[1:])) if rng.random() < self._config.effect_share else "none"
        time = str(rng.choice(TIMES, p=(0.6, 0.2, 0.2))) if PLACES[place].timed else "day"
        surface_colour = str(rng.choice(list(SURFACE_COLOURS)))
        angle = math.radians(rng.uniform(-1, 1) * self._config.rotation)
        side = rng.uniform(*_SIDE[size])
        middle = rng.uniform(0.50, 0.62) if size != "large" else rng.uniform(0.48, 0.54)
        mirror = -1.0 if rng.random() < self._config.flip_share else 1.0
        reach = 0.46 * side  # so that a large thing at the side stays inside
        centre = min(max(rng.uniform(*_CENTRE[position]), reach), 1 - reach)
        side, centre, middle = self._snapped(side, centre, middle)
        placement = (centre, middle, side, angle, mirror)
        strength = rng.random()
        scene = SceneDescription(
            thing=self._cache.things[row], thing_colour=self._cache.colours[row][column],
            style=self._cache.styles[column], place=place, time=time, surface_colour=surface_colour,
            position=_position_word(centre), size=size, effect=effect,
        )
        caption = describe(scene, rng, name_style=len(self._columns) > 1)
        return _Draw(row, column, scene, caption, placement, strength)

    def _snapped(self, side: float, *centres: float) -> tuple[float, ...]:
        """Side and centres of a thing's box, as shares of the picture, on the grid of `snap` pixels if there is one."""
        if not self._config.snap:
            return side, *centres
        cell = self._config.snap / self.size
        cells = max(1, round(side / cell))
        most = max(0, self.size // self._config.snap - cells)  # so that the box stays inside
        edges = [min(max(round(centre / cell - cells / 2), 0), most) for centre in centres]
        return cells * cell, *((edge + cells / 2) * cell for edge in edges)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        """Picture `index`'s own random numbers: stream 0 for what is shown, 1 for the background's texture."""
        return np.random.default_rng((self._seed, _SPLIT_SALT[self._split], index, stream))

    def _backgrounds(self, draws: Sequence[_Draw], uniforms: Tensor, noise: Tensor) -> Tensor:
        device = uniforms.device
        picture = torch.empty(len(draws), 3, self.size, self.size, device=device)
        colours = list(SURFACE_COLOURS)
        times = torch.tensor([TIMES.index(draw.scene.time) for draw in draws], device=device)
        tints = torch.tensor([colours.index(draw.scene.surface_colour) for draw in draws], device=device)
        for place in self.places:
            rows = [i for i, draw in enumerate(draws) if draw.scene.place == place]
            if rows:
                chosen = torch.tensor(rows, device=device)
                parameters = SceneParameters(times[chosen], tints[chosen], uniforms[chosen], noise[chosen])
                picture[chosen] = render_scenes(place, parameters, self.size, self.size)
        return picture

    def _sprites(self, draws: Sequence[_Draw], noise: Tensor) -> Tensor:
        """Premultiplied RGBA of the things in their places, effects applied, (n, 4, H, W)."""
        device = noise.device
        drawn = torch.empty(len(draws), 4, self.size, self.size, device=device)
        levels = [self._cache.level(draw.placement[2] * self.size) for draw in draws]
        for level in set(levels):
            rows = [i for i, found in enumerate(levels) if found == level]
            sprites = torch.stack([self._cache.sprites[level][draws[i].thing, draws[i].style] for i in rows])
            placements = torch.tensor([draws[i].placement for i in rows])
            grid = functional.affine_grid(_inverse_placement(placements), [len(rows), 4, self.size, self.size],
                                          align_corners=False).to(device)
            drawn[torch.tensor(rows, device=device)] = functional.grid_sample(
                sprites.to(device).float() / 255, grid, align_corners=False
            )
        for effect in EFFECTS[1:]:
            rows = [i for i, draw in enumerate(draws) if draw.scene.effect == effect]
            if rows:
                chosen = torch.tensor(rows, device=device)
                strength = torch.tensor([draws[i].strength for i in rows], device=device, dtype=torch.float32)
                field = noise[chosen, -64 * 64:].view(-1, 1, 64, 64)
                field = field[..., :6, :6] if effect == "mist" else field
                field = functional.interpolate(field, size=(self.size, self.size), mode="bicubic")
                drawn[chosen] = apply_effect(effect, drawn[chosen], strength, field)
        return drawn


def _position_word(centre: float) -> str:
    """What a caption calls the place of a thing's centre, a share of the width."""
    left, middle, right = POSITIONS
    return left if centre < _LEFT_BELOW else right if centre > _RIGHT_ABOVE else middle


def _inverse_placement(placements: Tensor) -> Tensor:
    """Rows (cx, cy, side, angle, mirror), fractions of the picture -> affine_grid's output-to-sprite maps (n, 2, 3)."""
    x, y, side, angle, mirror = placements.unbind(1)
    cos, sin = torch.cos(angle) / side, torch.sin(angle) / side
    shift_x, shift_y = 2 * x - 1, 2 * y - 1
    rows = [mirror * cos, mirror * sin, -mirror * (cos * shift_x + sin * shift_y),
            -sin, cos, sin * shift_x - cos * shift_y]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _indices(what: str, wanted: Sequence[str], present: Sequence[str]) -> list[int]:
    """Positions of the wanted names, all where none is wanted."""
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise ValueError(f"{what} must be among the {len(present)} there are, got {', '.join(unknown)}")
    return [i for i, name in enumerate(present) if not wanted or name in wanted]
