"""Colour statistics by what they should become, light wrap in its limits."""

import math
from typing import Any

import pytest
import torch
from kornia.color import rgb_to_lab
from torch import Tensor

from text2layer_core.harmonise import light_wrap, match_colour


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def muted(*shape: int, seed: int = 0) -> Tensor:
    """Colours whose Lab values stay in sRGB after a moderate change."""
    return random(*shape, seed=seed) * 0.2 + 0.4


def test_takes_on_mean_and_deviation() -> None:
    picture, reference = muted(2, 3, 20, 30), muted(2, 3, 9, 11, seed=1) * 0.7 + 0.1
    found, wanted = rgb_to_lab(match_colour(picture, reference)), rgb_to_lab(reference)
    torch.testing.assert_close(found.mean((2, 3)), wanted.mean((2, 3)), atol=0.05, rtol=0)
    torch.testing.assert_close(found.std((2, 3), correction=0), wanted.std((2, 3), correction=0), atol=0.05, rtol=0)


def test_only_what_a_weight_counts_counts() -> None:
    """The same with the left half alone as with the left half's pixels for a picture."""
    picture, reference = muted(2, 3, 8, 12), muted(2, 3, 8, 12, seed=1) * 0.8
    left = torch.zeros(2, 1, 8, 12)
    left[..., :6] = 1
    found = match_colour(picture, reference, picture_weight=left, reference_weight=left)
    expected = match_colour(picture[..., :6], reference[..., :6])
    torch.testing.assert_close(found[..., :6], expected, atol=1e-4, rtol=0)


def test_limits() -> None:
    picture, reference = muted(2, 3, 8, 12), muted(2, 3, 8, 12, seed=1)
    assert match_colour(picture, reference, strength=0) is picture
    torch.testing.assert_close(match_colour(picture, picture), picture, atol=1e-4, rtol=0)
    half = match_colour(picture, reference, strength=0.5)
    torch.testing.assert_close(half, (picture + match_colour(picture, reference)) / 2, atol=1e-6, rtol=0)
    empty = torch.zeros(2, 1, 8, 12)
    assert torch.equal(match_colour(picture, reference, picture_weight=empty), picture)
    empty[1] = 1
    found = match_colour(picture, reference, reference_weight=empty)
    assert torch.equal(found[0], picture[0])
    torch.testing.assert_close(found[1], match_colour(picture, reference)[1])


def test_a_flat_picture_is_shifted_only() -> None:
    grey = torch.full((1, 3, 8, 12), 0.5)
    reference = muted(1, 3, 8, 12) * 0.5
    found = rgb_to_lab(match_colour(grey, reference))
    torch.testing.assert_close(found[..., 0, 0], rgb_to_lab(reference).mean((2, 3)), atol=0.05, rtol=0)
    assert found.std((2, 3)).max() < 1e-3


def test_light_wrap_by_its_parts() -> None:
    """Outside the rim nothing, on the contour a black foreground takes the light of a white background."""
    mask = torch.zeros(1, 1, 40, 80)
    mask[..., 40:] = 1
    black, white = torch.zeros(1, 3, 40, 80), torch.ones(1, 3, 40, 80)
    found = light_wrap(black, mask, white, radius=4, strength=0.5)
    row = found[0, 0, 20]
    assert row[40] == pytest.approx(0.42, abs=0.03)
    assert row[53:].abs().max() < 1e-6
    assert bool((row[40:-1] >= row[41:]).all())
    assert torch.equal(light_wrap(black, mask, black, radius=4, strength=1), black)
    torch.testing.assert_close(light_wrap(white, mask, black, radius=4, strength=1), white)
    assert light_wrap(white, mask, black, radius=4, strength=0) is white
    full = torch.ones_like(mask)
    assert torch.equal(light_wrap(black, full, white, radius=4, strength=1), black), "no rim at the border"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_batch_keeps_dtype_and_range_and_changes_nothing(dtype: torch.dtype) -> None:
    given = [random(3, channels, 16, 16, dtype=dtype, seed=channels + i) for i, channels in enumerate((3, 3, 1))]
    before = [part.clone() for part in given]
    picture, reference, mask = given
    for found in (match_colour(picture, reference, picture_weight=mask),
                  light_wrap(picture, mask, reference, radius=2, strength=1)):
        assert found.dtype == dtype
        assert found.shape == picture.shape
        assert found.min() >= 0
        assert found.max() <= 1
    one = light_wrap(picture[1:2], mask[1:2], reference[1:2], radius=2, strength=1)
    torch.testing.assert_close(light_wrap(picture, mask, reference, radius=2, strength=1)[1:2], one)
    one = match_colour(picture[1:2], reference[1:2])
    torch.testing.assert_close(match_colour(picture, reference)[1:2], one)
    assert all(torch.equal(part, old) for part, old in zip(given, before, strict=True))


def test_carries_gradients() -> None:
    picture = muted(1, 3, 8, 8)
    picture[..., 0], picture[..., 1] = 0, 1
    picture.requires_grad_()
    match_colour(picture, muted(1, 3, 8, 8, seed=1)).sum().backward()
    assert picture.grad is not None
    assert bool(picture.grad.isfinite().all())


@pytest.mark.parametrize(("changes", "message"), [
    ({"picture": torch.zeros(1, 4, 4, 4)}, r"picture must have shape \(1, 3, H, W\), got \(1, 4, 4, 4\)"),
    ({"reference": torch.zeros(2, 3, 4, 4)}, r"reference must have shape \(1, 3, H, W\), got \(2, 3, 4, 4\)"),
    ({"picture_weight": torch.zeros(1, 1, 4, 5)}, r"mask must have shape \(1, 1, 4, 4\) to match, got \(1, 1, 4, 5\)"),
    ({"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
])
def test_match_refuses(changes: dict[str, Any], message: str) -> None:
    given = {"picture": torch.zeros(1, 3, 4, 4), "reference": torch.zeros(1, 3, 5, 5)}
    with pytest.raises(ValueError, match=message):
        match_colour(**(given | changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"mask": torch.zeros(1, 1, 4, 5)}, r"mask must have shape \(1, 1, 4, 4\) to match, got \(1, 1, 4, 5\)"),
    ({"background": torch.zeros(1, 3, 5, 4)}, r"background must have shape \(1, 3, 4, 4\).*got \(1, 3, 5, 4\)"),
    ({"radius": 0}, "radius must be above 0 pixels, got 0"),
    ({"radius": math.nan}, "radius must be above 0 pixels, got nan"),
    ({"strength": -0.1}, r"strength must lie in \[0, 1\], got -0.1"),
])
def test_wrap_refuses(changes: dict[str, Any], message: str) -> None:
    given = {"foreground": torch.zeros(1, 3, 4, 4), "mask": torch.zeros(1, 1, 4, 4),
             "background": torch.zeros(1, 3, 4, 4), "radius": 2, "strength": 0.5}
    with pytest.raises(ValueError, match=message):
        light_wrap(**(given | changes))
