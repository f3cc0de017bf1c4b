"""The nodes that work on layer documents, run without a host: expected values are what the core gives."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def item(name: str, **changes: Any) -> dict[str, Any]:
    return {"type": "raster", "image": random(1, 4, 6, 3, seed=ord(name[0])), "name": name, "z_index": 0, **changes}


def document(*names: str, **changes: Any) -> dict[str, Any]:
    return {"version": 1, "canvas": (6, 4), "layers": [item(name) for name in names], **changes}


def names(made: dict[str, Any]) -> str:
    return " ".join(each["name"] for each in made["layers"])


@pytest.fixture
def run(pack: ModuleType) -> Any:
    """Runs the node of that id: its outputs."""
    nodes = {node.__name__: node for node in pack.NODES}

    def run(name: str, **inputs: Any) -> tuple[Any, ...]:
        return nodes[name].execute(**inputs).args

    return run


class TestCompose:
    """Text2LayerCompose."""

    def test_two_pictures_are_eq_1(self, run: Any) -> None:
        foreground, background, mask = random(2, 4, 6, 3), random(2, 4, 6, 3, seed=1), random(2, 4, 6)
        composed, coverage, documents = run(
            "Text2LayerCompose", foreground=foreground, background=background, foreground_mask=mask
        )
        assert torch.equal(composed, torch.lerp(background, foreground, mask.unsqueeze(-1)))
        assert torch.equal(coverage, torch.ones(2, 4, 6))
        assert [names(each) for each in documents] == ["background foreground"] * 2
        assert torch.equal(documents[1]["layers"][1]["mask"], 1 - mask[1:])

    def test_background_document_foreground_from_the_bottom(self, run: Any) -> None:
        stack = document("hat", "coat")
        stack["layers"][0]["x"] = 3
        pictures = {"background": random(1, 4, 6, 3, seed=1), "foreground": random(3, 4, 6, 4, seed=2)}
        composed, coverage, documents = run("Text2LayerCompose", layers=stack, **pictures)
        assert composed.shape == (3, 4, 6, 3)
        assert coverage.shape == (3, 4, 6)
        assert [names(each) for each in documents] == ["background hat coat foreground"] * 3
        coat, top = stack["layers"][1]["image"], pictures["foreground"]
        torch.testing.assert_close(composed, torch.lerp(coat.expand(3, -1, -1, -1), top[..., :3], top[..., 3:]))

    def test_gives_alpha_where_something_shows_through(self, run: Any) -> None:
        stack = {"version": 1, "canvas": (8, 4), "layers": [item("hat")]}
        composed, coverage, _ = run("Text2LayerCompose", layers=stack)
        assert composed.shape == (1, 4, 8, 4)
        assert torch.equal(coverage, composed[..., 3])
        assert coverage.sum() == 24
        assert run("Text2LayerCompose", layers=document("hat"))[0].shape == (1, 4, 6, 3)

    def test_linear_light(self, run: Any) -> None:
        black = torch.zeros(1, 1, 1, 3)
        half = torch.tensor([1, 0, 0, 0.5]).view(1, 1, 1, 4)
        for linear, expected in ((False, 0.5), (True, 0.73536)):
            composed = run("Text2LayerCompose", background=black, foreground=half, linear_light=linear)[0]
            assert composed.flatten().tolist() == pytest.approx([expected, 0, 0], abs=1e-4)

    @pytest.mark.parametrize(("inputs", "message"), [
        ({}, "layers, background or foreground must be connected, got none of them"),
        ({"foreground_mask": random(1, 4, 6)}, "foreground must be connected where foreground_mask is"),
        ({"background": random(1, 4, 5, 3), "layers": document("hat")},
         r"background must have the canvas's size 6x4, got 5x4 \(width x height\)"),
        ({"background": random(1, 4, 5, 3), "foreground": random(1, 4, 6, 3)},
         "foreground must have the canvas's size 5x4, got 6x4"),
        ({"foreground": random(1, 4, 6, 3), "foreground_mask": random(1, 4, 7)},
         "foreground_mask must have the foreground's size 6x4, got 7x4"),
        ({"background": random(2, 4, 6, 3), "foreground": random(3, 4, 6, 3)}, "must match the lowest layer's batch"),
    ])
    def test_refuses(self, run: Any, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run("Text2LayerCompose", **inputs)


class TestTransform:
    """Text2LayerTransform."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "layer": "", "x": 0.0, "y": 0.0, "unit": "pixels", "width": 100.0, "height": 100.0, "size_unit": "percent",
        "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False, "anchor": "center", "anchor_x": 0.0,
        "anchor_y": 0.0, "rasterise": False,
    }

    def transformed(self, run: Any, **inputs: Any) -> dict[str, Any]:
        (made,) = run("Text2LayerTransform", layers=document("floor", "hat"), **{**self.DEFAULTS, **inputs})
        return made

    def test_by_default_nothing_happens(self, run: Any) -> None:
        given, made = document("floor", "hat"), self.transformed(run)
        for old, new in zip(given["layers"], made["layers"], strict=True):
            assert torch.equal(old["image"], new["image"])
            assert {"w", "h", "rotation"}.isdisjoint(new)
            assert (new["x"], new["y"]) == (0, 0)

    @pytest.mark.parametrize(("inputs", "expected"), [
        ({"x": 2.0, "y": -1.0}, {"x": 2, "y": -1}),
        ({"x": 50.0, "y": 25.0, "unit": "percent"}, {"x": 3, "y": 1}),
        ({"width": 200.0, "height": 50.0}, {"x": -3, "y": 1, "w": 12, "h": 2}),
        ({"width": 200.0, "height": 0.0}, {"x": -3, "y": -2, "w": 12, "h": 8}),
        ({"width": 0.0, "height": 0.0}, {"x": 0, "y": 0}),
        ({"width": 3.0, "height": 0.0, "size_unit": "pixels"}, {"x": 1.5, "y": 1, "w": 3, "h": 2}),
        ({"width": 3.0, "height": 4.0, "size_unit": "pixels", "anchor": "top-left"}, {"x": 0, "y": 0, "w": 3}),
        ({"rotation": 180.0, "anchor": "point"}, {"x": -6, "y": -4, "rotation": math.pi}),
        ({"rotation": 180.0, "anchor": "point", "anchor_x": 50.0, "unit": "percent"}, {"x": 0, "y": -4}),
        ({"flip_horizontal": True, "anchor": "right"}, {"x": 6, "flip_h": True}),
    ])
    def test_by_hand(self, run: Any, inputs: dict[str, Any], expected: dict[str, Any]) -> None:
        """A layer of the canvas's size, 6x4."""
        floor, hat = self.transformed(run, **inputs)["layers"]
        assert {key: hat[key] for key in expected} == pytest.approx(expected)
        assert (floor["x"], floor["y"]) == (0, 0)

    def test_rasterises_and_keeps_what_is_outside(self, run: Any) -> None:
        hat = self.transformed(run, rotation=90.0, x=-4.0, rasterise=True)["layers"][1]
        assert torch.equal(hat["image"], item("hat")["image"].rot90(-1, (1, 2)))
        assert (hat["x"], hat["y"]) == (-3, -1)
        assert "rotation" not in hat
        assert self.transformed(run, rotation=30.0, rasterise=True)["layers"][1]["image"].shape[-1] == 4

    @pytest.mark.parametrize(("layer", "moved"), [("floor", 0), ("1", 0), ("2", 1), (" hat ", 1), ("", 1)])
    def test_finds_the_layer(self, run: Any, layer: str, moved: int) -> None:
        assert self.transformed(run, layer=layer, x=5.0)["layers"][moved]["x"] == 5

    @pytest.mark.parametrize(("inputs", "message"), [
        ({"layer": "shoe"}, "layer must be one of floor, hat, got shoe"),
        ({"layer": "3"}, "layer must be one of floor, hat, got 3"),
        ({"unit": "inch"}, "unit must be one of the 2 that the node lists, got 'inch'"),
        ({"size_unit": "inch"}, "size_unit must be one of the 2"),
        ({"anchor": "middle"}, "anchor must be one of the 10"),
        ({"width": -5.0}, "scale must be two numbers above 0"),
        ({"height": math.nan}, "height must be a finite number, got nan"),
        ({"x": math.inf}, "move must be two finite numbers"),
        ({"rotation": math.nan}, "rotation must be finite, got nan"),
    ])
    def test_refuses(self, run: Any, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.transformed(run, **inputs)


class TestReplaceLayer:
    """Text2LayerReplaceLayer."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "layer": "floor", "fit": "cover", "colour_match": "none", "match_strength": 1.0, "wrap_strength": 0.0,
        "wrap_radius": 2.0,
    }

    def replaced(self, run: Any, **inputs: Any) -> list[dict[str, Any]]:
        values = {**self.DEFAULTS, "picture": random(1, 4, 6, 3), **inputs}
        (made,) = run("Text2LayerReplaceLayer", layers=document("floor", "hat"), **values)
        return made

    def test_one_document_per_picture(self, run: Any) -> None:
        pictures = random(3, 8, 6, 3)
        made = self.replaced(run, picture=pictures)
        assert [names(each) for each in made] == ["floor hat"] * 3
        for index, each in enumerate(made):
            assert torch.equal(each["layers"][0]["image"], pictures[index : index + 1])
            assert (each["layers"][0]["y"], each["layers"][0]["h"]) == (-2, 8)
            assert torch.equal(each["layers"][1]["image"], item("hat")["image"])

    def test_the_mask_is_1_where_it_shows(self, run: Any) -> None:
        mask = random(1, 4, 6)
        (made,) = self.replaced(run, layer="hat", mask=mask)
        assert torch.equal(made["layers"][1]["mask"], 1 - mask)
        composed = run("Text2LayerCompose", layers=made)[0]
        floor = made["layers"][0]["image"]
        expected = torch.lerp(floor, random(1, 4, 6, 3), mask.unsqueeze(-1))
        torch.testing.assert_close(composed, expected)

    def test_matches_and_wraps(self, run: Any) -> None:
        (made,) = self.replaced(run, picture=torch.zeros(1, 4, 6, 3), colour_match="background")
        assert made["layers"][1]["image"].mean() < 0.1

    @pytest.mark.parametrize(("inputs", "message"), [
        ({"layer": "shoe"}, "layer must be one of floor, hat, got shoe"),
        ({"fit": "fill"}, "fit must be one of the 4"),
        ({"colour_match": "lab"}, "colour_match must be one of the 3"),
        ({"match_strength": math.nan}, "match_strength must be a finite number"),
        ({"wrap_strength": 7.0}, r"wrap_strength must lie in \[0, 1\], got 7.0"),
        ({"mask": random(1, 4, 7)}, "mask must have the picture's size 6x4, got 7x4"),
    ])
    def test_refuses(self, run: Any, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.replaced(run, **inputs)


class TestBuild:
    """Text2LayerBuild: every input comes as a list."""

    def built(self, run: Any, *images: Tensor, **inputs: Any) -> dict[str, Any]:
        values = {"names": "", "x": 0, "y": 0, "opacity": 1.0, "blend_mode": "normal", "canvas_width": 0,
                  "canvas_height": 0}
        lists = {name: [value] for name, value in {**values, **inputs}.items() if name not in ("masks", "layers")}
        lists |= {name: inputs[name] for name in ("masks", "layers") if name in inputs}
        (made,) = run("Text2LayerBuild", images=list(images), **lists)
        return made

    def test_batches_and_lists_become_layers(self, run: Any) -> None:
        first, second = random(2, 4, 6, 3), random(1, 9, 9, 4, seed=1)
        made = self.built(run, first, second, names="floor\n\nhat")
        assert names(made) == "floor layer 2 hat"
        assert made["canvas"] == (6, 4)
        assert torch.equal(made["layers"][1]["image"], first[1:])
        assert torch.equal(made["layers"][2]["image"], second)

    def test_masks_are_1_where_the_layer_shows(self, run: Any) -> None:
        images, masks = random(2, 4, 6, 3), random(2, 4, 6)
        made = self.built(run, images, masks=[masks[:1], masks[1:]])
        assert torch.equal(made["layers"][1]["mask"], 1 - masks[1:])
        made = self.built(run, images, masks=[masks[0]])
        assert torch.equal(made["layers"][1]["mask"], 1 - masks[:1])

    def test_goes_on_top_of_a_document(self, run: Any) -> None:
        made = self.built(run, random(1, 2, 2, 3), layers=[document("floor")], x=3, y=-1, opacity=0.5,
                          blend_mode="screen")
        assert names(made) == "floor layer 2"
        assert made["canvas"] == (6, 4)
        top = made["layers"][1]
        assert (top["x"], top["y"], top["opacity"], top["blend_mode"], top["z_index"]) == (3, -1, 0.5, "screen", 1)
        assert self.built(run, random(1, 2, 2, 3), canvas_width=9)["canvas"] == (9, 2)

    @pytest.mark.parametrize(("inputs", "message"), [
        ({"masks": [random(3, 4, 6)]}, r"masks must be one or as many as images \(2\), got 3"),
        ({"masks": [random(1, 4, 7)]}, "masks must have the layer 1's size 6x4, got 7x4"),
        ({"names": "a\nb\nc"}, r"names must be at most as many as images \(2\), got 3"),
        ({"layers": [document("a")] * 2}, "layers must be one document, got 2: put Merge Layers before"),
        ({"blend_mode": "dissolve"}, "blend_mode must be one of the 16"),
        ({"opacity": 7.0}, r'layer "layer 1": opacity must lie in \[0, 1\], got 7.0'),
    ])
    def test_refuses(self, run: Any, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.built(run, random(2, 4, 6, 3), **inputs)

    def test_refuses_51_layers(self, run: Any) -> None:
        with pytest.raises(ValueError, match="a document must hold 1 to 50 layers, got 51"):
            self.built(run, random(51, 1, 1, 3))


def test_split_undoes_build(run: Any) -> None:
    images, masks = random(2, 4, 6, 3), random(2, 4, 6)
    lists: dict[str, list[Any]] = {"names": ["a\nb"], "x": [0], "y": [0], "opacity": [1.0], "blend_mode": ["normal"],
                                   "canvas_width": [0], "canvas_height": [0]}
    (made,) = run("Text2LayerBuild", images=[images], masks=[masks], **lists)
    pictures, shown, found = run("Text2LayerSplit", layers=made)
    assert found == ["a", "b"]
    assert torch.equal(torch.cat(pictures), images)
    torch.testing.assert_close(torch.cat(shown), masks)


@pytest.mark.parametrize(("inputs", "expected"), [
    ({}, "a b d c"), ({"move": "to bottom"}, "c a b d"), ({"move": "up"}, "a b d c"), ({"move": "down"}, "a c b d"),
    ({"layer": "", "move": "up"}, "a b c d"), ({"layer": "a", "move": "down"}, "a b c d"),
    ({"order": "d, 1,b ,c"}, "d a b c"),
])
def test_reorder(run: Any, inputs: dict[str, str], expected: str) -> None:
    values = {"layer": "c", "move": "to top", "order": ""}
    (made,) = run("Text2LayerReorder", layers=document("a", "b", "c", "d"), **{**values, **inputs})
    assert names(made) == expected
    assert [each["z_index"] for each in made["layers"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(("inputs", "message"), [
    ({"order": "a,b"}, r"order must hold each position from 0 to 2 once, got \[0, 1\]"),
    ({"order": "a,b,x"}, "layer must be one of a, b, c, got x"),
    ({"move": "away"}, "move must be one of the 4"),
])
def test_reorder_refuses(run: Any, inputs: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("Text2LayerReorder", layers=document("a", "b", "c"), **{"layer": "", "move": "up", "order": "", **inputs})


@pytest.mark.parametrize(("canvas", "expected"), [("larger", (6, 9)), ("below", (6, 4)), ("above", (3, 9))])
def test_merge(run: Any, canvas: str, expected: tuple[int, int]) -> None:
    (made,) = run("Text2LayerMerge", below=document("a", "b"), above=document("c", canvas=(3, 9)), canvas=canvas)
    assert names(made) == "a b c"
    assert made["canvas"] == expected


def test_merge_refuses(run: Any) -> None:
    with pytest.raises(ValueError, match="canvas must be one of the 3"):
        run("Text2LayerMerge", below=document("a"), above=document("b"), canvas="smaller")
    with pytest.raises(ValueError, match="a document must hold 1 to 50 layers, got 52"):
        run("Text2LayerMerge", below=document(*"a" * 26), above=document(*"b" * 26), canvas="larger")
