"""PSD files as psd-tools, ImageMagick and GIMP read them, against our own composition; and saved, loaded, saved."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from psd_tools import PSDImage

from tests.core import flatteners
from tests.core.flatteners import Flattener, difference, document, random
from text2layer_core.blending import BlendMode
from text2layer_core.composition import compose_stack
from text2layer_core.layers import TwoLayerImage
from text2layer_core.psd import save_psd
from text2layer_core.psd_reader import load_psd
from text2layer_core.stack import Layer, LayerStack

NAMES = ["background", "Füchse & <狐> 🦊"]
# GIMP's own formulas differ from W3C's: dodge and burn at their ends, soft light everywhere, the last four wholly.
GIMP_MODES = ["normal", "multiply", "screen", "overlay", "darken", "lighten", "hard-light", "difference", "exclusion"]


@pytest.mark.parametrize("flatten", [flatteners.by_preview, flatteners.by_psd_tools], ids=["preview", "psd-tools"])
@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "transparent"])
@pytest.mark.parametrize("mode", BlendMode)
def test_flattened(tmp_path: Path, mode: BlendMode, opaque: bool, flatten: Flattener) -> None:
    stack = document(mode, opaque=opaque)
    save_psd(tmp_path / "a.psd", stack)
    assert difference(flatten(tmp_path / "a.psd"), stack) <= 2


@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "transparent"])
@pytest.mark.parametrize("mode", flatteners.SEPARABLE)
def test_flattened_by_imagemagick(tmp_path: Path, mode: BlendMode, opaque: bool) -> None:
    """The modes that are not separable it computes in HSL, which is not W3C's formula."""
    stack = document(mode, opaque=opaque)
    save_psd(tmp_path / "a.psd", stack)
    assert difference(flatteners.by_imagemagick(tmp_path / "a.psd"), stack) <= 2


@pytest.mark.slow
def test_flattened_by_gimp(tmp_path: Path) -> None:
    stacks = [document(BlendMode(mode), opaque=opaque) for mode in GIMP_MODES for opaque in (True, False)]
    paths = [tmp_path / f"{number}.psd" for number in range(len(stacks))]
    for path, stack in zip(paths, stacks, strict=True):
        save_psd(path, stack)
    for stack, (picture, names) in zip(stacks, flatteners.by_gimp(paths), strict=True):
        assert difference(picture, stack) <= 2
        assert names == NAMES[::-1]


@pytest.mark.parametrize("flatten", [flatteners.by_psd_tools, flatteners.by_imagemagick])
def test_alpha_in_place_of_a_mask(tmp_path: Path, flatten: Flattener) -> None:
    stack = document()
    save_psd(tmp_path / "a.psd", stack, masks="alpha")
    assert not any(layer.has_mask() for layer in PSDImage.open(tmp_path / "a.psd"))
    assert difference(flatten(tmp_path / "a.psd"), stack) <= 2


def test_what_psd_tools_finds(tmp_path: Path) -> None:
    stack = document(BlendMode.MULTIPLY).with_layer(0, visible=False)
    save_psd(tmp_path / "a.psd", stack)
    file = PSDImage.open(tmp_path / "a.psd")
    below, above = file
    assert [layer.name for layer in file] == NAMES
    assert (above.bbox, below.bbox) == ((-5, 4, 45, 34), (0, 0, 60, 40))  # what lies beyond the canvas is there
    assert (above.opacity, below.opacity) == (204, 255)
    assert (above.blend_mode.name, below.blend_mode.name) == ("MULTIPLY", "NORMAL")
    assert (above.is_visible(), below.is_visible()) == (True, False)
    assert above.mask is not None
    assert above.mask.bbox == above.bbox
    picture, mask = above.topil(), above.mask.topil()
    assert picture is not None
    assert mask is not None
    assert torch.equal(flatteners.rgba(picture)[..., :3], stack.layers[1].picture[0].movedim(0, -1))
    assert torch.equal(flatteners.rgba(mask)[..., 0], stack.layers[1].mask[0, 0])  # type: ignore[index]


@pytest.mark.parametrize("changes", [
    {"rotation": 0.4}, {"x": 3.5, "y": -7.25}, {"width": 33.0, "height": 71.0}, {"flip_horizontal": True},
    {"rotation": math.pi / 2, "flip_vertical": True},
])
def test_other_places_are_resampled_and_keep_their_mask(tmp_path: Path, changes: dict[str, float]) -> None:
    stack = document().with_layer(1, **changes)
    save_psd(tmp_path / "a.psd", stack)
    assert list(PSDImage.open(tmp_path / "a.psd"))[1].has_mask()
    assert difference(flatteners.by_psd_tools(tmp_path / "a.psd"), stack) <= 2


def test_a_layer_wholly_off_the_canvas_stays(tmp_path: Path) -> None:
    stack = document().with_layer(1, x=-500)
    save_psd(tmp_path / "a.psd", stack)
    assert difference(flatteners.by_preview(tmp_path / "a.psd"), stack) <= 0.5
    layer = load_psd(tmp_path / "a.psd").stack.layers[1]
    assert layer.x == -500
    assert torch.equal(layer.picture, stack.layers[1].picture)


def test_preview_is_the_composition_to_half_a_step(tmp_path: Path) -> None:
    stack = document()
    save_psd(tmp_path / "a.psd", stack)
    stored = stack.with_layer(1, opacity=204 / 255)
    assert difference(flatteners.by_preview(tmp_path / "a.psd"), stored) <= 0.5 + 1e-3


@pytest.mark.parametrize("masks", ["layer", "alpha"])
def test_save_load_save_is_exact(tmp_path: Path, masks: str) -> None:
    """Pixels, masks and the very bytes of the file, for all modes at once."""
    layers = [
        replace(document(mode, mask=number % 3 > 0).layers[1], picture=random(3 + number % 2, 30, 50, seed=number),
                name=f"{number} 狐", opacity=number / 16, visible=number % 5 > 0, x=number - 8)
        for number, mode in enumerate(BlendMode)
    ]
    stack = LayerStack(canvas=(60, 40), layers=tuple(layers))
    first, second = tmp_path / "first.psd", tmp_path / "second.psd"
    save_psd(first, stack, masks=masks)
    loaded = load_psd(first)
    save_psd(second, loaded.stack)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.notes == ()
    assert loaded.stack.canvas == (60, 40)
    for found, given in zip(loaded.stack, stack, strict=True):
        assert (found.name, found.x, found.y, found.visible) == (given.name, given.x, given.y, given.visible)
        assert found.blend_mode == given.blend_mode
        assert abs(found.opacity - given.opacity) <= 0.5 / 255
        assert torch.equal(found.colour, given.colour)
        if masks == "layer":
            assert torch.equal(found.picture, given.picture)
            assert (found.mask is None) == (given.mask is None)
            assert found.mask is None or torch.equal(found.mask, given.mask)  # type: ignore[arg-type]


def test_half_precision_inputs_stay(tmp_path: Path) -> None:
    """Eleven bits hold any k / 255."""
    stack = document()
    half = replace(stack, layers=tuple(
        replace(layer, picture=layer.picture.half(), mask=None if layer.mask is None else layer.mask.half())
        for layer in stack
    ))
    copies = [layer.picture.clone() for layer in half]
    save_psd(tmp_path / "a.psd", stack)
    save_psd(tmp_path / "b.psd", half)
    assert (tmp_path / "a.psd").read_bytes() == (tmp_path / "b.psd").read_bytes()
    assert all(torch.equal(layer.picture, copy) for layer, copy in zip(half, copies, strict=True))


def test_names_that_no_file_can_hold(tmp_path: Path) -> None:
    stack = document().with_layer(1, name="a\0b\ud800c\n" + "x" * 300)
    save_psd(tmp_path / "a.psd", stack)
    assert load_psd(tmp_path / "a.psd").stack.layers[1].name == "a b c " + "x" * 249


def test_refused(tmp_path: Path) -> None:
    stack, path = document(), tmp_path / "a.psd"
    batch = TwoLayerImage.from_stack(torch.rand(2, 7, 4, 4))
    with pytest.raises(ValueError, match=r"^image must hold one picture \(index the batch\), got 2$"):
        save_psd(path, batch)
    with pytest.raises(ValueError, match=r"^document must hold one picture \(index the batch\), got 2$"):
        save_psd(path, LayerStack.from_two_layers(batch))
    with pytest.raises(ValueError, match=r"^masks must be one of layer, alpha, got vector$"):
        save_psd(path, stack, masks="vector")
    with pytest.raises(ValueError, match=r'^layer "background" must be 1 to 16384 pixels a side, got 20000x40$'):
        save_psd(path, stack.with_layer(0, width=20000))
    with pytest.raises(ValueError, match=r"^the canvas must be 1 to 16384 pixels a side, got 16385x40$"):
        save_psd(path, replace(stack, canvas=(16385, 40)))
    assert not list(tmp_path.iterdir())


def test_an_empty_document_of_invisible_layers(tmp_path: Path) -> None:
    stack = LayerStack(canvas=(6, 4), layers=(Layer(name="a", picture=random(3, 4, 6, seed=0), visible=False),))
    save_psd(tmp_path / "a.psd", stack)
    assert flatteners.by_preview(tmp_path / "a.psd")[..., 3].max() == 0
    assert compose_stack(stack)[0, 3].max() == 0
