"""Flat pictures to layers, and the way to an inpainter and back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core.compositing import blend, compose
from text2layer_core.decompose import InpaintOptions, decompose, fill_hole, paste_back, prepare_inpaint
from text2layer_core.masks import grow_mask


def photograph(height: int = 90, width: int = 120, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A soft red disc on a blue ramp, and a green one: picture, mask, background."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((18 - ((y - 45) ** 2 + (x - 50) ** 2).sqrt()) / 5 + 0.5).clamp(0, 1).expand(2, 1, -1, -1)
    red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1).expand(2, 3, height, width)
    ramp = (0.3 + 0.5 * x / width).expand(height, width)
    background = torch.stack([torch.stack([0 * ramp, 0.2 + 0 * ramp, ramp]), torch.stack([0 * ramp, ramp, 0 * ramp])])
    return blend(red, background, mask).to(dtype), mask.to(dtype).clone(), background.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_picture_comes_apart_into_its_colours(dtype: torch.dtype) -> None:
    """Red all over the foreground; behind it the ramp goes on to within what a smooth filling can know."""
    image, mask, background = photograph(dtype=dtype)
    before = image.clone(), mask.clone()
    layers = decompose(image, mask)
    assert layers.foreground.dtype == layers.background.dtype == dtype
    assert (layers.foreground[:, 0] - 0.9).abs().max() < 0.05
    assert (layers.background - background).abs().max() < 0.12
    assert (layers.background - background).abs().mean() < 0.01
    assert torch.equal(layers.mask, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_outside_the_mask_the_composed_picture_is_the_given_one() -> None:
    image, mask, _ = photograph()
    away = (grow_mask(mask, 2) == 0).expand_as(image)
    assert torch.equal(compose(decompose(image, mask))[away], image[away])


def test_a_filled_background_is_taken_as_it_is() -> None:
    image, mask, background = photograph()
    assert torch.equal(decompose(image, mask, background).background, background)
    assert (compose(decompose(image, mask, background)) - image).abs().max() < 0.05


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_with_nothing_or_everything_masked_both_layers_are_the_picture(value: float) -> None:
    image, mask, _ = photograph()
    layers = decompose(image, torch.full_like(mask, value))
    assert torch.equal(layers.foreground, image)
    assert torch.equal(layers.background, image)


def test_the_filling_changes_the_hole_alone_and_shows_nothing_of_the_thing() -> None:
    image, mask, _ = photograph()
    filled = fill_hole(image, mask)
    outside = (grow_mask((mask > 0.02).float(), 1) == 0).expand_as(image)
    assert torch.equal(filled[outside], image[outside])
    assert filled[:, 0].max() < 0.02


def test_a_window_by_hand() -> None:
    """Rows 20 to 29 and columns 40 to 59 grown by 4: 16 to 33 and 36 to 63; 6 of context, then multiples of 8."""
    image, mask = torch.rand(1, 3, 80, 100), torch.zeros(1, 1, 80, 100)
    mask[..., 20:30, 40:60] = 1
    crop = prepare_inpaint(image, mask, InpaintOptions(dilate=4, feather=2, context=6))
    assert tuple(crop.image.shape) == (1, 3, 32, 40)
    assert (crop.x, crop.y) == (30, 9)
    assert torch.equal(crop.image, image[..., 9:41, 30:70])
    assert torch.equal(crop.hole, grow_mask(mask, 4)[..., 9:41, 30:70])
    assert torch.equal(crop.blend > 0, (crop.blend > 0) & (crop.hole == 1))
    assert (crop.blend[mask[..., 9:41, 30:70] == 1] == 1).all()
    assert ((crop.blend > 0.01) & (crop.blend < 0.99)).any()


@pytest.mark.parametrize(("options", "size", "place"), [
    ({"dilate": 0, "feather": 0, "context": 0, "multiple": 1}, (10, 20), (40, 20)),
    ({"dilate": 0, "feather": 0, "context": 1000}, (80, 96), (2, 0)),
    ({"dilate": 0, "feather": 0, "context": 1000, "multiple": 64}, (64, 64), (18, 0)),
])
def test_windows_stay_in_the_picture(options: dict[str, Any], size: tuple[int, int], place: tuple[int, int]) -> None:
    image, mask = torch.rand(1, 3, 80, 100), torch.zeros(1, 1, 80, 100)
    mask[..., 20:30, 40:60] = 1
    crop = prepare_inpaint(image, mask, InpaintOptions(**options))
    assert (tuple(crop.image.shape[-2:]), (crop.x, crop.y)) == (size, place)


def test_a_hole_that_fits_no_multiple_gets_the_whole_side() -> None:
    crop = prepare_inpaint(torch.rand(1, 3, 30, 45), torch.ones(1, 1, 30, 45))
    assert tuple(crop.image.shape[-2:]) == (30, 45)
    assert (crop.x, crop.y) == (0, 0)
    assert crop.blend.min() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pasting_back_changes_no_pixel_outside_the_hole(dtype: torch.dtype) -> None:
    image, mask, _ = photograph(dtype=dtype)
    before = image.clone()
    crop = prepare_inpaint(image, mask, InpaintOptions(context=10))
    result = paste_back(image, torch.full_like(crop.image, 0.5), crop.blend, crop.x, crop.y)
    outside = (grow_mask((mask > 0.02).to(dtype), 16) == 0).expand_as(image)
    assert result.dtype == dtype
    assert torch.equal(result[outside], image[outside])
    assert torch.equal(image, before)
    inside = (mask > 0.02).expand_as(image)
    assert (result[inside] - 0.5).abs().max() < 2e-3
    assert torch.equal(paste_back(image, crop.image, crop.blend, crop.x, crop.y), image)


@pytest.mark.parametrize(("call", "message"), [
    (lambda i, m: decompose(i, m, i[:1]), r"background must have the shape \(2, 3, 90, 120\) of image, got \(1, 3"),
    (lambda i, m: decompose(i, m[..., :80]), "mask must have the size of image, 120x90, got 80x90"),
    (lambda i, m: decompose(i, m * torch.nan), "mask must be finite"),
    (lambda i, m: fill_hole(i, m[:1]), r"one mask per picture \(2\), got 1"),
    (lambda i, m: prepare_inpaint(i, m * 0), "mask must show what is to go in at least one picture, got an empty mask"),
    (lambda i, m: paste_back(i, i[..., :40], m, 0, 0), "size of the window that was prepared, 120x90, got 40x90"),
    (lambda i, m: paste_back(i, i[:1], m, 0, 0), "must have one batch size and 3, 3 and 1 channels"),
    (lambda i, m: paste_back(i, i, m, 1, 0), r"the window 120x90 at \(1, 0\) must lie in the picture, 120x90"),
    (lambda i, m: paste_back(i, i + 1, m, 0, 0), "inpainted must be finite and in .0, 1."),
    (lambda i, m: InpaintOptions(dilate=-1), "dilate must be at least 0 pixels and finite, got -1"),
    (lambda i, m: InpaintOptions(feather=9), r"feather must lie between 0 and half of dilate \(8\), got 9"),
    (lambda i, m: InpaintOptions(context=-1), "context must be at least 0 pixels, got -1"),
    (lambda i, m: InpaintOptions(multiple=0), "multiple must be at least 1 pixel, got 0"),
])
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    image, mask, _ = photograph()
    with pytest.raises(ValueError, match=message):
        call(image, mask)
