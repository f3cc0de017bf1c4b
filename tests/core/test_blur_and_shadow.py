"""Backgrounds out of focus and cast shadows, by hand and in their limits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from text2layer_core.blending import BlendMode
from text2layer_core.blur import blur_background
from text2layer_core.layers import TwoLayerImage
from text2layer_core.shadow import ShadowOptions, add_shadow, cast_shadow
from text2layer_core.stack import Layer, LayerStack


def layers(dtype: torch.dtype = torch.float32) -> TwoLayerImage:
    mask = torch.zeros(2, 1, 50, 70)
    mask[..., 20:40, 30:50] = 1
    background = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    return TwoLayerImage(torch.full_like(background, 0.9).to(dtype), background.to(dtype), mask.to(dtype))


@pytest.mark.parametrize("kind", ["gaussian", "lens"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_background_alone_is_blurred(kind: str, dtype: torch.dtype) -> None:
    image = layers(dtype)
    before = image.background.clone()
    blurred = blur_background(image, 5.5, kind)
    assert blurred.foreground is image.foreground
    assert blurred.mask is image.mask
    assert blurred.background.dtype == dtype
    assert blurred.background.std() < 0.3 * image.background.std()
    assert torch.equal(image.background, before)
    flat = TwoLayerImage(image.foreground, torch.full_like(image.background, 0.25), image.mask)
    torch.testing.assert_close(blur_background(flat, 5.5, kind).background, flat.background, atol=1e-3, rtol=0)
    assert blur_background(image, 0, kind) is image


def test_a_lens_draws_a_point_as_a_disc_of_its_light() -> None:
    """A white point on black, radius 6: the disc holds the light, so its value is 1 / area in linear light."""
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    image = TwoLayerImage(point, point, torch.zeros(1, 1, 41, 41))
    disc = blur_background(image, 6.0, "lens").background[0, 0]
    linear = torch.where(disc <= 0.04045, disc / 12.92, ((disc + 0.055) / 1.055) ** 2.4)
    assert float(linear.sum()) == pytest.approx(1, rel=1e-2)
    assert float(linear[20, 20]) == pytest.approx(float(linear[20, 25]), rel=1e-3)
    assert float(linear[20, 28]) == pytest.approx(0, abs=1e-5)


def test_blur_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="radius must be at least 0 pixels and finite, got nan"):
        blur_background(layers(), float("nan"))
    with pytest.raises(ValueError, match="kind must be one of gaussian, lens, got box"):
        blur_background(layers(), 1, "box")


def on_canvas(layer: Layer, height: int, width: int) -> torch.Tensor:
    """The shadow's mask on the canvas; whole-pixel places alone."""
    assert layer.mask is not None
    rows, columns = layer.mask.shape[-2:]
    canvas = torch.zeros(*layer.mask.shape[:2], height + 2 * rows, width + 2 * columns)
    top, left = rows + int(layer.y), columns + int(layer.x)
    canvas[..., top : top + rows, left : left + columns] = layer.mask
    return canvas[..., rows : rows + height, columns : columns + width]


def test_a_sharp_drop_shadow_is_the_mask_moved() -> None:
    mask = layers().mask
    shadow = cast_shadow(mask, ShadowOptions(x=7, y=4, blur=0, colour=(0.1, 0.2, 0.3)))
    expected = torch.zeros_like(mask)
    expected[..., 24:44, 37:57] = 1
    assert torch.equal(on_canvas(shadow, 50, 70), expected)
    assert shadow.blend_mode is BlendMode.MULTIPLY
    assert shadow.opacity == 0.5
    assert shadow.picture[0, :, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_soft_shadow_keeps_its_weight_beyond_the_canvas() -> None:
    mask = layers(torch.float64).mask
    shadow = cast_shadow(mask, ShadowOptions(x=60, y=40, blur=9))
    assert shadow.mask is not None
    assert shadow.mask.dtype == torch.float64
    torch.testing.assert_close(shadow.mask.sum(dim=(1, 2, 3)), mask.sum(dim=(1, 2, 3)), rtol=1e-2, atol=0)


def test_a_flat_shadow_lies_on_the_ground_and_leans() -> None:
    """Half as high from row 39 upwards, its top a whole height, 20 pixels, to the right."""
    shadow = on_canvas(cast_shadow(layers().mask, ShadowOptions(blur=0, height=0.5, slant=1.0)), 50, 70)[0, 0] > 0.5
    rows = shadow.any(dim=1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (30, 39)
    assert abs(float(shadow[39].nonzero().float().mean()) - 40.5) <= 1
    assert abs(float(shadow[30].nonzero().float().mean()) - 58.5) <= 1
    assert not cast_shadow(torch.zeros(1, 1, 9, 9), ShadowOptions(height=0.5)).mask.any()  # type: ignore[union-attr]


def test_a_shadow_goes_under_its_layer() -> None:
    stack = LayerStack.from_two_layers(layers())
    stack = replace(stack, layers=(stack.layers[0], replace(stack.layers[1], x=3.0, opacity=0.5)))
    shadowed = add_shadow(stack, 1, ShadowOptions(blur=0, opacity=0.8))
    assert [layer.name for layer in shadowed] == ["background", "foreground shadow", "foreground"]
    assert shadowed.layers[1].opacity == pytest.approx(0.4)
    assert shadowed.layers[1].x == cast_shadow(layers().mask, ShadowOptions(blur=0)).x + 3
    assert len(stack) == 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"x": float("inf")}, "x must be finite, got inf"),
    ({"blur": -1}, "blur must be at least 0 pixels and finite, got -1"),
    ({"height": 0}, "height must lie above 0 and be at most 4 times the thing's, got 0"),
    ({"slant": 9}, "slant must lie in .-4, 4. times the thing's height, got 9"),
    ({"opacity": 7}, "opacity must lie in .0, 1., got 7"),
    ({"colour": (0, 0, 2)}, "colour must be three values in .0, 1., got "),
])
def test_shadows_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShadowOptions(**changes)


def test_layers_that_cast_no_shadow_are_refused() -> None:
    stack = LayerStack.from_two_layers(layers())
    with pytest.raises(ValueError, match='layer "background" must have a mask or alpha to cast a shadow, got neither'):
        add_shadow(stack, 0)
    with pytest.raises(ValueError, match="position must lie between 0 and 1, got 2"):
        add_shadow(stack, 2)
    with pytest.raises(ValueError, match='layer "foreground" must not be scaled, flipped or turned'):
        add_shadow(stack.with_layer(1, rotation=0.5), 1)
    with pytest.raises(ValueError, match="must have room for the shadow, got 50 of 50 layers"):
        add_shadow(replace(stack, layers=(stack.layers[0], *[stack.layers[1]] * 49)), 1)
