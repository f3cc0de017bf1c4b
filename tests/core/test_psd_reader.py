"""PSD files that other programs write, and hostile ones: what becomes of them, what the notes say, what is refused."""

from __future__ import annotations

import copy
import random as python_random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode as BlendKey
from psd_tools.constants import Clipping, Compression, Resource, Tag
from psd_tools.psd.image_resources import ImageResource
from psd_tools.psd.layer_and_mask import MaskFlags

from tests.core import flatteners
from tests.core.flatteners import document, random
from tests.core.imagemagick import command as imagemagick
from text2layer_core.flat import LoadedDocument
from text2layer_core.psd import save_psd
from text2layer_core.psd_reader import load_psd

SIZE = (6, 4)
Save = Callable[[PSDImage], LoadedDocument]


def solid(red: int, alpha: int = 255, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGBA", size, (red, 20, 30, alpha))


def opaque(red: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return solid(red, size=size).convert("RGB")


def write(file: PSDImage, path: Path) -> None:
    """As it is: `save` would compose it first."""
    with path.open("wb") as opened:
        file._record.write(opened)


def psd(mode: str = "RGB", **arguments: Any) -> PSDImage:
    return PSDImage.new(mode, SIZE, **arguments)


@pytest.fixture
def through(tmp_path: Path) -> Save:
    """Written by psd-tools, read by us."""

    def save(file: PSDImage) -> LoadedDocument:
        write(file, tmp_path / "other.psd")
        return load_psd(tmp_path / "other.psd")

    return save


def test_layers_of_another_writer(through: Save) -> None:
    file = psd()
    file.create_pixel_layer(opaque(10), name="below", opacity=51, blend_mode=BlendKey.HUE)
    above = file.create_pixel_layer(solid(200, 100, (3, 2)), name="höher", top=-1, left=4)
    above.visible = False
    loaded = through(file)
    below, layer = loaded.stack
    assert loaded.notes == ()
    assert (below.name, below.opacity, below.blend_mode.value, below.visible) == ("below", 0.2, "hue", True)
    assert (layer.name, layer.x, layer.y, layer.visible) == ("höher", 4, -1, False)
    assert below.picture.shape == (1, 3, 4, 6)  # opaque everywhere: no alpha
    assert layer.mask is not None  # psd-tools makes alpha a mask
    assert torch.equal(layer.mask * 255, torch.full((1, 1, 2, 3), 100.0))
    assert torch.allclose(layer.picture[0, :, 0, 0] * 255, torch.tensor([200.0, 20, 30]))


def test_a_mask_of_another_size_is_filled_up(through: Save) -> None:
    """Outside its rectangle a mask has the value that the file gives, 255 here."""
    file = psd()
    layer = file.create_pixel_layer(opaque(10), name="a", top=1, left=1)
    layer.create_mask(Image.new("L", (3, 8), 100), left=0, top=-2)
    layer._record.mask_data.background_color = 255  # type: ignore[union-attr]
    mask = through(file).stack.layers[0].mask
    assert mask is not None
    expected = torch.full((4, 6), 255.0)
    expected[:, :2] = 100  # columns 1 and 2 of the canvas, all four rows
    assert torch.equal((mask[0, 0] * 255).round(), expected)


def test_a_mask_that_is_switched_off_is_named(through: Save) -> None:
    file = psd()
    layer = file.create_pixel_layer(opaque(10), name="a")
    layer.create_mask(Image.new("L", SIZE, 100))
    layer._record.mask_data.flags = MaskFlags(mask_disabled=True)
    loaded = through(file)
    assert loaded.stack.layers[0].mask is None
    assert loaded.notes == ('"a": its mask is switched off and was left out',)


def test_groups_are_taken_apart(through: Save) -> None:
    file = psd()
    file.create_pixel_layer(opaque(1), name="1")
    inner = [file.create_pixel_layer(opaque(number), name=str(number), opacity=128) for number in (2, 3)]
    group = file.create_group(layer_list=inner, name="inner", opacity=51)
    group.blend_mode = BlendKey.MULTIPLY
    outer = file.create_group(layer_list=[group], name="outer")
    outer.visible = False
    file.create_pixel_layer(opaque(4), name="4")
    loaded = through(file)
    assert [layer.name for layer in loaded.stack] == ["1", "2", "3", "4"]
    assert [layer.visible for layer in loaded.stack] == [True, False, False, True]
    assert [round(layer.opacity * 255 * 5) for layer in loaded.stack] == [1275, 128, 128, 1275]
    assert loaded.notes == (
        'group "outer" was flattened: its layers stand alone',
        'group "inner" was flattened: its layers stand alone; its opacity 0.2 is now that of each layer; '
        "its blend mode multiply was left out",
    )


def test_the_mask_of_a_group_reaches_its_layers(through: Save) -> None:
    file = psd()
    layers = [file.create_pixel_layer(opaque(number), name=str(number)) for number in (1, 2)]
    layers[1].create_mask(Image.new("L", SIZE, 51))
    group = file.create_group(layer_list=layers, name="g")
    group._bounding_channels = copy.deepcopy(group._bounding_channels)  # psd-tools 1.26 puts the mask there, too
    file._update_record()
    group.create_mask(Image.new("L", (2, 4), 102))
    loaded = through(file)
    for layer, value in zip(loaded.stack, (0.4, 0.4 * 0.2), strict=True):
        assert layer.mask is not None
        assert torch.allclose(layer.mask[0, 0, :, :2], torch.full((4, 2), value))
        assert layer.mask[0, 0, :, 2:].max() == 0
    assert loaded.notes == ('group "g" was flattened: its layers stand alone; its mask is now part of each layer\'s',)


def test_clipped_layers_get_the_alpha_below(through: Save) -> None:
    file = psd()
    file.create_pixel_layer(solid(1, 51, (3, 4)), name="base")
    clipped = file.create_pixel_layer(opaque(2), name="clipped")
    clipped._record.clipping = Clipping.NON_BASE
    loaded = through(file)
    mask = loaded.stack.layers[1].mask
    assert mask is not None
    assert torch.allclose(mask[0, 0, :, :3], torch.full((4, 3), 0.2))
    assert mask[0, 0, :, 3:].max() == 0
    assert loaded.notes == ('layer "clipped" was clipped to "base": that layer\'s alpha is part of its mask',)


def test_clipped_by_opacity_visibility_and_group_masks_once(through: Save) -> None:
    """In a group at 0.4, clipped to a layer at 0.2: the mask of the group counts once, that of the layer below too."""
    file = psd()
    base = file.create_pixel_layer(opaque(1), name="base", opacity=51)
    base.create_mask(Image.new("L", SIZE, 153))
    clipped = file.create_pixel_layer(opaque(2), name="clipped")
    clipped._record.clipping = Clipping.NON_BASE
    group = file.create_group(layer_list=[base, clipped], name="g")
    group._bounding_channels = copy.deepcopy(group._bounding_channels)
    file._update_record()
    group.create_mask(Image.new("L", SIZE, 102))
    base.visible = False
    layer = through(file).stack.layers[1]
    assert layer.mask is not None
    assert torch.allclose(layer.mask, torch.tensor(0.4 * 0.6))
    assert (layer.opacity, layer.visible) == (0.2, False)


def test_clipped_to_a_group_or_to_nothing(through: Save) -> None:
    """Not to the layer below the group."""
    file = psd()
    first = file.create_pixel_layer(solid(1, 51), name="first")
    inner = file.create_pixel_layer(opaque(2), name="inner")
    file.create_group(layer_list=[inner], name="g")
    above = file.create_pixel_layer(opaque(3), name="above")
    for layer in (first, above):
        layer._record.clipping = Clipping.NON_BASE
    loaded = through(file)
    assert loaded.stack.layers[2].mask is None
    assert [note for note in loaded.notes if "clipped" in note] == [
        f'layer "{name}" was clipped to what is no layer with pixels: it stands alone' for name in ("first", "above")
    ]


@pytest.mark.parametrize(("name", "notes"), [
    (b"sRGB IEC61966-2.1", ()), ("sRGB".encode("utf-16-be"), ()),
    (b"Adobe RGB (1998)", ("its colour profile is not sRGB: colours were taken as they are stored",)),
])
def test_another_colour_profile_is_named(through: Save, name: bytes, notes: tuple[str, ...]) -> None:
    file = psd()
    file.create_pixel_layer(opaque(1), name="a")
    profile = ImageResource(key=Resource.ICC_PROFILE, data=name)
    file._record.image_resources[Resource.ICC_PROFILE] = profile
    assert through(file).notes == notes


def test_modes_fill_opacity_effects_and_adjustments_are_named(through: Save) -> None:
    file = psd()
    layer = file.create_pixel_layer(opaque(1), name="a", blend_mode=BlendKey.LINEAR_BURN)
    layer._record.tagged_blocks.set_data(Tag.BLEND_FILL_OPACITY, 51)
    curves = file.create_pixel_layer(opaque(1), name="c")
    curves._record.tagged_blocks.set_data(Tag.INVERT)
    loaded = through(file)
    (only,) = loaded.stack
    assert (only.blend_mode.value, only.opacity) == ("normal", 0.2)
    assert sorted(loaded.notes) == [
        'invert layer "c" was left out: it has no pixels of its own',
        'layer "a": blend mode linear burn is not supported, normal instead',
    ]


@pytest.mark.parametrize(("mode", "depth", "notes"), [
    ("L", 8, ("grey was made RGB",)),
    ("RGB", 16, ("16 bits a channel: PSD files are written with 8",)),
    ("L", 16, ("16 bits a channel: PSD files are written with 8", "grey was made RGB")),
])
def test_other_kinds_are_converted(through: Save, mode: str, depth: int, notes: tuple[str, ...]) -> None:
    file = psd(mode, depth=depth)
    file.create_pixel_layer(Image.new(mode, SIZE, 77), name="a")
    loaded = through(file)
    assert loaded.notes == notes
    assert torch.allclose(loaded.stack.layers[0].picture[0, 0], torch.full((4, 6), 77 / 255))


@pytest.mark.parametrize(("mode", "depth", "message"), [
    ("CMYK", 8, "colours must be RGB or grey, got CMYK"),
    ("LAB", 8, "colours must be RGB or grey, got Lab"),
    ("1", 1, "colours must be RGB or grey, got bitmap"),
    ("RGB", 32, "it must have 8 or 16 bits a channel, got 32"),
])
def test_other_kinds_are_refused(through: Save, mode: str, depth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^other.psd: {message}$"):
        through(psd(mode, depth=depth))


def test_a_file_without_layers(through: Save) -> None:
    loaded = through(PSDImage.frompil(opaque(9)))
    assert loaded.notes == ("it has no layers with pixels: its merged picture was taken",)
    assert loaded.stack.layers[0].name == "Background"
    assert torch.allclose(loaded.stack.layers[0].picture[0, :, 0, 0] * 255, torch.tensor([9.0, 20, 30]))


def test_a_file_of_imagemagick(tmp_path: Path) -> None:
    """16 bits, zip or RLE as it likes."""
    program = imagemagick()
    if program is None:
        pytest.skip("ImageMagick is not installed")
    picture = random(4, 4, 6, seed=0)
    Image.fromarray((picture[0].movedim(0, -1) * 255).byte().numpy(), "RGBA").save(tmp_path / "a.png")
    subprocess.run([program, tmp_path / "a.png", "-depth", "16", tmp_path / "a.psd"], check=True)
    loaded = load_psd(tmp_path / "a.psd")
    assert torch.allclose(loaded.stack.layers[0].picture, picture, atol=1e-6)


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("depth", [8, 16])
def test_every_compression(through: Save, compression: Compression, depth: Any) -> None:
    file, values = psd(depth=depth), random(3, 4, 6, seed=0)
    picture = Image.fromarray((values[0].movedim(0, -1) * 255).byte().numpy(), "RGB")
    file.create_pixel_layer(picture, name="a", compression=compression)
    assert torch.allclose(through(file).stack.layers[0].picture, values, atol=1e-6)


def damaged(tmp_path: Path, change: Callable[[bytearray], Any], name: str = "bad.psd") -> Path:
    """A good file of ours, changed."""
    save_psd(tmp_path / "good.psd", document())
    data = bytearray((tmp_path / "good.psd").read_bytes())
    change(data)
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def put(form: str, place: int, *values: Any) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(form, data, place, *values)


@pytest.mark.parametrize(("change", "message"), [
    (put(">4s", 0, b"GIF8"), "bad.psd: it must be a PSD file, and its first bytes are another's"),
    (lambda data: data.__delitem__(slice(20, None)), "bad.psd: it must be a PSD file, and its first bytes are another"),
    (lambda data: data.clear(), "bad.psd: it must be a PSD file, and its first bytes are another's"),
    (put(">H", 4, 3), "bad.psd: PSD version must be 1 or 2, got 3"),
    (put(">H", 12, 2), "bad.psd: RGB must have 3 to 56 channels, got 2"),
    (put(">I", 14, 16385), "bad.psd: the canvas must be 1 to 16384 pixels a side, got 60x16385"),
    (put(">II", 14, 0, 0), "bad.psd: the canvas must be 1 to 16384 pixels a side, got 0x0"),
    (put(">II", 14, 2**32 - 1, 2**32 - 1), "bad.psd: the canvas must be 1 to 16384 pixels a side"),
    (lambda data: data.__delitem__(slice(len(data) // 2, None)), "bad.psd is damaged: "),
    (put(">I", 30, 2**31), "bad.psd is damaged: "),  # the length of the image resources
])
def test_damaged_and_hostile_heads(tmp_path: Path, change: Callable[[bytearray], Any], message: str) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(ValueError, match=f"^{message}"):
        load_psd(path)


def with_box(width: int, height: int, count: int = 1) -> Callable[[bytearray], None]:
    """The lower layer's rectangle is said to be of another size; its data stay."""

    def change(data: bytearray) -> None:
        box = struct.pack(">4i", 0, 0, 40, 60)
        place = data.index(box)
        struct.pack_into(">4i", data, place, 0, 0, height, width)

    return change


@pytest.mark.parametrize(("width", "height", "message"), [
    (16384, 16384, r'bad.psd: layer "background" must take at most 1073741824 bytes, got 4294967296 \(16384x16384\)'),
    (20000, 1, 'bad.psd: layer "background" must be 1 to 16384 pixels a side, got 20000x1'),
    (8192, 8192, "bad.psd: "),  # as large as a layer may be: then its data are too few
])
def test_sizes_are_refused_before_memory_is_taken(tmp_path: Path, width: int, height: int, message: str) -> None:
    path = damaged(tmp_path, with_box(width, height))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{message}"):
            load_psd(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_all_layers_together_are_limited(tmp_path: Path) -> None:
    """Five of 64 megapixels each, in 11 KB a plane."""
    file = psd()
    for number in range(5):
        file.create_pixel_layer(opaque(1), name=str(number))
    for record in file._record.layer_and_mask_information.layer_info.layer_records:  # type: ignore[union-attr]
        record.bottom, record.right = 8192, 8192
    write(file, tmp_path / "bad.psd")
    with pytest.raises(ValueError, match=r'^bad\.psd: its layers .* 268435456 pixels together; layer "4"'):
        load_psd(tmp_path / "bad.psd")


def test_too_many_layers(through: Save) -> None:
    file = psd()
    for number in range(51):
        file.create_pixel_layer(opaque(1, (1, 1)), name=str(number))
    with pytest.raises(ValueError, match=r"^other.psd: it must hold at most 50 layers with pixels, got 51$"):
        through(file)


def test_damaged_pixels_are_no_black_channel(tmp_path: Path) -> None:
    """psd-tools' own decoder warns and goes on."""
    file = psd()
    file.create_pixel_layer(opaque(1), name="a", compression=Compression.ZIP)
    channels = file._record.layer_and_mask_information.layer_info.channel_image_data  # type: ignore[union-attr]
    channels[0][1].data = b"\x78\x9c" + b"\xff" * 8
    write(file, tmp_path / "bad.psd")
    with pytest.raises(ValueError, match=r"^bad.psd is damaged: Error -3 while decompressing"):
        load_psd(tmp_path / "bad.psd")


def test_a_zip_bomb_in_a_channel(tmp_path: Path) -> None:
    """No more is unpacked than the layer has pixels."""
    import zlib

    file = psd()
    file.create_pixel_layer(opaque(1), name="a", compression=Compression.ZIP)
    channels = file._record.layer_and_mask_information.layer_info.channel_image_data  # type: ignore[union-attr]
    channels[0][1].data = zlib.compress(bytes(2**27))
    write(file, tmp_path / "bad.psd")
    tracemalloc.start()
    load_psd(tmp_path / "bad.psd")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_is_one_line(tmp_path: Path, seed: int) -> None:
    """Bytes changed at random, and files cut off: a document or a ValueError of one line."""
    chance = python_random.Random(seed)  # noqa: S311
    save_psd(tmp_path / "good.psd", document())
    good, refused = (tmp_path / "good.psd").read_bytes(), 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(26, 700)] = chance.choice((0, 1, 127, 128, 255))
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        (tmp_path / "bad.psd").write_bytes(data)
        try:
            load_psd(tmp_path / "bad.psd")
        except ValueError as error:
            assert str(error).startswith("bad.psd")
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_psd(tmp_path / "no.psd")


def test_the_loaded_document_is_what_psd_tools_shows(tmp_path: Path) -> None:
    stack = document()
    save_psd(tmp_path / "a.psd", stack)
    assert flatteners.difference(flatteners.by_psd_tools(tmp_path / "a.psd"), load_psd(tmp_path / "a.psd").stack) <= 1
