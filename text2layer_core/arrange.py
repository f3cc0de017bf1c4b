"""Documents from pictures and back, layers in another order, documents on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .compositing import pad_foreground
from .placement import Interpolation, rasterise
from .stack import Layer, LayerStack


@dataclass(frozen=True, eq=False)
class LayerPicture:
    """One layer by itself, as large as the canvas.

    Attributes:
        name: the layer's.
        colour: (N, 3, H, W) in [0, 1]; continued where the layer does not reach, black if it is off the canvas.
        mask: (N, 1, H, W) in [0, 1], 1 where the layer shows: its alpha times its mask, opacity left out.
    """

    name: str
    colour: Tensor
    mask: Tensor


def build_stack(
    pictures: Sequence[Tensor],
    masks: Sequence[Tensor | None] | None = None,
    names: Sequence[str] | None = None,
    *,
    canvas: tuple[int, int] | None = None,
) -> LayerStack:
    """A document of pictures, bottom first, each at the canvas's upper left corner.

    Args:
        pictures: each (N, 3 or 4, H, W) in [0, 1]; a fourth channel is straight alpha.
        masks: one per picture, (N, 1, H, W) in [0, 1], 1 where the layer shows, or None; they multiply alpha.
        names: one per picture; by default "layer 1", "layer 2" and so on.
        canvas: width and height; by default the lowest picture's.

    Raises:
        ValueError: counts differ, or a picture or mask makes no layer, or they do not belong together.
    """
    masks = [None] * len(pictures) if masks is None else masks
    names = [f"layer {number}" for number in range(1, len(pictures) + 1)] if names is None else names
    for what, found in (("masks", masks), ("names", names)):
        if len(found) != len(pictures):
            raise ValueError(f"{what} must be as many as pictures ({len(pictures)}), got {len(found)}")
    layers = [Layer(name=name, picture=picture, mask=mask)
              for name, picture, mask in zip(names, pictures, masks, strict=True)]
    if canvas is None and layers:
        height, width = layers[0].picture.shape[-2:]
        canvas = width, height
    return LayerStack(canvas=canvas or (1, 1), layers=tuple(layers))


def split_stack(
    stack: LayerStack, *, interpolation: Interpolation | str = Interpolation.BICUBIC
) -> list[LayerPicture]:
    """Every layer by itself where it lies on the canvas, bottom first, hidden ones too; what is outside is cut.

    Raises:
        ValueError: the interpolation is unknown.
    """
    return [_on_canvas(layer, stack.canvas, interpolation) for layer in stack]


def reorder_stack(stack: LayerStack, order: Sequence[int]) -> LayerStack:
    """The layers in another order.

    Args:
        stack: the document.
        order: present positions, the new lowest first; each exactly once.

    Raises:
        ValueError: it is no such order.
    """
    if sorted(order) != list(range(len(stack))):
        raise ValueError(f"order must hold each position from 0 to {len(stack) - 1} once, got {list(order)}")
    return replace(stack, layers=tuple(stack.layers[position] for position in order))


def move_layer(stack: LayerStack, position: int, target: int) -> LayerStack:
    """One layer at another place in the order; a target beyond either end is that end.

    Raises:
        IndexError: there is no layer at that position.
    """
    if not 0 <= position < len(stack):
        raise IndexError(f"position must lie in [0, {len(stack)}), got {position}")
    others = [index for index in range(len(stack)) if index != position]
    others.insert(min(max(target, 0), len(others)), position)
    return reorder_stack(stack, others)


def merge_stacks(stacks: Sequence[LayerStack], *, canvas: tuple[int, int] | None = None) -> LayerStack:
    """Documents on top of each other, the first one lowest, their upper left corners together.

    Args:
        stacks: at least one.
        canvas: width and height; by default the least that holds all of theirs.

    Raises:
        ValueError: there is none, they hold more than 50 layers together, or their layers do not belong together.
    """
    if not stacks:
        raise ValueError("stacks must hold at least one document, got none")
    largest = max(stack.canvas[0] for stack in stacks), max(stack.canvas[1] for stack in stacks)
    return LayerStack(canvas=canvas or largest, layers=tuple(layer for stack in stacks for layer in stack))


def _on_canvas(layer: Layer, canvas: tuple[int, int], interpolation: Interpolation | str) -> LayerPicture:
    count, (width, height) = layer.picture.shape[0], canvas
    colour, mask = (layer.picture.new_zeros(count, channels, height, width) for channels in (3, 1))
    reached = torch.zeros_like(mask)
    flat = rasterise(layer, canvas, interpolation=interpolation)
    if flat is not None:
        left, top = round(flat.x), round(flat.y)
        rows, columns = slice(top, top + flat.picture.shape[-2]), slice(left, left + flat.picture.shape[-1])
        colour[..., rows, columns] = flat.colour
        mask[..., rows, columns] = 1.0 if flat.coverage is None else flat.coverage
        reached[..., rows, columns] = 1.0
    return LayerPicture(layer.name, pad_foreground(colour, reached), mask)
