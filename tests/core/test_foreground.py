"""True colours under a mask: pictures composed from known layers, and the method's own limits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core.compositing import blend
from text2layer_core.foreground import estimate_foreground


def soft_disc(count: int, height: int, width: int, softness: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((y - height / 2) ** 2 + (x - width / 2) ** 2).sqrt()
    disc = ((min(height, width) / 3 - distance) / softness + 0.5).clamp(0, 1)
    return disc.expand(count, 1, height, width).clone()


def smooth(seed: int, count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("size", [(40, 40), (150, 97), (400, 300)])
def test_flat_layers_come_back(size: tuple[int, int]) -> None:
    """Two plain colours: the constant answer solves every level's equations."""
    mask = soft_disc(2, *size, 9.0)
    colours = ([0.9, 0.2, 0.1], [0.1, 0.3, 1.0])
    red, blue = (torch.tensor(colour).view(1, 3, 1, 1).expand(2, 3, *size) for colour in colours)
    foreground, background = estimate_foreground(blend(red, blue, mask), mask)
    assert (foreground - red).abs().max() < 0.03
    assert (background - blue).abs().max() < 0.03


def test_smooth_layers_come_back_and_recompose() -> None:
    mask = soft_disc(2, 200, 260, 14.0)
    truth, behind = smooth(0, 2, 200, 260), smooth(1, 2, 200, 260)
    image = blend(truth, behind, mask)
    foreground, background = estimate_foreground(image, mask)
    band = ((mask > 0.02) & (mask < 0.98)).expand_as(image)
    assert (foreground - truth).abs()[band].mean() < 0.4 * (image - truth).abs()[band].mean()
    assert (blend(foreground, background, mask) - image).abs().max() < 0.03


def test_each_layer_is_the_picture_where_it_alone_shows() -> None:
    mask, image = soft_disc(1, 61, 300, 5.0), smooth(2, 1, 61, 300)
    before = image.clone(), mask.clone()
    foreground, background = estimate_foreground(image, mask)
    opaque, clear = (mask == 1).expand_as(image), (mask == 0).expand_as(image)
    assert torch.equal(foreground[opaque], image[opaque])
    assert torch.equal(background[clear], image[clear])
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_the_foreground_goes_on_under_mask_0() -> None:
    """A red disc on blue: red in the corners too."""
    mask = soft_disc(1, 90, 90, 3.0)
    image = torch.zeros(1, 3, 90, 90)
    image[:, :1], image[:, 2:] = mask, 1 - mask
    foreground, background = estimate_foreground(image, mask)
    assert foreground[0, 0].min() > 0.9
    assert background[0, 2].min() > 0.9


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_with_one_layer_alone_both_are_the_picture(value: float) -> None:
    image = smooth(3, 2, 20, 30)
    assert all(torch.equal(layer, image) for layer in estimate_foreground(image, torch.full((2, 1, 20, 30), value)))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 300), (3, 3), (5, 513)])
def test_every_size_works(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    for layer in estimate_foreground(image, mask):
        assert layer.shape == image.shape
        assert 0 <= layer.min() <= layer.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_stays_and_samples_are_apart(dtype: torch.dtype) -> None:
    image, mask = smooth(4, 3, 40, 50).to(dtype), soft_disc(3, 40, 50, 6.0).to(dtype)
    mask[1] = 0
    whole = estimate_foreground(image, mask)
    for index in range(3):
        one = estimate_foreground(image[index : index + 1], mask[index : index + 1])
        for layer, alone in zip(whole, one, strict=True):
            assert layer.dtype == dtype
            assert torch.equal(layer[index : index + 1], alone)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="mask must have the size of image, 8x6, got 8x5"):
        estimate_foreground(torch.rand(1, 3, 6, 8), torch.rand(1, 1, 5, 8))
    with pytest.raises(ValueError, match="mask must be finite"):
        estimate_foreground(torch.rand(1, 3, 6, 8), torch.full((1, 1, 6, 8), torch.nan))


def test_a_picture_with_gradients_is_taken_without_them() -> None:
    image, mask = smooth(5, 1, 30, 40).requires_grad_(), soft_disc(1, 30, 40, 5.0)
    assert not any(layer.requires_grad for layer in estimate_foreground(image, mask))
