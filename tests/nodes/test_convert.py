"""LAYERS documents and layers: the form of core's Add Layer on one side, ours on the other."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def add_layer(document: dict[str, Any] | None, image: Tensor, **given: Any) -> dict[str, Any]:
    """As core's Add Layer makes it (0.33): what is not given is not there."""
    item = {"image": image, "type": "raster", "x": 0, "y": 0, "z_index": 0, **given}
    made: dict[str, Any] = {"version": 1, "layers": [*(document["layers"] if document else []), item]}
    if document and "canvas" in document:
        made["canvas"] = document["canvas"]
    return made


@pytest.fixture
def convert(pack: ModuleType) -> Any:
    return pack.convert


def test_what_add_layer_does_not_say_has_cores_defaults(convert: Any) -> None:
    image = random(1, 4, 6, 3)
    (layer,) = stack = convert.stack_from_layers(add_layer(None, image))
    assert stack.canvas == (6, 4)
    assert torch.equal(layer.picture, image.movedim(-1, 1))
    assert (layer.mask, layer.box, layer.rotation, layer.opacity) == (None, (0, 0, 6, 4), 0, 1)
    assert (layer.name, layer.blend_mode, layer.visible) == ("layer 1", "normal", True)
    assert (layer.flip_horizontal, layer.flip_vertical) == (False, False)


def test_takes_everything_that_an_item_says(convert: Any) -> None:
    given = {"name": "hat", "x": -3, "y": 5, "w": 12, "h": 2, "rotation": math.pi / 3, "opacity": 0.5, "flip_h": True,
             "flip_v": True, "blend_mode": "soft-light", "visible": False, "mask": random(1, 4, 6, seed=1)}
    document = {**add_layer(None, random(1, 4, 6, 4), **given), "canvas": (20, 10)}
    (layer,) = stack = convert.stack_from_layers(document)
    assert stack.canvas == (20, 10)
    assert (layer.name, layer.box, layer.rotation) == ("hat", (-3, 5, 12, 2), math.pi / 3)
    assert (layer.opacity, layer.blend_mode, layer.visible) == (0.5, "soft-light", False)
    assert (layer.flip_horizontal, layer.flip_vertical) == (True, True)
    assert torch.equal(layer.mask[:, 0], 1 - given["mask"]), "there 1 is transparent"


def test_and_gives_it_back(convert: Any) -> None:
    """Two layers, one with everything, at the same z: item for item equal, with the order as z_index."""
    given = {"name": "hat", "x": -3, "y": 5, "w": 12, "h": 2, "rotation": 1.25, "opacity": 0.5, "flip_h": True,
             "flip_v": True, "blend_mode": "soft-light", "visible": False,
             "mask": (random(1, 4, 6) * 255).round() / 255}
    document = add_layer(add_layer(None, random(1, 9, 9, 3), name="floor"), random(1, 4, 6, 4), **given)
    document["canvas"] = (9, 9)
    found = convert.layers_from_stack(convert.stack_from_layers(document))
    assert (found["version"], found["canvas"]) == (1, (9, 9))
    floor, hat = found["layers"]
    expected = {**document["layers"][1], "z_index": 1}
    assert set(hat) == set(expected)
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(hat[key], value, atol=1e-7, rtol=0)
        else:
            assert hat[key] == value, key
            assert type(hat[key]) is type(value), key
    assert torch.equal(floor["image"], document["layers"][0]["image"])
    assert set(floor) == {"type", "name", "image", "x", "y", "z_index", "opacity", "blend_mode", "visible"}


def test_sorts_by_z_and_keeps_the_order_of_equals(convert: Any) -> None:
    document = None
    for name, z in (("a", 2), ("b", 0), ("c", 2), ("d", -1), ("e", 0)):
        document = add_layer(document, random(1, 2, 2, 3), name=name, z_index=z)
    assert "".join(layer.name for layer in convert.stack_from_layers(document)) == "dbeac"


def test_frames_become_layers(convert: Any) -> None:
    """A mask each, one for all, or only for the first: frames beyond the masks have none, as in core."""
    image = random(3, 4, 6, 3)
    for count, masked in ((3, 3), (1, 3), (2, 2)):
        masks = random(count, 4, 6)
        layers = convert.stack_from_layers(add_layer(None, image, name="cat", mask=masks)).layers
        assert [layer.name for layer in layers] == ["cat 1", "cat 2", "cat 3"]
        assert torch.equal(layers[1].picture, image[1:2].movedim(-1, 1))
        assert [layer.mask is not None for layer in layers] == [index < masked for index in range(3)]
        assert torch.equal(layers[1].mask[0, 0], 1 - masks[1 if count > 1 else 0])
    unnamed = convert.stack_from_layers(add_layer(add_layer(None, image), image[:1]))
    assert [layer.name for layer in unnamed] == ["layer 1", "layer 2", "layer 3", "layer 4"]


def test_a_mask_of_another_size_is_resized_as_in_core(convert: Any) -> None:
    mask = torch.tensor([[0.0, 1.0]])
    (layer,) = convert.stack_from_layers(add_layer(None, random(1, 1, 4, 3), mask=mask.unsqueeze(0)))
    assert layer.mask.flatten().tolist() == [1, 0.75, 0.25, 0]
    (layer,) = convert.stack_from_layers(add_layer(None, random(1, 1, 2, 3), mask=mask))
    assert layer.mask.flatten().tolist() == [1, 0]


def test_without_a_canvas_it_is_what_the_layers_reach(convert: Any) -> None:
    """By hand: 6x4 at (3, -1) reaches 9 and 3; turned by a quarter at (0, 0) it lies from (1, -1) to (5, 5)."""
    assert convert.stack_from_layers(add_layer(None, random(1, 4, 6, 3), x=3, y=-1)).canvas == (9, 3)
    assert convert.stack_from_layers(add_layer(None, random(1, 4, 6, 3), rotation=math.pi / 2)).canvas == (5, 5)
    assert convert.stack_from_layers(add_layer(None, random(1, 4, 6, 3), x=-50)).canvas == (1, 4)


def test_values_outside_the_range_are_cut_off(convert: Any) -> None:
    image, mask = torch.full((1, 2, 2, 3), 1.25), torch.full((1, 2, 2), -1)
    (layer,) = convert.stack_from_layers(add_layer(None, image, mask=mask))
    assert layer.picture.unique().tolist() == [1]
    assert layer.mask.unique().tolist() == [1]


def test_other_dtypes_follow_the_lowest_layer(convert: Any) -> None:
    document = add_layer(add_layer(None, random(1, 2, 2, 3)), random(1, 2, 2, 3).double(), mask=torch.zeros(1, 2, 2))
    assert {layer.picture.dtype for layer in convert.stack_from_layers(document)} == {torch.float32}


def test_fractions_stay(convert: Any) -> None:
    """Core's compositor drops what is after the point; between our nodes nothing is lost."""
    (layer,) = stack = convert.stack_from_layers(add_layer(None, random(1, 2, 2, 3), x=1.5, w=2.25))
    item = convert.layers_from_stack(stack)["layers"][0]
    assert (item["x"], item["y"], item["w"]) == (1.5, 0, 2.25)
    assert "h" not in item
    assert layer.box == (1.5, 0, 2.25, 2)


def test_a_batch_is_a_document_each(convert: Any) -> None:
    layer = convert.layer_from_image("hat", random(3, 4, 6, 4), random(1, 4, 6))
    stack = convert.LayerStack(canvas=(6, 4), layers=(layer,))
    documents = convert.documents_from_stack(stack)
    assert len(documents) == 3
    assert torch.equal(documents[2]["layers"][0]["image"], to_bhwc(layer.picture[2:]))
    with pytest.raises(ValueError, match="a LAYERS document must hold one picture, got a batch of 3"):
        convert.layers_from_stack(stack)


def to_bhwc(picture: Tensor) -> Tensor:
    return picture.movedim(1, -1)


ITEM = {"image": torch.zeros(1, 2, 2, 3), "type": "raster"}


@pytest.mark.parametrize(("document", "message"), [
    (None, "layers must be a LAYERS document, got NoneType"),
    ([ITEM], "layers must be a LAYERS document, got list"),
    ({"version": 1}, "layers must be a LAYERS document, got dict"),
    ({"version": 2, "layers": [ITEM]}, "layers must be a document of version 1, got 2"),
    ({"layers": []}, "a document must hold 1 to 50 layers, got 0"),
    ({"layers": [ITEM] * 51}, "a document must hold 1 to 50 layers, got 51"),
    ({"layers": [{"image": torch.zeros(51, 1, 1, 3)}]}, "a document must hold 1 to 50 layers, got 51"),
    ({"layers": [ITEM, {"type": "raster"}]}, "layers: item 2 must have an image of shape"),
    ({"layers": [{**ITEM, "type": "text"}]}, "layers: item 1 must be of type raster, got 'text'"),
    ({"layers": [{**ITEM, "opacity": 7}]}, r'layer "layer 1": opacity must lie in \[0, 1\], got 7'),
    ({"layers": [{**ITEM, "opacity": "full"}]}, "layers: opacity must be a number, got 'full'"),
    ({"layers": [{**ITEM, "x": True}]}, "layers: x must be a number, got True"),
    ({"layers": [{**ITEM, "name": "hat", "blend_mode": "linear-dodge"}]},
     'layer "hat": blend_mode must be one of normal, .*, got linear-dodge'),
    ({"layers": [{**ITEM, "rotation": math.nan}]}, "rotation must be finite, got nan"),
    ({"layers": [{**ITEM, "mask": torch.full((1, 2, 2), math.nan)}]}, "mask must be finite"),
    ({"layers": [{**ITEM, "image": torch.zeros(1, 2, 2, 5)}]}, r"picture must have shape \(N, 3 or 4, H, W\)"),
    ({"layers": [{**ITEM, "image": torch.zeros(1, 0, 2, 3)}]}, "none of them 0"),
    ({"layers": [ITEM], "canvas": (0, 5)}, r"canvas must be a width and a height of at least 1 pixel, got \(0, 5\)"),
    ({"layers": [ITEM], "canvas": "big"}, "layers: canvas must be a width and a height in pixels, got 'big'"),
    ({"layers": [ITEM], "canvas": (math.nan, 5)}, r"canvas must be a width and a height in pixels, got \(nan, 5\)"),
])
def test_refuses(convert: Any, document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert.stack_from_layers(document)


def test_pictures_and_masks_of_sockets(convert: Any) -> None:
    image, mask = random(2, 4, 6, 4), random(2, 4, 6)
    layer = convert.layer_from_image("hat", image, mask)
    assert torch.equal(layer.coverage[:, 0], image[..., 3] * mask), "alpha and mask multiply"
    assert torch.equal(convert.layer_from_image("hat", image, mask[0]).mask, mask[:1].unsqueeze(0).expand(2, 1, 4, 6))
    with pytest.raises(ValueError, match="hat must be RGB or RGBA, got 2 channels"):
        convert.layer_from_image("hat", image[..., :2])
    with pytest.raises(ValueError, match=r"mask must have the hat's size 6x4, got 5x4 \(width x height\)"):
        convert.layer_from_image("hat", image, mask[..., :5])
    with pytest.raises(ValueError, match=r"mask must have one mask or as many as hat \(2\), got 3"):
        convert.layer_from_image("hat", image, random(3, 4, 6))
