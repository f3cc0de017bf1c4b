"""Blend modes by hand, in their limits, against the specification's own words in plain Python, and ImageMagick."""

import colorsys
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.imagemagick import composite
from text2layer_core.blending import BlendMode, blend_mode, mix

SEPARABLE = list(BlendMode)[:12]
NON_SEPARABLE = list(BlendMode)[12:]
LEVELS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 1.0)


def pixel(*colour: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(colour, dtype=dtype).view(1, 3, 1, 1)


def grid(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Every pair of 64 backdrops and 64 sources, (64, 3, 1, 64) each, greys and limits among them."""
    colours = torch.tensor(list(product((0.0, 0.25, 0.6, 1.0), repeat=3)), dtype=dtype)
    return (colours.view(64, 3, 1, 1).expand(-1, -1, -1, 64).contiguous(),
            colours.T.view(1, 3, 1, 64).expand(64, -1, -1, -1).contiguous())


def separable(mode: str, cb: float, cs: float) -> float:
    """Section 10.1 word for word."""
    match mode:
        case "normal":
            return cs
        case "multiply":
            return cb * cs
        case "screen":
            return 1 - (1 - cb) * (1 - cs)
        case "overlay":
            return separable("hard-light", cs, cb)
        case "darken":
            return min(cb, cs)
        case "lighten":
            return max(cb, cs)
        case "color-dodge":
            return 0 if cb == 0 else 1 if cs == 1 else min(1, cb / (1 - cs))
        case "color-burn":
            return 1 if cb == 1 else 0 if cs == 0 else 1 - min(1, (1 - cb) / cs)
        case "hard-light":
            return separable("multiply", cb, 2 * cs) if cs <= 0.5 else separable("screen", cb, 2 * cs - 1)
        case "soft-light":
            d = ((16 * cb - 12) * cb + 4) * cb if cb <= 0.25 else math.sqrt(cb)
            return cb - (1 - 2 * cs) * cb * (1 - cb) if cs <= 0.5 else cb + (2 * cs - 1) * (d - cb)
        case "difference":
            return abs(cb - cs)
        case _:
            return cb + cs - 2 * cb * cs


def lum(c: Sequence[float]) -> float:
    return 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]


def clip_color(c: list[float]) -> list[float]:
    middle, low, high = lum(c), min(c), max(c)
    if low < 0:
        c = [middle + (x - middle) * middle / (middle - low) for x in c]
    if high > 1:
        c = [middle + (x - middle) * (1 - middle) / (high - middle) for x in c]
    return c


def set_lum(c: Sequence[float], value: float) -> list[float]:
    return clip_color([x + value - lum(c) for x in c])


def set_sat(c: Sequence[float], value: float) -> list[float]:
    low, middle, high = sorted(range(3), key=lambda i: c[i])
    result = [0.0, 0.0, 0.0]
    if c[high] > c[low]:
        result[middle] = (c[middle] - c[low]) * value / (c[high] - c[low])
        result[high] = value
    return result


def sat(c: Sequence[float]) -> float:
    return max(c) - min(c)


def non_separable(mode: str, cb: Sequence[float], cs: Sequence[float]) -> list[float]:
    """Section 10.2 word for word."""
    match mode:
        case "hue":
            return set_lum(set_sat(cs, sat(cb)), lum(cb))
        case "saturation":
            return set_lum(set_sat(cb, sat(cs)), lum(cb))
        case "color":
            return set_lum(cs, lum(cb))
        case _:
            return set_lum(cb, lum(cs))


@pytest.mark.parametrize(("mode", "expected"), [
    ("normal", 0.5), ("multiply", 0.4), ("screen", 0.9), ("overlay", 0.8), ("darken", 0.5), ("lighten", 0.8),
    ("color-dodge", 1.0), ("color-burn", 0.6), ("hard-light", 0.8), ("soft-light", 0.8), ("difference", 0.3),
    ("exclusion", 0.5),
])
def test_by_hand(mode: str, expected: float) -> None:
    """Backdrop 0.8, layer 0.5: for instance color-burn 1 - 0.2 / 0.5."""
    found = mix(pixel(0.8, 0.8, 0.8), pixel(0.5, 0.5, 0.5), mode)
    assert found.flatten().tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("mode", SEPARABLE)
def test_separable_modes_follow_the_specification(mode: BlendMode) -> None:
    pairs = torch.tensor(list(product(LEVELS, repeat=2)), dtype=torch.float64)
    backdrop, source = (pairs[:, i].view(-1, 1, 1, 1).expand(-1, 3, 1, 1) for i in range(2))
    expected = torch.tensor([separable(mode.value, *pair) for pair in pairs.tolist()], dtype=torch.float64)
    torch.testing.assert_close(mix(backdrop, source, mode)[:, 0, 0, 0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", NON_SEPARABLE)
def test_non_separable_modes_follow_the_specification(mode: BlendMode) -> None:
    backdrop, source = grid()
    expected = torch.tensor([
        [non_separable(mode.value, b, s) for s in source[0, :, 0].T.tolist()] for b in backdrop[:, :, 0, 0].tolist()
    ], dtype=torch.float64)
    torch.testing.assert_close(mix(backdrop, source, mode)[:, :, 0].movedim(1, -1), expected, atol=1e-9, rtol=0)


def test_luminosity_of_grey_is_grey() -> None:
    """A limit case: a coloured backdrop at a grey layer's luminosity keeps its hue."""
    found = mix(pixel(0.2, 0.4, 0.6), pixel(0.5, 0.5, 0.5), "luminosity").flatten()
    assert lum(found.tolist()) == pytest.approx(0.5)
    assert colorsys.rgb_to_hsv(*found.tolist())[0] == pytest.approx(colorsys.rgb_to_hsv(0.2, 0.4, 0.6)[0])
    assert mix(pixel(0.4, 0.4, 0.4), pixel(0.9, 0.1, 0.2), "saturation").flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("mode", BlendMode)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stays_in_range_keeps_the_dtype_and_changes_nothing(mode: BlendMode, dtype: torch.dtype) -> None:
    given = grid(dtype)
    before = [part.clone() for part in given]
    found = mix(*given, mode)
    assert found.dtype == dtype
    assert found.shape == given[0].shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert all(torch.equal(part, old) for part, old in zip(given, before, strict=True))


@pytest.mark.parametrize("mode", BlendMode)
def test_gradients_are_finite_in_every_limit(mode: BlendMode) -> None:
    given = [part.requires_grad_() for part in grid()]
    mix(*given, mode).sum().backward()
    assert all(part.grad is None or bool(part.grad.isfinite().all()) for part in given)


def test_refuses_other_shapes_and_unknown_modes() -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, 3, H, W\), got \(1, 3, 1, 1\) and \(3, 1, 1\)"):
        mix(pixel(0, 0, 0), pixel(0, 0, 0)[0], "normal")
    with pytest.raises(ValueError, match=r"one shape \(N, 3, H, W\), got \(1, 1, 1, 1\)"):
        mix(pixel(0, 0, 0)[:, :1], pixel(0, 0, 0)[:, :1], "normal")
    with pytest.raises(ValueError, match=r"blend_mode must be one of normal, multiply, .*luminosity, got dissolve"):
        mix(pixel(0, 0, 0), pixel(0, 0, 0), "dissolve")
    assert blend_mode("soft-light") is BlendMode.SOFT_LIGHT


@pytest.mark.parametrize("mode", SEPARABLE[1:])
def test_separable_modes_agree_with_imagemagick(mode: BlendMode, tmp_path: Path) -> None:
    """Every pair of 64 levels; ImageMagick errs in color-dodge at backdrop 0 and source 1."""
    levels = torch.linspace(0, 1, 64, dtype=torch.float64)
    backdrop, source = (levels.view(shape).expand(1, 3, 64, 64) for shape in ((64, 1), (1, 64)))
    difference = (mix(backdrop, source, mode) - composite(tmp_path, mode, backdrop, source)).abs()
    if mode == BlendMode.COLOR_DODGE:
        difference[..., 0, -1] = 0
    assert difference.max() <= 1 / 255
