"""Moving, scaling, turning, flipping by hand; what comes out is looked at by composing it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core.composition import compose_stack
from text2layer_core.stack import Layer, LayerStack
from text2layer_core.transform import Anchor, anchor_point, transform_layer

QUARTER = math.pi / 2


def layer(**changes: Any) -> Layer:
    generator = torch.Generator().manual_seed(0)
    return Layer(**({"name": "hat", "picture": torch.rand(2, 4, 3, 5, generator=generator)} | changes))


def shown(hat: Layer, canvas: tuple[int, int] = (12, 12)) -> Tensor:
    return compose_stack(LayerStack(canvas=canvas, layers=(hat,)))


def test_by_default_nothing_happens() -> None:
    hat = layer(x=1.5, rotation=0.3, flip_vertical=True)
    same = transform_layer(hat)
    assert same.picture is hat.picture
    assert (same.box, same.rotation) == (pytest.approx(hat.box), 0.3)
    assert (same.width, same.height, same.flip_vertical) == (None, None, True)


@pytest.mark.parametrize(("changes", "box"), [
    ({"move": (3, -2)}, (5, -1, 5, 3)),
    ({"scale": (2, 2)}, (-0.5, -0.5, 10, 6)),
    ({"scale": (2, 1), "anchor": "top-left"}, (2, 1, 10, 3)),
    ({"scale": (0.5, 2), "anchor": "bottom-right"}, (4.5, -2, 2.5, 6)),
    ({"scale": (2, 2), "anchor": (0, 0)}, (4, 2, 10, 6)),
    ({"flip_horizontal": True, "anchor": (0, 0)}, (-7, 1, 5, 3)),
    ({"flip_vertical": True, "anchor": "bottom"}, (2, 4, 5, 3)),
    ({"rotation": QUARTER, "anchor": (0, 0)}, (-5, 3, 5, 3)),
    ({"rotation": 2 * QUARTER, "anchor": "top-left"}, (-3, -2, 5, 3)),
    ({"scale": (2, 2), "rotation": QUARTER, "move": (1, 1), "anchor": (0, 0)}, (-9, 7, 10, 6)),
])
def test_by_hand(changes: dict[str, Any], box: tuple[float, ...]) -> None:
    """A box of 5x3 at (2, 1), its centre at (4.5, 2.5)."""
    assert transform_layer(layer(x=2, y=1), **changes).box == pytest.approx(box)


@pytest.mark.parametrize("anchor", Anchor)
@pytest.mark.parametrize("changes", [{"rotation": 0.7}, {"scale": (3, 0.5)}, {"scale": (2, 2), "rotation": -2}])
def test_the_anchor_stays(anchor: Anchor, changes: dict[str, Any]) -> None:
    hat = layer(x=2, y=1, rotation=0.4)
    before, after = (anchor_point(each, anchor) for each in (hat, transform_layer(hat, anchor=anchor, **changes)))
    assert before == pytest.approx(after)


def test_anchors_turn_with_the_box() -> None:
    """By hand: after a quarter turn about (4.5, 2.5) the upper left corner is the upper right one."""
    assert anchor_point(layer(x=2, y=1), "top-left") == (2, 1)
    assert anchor_point(layer(x=2, y=1), "right") == (7, 2.5)
    assert anchor_point(layer(x=2, y=1, rotation=QUARTER), "top-left") == pytest.approx((6, 0))
    assert anchor_point(layer(), (3, 4)) == (3, 4)


def test_moves_flips_and_turns_show_what_they_say() -> None:
    hat = layer(x=4, y=4)
    before = shown(hat)
    moved = shown(transform_layer(hat, move=(2, -1)))
    assert torch.equal(moved[..., :11, 2:], before[..., 1:, :10])
    centre = {"anchor": (6.0, 6.0)}
    assert torch.equal(shown(transform_layer(hat, flip_horizontal=True, **centre)), before.flip(-1))
    assert torch.equal(shown(transform_layer(hat, flip_vertical=True, **centre)), before.flip(-2))
    for quarters in range(1, 4):
        turned = transform_layer(hat, rotation=quarters * QUARTER, **centre)
        assert torch.equal(shown(turned), before.rot90(-quarters, (-2, -1))), quarters


def test_a_turned_layer_is_mirrored_as_seen() -> None:
    turned = transform_layer(layer(x=4, y=4), rotation=0.5, anchor=(6.0, 6.0))
    mirrored = shown(transform_layer(turned, flip_horizontal=True, anchor=(6.0, 6.0)))
    torch.testing.assert_close(mirrored, shown(turned).flip(-1), atol=1e-4, rtol=0)


def test_what_leaves_the_canvas_comes_back() -> None:
    hat = layer(x=4, y=4)
    away = transform_layer(hat, move=(-100, 7))
    assert not shown(away)[:, 3].any()
    assert torch.equal(shown(transform_layer(away, move=(100, -7))), shown(hat))


@pytest.mark.parametrize(("changes", "message"), [
    ({"move": (math.nan, 0)}, r"move must be two finite numbers, got \(nan, 0\)"),
    ({"move": (1,)}, r"move must be two finite numbers, got \(1,\)"),
    ({"scale": (0, 1)}, r"scale must be two numbers above 0, got \(0, 1\)"),
    ({"scale": (1, math.inf)}, r"scale must be two numbers above 0, got \(1, inf\)"),
    ({"rotation": math.inf}, "rotation must be finite, got inf"),
    ({"anchor": "middle"}, "anchor must be one of top-left, .*bottom-right, got middle"),
    ({"anchor": (0, math.nan)}, r"anchor must be a name or two finite numbers, got \(0, nan\)"),
])
def test_refuses_what_is_no_transform(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform_layer(layer(), **changes)
