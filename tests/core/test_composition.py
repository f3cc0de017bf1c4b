"""Whole documents: eq. 1 bit for bit, the specification in plain Python, ImageMagick, limits."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.imagemagick import composite
from text2layer_core.blending import BlendMode, mix
from text2layer_core.compositing import blend, compose
from text2layer_core.composition import compose_stack, without_full_alpha
from text2layer_core.layers import TwoLayerImage
from text2layer_core.stack import Layer, LayerStack


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def document(*layers: Layer, canvas: tuple[int, int] = (7, 5)) -> LayerStack:
    return LayerStack(canvas=canvas, layers=layers)


def layer(picture: Tensor, **changes: Any) -> Layer:
    return Layer(name="layer", picture=picture, **changes)


def colour(*rgba: float) -> Tensor:
    return torch.tensor(rgba, dtype=torch.float32).view(1, -1, 1, 1)


def two_layers(dtype: torch.dtype = torch.float32) -> TwoLayerImage:
    mask = random(3, 1, 5, 7, dtype=dtype, seed=2)
    mask[..., :2], mask[..., 5:] = 0, 1
    return TwoLayerImage(random(3, 3, 5, 7, dtype=dtype), random(3, 3, 5, 7, dtype=dtype, seed=1), mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_two_layers_are_eq_1_bit_for_bit(dtype: torch.dtype) -> None:
    image = two_layers(dtype)
    found = compose_stack(LayerStack.from_two_layers(image))
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat([compose(image), torch.ones_like(image.mask)], dim=1))
    assert torch.equal(without_full_alpha(found), compose(image))


def test_placed_layers_are_eq_1_bit_for_bit() -> None:
    """A cut-out at (-1, 3), turned by a quarter and mirrored, at 0.3 opacity, by indexing."""
    image, hat = two_layers(), random(3, 4, 3, 4, seed=3)
    stack = document(layer(image.background), layer(hat, x=-1, y=3, flip_horizontal=True, opacity=0.3))
    expected = image.background.clone()
    part = hat.flip(-1)[:, :, :2, 1:]
    expected[..., 3:, :3] = blend(part[:, :3], expected[..., 3:, :3], part[:, 3:] * 0.3)
    before = image.background.clone()
    assert torch.equal(compose_stack(stack)[:, :3], expected)
    assert torch.equal(image.background, before)


def test_by_hand() -> None:
    """Red at alpha 0.5 over blue at alpha 0.5: alpha 0.75, colour (0.5 red + 0.25 blue) / 0.75."""
    found = compose_stack(document(layer(colour(0, 0, 1, 0.5)), layer(colour(1, 0, 0, 0.5)), canvas=(1, 1)))
    assert found.flatten().tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0.75])


def test_linear_light_by_hand() -> None:
    """Half red over black: 0.5 in linear light is 0.7354 in sRGB (188 of 255), as ComfyUI's compositor gives."""
    stack = document(layer(colour(0, 0, 0)), layer(colour(1, 0, 0, 0.5)), canvas=(1, 1))
    assert compose_stack(stack, linear_light=True).flatten().tolist() == pytest.approx([0.73536, 0, 0, 1], abs=1e-4)
    assert compose_stack(stack).flatten().tolist() == pytest.approx([0.5, 0, 0, 1])
    flat = document(layer(random(2, 3, 5, 7)))
    torch.testing.assert_close(compose_stack(flat, linear_light=True), compose_stack(flat), atol=1e-5, rtol=0)


def specified(backdrop: Tensor, source: Tensor, mode: BlendMode) -> Tensor:
    """Section 5.8 word for word, in premultiplied float64: RGBA over RGBA."""
    cb, ab, cs, a = backdrop[:, :3].double(), backdrop[:, 3:].double(), source[:, :3].double(), source[:, 3:].double()
    cs = (1 - ab) * cs + ab * mix(cb, cs, mode)
    alpha = a + ab * (1 - a)
    premultiplied = cs * a + cb * ab * (1 - a)
    return torch.cat([premultiplied / alpha.clamp_min(1e-12), alpha], dim=1)


@pytest.mark.parametrize("mode", BlendMode)
@pytest.mark.parametrize("opacity", [1.0, 0.4])
def test_every_mode_follows_the_specification(mode: BlendMode, opacity: float) -> None:
    backdrop, source = random(2, 4, 5, 7), random(2, 4, 5, 7, seed=1)
    found = compose_stack(document(layer(backdrop), layer(source, blend_mode=mode, opacity=opacity)))
    source[:, 3:] *= opacity
    torch.testing.assert_close(found.double(), specified(backdrop, source, mode), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", list(BlendMode)[:12])
def test_separable_modes_with_alpha_agree_with_imagemagick(mode: BlendMode, tmp_path: Path) -> None:
    """Premultiplied, since colour under little alpha is coarse in its files."""
    backdrop, source = (random(1, 4, 24, 24, seed=seed, dtype=torch.float64) for seed in (1, 2))
    name = "over" if mode == BlendMode.NORMAL else mode.value
    theirs = composite(tmp_path, name, backdrop, source)
    ours = compose_stack(document(layer(backdrop), layer(source, blend_mode=mode), canvas=(24, 24)))
    for picture in (ours, theirs):
        picture[:, :3] *= picture[:, 3:]
    assert (ours - theirs).abs().max() <= 1 / 255


def test_opaque_layer_hides_all_below() -> None:
    top = random(2, 3, 5, 7)
    stack = document(layer(random(2, 4, 5, 7, seed=1)), layer(random(2, 3, 2, 2, seed=2), x=3), layer(top))
    assert torch.equal(without_full_alpha(compose_stack(stack)), top)


@pytest.mark.parametrize("change", [{"opacity": 0.0}, {"visible": False}, {"x": 50}, {"mask": torch.zeros(2, 1, 5, 7)}])
@pytest.mark.parametrize("mode", [BlendMode.NORMAL, BlendMode.COLOR_DODGE, BlendMode.HUE])
def test_what_does_not_show_changes_nothing(change: dict[str, Any], mode: BlendMode) -> None:
    """Bit for bit, over an opaque layer and over one with alpha."""
    for channels in (3, 4):
        bottom = layer(random(2, channels, 5, 7).clamp_min(0.1))
        top = layer(random(2, 3, 5, 7, seed=1), blend_mode=mode, **change)
        assert torch.equal(compose_stack(document(bottom, top)), compose_stack(document(bottom)))


def test_nothing_visible_is_transparent() -> None:
    found = compose_stack(document(layer(random(2, 3, 5, 7), visible=False)))
    assert torch.equal(found, torch.zeros(2, 4, 5, 7))


def test_a_single_layer_keeps_its_hidden_colour() -> None:
    picture = random(2, 4, 5, 7)
    picture[:, 3, :2] = 0
    assert torch.equal(compose_stack(document(layer(picture))), picture)


def test_alpha_and_mask_multiply() -> None:
    picture, mask = random(1, 4, 5, 7), random(1, 1, 5, 7, seed=1)
    found = compose_stack(document(layer(picture, mask=mask, opacity=0.5)))
    assert torch.equal(found[:, 3:], picture[:, 3:] * mask * 0.5)


def test_the_batch_is_each_picture_by_itself() -> None:
    parts = [random(3, 4, 5, 7, seed=seed) for seed in range(3)]
    turned = {"rotation": 0.4, "x": 1.5, "blend_mode": BlendMode.SOFT_LIGHT}
    whole = compose_stack(document(layer(parts[0]), layer(parts[1], **turned), layer(parts[2], opacity=0.7)))
    for i in range(3):
        one = [part[i : i + 1] for part in parts]
        single = compose_stack(document(layer(one[0]), layer(one[1], **turned), layer(one[2], opacity=0.7)))
        torch.testing.assert_close(whole[i : i + 1], single)


@pytest.mark.parametrize("linear_light", [False, True])
def test_carries_gradients_through_every_mode_and_leaves_inputs_alone(linear_light: bool) -> None:
    pictures = [random(1, 4, 5, 7, seed=seed) for seed in range(len(BlendMode))]
    for picture in pictures:
        picture[..., 0], picture[..., 1] = 0, 1
    before = [picture.clone() for picture in pictures]
    for picture in pictures:
        picture.requires_grad_()
    layers = [layer(picture, blend_mode=mode, opacity=0.5, x=float(i % 3), rotation=i % 2 * math.pi / 2)
              for i, (picture, mode) in enumerate(zip(pictures, BlendMode, strict=True))]
    compose_stack(document(*layers), linear_light=linear_light).sum().backward()
    for picture, old in zip(pictures, before, strict=True):
        assert picture.grad is not None
        assert bool(picture.grad.isfinite().all())
        assert torch.equal(picture.detach(), old)


def test_fifty_layers() -> None:
    """By hand: each halves what is left of the black below; 50 half white layers leave 2^-50."""
    white = layer(torch.ones(1, 3, 1, 1), opacity=0.5)
    found = compose_stack(document(layer(torch.zeros(1, 3, 1, 1)), *[white] * 49, canvas=(1, 1)))
    assert found.flatten().tolist() == pytest.approx([1, 1, 1, 1])


def test_full_alpha_goes() -> None:
    picture = torch.cat([random(2, 3, 4, 4), torch.ones(2, 1, 4, 4)], dim=1)
    assert torch.equal(without_full_alpha(picture), picture[:, :3])
    picture[1, 3, 2, 2] = 0.999
    assert without_full_alpha(picture) is picture
    with pytest.raises(ValueError, match=r"got \(2, 1, 4, 4\)"):
        without_full_alpha(picture[:, :1])


def test_refuses_unknown_interpolations() -> None:
    with pytest.raises(ValueError, match="interpolation must be one of"):
        compose_stack(document(layer(random(1, 3, 2, 2))), interpolation="nearest")


def test_modes_on_every_pair_of_limits() -> None:
    """Colours 0 and 1, alphas 0, 0.5 and 1, each over each: finite, in range, the specification's values."""
    values = torch.tensor(list(product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 0.5, 1.0)))).T.reshape(1, 4, 24, 1)
    backdrop = values.expand(1, 4, 24, 24).contiguous()
    source = values.movedim(2, 3).expand(1, 4, 24, 24).contiguous()
    for mode in BlendMode:
        found = compose_stack(document(layer(backdrop), layer(source, blend_mode=mode), canvas=(24, 24)))
        expected = specified(backdrop, source, mode).float()
        shows = (expected[:, 3:] > 0).expand_as(expected)
        torch.testing.assert_close(found[shows], expected[shows], atol=1e-5, rtol=0)
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("linear_light", [False, True])
def test_stays_on_the_device(linear_light: bool) -> None:
    """On PyTorch's "meta" device, which computes no values but refuses any tensor that is elsewhere."""
    picture = torch.rand(2, 4, 5, 7, device="meta")
    geometry = [{}, {"rotation": 0.3, "opacity": 0.5}, {"width": 3.0, "blend_mode": "hue"}, {"x": 2}]
    stack = document(*(layer(picture, **each) for each in geometry))
    found = compose_stack(stack, linear_light=linear_light)
    assert found.device.type == "meta"
    assert found.shape == (2, 4, 5, 7)
