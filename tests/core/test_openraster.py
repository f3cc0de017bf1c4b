"""OpenRaster files: as pyora flattens them, saved, loaded and saved, and hostile archives."""

from __future__ import annotations

import io
import random as python_random
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from tests.core import flatteners
from tests.core.flatteners import difference, document, random
from text2layer_core.blending import BlendMode
from text2layer_core.openraster import load_ora, save_ora
from text2layer_core.stack import LayerStack

# pyora knows no exclusion, has another soft light, and rounds within the last four.
PYORA_LIMITS = {mode: 2 for mode in flatteners.SEPARABLE if mode.value not in ("exclusion", "soft-light")}
PYORA_LIMITS |= {mode: 3 for mode in BlendMode if mode not in flatteners.SEPARABLE}


@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "transparent"])
@pytest.mark.parametrize("mode", PYORA_LIMITS)
def test_flattened_by_pyora(tmp_path: Path, mode: BlendMode, opaque: bool) -> None:
    stack = document(mode, opaque=opaque)
    save_ora(tmp_path / "a.ora", stack)
    assert difference(flatteners.by_pyora(tmp_path / "a.ora"), stack) <= PYORA_LIMITS[mode]


def test_what_is_in_the_file(tmp_path: Path) -> None:
    """Read with zipfile, ElementTree and Pillow alone: topmost first, the mask in alpha, colour under alpha 0 kept."""
    stack = document(BlendMode.COLOR_DODGE).with_layer(0, visible=False)
    save_ora(tmp_path / "a.ora", stack)
    with zipfile.ZipFile(tmp_path / "a.ora") as archive:
        root = ElementTree.fromstring(archive.read("stack.xml"))  # noqa: S314
        above, below = root.findall("stack/layer")
        assert dict(above.items()) == {
            "name": "Füchse & <狐> 🦊", "src": "data/layer001.png", "x": "-5", "y": "4", "opacity": "0.8",
            "visibility": "visible", "composite-op": "svg:color-dodge",
        }
        assert (below.get("visibility"), below.get("composite-op")) == ("hidden", "svg:src-over")
        picture = flatteners.rgba(Image.open(io.BytesIO(archive.read("data/layer001.png"))))
        merged = flatteners.rgba(Image.open(io.BytesIO(archive.read("mergedimage.png"))))
    layer = stack.layers[1]
    assert layer.mask is not None
    assert torch.equal(picture, torch.cat([layer.picture, layer.mask], dim=1)[0].movedim(0, -1))
    assert difference(merged, stack) <= 0.5 + 1e-3


def test_save_load_save_is_exact(tmp_path: Path) -> None:
    layers = [
        replace(document(mode).layers[1], picture=random(3 + number % 2, 30, 50, seed=number), name=f"{number} & <狐>",
                opacity=number / 16, visible=number % 5 > 0, x=number - 8, mask=None)
        for number, mode in enumerate(BlendMode)
    ]
    stack = LayerStack(canvas=(60, 40), layers=tuple(layers))
    save_ora(tmp_path / "first.ora", stack)
    loaded = load_ora(tmp_path / "first.ora")
    save_ora(tmp_path / "second.ora", loaded.stack)
    assert (tmp_path / "first.ora").read_bytes() == (tmp_path / "second.ora").read_bytes()
    assert loaded.notes == ()
    for found, given in zip(loaded.stack, stack, strict=True):
        assert torch.equal(found.picture, given.picture)
        assert (found.name, found.x, found.y, found.visible) == (given.name, given.x, given.y, given.visible)
        assert (found.opacity, found.blend_mode) == (given.opacity, given.blend_mode)


def png(mode: str = "RGBA", size: tuple[int, int] = (3, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 40000 if mode == "I;16" else None).save(buffer, "PNG")
    return buffer.getvalue()


LAYER = '<layer name="a" src="data/a.png"/>'
Archive = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Writes an OpenRaster file of one's own."""

    def write(layers: str = LAYER, *, xml: str | bytes | None = None, picture: bytes = png(), **more: bytes) -> Path:
        path = tmp_path / "a.ora"
        text = f'<image w="6" h="4"><stack>{layers}</stack></image>' if xml is None else xml
        members = {"mimetype": b"image/openraster", "stack.xml": text, "data/a.png": picture, **more}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return path

    return write


def test_stacks_are_taken_apart(archive: Archive) -> None:
    loaded = load_ora(archive(
        '<stack name="outer" opacity="0.5" visibility="hidden"><layer name="3" src="data/a.png" opacity="0.5"/>'
        '<stack name="inner" composite-op="svg:multiply"><layer name="2" src="data/a.png"/></stack></stack>'
        '<text name="words"/><layer name="1" src="data/a.png" composite-op="svg:plus" x="-2"/>'
    ))
    assert [(layer.name, layer.opacity, layer.visible) for layer in loaded.stack] == [
        ("1", 1.0, True), ("2", 0.5, False), ("3", 0.25, False),
    ]
    assert loaded.stack.layers[0].x == -2
    assert loaded.notes == (
        'group "outer" was flattened: its layers stand alone; its opacity 0.5 is now that of each layer',
        'group "inner" was flattened: its layers stand alone; its mode svg:multiply was left out',
        '"words" (text) was left out',
        'layer "1": blend mode svg:plus is not supported, normal instead',
    )


@pytest.mark.parametrize(("mode", "notes"), [
    ("RGB", ()), ("L", ()), ("P", ()), ("1", ()), ("I;16", ('layer "a": 16 bits a channel were brought to 8',)),
])
def test_other_kinds_of_png(archive: Archive, mode: str, notes: tuple[str, ...]) -> None:
    loaded = load_ora(archive(picture=png(mode)))
    assert loaded.stack.layers[0].picture.shape == (1, 3, 2, 3)
    assert loaded.notes == notes
    if mode == "I;16":
        assert torch.equal(loaded.stack.layers[0].picture, torch.full((1, 3, 2, 3), round(40000 / 257) / 255))


def named(size: tuple[int, int]) -> bytes:
    """A PNG whose head says another size."""
    data = png()
    return data[:16] + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + data[24:]


BOMB = '<!DOCTYPE image [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><image w="6" h="4"><stack>&b;</stack></image>'


@pytest.mark.parametrize(("changes", "message"), [
    ({"mimetype": b"application/zip"}, "a.ora: it must hold OpenRaster's mimetype"),
    ({"xml": BOMB}, "a.ora: stack.xml must have no document type definition"),
    ({"xml": BOMB.encode("utf-16")}, "a.ora: stack.xml must be UTF-8"),
    ({"xml": "<image"}, "a.ora is damaged: unclosed token"),
    ({"xml": "<image w='6' h='4'/>"}, "a.ora: stack.xml must hold an image with a stack"),
    ({"xml": "<image w='x' h='4'><stack/></image>"}, "a.ora: w of <image> must be a number, got 'x'"),
    ({"xml": "<image w='nan' h='4'><stack/></image>"}, "a.ora: w of <image> must be a number, got 'nan'"),
    ({"xml": "<image w='20000' h='4'><stack/></image>"},
     "a.ora: the canvas must be 1 to 16384 pixels a side, got 20000x4"),
    ({"xml": "<image w='6' h='4'>" + "<stack>" * 70 + "</stack>" * 70 + "</image>"},
     "a.ora: its stacks must lie in each other at most 64 deep"),
    ({"xml": " " * 2**21}, "a.ora: its member 'stack.xml' must be at most 1048576 bytes, got 2097152"),
    ({"layers": ""}, "a.ora: it must hold 1 to 50 layers, got 0"),
    ({"layers": LAYER * 51}, "a.ora: it must hold 1 to 50 layers, got 51"),
    ({"layers": '<layer src="../../etc/passwd"/>'}, "a.ora: its member '../../etc/passwd' must lie within it"),
    ({"layers": '<layer src="/etc/passwd"/>'}, "a.ora: its member '/etc/passwd' must lie within it"),
    ({"layers": r'<layer src="..\a.png"/>'}, r"a.ora: its member '..\\a.png' must lie within it"),
    ({"layers": '<layer src="data/b.png"/>'}, "a.ora: it must hold 'data/b.png'"),
    ({"layers": '<layer name="a" src="data/a.png" opacity="7"/>'},
     "a.ora: opacity of \"a\" must lie in [0, 1], got '7'"),
    ({"layers": '<layer src="data/a.png" x="1e300"/>'}, "a.ora: x of <layer> must be less than 2^31, got 1e300"),
    ({"picture": b"GIF89a"}, 'a.ora: layer "a" must be a PNG'),
    ({"picture": named((20000, 1))}, 'a.ora: layer "a" must be 1 to 16384 pixels a side, got 20000x1'),
    ({"picture": named((16384, 16384))},
     'a.ora: layer "a" must take at most 1073741824 bytes, got 4294967296 (16384x16384)'),
    ({"picture": png()[:-30]}, "a.ora is damaged: "),
])
def test_hostile_and_damaged(archive: Archive, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        load_ora(archive(**changes))
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("picture", [png() + bytes(2**27), png()], ids=["bytes", "none"])
def test_a_zip_bomb_takes_no_memory(archive: Archive, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 MiB in a few KB: the limit is a layer's, here made smaller."""
    from text2layer_core import openraster

    path = archive(picture=picture)
    monkeypatch.setattr(openraster, "MAX_LAYER_BYTES", 2**20)
    if len(picture) < 2**20:
        load_ora(path)
        return
    tracemalloc.start()
    with pytest.raises(ValueError, match="must be at most 1048576 bytes, got 134217"):
        load_ora(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_all_layers_together_are_limited(archive: Archive) -> None:
    """One picture of 64 megapixels, named five times."""
    with pytest.raises(ValueError, match=r"^a\.ora: its layers must have at most 268435456 pixels together"):
        load_ora(archive(LAYER * 5, picture=named((8192, 8192))))


@pytest.mark.parametrize("seed", range(2))
def test_any_damage_is_one_line(tmp_path: Path, seed: int) -> None:
    chance = python_random.Random(seed)  # noqa: S311
    save_ora(tmp_path / "good.ora", document())
    good, refused = (tmp_path / "good.ora").read_bytes(), 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 127, 128, 255))
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        (tmp_path / "bad.ora").write_bytes(data)
        try:
            load_ora(tmp_path / "bad.ora")
        except ValueError as error:
            assert str(error).startswith("bad.ora")
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30
