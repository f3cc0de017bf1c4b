"""The one place that knows ComfyUI's layouts: BHWC pictures, both mask polarities, the LAYERS document."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..text2layer_core.blending import BlendMode
from ..text2layer_core.compositing import pad_foreground
from ..text2layer_core.layers import TwoLayerImage
from ..text2layer_core.placement import layer_bounds
from ..text2layer_core.stack import Layer, LayerStack

LAYERS_VERSION = 1
SIZE = "text2layer_size"
"""In a LATENT: width and height of the picture before it was padded."""


def to_bhwc(picture: Tensor) -> Tensor:
    """(N, C, H, W) -> IMAGE (N, H, W, C)."""
    return picture.movedim(1, -1)


def to_nchw(image: Tensor) -> Tensor:
    """IMAGE (N, H, W, C) -> (N, C, H, W)."""
    return image.movedim(-1, 1)


def foreground_mask(image: TwoLayerImage) -> Tensor:
    """MASK (N, H, W), 1 where the foreground shows."""
    return image.mask[:, 0]


def layers_from_images(foreground: Tensor, background: Tensor, mask: Tensor) -> TwoLayerImage:
    """Checks what came in through the sockets and makes layers of it.

    Args:
        foreground: IMAGE (N, H, W, 3 or 4); an alpha channel is left out, the mask counts.
        background: IMAGE (N, H, W, 3).
        mask: MASK (N, H, W), or (1, H, W) or (H, W) for all pictures; 1 where the foreground shows.

    Returns:
        Layers whose foreground is continued where the mask is 0.

    Raises:
        ValueError: channels, sizes or batch sizes do not fit; the message names the input.
    """
    if foreground.shape[-1] not in (3, 4):
        raise ValueError(f"foreground must be RGB or RGBA, got {foreground.shape[-1]} channels")
    if background.shape[-1] != 3:
        raise ValueError(f"background must be RGB (3 channels), got {background.shape[-1]} channels")
    count, height, width = foreground.shape[:3]
    mask = mask.reshape(-1, *mask.shape[-2:])  # some nodes give (H, W)
    _check_size("background", background, height, width)
    _check_size("foreground_mask", mask, height, width)
    if mask.shape[0] == 1:
        mask = mask.expand(count, -1, -1)
    for name, batch in (("background", background), ("foreground_mask", mask)):
        if batch.shape[0] != count:
            raise ValueError(f"{name} must have as many pictures as foreground ({count}), got {batch.shape[0]}")
    alpha = mask.unsqueeze(1).to(foreground).clamp(0, 1)
    colour = to_nchw(foreground[..., :3]).clamp(0, 1)
    return TwoLayerImage(pad_foreground(colour, alpha), to_nchw(background).to(colour).clamp(0, 1), alpha)


def layer_outputs(
    image: TwoLayerImage, composed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """Foreground RGBA, background, foreground_mask, composed, and one LAYERS document per picture."""
    documents = [layers_document(image[index]) for index in range(len(image))]
    return to_bhwc(image.rgba), to_bhwc(image.background), foreground_mask(image), to_bhwc(composed), documents


def layers_document(image: TwoLayerImage) -> dict[str, Any]:
    """The LAYERS document of one picture."""
    return layers_from_stack(LayerStack.from_two_layers(image))


def stack_from_layers(document: object) -> LayerStack:
    """A LAYERS document, of core's Add Layer or of ours, as a stack of batch size 1.

    Items are stacked by z_index, equal ones as listed; each frame of an item is a layer of its own. What an item does
    not say has core's defaults. A mask of another size than its picture is resized, as in core's compositor.

    Raises:
        ValueError: it is no such document, or holds no layer, more than 50, or one that this pack does not know.
    """
    if not isinstance(document, dict) or not isinstance(document.get("layers"), list):
        raise ValueError(f"layers must be a LAYERS document, got {type(document).__name__}")
    if document.get("version") not in (None, LAYERS_VERSION):
        raise ValueError(f"layers must be a document of version {LAYERS_VERSION}, got {document['version']!r}")
    items = [_checked_item(item, number) for number, item in enumerate(document["layers"], 1)]
    items.sort(key=lambda item: _number(item, "z_index", 0))
    layers: list[Layer] = []
    for item in items:
        layers += [_layer_of_frame(item, frame, len(layers) + 1 + frame) for frame in range(item["image"].shape[0])]
    first = layers[0].picture if layers else None
    layers = [layer if first is None else _like(layer, first) for layer in layers]
    return LayerStack(canvas=_canvas(document.get("canvas"), layers), layers=tuple(layers))


def layers_from_stack(stack: LayerStack) -> dict[str, Any]:
    """Core's layer document of one picture, bottom first; there a mask is 1 where the layer is transparent.

    Positions and sides that are no whole numbers stay so: core's compositor drops what is after the point.

    Raises:
        ValueError: the stack holds more than one picture.
    """
    count = stack.layers[0].picture.shape[0]
    if count != 1:
        raise ValueError(f"a LAYERS document must hold one picture, got a batch of {count}")
    items = [_item(layer, z_index) for z_index, layer in enumerate(stack)]
    return {"version": LAYERS_VERSION, "canvas": stack.canvas, "layers": items}


def documents_from_stack(stack: LayerStack) -> list[dict[str, Any]]:
    """One LAYERS document per picture: a document's frames would be layers."""
    count = stack.layers[0].picture.shape[0]
    return [layers_from_stack(replace(stack, layers=tuple(_sample(layer, index) for layer in stack)))
            for index in range(count)]


def layer_from_image(name: str, image: Tensor, mask: Tensor | None = None, *, mask_name: str = "mask") -> Layer:
    """What came in through the sockets as a layer, a batch of N.

    Args:
        name: the layer's, and the picture's in messages.
        image: IMAGE (N, H, W, 3 or 4); an alpha channel and the mask multiply.
        mask: MASK (N, H, W), or (1, H, W) or (H, W) for all pictures; 1 where the layer shows.
        mask_name: in messages.

    Raises:
        ValueError: channels, sizes or batch sizes do not fit.
    """
    if image.shape[-1] not in (3, 4):
        raise ValueError(f"{name} must be RGB or RGBA, got {image.shape[-1]} channels")
    picture = to_nchw(image).clamp(0, 1)
    if mask is None:
        return Layer(name=name, picture=picture)
    mask = mask.reshape(-1, *mask.shape[-2:])
    _check_size(mask_name, mask, *image.shape[1:3], of=name)
    if mask.shape[0] not in (1, image.shape[0]):
        raise ValueError(f"{mask_name} must have one mask or as many as {name} ({image.shape[0]}), got {mask.shape[0]}")
    mask = mask.expand(image.shape[0], -1, -1).unsqueeze(1).to(picture).clamp(0, 1)
    return Layer(name=name, picture=picture, mask=mask)


def with_batch(layer: Layer, count: int) -> Layer:
    """A layer of one picture for a batch; others stay."""
    if layer.picture.shape[0] != 1 or count == 1:
        return layer
    return _changed(layer, lambda part: part.expand(count, -1, -1, -1))


def _checked_item(item: object, number: int) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("image"), Tensor) or item["image"].ndim != 4:
        raise ValueError(f"layers: item {number} must have an image of shape (N, H, W, 3 or 4)")
    if item.get("type", "raster") != "raster":
        raise ValueError(f"layers: item {number} must be of type raster, got {item['type']!r}")
    return item


def _number(item: dict[str, Any], key: str, default: float) -> float:
    value = item.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"layers: {key} must be a number, got {value!r}")
    return value


def _layer_of_frame(item: dict[str, Any], frame: int, number: int) -> Layer:
    """One frame of an item; `number` is the layer's in the document."""
    image = item["image"]
    name = item.get("name") or f"layer {number}"
    width, height = _number(item, "w", 0), _number(item, "h", 0)
    return Layer(
        name=name if image.shape[0] == 1 or not item.get("name") else f"{name} {frame + 1}",
        picture=to_nchw(image[frame : frame + 1]).clamp(0, 1),
        mask=_coverage(item.get("mask"), image, frame),
        x=_number(item, "x", 0),
        y=_number(item, "y", 0),
        width=width if width > 0 else None,
        height=height if height > 0 else None,
        rotation=_number(item, "rotation", 0),
        flip_horizontal=bool(item.get("flip_h", False)),
        flip_vertical=bool(item.get("flip_v", False)),
        opacity=_number(item, "opacity", 1),
        blend_mode=item.get("blend_mode") or "normal",
        visible=bool(item.get("visible", True)),
    )


def _coverage(mask: object, image: Tensor, frame: int) -> Tensor | None:
    """(1, 1, H, W), 1 where the layer shows; None where the item has no mask for that frame."""
    if not isinstance(mask, Tensor):
        return None
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[0] != 1:
        mask = mask[frame : frame + 1]
    if not mask.shape[0]:
        return None
    mask = mask.to(image)
    if mask.shape[-2:] != image.shape[1:3]:
        mask = functional.interpolate(mask, image.shape[1:3], mode="bilinear")
    return (1 - mask).clamp(0, 1)


def _like(layer: Layer, picture: Tensor) -> Layer:
    """The layer with that picture's dtype and device: nodes may give either."""
    if (layer.picture.dtype, layer.picture.device) == (picture.dtype, picture.device):
        return layer
    return _changed(layer, lambda part: part.to(picture))


def _canvas(canvas: object, layers: list[Layer]) -> tuple[int, int]:
    """The document's own, or what the layers reach to the right and down, as core's compositor takes it."""
    if canvas is None:
        bounds = [layer_bounds(layer) for layer in layers]
        return max([1, *(window[2] for window in bounds)]), max([1, *(window[3] for window in bounds)])
    if (not isinstance(canvas, list | tuple) or len(canvas) != 2
            or not all(isinstance(side, int | float) and math.isfinite(side) for side in canvas)):
        raise ValueError(f"layers: canvas must be a width and a height in pixels, got {canvas!r}")
    return int(canvas[0]), int(canvas[1])


def _item(layer: Layer, z_index: int) -> dict[str, Any]:
    item: dict[str, Any] = {
        "type": "raster", "name": layer.name, "image": to_bhwc(layer.picture), "x": _short(layer.x),
        "y": _short(layer.y), "z_index": z_index, "opacity": float(layer.opacity),
        "blend_mode": BlendMode(layer.blend_mode).value, "visible": layer.visible,
    }
    if layer.mask is not None:
        item["mask"] = 1 - layer.mask[:, 0]
    if layer.rotation:
        item["rotation"] = layer.rotation
    for key, side in (("w", layer.width), ("h", layer.height)):
        if side is not None:
            item[key] = _short(side)
    for key, flip in (("flip_h", layer.flip_horizontal), ("flip_v", layer.flip_vertical)):
        if flip:
            item[key] = True
    return item


def _short(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _sample(layer: Layer, index: int) -> Layer:
    return _changed(layer, lambda part: part[index : index + 1])


def _changed(layer: Layer, change: Callable[[Tensor], Tensor]) -> Layer:
    """The layer with picture and mask changed alike."""
    return replace(layer, picture=change(layer.picture), mask=None if layer.mask is None else change(layer.mask))


def _check_size(name: str, picture: Tensor, height: int, width: int, *, of: str = "foreground") -> None:
    found = tuple(picture.shape[1:3])
    if found != (height, width):
        raise ValueError(
            f"{name} must have the {of}'s size {width}x{height}, got {found[1]}x{found[0]} (width x height)"
        )
