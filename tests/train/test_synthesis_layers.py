"""Verdicts, holes, shadows and figures of masks; expected values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.synthesis.config import FiltersConfig, LayersConfig
from train.synthesis.layers import hole_verdict, inpaint_crop, mask_figures, mask_verdict, shadow


def disc(size: int = 64, radius: float = 10, centre: tuple[float, float] = (32, 32)) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * 2, indexing="ij")
    return (((y - centre[0]) ** 2 + (x - centre[1]) ** 2) <= radius**2).float()[None]


@pytest.mark.parametrize(("value", "share", "verdict"), [
    (0, 1.0, "mask_empty"), (25, 1.0, "mask_empty"), (255, 0.0, "mask_empty"), (26, 1.0, ""),
    (255, 0.005, "mask_small"), (255, 0.25, ""), (255, 0.95, "mask_full"),
])
def test_verdicts(value: int, share: float, verdict: str) -> None:
    """0.1 of 255 is 25.5; the limits are 0.01 and 0.9 of the picture."""
    mask = np.zeros((100, 100), np.uint8)
    mask.reshape(-1)[: int(share * 10_000)] = value
    assert mask_verdict(mask, FiltersConfig()) == verdict


def test_the_hole_scales_with_the_picture() -> None:
    """16 pixels at 512 are 2 at 64, the context of 64 is 8: of a disc of radius 10, 2 * (10 + 2 + 8) + 1 -> 48."""
    crop = inpaint_crop(torch.rand(3, 64, 64), disc(), LayersConfig(), 64, jpeg=False)
    assert crop.hole.sum() == disc(radius=10).sum() + (grown(disc(), 2) - disc()).sum()
    assert tuple(crop.image.shape) == (1, 3, 48, 48)


def grown(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """The union of the mask's copies moved by up to `radius` pixels, one after the other."""
    result = mask.clone()
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                result = torch.maximum(result, mask.roll((dy, dx), (1, 2)))
    return result


@pytest.mark.parametrize(("ground", "verdict"), [(0, "no_ground"), (40, "no_ground"), (41, ""), (4096, "")])
def test_a_hole_must_leave_ground(ground: int, verdict: str) -> None:
    """1 % of 64 x 64 pixels are 40.96."""
    hole = torch.ones(1, 1, 64, 64)
    hole.view(-1)[:ground] = 0
    assert hole_verdict(hole, torch.zeros(3, 64, 64)) == verdict


def test_a_faint_mask_has_a_hole_of_the_whole_picture() -> None:
    """0.85 everywhere is below most_area's mean of 0.9."""
    mask = np.full((64, 64), 217, np.uint8)
    assert mask_verdict(mask, FiltersConfig()) == ""
    crop = inpaint_crop(torch.rand(3, 64, 64), torch.full((1, 64, 64), 0.85), LayersConfig(), 64, jpeg=False)
    assert hole_verdict(crop.hole, torch.rand(3, 64, 64)) == "no_ground"


def test_the_jpeg_rim_widens_the_hole_where_the_source_is_a_jpeg_of_few_pixels() -> None:
    """A block of 16 source pixels is 8 of a picture that was halved, and 2 of one that was an eighth."""
    config = LayersConfig(jpeg_rim=True)
    image = torch.rand(3, 64, 64)
    for source, jpeg, radius in ((128, True, 8), (128, False, 2), (512, True, 2)):
        crop = inpaint_crop(image, disc(), config, source, jpeg=jpeg)
        assert crop.hole.sum() == grown(disc(), radius).sum()


def test_a_shadow_joins_the_hole_and_other_dark_things_do_not() -> None:
    ground = torch.tensor([0.6, 0.7, 0.5]).view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()
    thing = disc(radius=8)[None]
    image = torch.where(thing > 0, torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1), ground)
    image[..., 34:40, 38:52] *= 0.6  # its shadow, to the right
    image[..., 20:26, 10:14] *= 0.6  # a shadow that does not touch it
    image[..., 30:34, 18:22] = torch.tensor([0.1, 0.1, 0.6]).view(1, 3, 1, 1)  # a blue thing that does
    found = shadow(image, thing, reach=24, skip=2)
    assert found[..., 35:39, 42:51].mean() == 1
    assert found[..., 20:26, 10:14].sum() == 0
    assert found[..., 30:34, 18:22].sum() == 0
    assert shadow(ground, thing, reach=24, skip=2).sum() == 0


def test_a_shadow_is_in_the_hole() -> None:
    image = torch.full((3, 64, 64), 0.8)
    image[:, 34:40, 36:52] *= 0.6
    plain = inpaint_crop(image, disc(radius=8), LayersConfig(), 64, jpeg=False)
    aware = inpaint_crop(image, disc(radius=8), LayersConfig(shadow_reach=192), 64, jpeg=False)
    place = (0, 0, 37 - aware.y, 48 - aware.x)
    assert aware.hole[place] == 1
    assert aware.hole.sum() > plain.hole.sum() + 60


def test_figures_of_a_mask() -> None:
    """Parts of 121 and 100 pixels: only the first has more than 100; a corner joins 11 x 11 to one pixel."""
    mask = np.zeros((100, 100), np.uint8)
    mask[10:21, 10:21] = 255
    mask[21, 21] = 255
    mask[50:60, 50:60] = 160  # 0.63
    figures = mask_figures(mask)
    assert figures.components == 1
    assert figures.areas == (0.0222, 0.0222, 0.0122, 0.0122)
    assert figures.area == pytest.approx((122 + 100 * 160 / 255) / 10_000, abs=1e-5)
