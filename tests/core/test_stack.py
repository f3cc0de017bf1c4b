"""Layer and LayerStack: what they hold and what they refuse."""

from typing import Any

import pytest
import torch

from text2layer_core.blending import BlendMode
from text2layer_core.layers import TwoLayerImage
from text2layer_core.stack import Layer, LayerStack


def layer(**changes: Any) -> Layer:
    generator = torch.Generator().manual_seed(0)
    values = {"name": "hat", "picture": torch.rand(2, 4, 3, 5, generator=generator),
              "mask": torch.rand(2, 1, 3, 5, generator=generator)}
    return Layer(**(values | changes))


def test_coverage_is_alpha_times_mask() -> None:
    both = layer()
    assert both.mask is not None
    assert both.coverage is not None
    assert torch.equal(both.coverage, both.picture[:, 3:] * both.mask)
    assert torch.equal(both.colour, both.picture[:, :3])
    rgb = layer(picture=both.colour)
    assert rgb.coverage is rgb.mask
    alpha = layer(mask=None).coverage
    assert alpha is not None
    assert torch.equal(alpha, both.picture[:, 3:])
    assert layer(picture=both.colour, mask=None).coverage is None


def test_box_is_the_pictures_size_unless_given() -> None:
    assert layer(x=-2.5, y=1).box == (-2.5, 1, 5, 3)
    assert layer(width=7.5).box == (0, 0, 7.5, 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"picture": "hat.png"}, 'layer "hat": picture must be a torch tensor, got str'),
    ({"picture": torch.zeros(2, 4, 3, 5, dtype=torch.uint8)}, "picture must have a floating dtype, got torch.uint8"),
    ({"picture": torch.zeros(2, 2, 3, 5)}, r"picture must have shape \(N, 3 or 4, H, W\), none.* got \(2, 2, 3, 5\)"),
    ({"picture": torch.zeros(2, 4, 0, 5)}, r"none of them 0, got \(2, 4, 0, 5\)"),
    ({"picture": torch.full((2, 4, 3, 5), 1.5)}, r"picture must be finite and in \[0, 1\], got values from 1.5 to 1.5"),
    ({"mask": torch.zeros(2, 1, 3, 4)}, r"mask must have shape \(2, 1, 3, 5\) to match picture, got \(2, 1, 3, 4\)"),
    ({"mask": torch.full((2, 1, 3, 5), torch.nan)}, "mask must be finite.*from nan to nan"),
    ({"mask": torch.zeros(2, 1, 3, 5, dtype=torch.float64)}, "mask must have dtype torch.float32 on.*float64 on cpu"),
    ({"x": torch.inf}, "x must be finite, got inf"),
    ({"rotation": torch.nan}, "rotation must be finite, got nan"),
    ({"width": 0}, "width must be above 0, got 0"),
    ({"height": -3.0}, "height must be above 0, got -3.0"),
    ({"height": torch.inf}, "height must be above 0, got inf"),
    ({"opacity": 7}, r'layer "hat": opacity must lie in \[0, 1\], got 7'),
    ({"opacity": torch.nan}, r"opacity must lie in \[0, 1\], got nan"),
    ({"blend_mode": "dissolve"}, "blend_mode must be one of normal, .*, got dissolve"),
])
def test_refuses_what_is_no_layer(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**change)


def test_finds_layers_by_name_topmost_first() -> None:
    stack = LayerStack(canvas=(5, 3), layers=(layer(), layer(name="coat"), layer()))
    assert len(stack) == 3
    assert [each.name for each in stack] == ["hat", "coat", "hat"]
    assert stack.index("hat") == 2
    with pytest.raises(ValueError, match="layer must be one of hat, coat, hat, got shoe"):
        stack.index("shoe")


def test_changes_one_layer() -> None:
    stack = LayerStack(canvas=(5, 3), layers=(layer(), layer(name="coat")))
    changed = stack.with_layer(1, opacity=0.5, blend_mode=BlendMode.MULTIPLY)
    assert changed.layers[0] is stack.layers[0]
    assert (changed.layers[1].opacity, changed.layers[1].blend_mode) == (0.5, "multiply")
    assert stack.layers[1].opacity == 1


def test_two_layers_become_a_document() -> None:
    image = TwoLayerImage(torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6), torch.rand(2, 1, 4, 6))
    stack = LayerStack.from_two_layers(image)
    assert stack.canvas == (6, 4)
    assert [each.name for each in stack] == ["background", "foreground"]
    assert stack.layers[0].picture is image.background
    assert stack.layers[1].mask is image.mask


@pytest.mark.parametrize(("canvas", "layers", "message"), [
    ((5, 0), 1, r"canvas must be a width and a height of at least 1 pixel, got \(5, 0\)"),
    ((5.5, 3), 1, r"at least 1 pixel, got \(5.5, 3\)"),
    ((5, 3, 1), 1, r"at least 1 pixel, got \(5, 3, 1\)"),
    ((5, 3), 0, "a document must hold 1 to 50 layers, got 0"),
    ((5, 3), 51, "a document must hold 1 to 50 layers, got 51"),
])
def test_refuses_what_is_no_document(canvas: Any, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerStack(canvas=canvas, layers=(layer(),) * layers)


def test_refuses_layers_of_different_batches_and_dtypes() -> None:
    other = layer(name="coat", picture=torch.zeros(1, 3, 3, 5), mask=None)
    with pytest.raises(ValueError, match=r'layer "coat" must match.*\(2, torch.float32, cpu\), got \(1, torch.float32'):
        LayerStack(canvas=(5, 3), layers=(layer(), other))
    other = layer(name="coat", picture=torch.zeros(2, 3, 3, 5, dtype=torch.float64), mask=None)
    with pytest.raises(ValueError, match=r"got \(2, torch.float64, cpu\)"):
        LayerStack(canvas=(5, 3), layers=(layer(), other))
