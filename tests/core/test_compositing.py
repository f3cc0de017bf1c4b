"""Eq. 1 by hand and in its limits; padded foregrounds by what they must keep and may fill in."""

import pytest
import torch
from torch import Tensor

from text2layer_core.compositing import blend, check_mask_shape, compose, pad_foreground
from text2layer_core.layers import TwoLayerImage


def layers(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    foreground, background = (torch.rand(3, 3, 5, 7, generator=generator).to(dtype) for _ in range(2))
    return foreground, background, torch.rand(3, 1, 5, 7, generator=generator).to(dtype)


def test_blend_by_hand() -> None:
    """0.25 * 0.8 + 0.75 * 0.4 = 0.5."""
    one = torch.ones(1, 3, 1, 1)
    assert blend(0.8 * one, 0.4 * one, 0.25 * one[:, :1]).flatten().tolist() == pytest.approx([0.5] * 3, abs=1e-7)


def test_blend_agrees_with_float64() -> None:
    foreground, background, mask = layers()
    exact = mask.double() * foreground.double() + (1 - mask.double()) * background.double()
    assert (blend(foreground, background, mask) - exact).abs().max() < 1e-6


def test_blend_in_its_limits() -> None:
    foreground, background, mask = layers()
    assert torch.equal(blend(foreground, background, torch.zeros_like(mask)), background)
    assert torch.equal(blend(foreground, background, torch.ones_like(mask)), foreground)
    torch.testing.assert_close(blend(foreground, foreground, mask), foreground, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_compose_is_blend_keeps_the_dtype_and_changes_nothing(dtype: torch.dtype) -> None:
    given = layers(dtype)
    before = [part.clone() for part in given]
    composed = compose(TwoLayerImage(*given))
    assert composed.dtype == dtype
    assert torch.equal(composed, blend(*given))
    assert all(torch.equal(part, old) for part, old in zip(given, before, strict=True))


def test_blend_carries_gradients_to_the_mask() -> None:
    """dI/dm = F - B, summed over the three channels."""
    foreground, background, mask = layers()
    mask.requires_grad_()
    blend(foreground, background, mask).sum().backward()
    torch.testing.assert_close(mask.grad, (foreground - background).sum(dim=1, keepdim=True))


def test_blend_refuses_shapes_that_would_broadcast() -> None:
    foreground, background, mask = layers()
    with pytest.raises(ValueError, match=r"must have one shape \(N, C, H, W\), got \(3, 3, 5, 7\) and \(1, 3, 5, 7\)"):
        blend(foreground, background[:1], mask)
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 1, 5, 7\) to match, got \(3, 5, 7\)"):
        blend(foreground, background, mask[:, 0])
    with pytest.raises(ValueError, match=r"a picture must have shape \(N, C, H, W\), got \(3, 5, 7\)"):
        check_mask_shape(mask, foreground[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (13, 37)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_padding_keeps_every_known_pixel_bit_for_bit(size: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    foreground = torch.rand(4, 3, *size, generator=generator).to(dtype)
    mask = torch.rand(4, 1, *size, generator=generator).sub(0.6).clamp_min(0).to(dtype)
    before = foreground.clone(), mask.clone()
    padded = pad_foreground(foreground, mask)
    known = (mask > 0).expand_as(foreground)
    assert padded.dtype == dtype
    assert torch.equal(padded[known], foreground[known])
    assert padded.min() >= 0
    assert padded.max() <= 1
    assert torch.equal(foreground, before[0])
    assert torch.equal(mask, before[1])


def test_padding_leaves_full_and_empty_masks_alone() -> None:
    foreground, _, mask = layers()
    assert torch.equal(pad_foreground(foreground, torch.ones_like(mask)), foreground)
    assert torch.equal(pad_foreground(foreground, torch.zeros_like(mask)), foreground)


def test_one_almost_transparent_pixel_colours_the_whole_picture() -> None:
    """With a single known colour every average is that colour, however small its mask."""
    foreground, mask = torch.zeros(1, 3, 11, 6), torch.zeros(1, 1, 11, 6)
    colour = torch.tensor([0.2, 0.6, 0.9])
    foreground[0, :, 4, 3] = colour
    mask[0, 0, 4, 3] = 1e-30
    torch.testing.assert_close(pad_foreground(foreground, mask), colour.view(1, 3, 1, 1).expand(1, 3, 11, 6))


def test_padding_takes_the_nearer_colour() -> None:
    """A red left and a blue right rim: the pixels beside each rim take after it, the middle lies between."""
    foreground, mask = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    foreground[:, 0, :, 0] = foreground[:, 2, :, 15] = 1
    mask[..., 0] = mask[..., 15] = 1
    padded = pad_foreground(foreground, mask)[0, :, 8]
    assert padded[0, 1] > 0.8 > 0.2 > padded[2, 1]
    assert padded[2, 14] > 0.8 > 0.2 > padded[0, 14]
    torch.testing.assert_close(padded[0], padded[2].flip(0))


def test_padding_a_batch_is_padding_each_sample() -> None:
    foreground, _, mask = layers()
    mask = (mask - 0.7).clamp_min(0)
    mask[1] = 0
    each = [pad_foreground(foreground[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(pad_foreground(foreground, mask), torch.cat(each))


def test_padding_refuses_a_mask_that_does_not_match() -> None:
    foreground, _, mask = layers()
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 1, 5, 7\) to match, got \(1, 1, 5, 7\)"):
        pad_foreground(foreground, mask[:1])
