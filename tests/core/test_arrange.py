"""Building, splitting, reordering and merging: expected values are the pictures that went in."""

import math

import pytest
import torch
from torch import Tensor

from text2layer_core.arrange import build_stack, merge_stacks, move_layer, reorder_stack, split_stack
from text2layer_core.stack import LayerStack


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def document(count: int = 3) -> LayerStack:
    return build_stack([random(2, 3, 4, 6, seed=seed) for seed in range(count)], names=list("abcdefgh")[:count])


def names(stack: LayerStack) -> str:
    return "".join(layer.name for layer in stack)


def test_builds_bottom_first() -> None:
    pictures, mask = [random(1, 3, 4, 6), random(1, 4, 9, 9)], random(1, 1, 9, 9)
    stack = build_stack(pictures, [None, mask])
    assert stack.canvas == (6, 4)
    assert [layer.name for layer in stack] == ["layer 1", "layer 2"]
    assert stack.layers[1].picture is pictures[1]
    assert stack.layers[1].mask is mask
    assert build_stack(pictures, canvas=(30, 20)).canvas == (30, 20)


def test_splits_what_was_built() -> None:
    pictures, masks = [random(2, 3, 4, 6, seed=i) for i in range(3)], [random(2, 1, 4, 6, seed=i) for i in range(3)]
    parts = split_stack(build_stack(pictures, [None, *masks[1:]], ["a", "b", "c"]))
    assert [part.name for part in parts] == ["a", "b", "c"]
    assert all(torch.equal(part.colour, picture) for part, picture in zip(parts, pictures, strict=True))
    assert torch.equal(parts[0].mask, torch.ones(2, 1, 4, 6))
    assert torch.equal(parts[2].mask, masks[2])


def test_splits_layers_where_they_lie() -> None:
    """A 4x6 layer at (2, -1), hidden, of half opacity: cut to the canvas, its colour continued beside it."""
    stack = document(1).with_layer(0, x=2, y=-1, visible=False, opacity=0.5)
    (part,) = split_stack(stack)
    assert torch.equal(part.colour[..., :3, 2:], stack.layers[0].picture[..., 1:, :4])
    assert torch.equal(part.mask[..., :3, 2:], torch.ones(2, 1, 3, 4))
    assert part.mask.sum() == 2 * 3 * 4
    assert part.colour.min() > 0


@pytest.mark.parametrize("x", [100.0, -6.0])
def test_a_layer_off_the_canvas_is_split_to_nothing(x: float) -> None:
    (part,) = split_stack(document(1).with_layer(0, x=x))
    assert not part.colour.any()
    assert not part.mask.any()


def test_a_turned_layer_is_split_as_it_shows() -> None:
    (part,) = split_stack(document(1).with_layer(0, rotation=math.pi / 4))
    assert 0 < part.mask.mean() < 1
    with pytest.raises(ValueError, match="interpolation must be one of"):
        split_stack(document(1), interpolation="cubic")


def test_reorders() -> None:
    stack = document()
    assert names(reorder_stack(stack, [2, 0, 1])) == "cab"
    assert [names(move_layer(stack, 0, target)) for target in (-5, 0, 1, 2, 99)] == ["abc", "abc", "bac", "bca", "bca"]
    assert names(move_layer(stack, 2, 0)) == "cab"
    assert names(stack) == "abc"
    for order in ([0, 1], [0, 1, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"order must hold each position from 0 to 2 once, got \["):
            reorder_stack(stack, order)
    with pytest.raises(IndexError, match=r"position must lie in \[0, 3\), got 3"):
        move_layer(stack, 3, 0)


def test_merges_first_lowest() -> None:
    wide = build_stack([random(2, 3, 2, 20)], names=["z"])
    merged = merge_stacks([document(), wide])
    assert names(merged) == "abcz"
    assert merged.canvas == (20, 4)
    assert merge_stacks([document(), wide], canvas=(6, 4)).canvas == (6, 4)
    assert names(merge_stacks([wide])) == "z"


def test_refuses() -> None:
    picture = random(1, 3, 4, 4)
    with pytest.raises(ValueError, match="a document must hold 1 to 50 layers, got 0"):
        build_stack([])
    with pytest.raises(ValueError, match="a document must hold 1 to 50 layers, got 51"):
        build_stack([picture] * 51)
    with pytest.raises(ValueError, match=r"masks must be as many as pictures \(2\), got 1"):
        build_stack([picture] * 2, [None])
    with pytest.raises(ValueError, match=r"names must be as many as pictures \(1\), got 2"):
        build_stack([picture], names=["a", "b"])
    with pytest.raises(ValueError, match="stacks must hold at least one document, got none"):
        merge_stacks([])
    with pytest.raises(ValueError, match="a document must hold 1 to 50 layers, got 52"):
        merge_stacks([build_stack([picture] * 26)] * 2)
    with pytest.raises(ValueError, match=r'layer "layer 1" must match the lowest'):
        merge_stacks([document(), build_stack([picture])])
