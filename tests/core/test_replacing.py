"""Another picture in a layer's place: where it goes by hand, what stays bit for bit, what looks alike."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from kornia.color import rgb_to_lab
from torch import Tensor

from text2layer_core.blending import BlendMode
from text2layer_core.composition import compose_stack
from text2layer_core.layers import TwoLayerImage
from text2layer_core.replacing import Fit, fit_box, replace_layer
from text2layer_core.stack import LayerStack


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def disc(count: int, height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = torch.hypot(x - (width - 1) / 2, y - (height - 1) / 2)
    return (min(height, width) / 3 - radius).clamp(0, 1).expand(count, 1, -1, -1)


def document(count: int = 2) -> LayerStack:
    image = TwoLayerImage(random(count, 3, 24, 32), random(count, 3, 24, 32, seed=1), disc(count, 24, 32).contiguous())
    return LayerStack.from_two_layers(image)


@pytest.mark.parametrize(("size", "fit", "expected"), [
    ((20, 10), "cover", (-5, 2, 40, 20)), ((20, 10), "contain", (0, 4, 30, 15)), ((20, 10), "stretch", (0, 2, 30, 20)),
    ((20, 10), "none", (5, 7, 20, 10)), ((10, 20), "cover", (0, -18, 30, 60)), ((10, 20), "contain", (10, 2, 10, 20)),
    ((50, 50), "none", (-10, -13, 50, 50)), ((7, 3), "cover", (-9, 2, 47, 20)), ((1000, 1), "contain", (0, 11, 30, 1)),
])
def test_fits_by_hand(size: tuple[int, int], fit: str, expected: tuple[float, ...]) -> None:
    """Into a box of 30x20 at (0, 2); whole pixels, what is over goes half to either side."""
    assert fit_box(size, (0, 2, 30, 20), fit) == expected


@pytest.mark.parametrize("fit", Fit)
def test_a_new_background_of_the_same_size_is_eq_1(fit: Fit) -> None:
    stack, new = document(), random(2, 3, 24, 32, seed=5)
    found = replace_layer(stack, 0, new, fit=fit)
    foreground = stack.layers[1]
    assert foreground.mask is not None
    image = TwoLayerImage(foreground.picture, new, foreground.mask)
    assert torch.equal(compose_stack(found), compose_stack(LayerStack.from_two_layers(image)))
    assert found.layers[1] is foreground


def test_a_new_background_of_another_size_covers_the_canvas() -> None:
    found = replace_layer(document(), 0, random(2, 3, 50, 11, seed=5))
    assert found.layers[0].box == (0, -61, 32, 145)
    assert bool((compose_stack(found)[:, 3] == 1).all())
    assert [layer.name for layer in found] == ["background", "foreground"]


@pytest.mark.parametrize("options", [
    {}, {"colour_match": "replaced"}, {"colour_match": "background"}, {"wrap_strength": 1.0},
    {"fit": "contain", "colour_match": "background", "wrap_strength": 0.5},
])
def test_outside_the_mask_nothing_changes_with_the_foreground(options: dict[str, Any]) -> None:
    stack = document()
    mask = disc(2, 20, 20).contiguous()
    found = replace_layer(stack, 1, random(2, 3, 20, 20, seed=5), mask, **options)
    assert found.layers[0] is stack.layers[0]
    composed = compose_stack(found)[:, :3]
    coverage = compose_stack(LayerStack(canvas=stack.canvas, layers=found.layers[1:]))[:, 3:]
    outside = (coverage == 0).expand_as(composed)
    assert outside.float().mean() > 0.2
    assert torch.equal(composed[outside], stack.layers[0].picture[outside])
    assert not torch.equal(composed, compose_stack(stack)[:, :3])


def test_keeps_the_layers_settings_but_not_its_mask() -> None:
    old = document().with_layer(1, x=3, rotation=0.5, opacity=0.4, blend_mode=BlendMode.SCREEN, flip_vertical=True)
    new = replace_layer(old, -1, random(2, 4, 12, 16, seed=5)).layers[1]
    assert (new.name, new.opacity, new.blend_mode, new.rotation) == ("foreground", 0.4, "screen", 0.5)
    assert (new.box, new.flip_vertical, new.mask) == ((3, 0, 32, 24), False, None)


def test_the_new_picture_takes_on_the_colours_of_the_old_one() -> None:
    stack = document()
    dark = random(2, 3, 24, 32, seed=5) * 0.2
    found = replace_layer(stack, 0, dark, colour_match="replaced").layers[0]
    for channel in range(3):
        means = [rgb_to_lab(each)[:, channel].mean() for each in (dark, found.colour, stack.layers[0].colour)]
        assert abs(means[1] - means[2]) < 3, "clipped to sRGB, so not exactly"
    assert replace_layer(stack, 0, dark, colour_match="replaced", match_strength=0).layers[0].picture.equal(dark)


def test_the_foreground_takes_on_the_colours_of_a_new_background() -> None:
    stack = document()
    blue = random(2, 3, 24, 32, seed=5) * torch.tensor([0.1, 0.3, 0.9]).view(1, 3, 1, 1)
    found = replace_layer(stack, 0, blue, colour_match="background")
    assert torch.equal(found.layers[0].picture, blue)
    new, old = found.layers[1], stack.layers[1]
    assert new.mask is old.mask
    assert new.colour[:, 0].mean() < old.colour[:, 0].mean() - 0.2


def test_light_wraps_a_turned_layer_and_keeps_its_alpha() -> None:
    stack = document().with_layer(1, rotation=0.4, picture=torch.zeros(2, 3, 24, 32))
    white = torch.ones(2, 3, 24, 32)
    plain, wrapped = (replace_layer(stack, 0, white, wrap_strength=strength) for strength in (0.0, 1.0))
    fronts = [compose_stack(LayerStack(canvas=stack.canvas, layers=each.layers[1:])) for each in (plain, wrapped)]
    torch.testing.assert_close(fronts[0][:, 3], fronts[1][:, 3])
    assert fronts[0][:, :3].max() < 1e-6
    assert fronts[1][:, :3].max() > 0.3


@pytest.mark.parametrize("changes", [{"x": 500.0}, {"visible": False}])
@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_layers_that_do_not_show_are_no_trouble(changes: dict[str, Any], mask: float) -> None:
    stack = document().with_layer(1, mask=torch.full((2, 1, 24, 32), mask), **changes)
    found = replace_layer(stack, 0, random(2, 3, 9, 9), colour_match="background", wrap_strength=0.5)
    assert bool(compose_stack(found).isfinite().all())


def test_changes_nothing_that_it_was_given() -> None:
    stack, new = document(), random(2, 4, 20, 20, seed=5)
    before = [new.clone(), *(layer.picture.clone() for layer in stack)]
    replace_layer(stack, 1, new, colour_match="background", wrap_strength=1.0)
    assert all(map(torch.equal, before, [new, *(layer.picture for layer in stack)]))


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"position": 2}, IndexError, r"position must lie in \[-2, 2\), got 2"),
    ({"picture": torch.zeros(1, 3, 4, 4), "mask": None}, ValueError,
     r'layer "foreground" must match.*got \(1, torch.float32, cpu\)'),
    ({"picture": torch.zeros(2, 2, 4, 4)}, ValueError, r"picture must have shape \(N, 3 or 4, H, W\)"),
    ({"mask": torch.zeros(2, 1, 4, 5)}, ValueError, r"mask must have shape \(2, 1, 4, 4\).*got \(2, 1, 4, 5\)"),
    ({"mask": torch.full((2, 1, 4, 4), math.nan)}, ValueError, "mask must be finite"),
    ({"fit": "fill"}, ValueError, "fit must be one of cover, contain, stretch, none, got fill"),
    ({"colour_match": "lab"}, ValueError, "colour_match must be one of none, replaced, background, got lab"),
    ({"match_strength": 7}, ValueError, r"match_strength must lie in \[0, 1\], got 7"),
    ({"wrap_strength": -1}, ValueError, r"wrap_strength must lie in \[0, 1\], got -1"),
    ({"wrap_strength": 1, "wrap_radius": 0}, ValueError, "radius must be above 0 pixels, got 0"),
])
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"stack": document(), "position": 1, "picture": torch.zeros(2, 3, 4, 4), "mask": torch.ones(2, 1, 4, 4)}
    with pytest.raises(error, match=message):
        replace_layer(**(given | changes))


def test_stays_on_the_device() -> None:
    """On PyTorch's "meta" device, which computes no values but refuses any tensor that is elsewhere."""
    layers = [replace(each, picture=each.picture.to("meta"), mask=None if each.mask is None else each.mask.to("meta"))
              for each in document()]
    stack = LayerStack(canvas=(32, 24), layers=tuple(layers)).with_layer(1, rotation=0.4)
    new = torch.rand(2, 4, 9, 9, device="meta")
    for position in (0, 1):
        for match in ("replaced", "background"):
            found = replace_layer(stack, position, new, colour_match=match, wrap_strength=0.5)
            assert {each.picture.device.type for each in found} == {"meta"}
