"""Procedural backgrounds: places with depth, texture and a time of day, drawn in batches on any device.

A scene is a pure function of its parameters: twelve uniforms and white noise per picture, so the same
parameters give the same place at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

UNIFORMS = 12
FIELDS = 5
OCTAVES = (4, 8, 16, 32, 64)
NOISE_VALUES = FIELDS * sum(side * side for side in OCTAVES)
TIMES = ("day", "sunset", "night")
SURFACE_COLOURS = {
    "red": (0.78, 0.24, 0.22), "orange": (0.93, 0.58, 0.25), "yellow": (0.95, 0.82, 0.38), "green": (0.36, 0.65, 0.38),
    "blue": (0.32, 0.54, 0.84), "purple": (0.54, 0.38, 0.72), "pink": (0.93, 0.64, 0.72), "grey": (0.62, 0.63, 0.66),
}
_SKY_TOP = ((0.22, 0.50, 0.90), (0.33, 0.27, 0.52), (0.03, 0.05, 0.16))
_SKY_LOW = ((0.72, 0.87, 0.98), (0.99, 0.62, 0.36), (0.12, 0.17, 0.36))
_CLOUD = ((1.0, 1.0, 1.0), (0.98, 0.70, 0.55), (0.22, 0.25, 0.40))
_LIGHT = ((1.0, 1.0, 1.0), (0.98, 0.74, 0.62), (0.30, 0.36, 0.58))


@dataclass(frozen=True)
class SceneParameters:
    """What fixes the scenes of n pictures of one place.

    Attributes:
        time: index into TIMES, (n,) integers; places that are not timed are drawn in daylight.
        colour: index into SURFACE_COLOURS, (n,) integers; only studio, floor and space show it.
        uniforms: (n, UNIFORMS) in [0, 1).
        noise: (n, NOISE_VALUES), standard normal.
    """

    time: Tensor
    colour: Tensor
    uniforms: Tensor
    noise: Tensor


class _Canvas:
    """The coordinates, noise fields and palettes that the places share; all fields are (n, C, H, W)."""

    def __init__(self, parameters: SceneParameters, height: int, width: int) -> None:
        self.parameters = parameters
        self.height, self.width = height, width
        device = parameters.uniforms.device
        self.y = ((torch.arange(height, device=device) + 0.5) / height).view(1, 1, -1, 1)
        self.x = ((torch.arange(width, device=device) + 0.5) / width).view(1, 1, 1, -1)
        self._octaves = [
            octave.view(-1, FIELDS, side, side)
            for octave, side in zip(
                parameters.noise.split([FIELDS * side * side for side in OCTAVES], dim=1), OCTAVES, strict=True
            )
        ]

    def u(self, i: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform number i of each picture, scaled to [low, high), (n, 1, 1, 1)."""
        return self.parameters.uniforms[:, i].view(-1, 1, 1, 1) * (high - low) + low

    def timed(self, table: tuple[tuple[float, float, float], ...]) -> Tensor:
        """The colour of each picture's time of day, (n, 3, 1, 1)."""
        colours = torch.tensor(table, device=self.y.device)
        return colours[self.parameters.time].view(-1, 3, 1, 1)

    def surface(self) -> Tensor:
        """The named surface colour of each picture, (n, 3, 1, 1)."""
        colours = torch.tensor(list(SURFACE_COLOURS.values()), device=self.y.device)
        return colours[self.parameters.colour].view(-1, 3, 1, 1)

    def lit(self, *rgb: float) -> Tensor:
        """A colour under each picture's light, (n, 3, 1, 1)."""
        return self.plain(*rgb) * self.timed(_LIGHT)

    def plain(self, *rgb: float) -> Tensor:
        """A colour as it is, (1, 3, 1, 1)."""
        return torch.tensor(rgb, device=self.y.device).view(1, 3, 1, 1)

    def fractal(self, field: int, roughness: float = 0.55, first: int = 0) -> Tensor:
        """Fractal noise of about unit range, (n, 1, H, W); octaves below `first` are left out."""
        layers = [octave[:, field : field + 1] for octave in self._octaves[first:]]
        return _sum_octaves(layers, roughness, (self.height, self.width))

    def profile(self, field: int, row: int, roughness: float = 0.5) -> Tensor:
        """A fractal line over x of about unit range, (n, 1, 1, W)."""
        rows = [(octave, row % octave.shape[2]) for octave in self._octaves[:4]]
        return _sum_octaves([octave[:, field : field + 1, i : i + 1] for octave, i in rows], roughness, (1, self.width))

    def below(self, line: Tensor, softness: float = 1.0) -> Tensor:
        """1 below a line y = line(x), anti-aliased over `softness` pixels, (n, 1, H, W)."""
        return ((self.y - line) * self.height / softness + 0.5).clamp(0, 1)

    def ground(self, field: int, horizon: Tensor, stretch: float = 1.0, first: int = 1) -> Tensor:
        """Fractal noise laid on a plane that recedes to the horizon, (n, 1, H, W), fading with distance."""
        depth = 0.12 / (self.y - horizon + 0.04).clamp_min(0.02)
        grid_x = (self.x - 0.5) * depth * 2.4 * stretch
        grid = torch.stack(torch.broadcast_tensors(grid_x, (2 * depth - 1) + 0 * grid_x), dim=-1).squeeze(1)
        flat = self.fractal(field, 0.8, first)
        sampled = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return sampled * (1 - 0.75 * depth.clamp(0, 1))

    def sky(self, horizon: Tensor, clouds: float = 1.0) -> Tensor:
        """Gradient, clouds, and sun, moon or stars by the time of day, (n, 3, H, W)."""
        height = (self.y / horizon).clamp(0, 1)
        picture = mix(self.timed(_SKY_TOP), self.timed(_SKY_LOW), height**1.4)
        night = (self.parameters.time == 2).view(-1, 1, 1, 1).float()
        stars = (self.fractal(4, 1.0, 4) - 2.0).clamp(0, 0.6) * 1.5 * (1 - height)
        picture = picture + night * stars
        distance = ((self.x - self.u(0, 0.1, 0.9)) ** 2 + (self.y - self.u(1, 0.08, 0.3)) ** 2).sqrt()
        disc = ((0.045 - distance) * self.height + 0.5).clamp(0, 1)
        glow = torch.exp(-distance * 9) * (0.35 - 0.2 * night)
        body = self.plain(1.0, 0.96, 0.82)
        picture = mix(picture + glow * body, body, disc * (0.55 + 0.4 * night))
        cover = (self.fractal(0, 0.55) + 0.5 * self.u(2, -1.4, 1.0) - 0.2).clamp(0, 1) * clouds
        return mix(picture, self.timed(_CLOUD), 0.8 * cover * (1 - 0.55 * height))


def _sum_octaves(octaves: Sequence[Tensor], roughness: float, size: tuple[int, int]) -> Tensor:
    """Noise from coarse to fine, each octave `roughness` times the one before, (n, 1, *size), of about unit range."""
    total, squares, weight = octaves[0], 1.0, 1.0
    for octave in octaves[1:]:
        weight *= roughness
        total = F.interpolate(total, size=octave.shape[-2:], mode="bilinear", align_corners=False) + octave * weight
        squares += weight * weight
    return F.interpolate(total, size=size, mode="bicubic", align_corners=False) / squares**0.5


def mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """From a, where the weight is 0, to b, where it is 1; broadcasts."""
    return a + (b - a) * weight


def _meadow(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.42, 0.56)
    picture = c.sky(horizon)
    hills = horizon - 0.05 + 0.05 * c.profile(1, 0)
    picture = mix(picture, c.lit(0.45, 0.66, 0.52) * (0.95 + 0.06 * c.fractal(1)), c.below(hills))
    line = horizon + 0.015 * c.profile(1, 2)
    depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
    grass = mix(c.lit(0.58, 0.78, 0.36), c.lit(0.24, 0.52, 0.18), depth)
    grass = grass * (1 + 0.16 * c.ground(2, horizon, 1.6, 2) + 0.06 * c.fractal(3, 0.9, 3))
    flowers = ((c.ground(3, horizon, 1.2, 3) - 0.95) * 6).clamp(0, 1) * (0.3 + 0.7 * depth)
    petal = torch.stack([c.u(4, 0.8, 1.0), c.u(5, 0.3, 0.95), c.u(6, 0.3, 0.95)], 1).squeeze(2) * c.timed(_LIGHT)
    return mix(picture, mix(grass, petal, flowers), c.below(line))


def _water(c: _Canvas, horizon: Tensor, near: tuple[float, float, float], far: tuple[float, float, float]) -> Tensor:
    depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
    water = mix(c.lit(*far), c.lit(*near), depth**0.7)
    waves = c.ground(2, horizon, 0.35, 2)
    glitter = (waves - 0.5).clamp(0, 1) * torch.exp(-(((c.x - c.u(0, 0.1, 0.9)) / 0.16) ** 2))
    return water * (1 + 0.18 * waves) + 0.5 * glitter * c.timed(_SKY_LOW)


def _sea(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.36, 0.52)
    water = _water(c, horizon, (0.06, 0.30, 0.50), (0.26, 0.56, 0.74))
    return mix(c.sky(horizon), water, c.below(horizon.expand(-1, -1, -1, c.width)))


def _beach(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.32, 0.44)
    shore = horizon + c.u(4, 0.16, 0.26) + 0.035 * c.profile(1, 1, 0.4)
    water = _water(c, horizon, (0.22, 0.72, 0.74), (0.10, 0.46, 0.70))
    picture = mix(c.sky(horizon), water, c.below(horizon.expand(-1, -1, -1, c.width)))
    sand = c.lit(0.93, 0.82, 0.60) * (1 + 0.07 * c.ground(3, horizon, 1.2, 2) + 0.035 * c.fractal(1, 0.9, 3))
    wet = torch.exp(-((c.y - shore) / 0.05).clamp_min(0))
    sand = sand * (1 - 0.25 * wet)
    picture = mix(picture, sand, c.below(shore, 2.0))
    foam = torch.exp(-(((c.y - shore + 0.008 * c.fractal(2)) / 0.012) ** 2))
    return mix(picture, c.lit(0.97, 0.99, 1.0), 0.85 * foam)


def _pines(c: _Canvas, base: Tensor, count: float, tall: float, field: int) -> Tensor:
    """Saw-toothed tops of a row of conifers, (n, 1, 1, W), standing on `base`."""
    phase = c.x * count + c.u(7, 0, 1) * count + 0.6 * c.profile(field, 3)
    tooth = 1 - 2 * (phase - phase.floor() - 0.5).abs()
    return base - tall * (0.35 + 0.65 * tooth) * (1 + 0.45 * c.profile(field, 1))


def _snow(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.44, 0.56)
    sky = mix(c.sky(horizon), c.lit(0.90, 0.93, 0.97), torch.full_like(horizon, 0.35))
    hills = horizon - 0.07 + 0.06 * c.profile(1, 0)
    picture = mix(sky, c.lit(0.80, 0.87, 0.95), c.below(hills))
    trees = c.below(_pines(c, horizon + 0.02, 15.0, 0.13, 2), 1.5)
    picture = mix(picture, c.lit(0.24, 0.40, 0.42) * (1 + 0.2 * c.fractal(1, 0.8, 3)), trees)
    drift = horizon + 0.03 + 0.02 * c.profile(3, 2)
    depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
    shade = 0.5 + 0.5 * torch.tanh(1.4 * c.ground(3, horizon, 0.8, 1) + 0.4 * c.fractal(2))
    white = mix(c.lit(0.76, 0.84, 0.95), c.lit(0.98, 0.985, 1.0), shade)
    picture = mix(picture, white * (1 - 0.06 * depth), c.below(drift))
    flakes = ((c.fractal(4, 1.0, 4) - 1.7) * 2).clamp(0, 1)
    return mix(picture, c.lit(1.0, 1.0, 1.0), 0.7 * flakes * c.u(8).round())


def _desert(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.38, 0.5)
    picture = mix(c.sky(horizon, 0.3), c.lit(0.97, 0.85, 0.65), 0.35 * (c.y / horizon).clamp(0, 1))
    colours = ((0.90, 0.66, 0.40), (0.93, 0.70, 0.40), (0.86, 0.58, 0.30))
    for i, colour in enumerate(colours):
        line = horizon + 0.17 * i + (0.035 + 0.025 * i) * c.profile(i, i, 0.35)
        slope = torch.cat([line[..., 1:] - line[..., :-1], line[..., -1:] - line[..., -2:-1]], -1) * c.width
        fall = ((c.y - line) / 0.3).clamp(0, 1)
        shade = 1 - 0.28 * torch.sigmoid(6 * slope * (1 - fall)) - 0.1 * fall
        ripples = 0.035 * torch.sin(55 * (c.y - line) + 5 * c.fractal(3, 0.5)) * (0.3 + i * 0.35)
        picture = mix(picture, c.lit(*colour) * (shade + ripples + 0.02 * c.fractal(4, 0.9, 3)), c.below(line))
    return picture


def _forest(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.6, 0.72)
    leaves = 0.5 + 0.5 * torch.tanh(1.5 * c.fractal(0, 0.75))
    light = torch.exp(-(((c.x - c.u(0, 0.2, 0.8)) / 0.3) ** 2)) * (1 - c.y)
    picture = mix(c.lit(0.10, 0.26, 0.13), c.lit(0.36, 0.58, 0.24), leaves) + 0.35 * light * c.lit(0.9, 0.95, 0.55)
    floor = mix(c.lit(0.30, 0.34, 0.15), c.lit(0.38, 0.28, 0.16), 0.5 + 0.5 * torch.tanh(c.ground(2, horizon - 0.1)))
    for count, width, tone in ((11.0, 0.12, 0.62), (5.0, 0.17, 1.0)):
        phase = c.x * count + c.u(int(count), 0, 1) * 7 + 0.12 * c.profile(1, 0)
        cell = phase.floor()
        offset = torch.sin(cell * 12.9898 + c.u(4) * 40) * 0.22
        across = (phase - cell - 0.5 - offset + 0.02 * c.fractal(3)).abs()
        trunk = ((width - across) / count * c.width + 0.5).clamp(0, 1)
        round_light = (1 - (across / width).clamp(0, 1) ** 2) * 0.5 + 0.5
        bark = c.lit(0.36, 0.25, 0.17) * tone * round_light * (1 + 0.15 * c.fractal(1, 0.9, 3))
        base = horizon + (0.02 if count > 9 else 0.1)
        picture = mix(picture, bark + (1 - tone) * c.lit(0.12, 0.22, 0.12), trunk * (1 - c.below(base + 0 * c.x)))
        picture = mix(picture, floor * (1 + 0.12 * c.fractal(4, 0.9, 3)), c.below(base + 0.01 * c.profile(2, 1)))
    return picture


def _mountains(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.58, 0.7)
    picture = c.sky(horizon)
    ranges = (((0.62, 0.70, 0.82), 0.34), ((0.42, 0.48, 0.60), 0.22), ((0.26, 0.36, 0.34), 0.08))
    for i, (rock, rise) in enumerate(ranges):
        line = horizon - rise + (0.13 - 0.03 * i) * c.profile(i, i, 0.62)
        relief = c.fractal(i + 1, 0.7, 1)
        stone = c.lit(*rock) * (1 + (0.10 + 0.05 * i) * relief)
        cap = ((0.10 - (c.y - line) + 0.035 * relief) * 22).clamp(0, 1) * (1.0 if i < 2 else 0.0)
        picture = mix(picture, mix(stone, c.lit(0.95, 0.97, 1.0) * (0.95 + 0.05 * relief), cap), c.below(line))
    meadow = mix(c.lit(0.40, 0.56, 0.30), c.lit(0.22, 0.40, 0.18), ((c.y - horizon) / (1 - horizon)).clamp(0, 1))
    meadow = meadow * (1 + 0.12 * c.ground(4, horizon, 1.5, 2))
    return mix(picture, meadow, c.below(horizon + 0.02 * c.profile(3, 2)))


def _city(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.72, 0.8)
    picture = c.sky(horizon, 0.7)
    night = (c.parameters.time == 2).view(-1, 1, 1, 1).float()
    for i, (count, tall, tone) in enumerate(((13, 0.42, (0.58, 0.64, 0.74)), (8, 0.26, (0.40, 0.43, 0.52)))):
        position = c.x * count + c.u(4 + i)
        cell = position.floor()
        wobble = torch.sin(cell * 78.233 + c.u(6) * 50)
        top = horizon - tall * (0.75 + 0.4 * wobble)
        side = position - cell
        shade = 1 + 0.16 * torch.sin(cell * 37.7 + c.u(7) * 30) - 0.12 * side
        column, row = (position * 5).floor(), (c.y * (58 - 14 * i)).floor()
        pane = (((position * 5) % 1 - 0.5).abs() < 0.3) & (((c.y * (58 - 14 * i)) % 1 - 0.5).abs() < 0.28)
        lamp = torch.sin(column * 12.9898 + row * 78.233 + c.u(8) * 90) * 0.5 + 0.5
        dark = c.lit(*tone) * shade * (1 + 0.04 * c.fractal(1))
        lit = mix(dark * 1.22, c.plain(1.0, 0.84, 0.48) * lamp + dark, night)
        windows = pane.float() * (side > 0.06).float() * (c.y > top + 0.02).float()
        picture = mix(picture, mix(dark, lit, 0.75 * windows), c.below(top))
    road = c.lit(0.40, 0.41, 0.44) * (1 + 0.06 * c.ground(2, horizon - 0.1, 1.0, 2))
    depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
    stripe = ((0.012 + 0.03 * depth - (c.x - 0.5).abs()) * c.width + 0.5).clamp(0, 1)
    stripe = stripe * ((3 / (depth + 0.25)) % 1 > 0.45)
    kerb = torch.exp(-((depth / 0.12) ** 2))
    road = mix(mix(road, c.lit(0.92, 0.90, 0.78), 0.8 * stripe), c.lit(0.66, 0.66, 0.68), 0.8 * kerb)
    return mix(picture, road, c.below(horizon + 0 * c.x))


def _studio(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.66, 0.78)
    light = torch.exp(-(((c.x - c.u(0, 0.25, 0.75)) / 0.5) ** 2 + ((c.y - c.u(1, 0.25, 0.5)) / 0.5) ** 2))
    wall = c.surface() * (0.62 + 0.5 * light + 0.03 * c.fractal(1, 0.6))
    floor = c.surface() * (0.84 + 0.35 * light * (c.y - horizon).clamp(0, 1) + 0.03 * c.fractal(2, 0.6))
    floor = floor + 0.10 * torch.exp(-(((c.y - horizon - 0.13) / 0.1) ** 2))
    return mix(wall, floor, ((c.y - horizon) * 9 + 0.5).clamp(0, 1))


def _floor(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.44, 0.56)
    wall = c.surface() * 0.5 + 0.45
    wall = wall * (0.9 + 0.04 * c.fractal(0) + 0.12 * torch.exp(-(((c.x - c.u(0)) / 0.5) ** 2)))
    wall = mix(wall, wall * 0.93, (torch.sin(c.x * c.u(4, 28, 60)) * 3).clamp(0, 1))
    depth = (c.y - horizon + 0.10).clamp_min(0.03)
    across = (c.x - 0.5) / depth * c.u(5, 0.9, 1.3) + 40
    plank, edge = across.floor(), (across % 1 - 0.5).abs()
    tone = torch.sin(plank * 12.9898 + c.u(6) * 50)
    grain = torch.sin((across * 9) + 1.4 * c.fractal(2, 0.6)) * 0.035
    wood = mix(c.plain(0.48, 0.29, 0.16), c.plain(0.78, 0.56, 0.34), 0.5 + 0.5 * c.u(7) + 0.12 * tone)
    wood = wood * (0.80 + 0.28 * ((c.y - horizon) / (1 - horizon)).clamp(0, 1) + grain + 0.05 * c.fractal(3, 0.8, 2))
    wood = mix(wood, wood * 0.5, ((edge - 0.47) / 0.03).clamp(0, 1))
    board = torch.exp(-(((c.y - horizon + 0.02) / 0.018) ** 4))
    return mix(mix(wall, wood, c.below(horizon + 0 * c.x)), torch.ones_like(horizon) * 0.93, 0.9 * board)


def _underwater(c: _Canvas) -> Tensor:
    picture = mix(c.lit(0.25, 0.75, 0.85), c.lit(0.02, 0.18, 0.42), (c.y * 1.1).clamp(0, 1) ** 0.8)
    slant = (c.x - c.u(0)) + 0.35 * c.y
    rays = torch.sin(slant * 26 + 2 * c.profile(0, 0)) * 0.5 + torch.sin(slant * 41 + c.u(4) * 9) * 0.5
    picture = picture + 0.16 * rays.clamp(0, 1) * (1 - c.y) ** 1.3
    bed = c.u(3, 0.74, 0.84) + 0.03 * c.profile(1, 1)
    weed = c.below(_pines(c, bed + 0.06, 9.0, 0.16, 2), 2.0)
    picture = mix(picture, c.lit(0.06, 0.38, 0.36) * (1 + 0.15 * c.fractal(3)), 0.8 * weed)
    sand = c.lit(0.50, 0.62, 0.56) * (1 + 0.10 * c.ground(2, bed - 0.15, 1.0, 1))
    picture = mix(picture, sand, c.below(bed + 0.04))
    bubbles = ((c.fractal(4, 1.0, 4) - 2.0) * 2).clamp(0, 1)
    return mix(picture, c.lit(0.85, 0.97, 1.0), 0.55 * bubbles)


def _bricks(c: _Canvas) -> Tensor:
    horizon = c.u(3, 0.7, 0.8)
    rows = c.u(4, 11, 15)
    row = (c.y * rows).floor()
    along = c.x * rows * 0.5 + 0.5 * (row % 2) + c.u(5)
    joint = torch.minimum((0.5 - (along % 1 - 0.5).abs()) * 2, 0.5 - ((c.y * rows) % 1 - 0.5).abs())
    tone = torch.sin(along.floor() * 12.9898 + row * 78.233 + c.u(6) * 40)
    brick = c.lit(0.62, 0.30, 0.22) * (1 + 0.13 * tone + 0.09 * c.fractal(1, 0.8, 2))
    wall = mix(c.lit(0.78, 0.74, 0.68), brick, ((joint - 0.05) * 20).clamp(0, 1))
    wall = wall * (0.85 + 0.25 * torch.exp(-(((c.x - c.u(0)) / 0.5) ** 2)))
    pavement = c.lit(0.60, 0.60, 0.60) * (1 + 0.10 * c.ground(2, horizon - 0.08, 1.0, 2))
    return mix(wall, pavement, c.below(horizon + 0 * c.x))


def _space(c: _Canvas) -> Tensor:
    cloud = (0.5 * c.fractal(0, 0.6) + 0.3).clamp(0, 1)
    tint = mix(c.plain(0.42, 0.12, 0.55), c.plain(0.06, 0.38, 0.58), torch.sigmoid(3 * c.fractal(1, 0.5)))
    picture = c.plain(0.015, 0.015, 0.05) + tint * cloud
    stars = ((c.fractal(4, 1.0, 4) - 1.6) * 1.5).clamp(0, 1)
    distance = ((c.x - c.u(3, 0.1, 0.9)) ** 2 + (c.y - c.u(4, 0.1, 0.9)) ** 2).sqrt()
    radius = c.u(5, 0.06, 0.16)
    disc = ((radius - distance) * c.height + 0.5).clamp(0, 1)
    side = ((c.x - c.u(3, 0.1, 0.9)) / radius * 0.5 + 0.5).clamp(0, 1)
    bands = 1 + 0.25 * torch.sin((c.y / radius) * 5 + c.fractal(2))
    return mix(picture + stars, (0.25 + 0.75 * side) * bands * (0.4 + 0.5 * c.surface()), disc)


@dataclass(frozen=True)
class Place:
    """How captions name a place, and what it shows besides.

    Attributes:
        phrases: after the thing, in a sentence ("in a meadow"); "{colour}" where the place shows a colour.
        noun: alone, in bare captions.
        timed: whether the time of day shows.
        draw: parameters on a canvas -> (n, 3, H, W).
    """

    phrases: tuple[str, ...]
    noun: str
    timed: bool
    draw: Callable[[_Canvas], Tensor]


PLACES: dict[str, Place] = {
    "meadow": Place(("in a meadow", "on the grass", "in a field of flowers"), "meadow", True, _meadow),
    "beach": Place(("on a beach", "on the sand by the sea"), "beach", True, _beach),
    "sea": Place(("at sea", "over the ocean", "on the water"), "sea", True, _sea),
    "snow": Place(("in the snow", "in a snowy landscape"), "snow", True, _snow),
    "desert": Place(("in the desert", "among sand dunes"), "desert", True, _desert),
    "forest": Place(("in a forest", "among the trees", "in the woods"), "forest", True, _forest),
    "mountains": Place(("in the mountains", "in front of mountains"), "mountains", True, _mountains),
    "city": Place(("in a city", "in a city street", "in front of a skyline"), "city", True, _city),
    "studio": Place(("in a {colour} studio", "on a {colour} backdrop"), "{colour} studio", False, _studio),
    "floor": Place(("on a wooden floor, {colour} wall", "in a {colour} room with a wooden floor"),
                   "wooden floor, {colour} wall", False, _floor),
    "underwater": Place(("under water", "at the bottom of the sea"), "underwater", False, _underwater),
    "bricks": Place(("in front of a brick wall", "by a brick wall"), "brick wall", False, _bricks),
    "space": Place(("in space", "among the stars"), "space", False, _space),
}


def render_scenes(place: str, parameters: SceneParameters, height: int, width: int) -> Tensor:
    """Draws n pictures of one place.

    Args:
        place: a key of PLACES.
        parameters: of the n pictures, on any device.
        height: pixels.
        width: pixels.

    Returns:
        (n, 3, height, width) in [0, 1].
    """
    if not PLACES[place].timed:
        parameters = replace(parameters, time=torch.zeros_like(parameters.time))
    canvas = _Canvas(parameters, height, width)
    return PLACES[place].draw(canvas).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()
