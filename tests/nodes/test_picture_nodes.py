"""The nodes that work on pictures and masks, run without a host: expected values are what the core gives."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core import decompose as core
from text2layer_core.foreground import estimate_foreground
from text2layer_core.refine import RefineOptions, refine_mask


def picture(count: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def disc(count: int = 2, height: int = 48, width: int = 64) -> Tensor:
    """MASK (N, H, W) with a soft rim."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((14 - ((y - 24) ** 2 + (x - 30) ** 2).sqrt()) / 4).clamp(0, 1).expand(count, -1, -1).clone()


def nchw(image: Tensor) -> Tensor:
    return image.movedim(-1, 1)


@pytest.fixture
def run(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the node of that id: its outputs."""
    nodes = {node.__name__: node for node in pack.NODES}

    def run(name: str, **inputs: Any) -> tuple[Any, ...]:
        monkeypatch.setattr(nodes[name], "hidden", SimpleNamespace(unique_id="1"), raising=False)
        return nodes[name].execute(**inputs).args

    return run


EDITS: dict[str, Any] = {
    "method": "guided", "radius": 3.0, "threshold": 0.0, "drop_specks": 0, "fill_holes": 0, "grow": 0.0, "feather": 0.0,
}
SHADOW: dict[str, Any] = {
    "x": 3.0, "y": 2.0, "blur": 0.0, "height": 1.0, "slant": 0.0, "opacity": 0.4, "colour": "#336699",
}
HOLE: dict[str, Any] = {"dilate": 4, "feather": 2, "context": 6, "multiple": 8}


class TestRefineMask:
    """Text2LayerRefineMask."""

    @pytest.mark.parametrize("changes", [{}, {"method": "closed_form", "radius": 8.0}, {
        "method": "none", "threshold": 0.4, "drop_specks": 3, "fill_holes": 5, "grow": -2.0, "feather": 1.5,
    }])
    def test_it_is_the_cores(self, run: Any, changes: dict[str, Any]) -> None:
        settings = {**EDITS, **changes}
        (refined,) = run("Text2LayerRefineMask", image=picture(), foreground_mask=disc(), **settings)
        options = RefineOptions(**{**settings, "radius": settings["radius"] / 100})
        assert torch.equal(refined, refine_mask(nchw(picture()), disc()[:, None], options)[:, 0])

    def test_one_mask_serves_all_pictures_and_alpha_is_left_out(self, run: Any) -> None:
        image = torch.cat([picture(), torch.zeros(2, 48, 64, 1)], dim=-1)
        for mask in (disc(1), disc(1)[0]):
            (refined,) = run("Text2LayerRefineMask", image=image, foreground_mask=mask, **EDITS)
            assert torch.equal(refined, refine_mask(nchw(picture()), disc()[:, None])[:, 0])

    @pytest.mark.parametrize(("changes", "message"), [
        ({"method": "../magic"}, "method must be one of the"),
        ({"radius": float("nan")}, "radius must be a finite number, got nan"),
        ({"foreground_mask": disc(1, 20, 30)}, "foreground_mask must have the image's size 64x48, got 30x20"),
        ({"foreground_mask": disc(3)}, r"must have one mask or as many as image \(2\), got 3"),
        ({"foreground_mask": disc() * torch.nan}, "mask must be finite"),
        ({"method": "vitmatte", "vitmatte_folder": "../elsewhere"}, "must be a folder in ComfyUI's models folder"),
        ({"method": "vitmatte", "vitmatte_folder": ""}, "must be a folder in ComfyUI's models folder"),
        ({"method": "vitmatte", "vitmatte_folder": "empty"}, "must hold config.json and model.safetensors, got empty"),
    ])
    def test_bad_values_are_named(
        self, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        monkeypatch.setattr(
            sys.modules["stubbed_pack.nodes.mask_refine"], "folder_paths", SimpleNamespace(models_dir=str(tmp_path))
        )
        with pytest.raises(ValueError, match=message):
            run("Text2LayerRefineMask", **{"image": picture(), "foreground_mask": disc(), **EDITS, **changes})


def test_estimate_foreground_gives_rgba_and_what_is_behind(run: Any) -> None:
    foreground, background = run("Text2LayerEstimateForeground", image=picture(), foreground_mask=disc())
    colour, behind = estimate_foreground(nchw(picture()), disc()[:, None])
    assert torch.equal(nchw(foreground), torch.cat([colour, disc()[:, None]], dim=1))
    assert torch.equal(nchw(background), behind)


class TestDecompose:
    """Text2LayerDecompose."""

    def test_without_a_background_the_hole_is_filled(self, run: Any) -> None:
        foreground, background, mask, composed, documents = run("Text2LayerDecompose", image=picture(), mask=disc())
        layers = core.decompose(nchw(picture()), disc()[:, None])
        assert torch.equal(nchw(foreground), layers.rgba)
        assert torch.equal(nchw(background), layers.background)
        assert torch.equal(mask, disc())
        assert composed.shape == (2, 48, 64, 3)
        assert [[layer["name"] for layer in each["layers"]] for each in documents] == [["background", "foreground"]] * 2

    def test_a_background_is_taken_as_it_is(self, run: Any) -> None:
        filled = picture().flip(0)
        outputs = run("Text2LayerDecompose", image=picture(), mask=disc(), filled_background=filled)
        assert torch.equal(outputs[1], filled)
        with pytest.raises(ValueError, match=r"background must have the shape \(2, 3, 48, 64\) of image, got \(1, 3"):
            run("Text2LayerDecompose", image=picture(), mask=disc(), filled_background=filled[:1])


class TestInpaint:
    """Text2LayerPrepareInpaint and Text2LayerPasteBack."""

    def test_there_and_back_changes_nothing(self, run: Any) -> None:
        crop, hole, blend, x, y = run("Text2LayerPrepareInpaint", image=picture(), foreground_mask=disc(), **HOLE)
        assert hole.shape == blend.shape == crop.shape[:3]
        assert torch.equal(crop, picture()[:, y : y + crop.shape[1], x : x + crop.shape[2]])
        (pasted,) = run("Text2LayerPasteBack", image=picture(), inpainted=crop, blend=blend, x=x, y=y)
        assert torch.equal(pasted, picture())

    def test_one_seam_serves_all_pictures(self, run: Any) -> None:
        _, _, blend, x, y = run("Text2LayerPrepareInpaint", image=picture(1), foreground_mask=disc(1), **HOLE)
        filled = torch.zeros(2, *blend.shape[1:], 3)
        (pasted,) = run("Text2LayerPasteBack", image=picture(), inpainted=filled, blend=blend, x=x, y=y)
        assert pasted[disc() > 0.02].abs().max() == 0
        outside = torch.ones(48, 64, dtype=torch.bool)
        outside[y : y + blend.shape[1], x : x + blend.shape[2]] = blend[0] == 0
        assert torch.equal(pasted[:, outside], picture()[:, outside])

    def test_what_does_not_fit_is_named(self, run: Any) -> None:
        with pytest.raises(ValueError, match="got an empty mask"):
            run("Text2LayerPrepareInpaint", image=picture(), foreground_mask=0 * disc(), **HOLE)
        with pytest.raises(ValueError, match="size of the window that was prepared, 20x10, got 64x48"):
            run("Text2LayerPasteBack", image=picture(), inpainted=picture(), blend=torch.ones(1, 10, 20), x=0, y=0)


def test_blur_background_keeps_what_is_in_front(run: Any) -> None:
    inputs = {"image": picture(), "foreground_mask": disc(), "kind": "lens"}
    composed, background, documents = run("Text2LayerBlurBackground", radius=6.0, **inputs)
    solid = disc() == 1
    assert torch.equal(composed[solid], picture()[solid])
    assert background.std() < 0.5 * picture().std()
    assert len(documents) == 2
    given, _, _ = run("Text2LayerBlurBackground", radius=0.0, background=picture().flip(0), **inputs)
    assert torch.equal(given[disc() == 0], picture().flip(0)[disc() == 0])
    with pytest.raises(ValueError, match="kind must be one of the 2 that the node lists, got 'box'"):
        run("Text2LayerBlurBackground", radius=1.0, **{**inputs, "kind": "box"})


class TestShadow:
    """Text2LayerShadow."""

    def document(self, run: Any) -> Any:
        return run("Text2LayerDecompose", image=picture(1), mask=disc(1))[4][0]

    def test_it_lies_under_its_layer(self, run: Any) -> None:
        (made,) = run("Text2LayerShadow", layers=self.document(run), layer="foreground", **SHADOW)
        assert [layer["name"] for layer in made["layers"]] == ["background", "foreground shadow", "foreground"]
        shadow = made["layers"][1]
        assert (shadow["blend_mode"], shadow["opacity"], shadow["x"], shadow["y"]) == ("multiply", 0.4, 2, 1)
        assert shadow["image"][0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
        assert torch.equal(1 - shadow["mask"][0, 1:-1, 1:-1], 1 - (1 - disc(1)[0]))

    def test_what_cannot_be_is_named(self, run: Any) -> None:
        for changes, message in (({"colour": "red"}, "colour must be written as #rrggbb, got 'red'"),
                                 ({"layer": "background"}, "must have a mask or alpha to cast a shadow"),
                                 ({"opacity": 7.0}, "opacity must lie in")):
            with pytest.raises(ValueError, match=message):
                run("Text2LayerShadow", **{"layers": self.document(run), "layer": "", **SHADOW, **changes})


def test_the_report_says_and_shows(run: Any) -> None:
    inputs = {"foreground": picture(), "background": picture().flip(0), "foreground_mask": disc()}
    text, thumbnails = run("Text2LayerReport", **inputs, side=32)
    assert thumbnails.shape == (2, 24, 128, 3)
    assert len(text.splitlines()) == 2
    assert "fringe" in text
    assert "psnr" not in text
    text, _ = run("Text2LayerReport", **inputs, predicted_composed=picture(), true_background=picture())
    assert "consistency_psnr" in text
    assert "hidden_psnr" in text
    with pytest.raises(ValueError, match=r"both tensors must have one shape"):
        run("Text2LayerReport", **inputs, predicted_composed=picture(1, 20, 20))
