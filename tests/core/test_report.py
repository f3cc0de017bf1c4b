"""Fringe, ghost and mask statistics by hand and in their limits; the report that names them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core import metrics
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.report import format_figures, layer_figures, layer_thumbnails, on_checkerboard


def ramp_mask(height: int = 60, width: int = 100) -> Tensor:
    """0 left, 1 right, ten columns of ramp between."""
    return ((torch.arange(width) - 44.5) / 10).clamp(0, 1).expand(1, 1, height, width).clone()


def test_fringe_of_one_colour_is_0_and_of_a_rim_its_difference() -> None:
    """A rim 51/255 brighter than the solid part differs by 51, the reach being 3 % of 100 columns: 3."""
    mask = ramp_mask()
    mask[..., 45:55] = torch.tensor([0.5] * 10)
    foreground = torch.full((1, 3, 60, 100), 0.3)
    assert float(metrics.fringe(foreground, mask)) == pytest.approx(0, abs=1e-4)
    rim = torch.where((mask > 0) & (mask < 1), 0.5, foreground)
    assert float(metrics.fringe(rim, mask)) == pytest.approx(51, abs=1e-3)


def test_fringe_without_a_solid_part_or_a_soft_edge_is_nan() -> None:
    foreground = torch.rand(1, 3, 20, 30)
    for mask in (torch.full((1, 1, 20, 30), 0.5), torch.zeros(1, 1, 20, 30), torch.ones(1, 1, 20, 30)):
        assert metrics.fringe(foreground, mask).isnan().all()


def square(size: int = 120) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., 40:80, 40:80] = 1
    return mask


def test_ghost_of_an_even_texture_is_1_and_of_an_outline_far_more() -> None:
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 120, 120, generator=generator)
    assert float(metrics.ghost(texture, square())) == pytest.approx(1, abs=0.05)
    assert metrics.ghost(0.01 * texture + 0.5 * square(), square()) > 5
    assert metrics.ghost(torch.where(functional.max_pool2d(square(), 5, 1, 2) > 0, 0.5, texture), square()) < 0.9
    for mask in (torch.zeros(1, 1, 120, 120), torch.ones(1, 1, 120, 120)):
        assert metrics.ghost(texture, mask).isnan().all()


def test_ghost_by_hand() -> None:
    """A ramp along x has the same slope everywhere; with a step of the contour's own column it is (0.5 + s) / s."""
    slope = torch.arange(200.0).expand(1, 1, 200, 200) / 1000
    half = (torch.arange(200) >= 100).float().expand(1, 1, 200, 200)
    assert float(metrics.ghost(slope, half)) == pytest.approx(1, abs=1e-4)
    step = slope + 0.5 * half  # central differences see the step at both of the contour's columns: 0.25 + 0.001
    moved = 2 * [20, 30, 40, 50]
    across = [round(share * math.cos(math.pi / 4 * turn)) for turn, share in enumerate(moved)]
    seen = [0.251 if shift == 0 else 0.001 for shift in across]
    rows = [200 - abs(round(share * math.sin(math.pi / 4 * turn))) for turn, share in enumerate(moved)]
    elsewhere = sum(value * count for value, count in zip(seen, rows, strict=True)) / sum(rows)
    assert float(metrics.ghost(step, half)) == pytest.approx(0.251 / elsewhere, rel=1e-3)


def test_statistics_by_hand() -> None:
    mask = torch.tensor([[0.0, 1.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.9]])[None, None]
    found = metrics.mask_statistics(torch.cat([mask, torch.zeros_like(mask), torch.ones_like(mask)]))
    assert found.area.tolist() == pytest.approx([3.4 / 8, 0, 1])
    assert found.softness.tolist() == pytest.approx([2 / 4, 0, 0])
    assert found.components.tolist() == [2, 0, 1]


def layers(count: int = 2, dtype: torch.dtype = torch.float32) -> TwoLayerImage:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, count, 3, 6, 8, generator=generator)
    foreground, background = (functional.interpolate(each, size=(60, 80), mode="bilinear") for each in coarse)
    mask = torch.zeros(count, 1, 60, 80)
    mask[..., 20:40, 30:60] = 1
    mask[..., 20:40, 27:30] = 0.5
    return TwoLayerImage(foreground.to(dtype), background.to(dtype), mask.to(dtype))


def test_the_new_metrics_are_per_sample_and_wide() -> None:
    image = layers(3, torch.float16)
    for metric, picture in ((metrics.fringe, image.foreground), (metrics.ghost, image.background)):
        batch = metric(picture, image.mask)
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch[1:2], metric(picture[1:2], image.mask[1:2]))
        torch.testing.assert_close(batch, metric(picture.float(), image.mask.float()))
        with pytest.raises(ValueError, match=r"mask must have shape \(3, 1, 60, 80\) to match, got \(1, 1, 60, 80\)"):
            metric(picture, image.mask[:1])


def test_figures_have_names_and_what_cannot_be_said_is_none() -> None:
    image = layers()
    plain = layer_figures(image)
    assert len(plain) == 2
    assert list(plain[0]) == ["area", "softness", "components", "fringe", "ghost", "consistency_psnr", "hidden_psnr"]
    assert plain[0]["consistency_psnr"] is None
    assert plain[0]["components"] == 1
    known = layer_figures(image, predicted_composed=compose(image), true_background=image.background)
    assert known[0]["consistency_psnr"] == known[0]["hidden_psnr"] == math.inf
    empty = TwoLayerImage(image.foreground, image.background, torch.zeros_like(image.mask))
    assert layer_figures(empty)[0]["fringe"] is None
    assert format_figures(layer_figures(empty)).splitlines() == ["area 0, softness 0, components 0"] * 2


def test_the_picture_shows_four_panels() -> None:
    image = layers()
    whole = layer_thumbnails(image, 1000)
    assert tuple(whole.shape) == (2, 3, 60, 320)
    assert torch.equal(whole[..., :80], compose(image))
    assert torch.equal(whole[..., 160:240], image.background)
    assert tuple(layer_thumbnails(image, 40).shape) == (2, 3, 30, 160)
    with pytest.raises(ValueError, match="side must be at least 1 pixel, got 0"):
        layer_thumbnails(image, 0)


def test_the_checkerboard_has_two_greys_where_nothing_shows() -> None:
    image = layers()
    drawn = on_checkerboard(image.foreground, torch.zeros_like(image.mask))
    assert drawn[0, 0].unique().tolist() == pytest.approx([0.63, 0.82])
    assert torch.equal(on_checkerboard(image.foreground, torch.ones_like(image.mask)), image.foreground)
