"""TwoLayerImage: what it holds, what it refuses. Expected values are slices of the inputs."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core.layers import TwoLayerImage


def parts(count: int = 2, height: int = 4, width: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"foreground": 3, "background": 3, "mask": 1}
    return {name: torch.rand(count, c, height, width, generator=generator).to(dtype) for name, c in sizes.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_holds_its_parts_as_given(dtype: torch.dtype) -> None:
    given = parts(dtype=dtype)
    image = TwoLayerImage(**given)
    assert image.foreground is given["foreground"]
    assert image.background is given["background"]
    assert image.mask is given["mask"]
    assert (image.batch_size, len(image), image.height, image.width) == (2, 2, 4, 6)
    assert image.rgba.dtype == dtype
    assert torch.equal(image.rgba, torch.cat([given["foreground"], given["mask"]], dim=1))


def test_is_frozen() -> None:
    image = TwoLayerImage(**parts())
    with pytest.raises(FrozenInstanceError):
        image.mask = torch.zeros(2, 1, 4, 6)  # type: ignore[misc]


def test_stack_and_back_are_inverse_and_in_the_order_of_the_paper() -> None:
    image = TwoLayerImage(**parts())
    stack = image.stack()
    assert stack.shape == (2, 7, 4, 6)
    assert torch.equal(stack[:, 3:6], image.background)
    assert torch.equal(stack[:, 6:], image.mask)
    again = TwoLayerImage.from_stack(stack)
    assert torch.equal(again.foreground, image.foreground)
    assert torch.equal(again.background, image.background)
    assert torch.equal(again.mask, image.mask)


def test_indexing_keeps_the_batch() -> None:
    image = TwoLayerImage(**parts(count=3))
    assert torch.equal(image[1].foreground, image.foreground[1:2])
    assert torch.equal(image[-1].mask, image.mask[2:3])
    assert torch.equal(image[1:].background, image.background[1:])
    assert [len(one) for one in image] == [1, 1, 1]


def test_crop_takes_the_upper_left() -> None:
    image = TwoLayerImage(**parts())
    cropped = image.crop(3, 5)
    assert torch.equal(cropped.stack(), image.stack()[:, :, :3, :5])
    assert torch.equal(image.crop(4, 6).stack(), image.stack())


def test_to_changes_every_part() -> None:
    image = TwoLayerImage(**parts())
    half = image.to(torch.float16)
    assert {half.foreground.dtype, half.background.dtype, half.mask.dtype} == {torch.float16}
    assert image.mask.dtype == torch.float32
    assert image.to("meta").mask.device.type == "meta"
    assert torch.equal(image.to(device="cpu", dtype=torch.float64).mask, image.mask.double())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_are_inside(value: float) -> None:
    TwoLayerImage(**{name: torch.full_like(part, value) for name, part in parts().items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [[0.5]]}, "mask must be a torch tensor, got list"),
        ({"mask": torch.zeros(2, 1, 4, 6, dtype=torch.uint8)}, "mask must have a floating dtype, got torch.uint8"),
        (
            {"foreground": torch.zeros(3, 4, 6)},
            r"foreground must have shape \(N, 3, H, W\), none of them 0, got \(3, 4, 6\)",
        ),
        ({"foreground": torch.zeros(2, 4, 4, 6)}, r"none of them 0, got \(2, 4, 4, 6\)"),
        ({"foreground": torch.zeros(0, 3, 4, 6)}, r"none of them 0, got \(0, 3, 4, 6\)"),
        (
            {"background": torch.zeros(2, 3, 4, 5)},
            r"background must have shape \(2, 3, 4, 6\) to match foreground, got \(2, 3, 4, 5\)",
        ),
        ({"mask": torch.zeros(2, 4, 6)}, r"mask must have shape \(2, 1, 4, 6\) to match foreground, got \(2, 4, 6\)"),
        (
            {"mask": torch.zeros(2, 1, 4, 6, dtype=torch.float64)},
            "mask must have dtype torch.float32 to match foreground, got torch.float64",
        ),
        ({"mask": torch.zeros(2, 1, 4, 6, device="meta")}, "mask must be on cpu to match foreground, got meta"),
        (
            {"mask": torch.full((2, 1, 4, 6), 1.5)},
            r"mask must be finite and in \[0, 1\], got values from 1.5 to 1.5",
        ),
        ({"background": torch.full((2, 3, 4, 6), -0.25)}, "background must be finite.*from -0.25 to -0.25"),
        ({"foreground": torch.full((2, 3, 4, 6), float("nan"))}, "foreground must be finite.*from nan to nan"),
        ({"foreground": torch.full((2, 3, 4, 6), float("inf"))}, "foreground must be finite.*from inf to inf"),
    ],
)
def test_refuses_what_is_no_two_layer_image(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoLayerImage(**(parts() | change))


def test_a_single_bad_value_is_found() -> None:
    given = parts()
    given["background"][1, 2, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="background must be finite"):
        TwoLayerImage(**given)


def test_refuses_bad_stacks_crops_and_indices() -> None:
    image = TwoLayerImage(**parts())
    with pytest.raises(ValueError, match=r"stack must have shape \(N, 7, H, W\), got \(2, 10, 4, 6\)"):
        TwoLayerImage.from_stack(torch.zeros(2, 10, 4, 6))
    with pytest.raises(ValueError, match="stack must have a floating dtype"):
        TwoLayerImage.from_stack(torch.zeros(2, 7, 4, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"crop must lie between 1x1 and 4x6 \(height x width\), got 5x6"):
        image.crop(5, 6)
    with pytest.raises(ValueError, match="crop must lie between 1x1 and 4x6"):
        image.crop(4, 0)
    with pytest.raises(IndexError, match=r"index must lie in \[-2, 2\), got 2"):
        image[2]
    with pytest.raises(ValueError, match="none of them 0"):
        image[2:]


def test_pad_continues_the_border_and_crop_takes_it_off() -> None:
    """By hand: 3x5 to multiples of 4 is 4x8, the last row and column repeated."""
    stack = torch.rand(2, 7, 3, 5)
    padded = TwoLayerImage.from_stack(stack).pad(4)
    assert (padded.height, padded.width) == (4, 8)
    assert torch.equal(padded.stack()[..., 3, :5], stack[..., 2, :])
    assert torch.equal(padded.stack()[..., :3, 7], stack[..., 4])
    assert torch.equal(padded.crop(3, 5).stack(), stack)
    assert torch.equal(padded.pad(4).stack(), padded.stack())
