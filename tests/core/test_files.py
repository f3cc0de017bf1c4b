"""Files of layers: what is written is read back by PIL, zipfile and psd-tools, independent of the writer's own code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage

from text2layer_core import psd
from text2layer_core.files import FORMATS, save_layers, save_sheet
from text2layer_core.layers import TwoLayerImage
from text2layer_core.openraster import save_ora
from text2layer_core.png import save_png
from text2layer_core.psd import save_psd

PNG_NAMES = ["foreground.png", "background.png", "mask.png", "composed.png"]


def read(path: Path) -> Image.Image:
    """A picture file as PIL reads it, closed again."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def pixels(picture: Image.Image) -> torch.Tensor:
    """(C, H, W) bytes of a PIL picture as integers."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()
    return values.view(picture.height, picture.width, -1).permute(2, 0, 1)


@pytest.fixture
def image() -> TwoLayerImage:
    """Noise, 20 wide and 14 high, in exact 8-bit steps: a mask that is 0 above, 1 below and soft between."""
    generator = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(0, 256, (1, 7, 14, 20), generator=generator)
    bytes_[:, 6, :4] = 0
    bytes_[:, 6, -4:] = 255
    return TwoLayerImage.from_stack(bytes_ / 255)


def test_pngs_hold_the_layers_exactly(image: TwoLayerImage, tmp_path: Path) -> None:
    save_layers(tmp_path, image, formats=["png"])
    foreground, background, mask, composed = (read(tmp_path / name) for name in PNG_NAMES)
    assert [picture.mode for picture in (foreground, background, mask, composed)] == ["RGBA", "RGB", "L", "RGB"]
    assert foreground.size == (20, 14)
    # The colour under alpha 0 is there too: all 8-bit values come back.
    assert torch.equal(pixels(foreground), (image.rgba[0] * 255).round().int())
    assert torch.equal(pixels(background), (image.background[0] * 255).round().int())
    assert torch.equal(pixels(mask), (image.mask[0] * 255).round().int())


def test_composed_png_is_eq_1_of_the_files(image: TwoLayerImage, tmp_path: Path) -> None:
    finer = TwoLayerImage(image.foreground * 0.9987, image.background * 0.9991, image.mask * 0.9979)
    save_layers(tmp_path, finer, formats=["png"])
    cutout, background, composed = (pixels(read(tmp_path / PNG_NAMES[i])).double() for i in (0, 1, 3))
    mask = cutout[3:] / 255
    expected = mask * cutout[:3] + (1 - mask) * background  # by hand, from the files alone
    assert (composed - expected).abs().max() <= 0.5 + 1e-3


def test_save_png_writes_grey_rgb_and_rgba(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        picture = torch.full((channels, 2, 3), 0.5)
        save_png(tmp_path / "a.png", picture)
        opened = read(tmp_path / "a.png")
        assert (opened.mode, opened.size) == (mode, (3, 2))
        assert torch.equal(pixels(opened), torch.full((channels, 2, 3), 128, dtype=torch.int32))  # 127.5 to even


def test_save_png_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"picture must have shape \(1, 3 or 4, H, W\), got \(2, 4, 4\)"):
        save_png(tmp_path / "a.png", torch.rand(2, 4, 4))
    assert not list(tmp_path.iterdir())


def test_psd_has_two_layers_and_a_real_mask(image: TwoLayerImage, tmp_path: Path) -> None:
    save_psd(tmp_path / "layers.psd", image)
    document = PSDImage.open(tmp_path / "layers.psd")
    background, foreground = document  # bottom to top
    assert [background.name, foreground.name] == ["background", "foreground"]
    assert document.size == (20, 14)
    assert not background.has_mask()
    assert foreground.mask is not None
    assert torch.equal(pixels(foreground.mask.topil()), (image.mask[0] * 255).round().int())
    # The pixels behind the mask are whole: colours as given, no alpha baked in.
    colour = foreground.topil()
    assert torch.equal(pixels(colour.convert("RGB")), (image.foreground[0] * 255).round().int())
    assert pixels(colour.convert("RGBA"))[3].min() == 255
    assert torch.equal(pixels(background.topil().convert("RGB")), (image.background[0] * 255).round().int())


def test_psd_flattens_to_composed_png(image: TwoLayerImage, tmp_path: Path) -> None:
    save_layers(tmp_path, image)
    composed = pixels(read(tmp_path / "composed.png"))
    document = PSDImage.open(tmp_path / "layers.psd")
    assert (pixels(document.topil().convert("RGB")) - composed).abs().max() <= 2  # the stored merged picture
    flattened = document.composite(ignore_preview=True)  # psd-tools' own rendering of the layers
    assert (pixels(flattened.convert("RGB")) - composed).abs().max() <= 2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_psd_of_an_empty_and_a_full_mask(image: TwoLayerImage, tmp_path: Path, value: float) -> None:
    limit = TwoLayerImage(image.foreground, image.background, torch.full_like(image.mask, value))
    save_psd(tmp_path / "layers.psd", limit)
    merged = pixels(PSDImage.open(tmp_path / "layers.psd").topil().convert("RGB"))
    layer = image.foreground if value else image.background
    assert (merged - (layer[0] * 255).round().int()).abs().max() <= 1


def test_ora_is_openraster(image: TwoLayerImage, tmp_path: Path) -> None:
    save_layers(tmp_path, image, formats=["png", "ora"])
    path = tmp_path / "layers.ora"
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"image/openraster"
        root = ElementTree.fromstring(archive.read("stack.xml"))  # noqa: S314
        assert (root.tag, root.get("w"), root.get("h")) == ("image", "20", "14")
        layers = root.findall("stack/layer")
        assert [layer.get("name") for layer in layers] == ["foreground", "background"]  # top first
        for layer, name in zip(layers, PNG_NAMES[:2], strict=True):
            with archive.open(layer.get("src", "")) as file:
                assert torch.equal(pixels(Image.open(file)), pixels(read(tmp_path / name)))
        with archive.open("mergedimage.png") as file:
            assert torch.equal(pixels(Image.open(file)), pixels(read(tmp_path / "composed.png")))
        with archive.open("Thumbnails/thumbnail.png") as file:
            assert max(Image.open(file).size) <= 256
    # A reader that looks at the first bytes finds the type at the place that the format names.
    assert path.read_bytes()[30:54] == b"mimetypeimage/openraster"


def test_ora_thumbnail_of_a_large_picture(tmp_path: Path) -> None:
    large = TwoLayerImage.from_stack(torch.rand(1, 7, 300, 600, generator=torch.Generator().manual_seed(0)))
    save_ora(tmp_path / "layers.ora", large)
    with zipfile.ZipFile(tmp_path / "layers.ora") as archive, archive.open("Thumbnails/thumbnail.png") as file:
        assert Image.open(file).size == (256, 128)


def test_sheet_shows_the_four_pictures(tmp_path: Path) -> None:
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    flat = (colour.view(1, 3, 1, 1).expand(1, 3, 256, 256) for colour in (red, blue))
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 128:] = 1  # the right half is foreground
    save_sheet(tmp_path / "sheet.png", TwoLayerImage(*flat, mask))
    sheet = read(tmp_path / "sheet.png").convert("RGB")
    margin, y = 256 // 24, 128
    left, right = ([margin + i * (256 + margin) + x for i in range(4)] for x in (40, 200))
    colours = [(sheet.getpixel((a, y)), sheet.getpixel((b, y))) for a, b in zip(left, right, strict=True)]
    assert colours[0] == ((0, 0, 255), (255, 0, 0))  # composed
    assert colours[1][0] in {(160,) * 3, (210,) * 3}  # checkerboard where the foreground is not
    assert colours[1][1] == (255, 0, 0)
    assert colours[2] == ((0, 0, 255), (0, 0, 255))  # background
    assert colours[3] == ((0, 0, 0), (255, 255, 255))  # mask


@pytest.mark.parametrize("prompt", ["a fox", "a very long prompt " * 100, "x" * 3000, " \n ", "狐 🦊 \x07"])
def test_sheet_wraps_any_prompt(image: TwoLayerImage, tmp_path: Path, prompt: str) -> None:
    save_sheet(tmp_path / "bare.png", image)
    save_sheet(tmp_path / "sheet.png", image, prompt)
    bare, sheet = read(tmp_path / "bare.png"), read(tmp_path / "sheet.png")
    assert sheet.width == bare.width
    assert (sheet.height > bare.height) == bool(prompt.strip())
    assert sheet.height < 2 * bare.height
    strip = pixels(sheet.convert("L").crop((sheet.width - 4, 0, sheet.width, sheet.height)))
    assert strip.min() == 255  # nothing runs over the right edge


@pytest.mark.parametrize(("size", "longest"), [((14, 20), 256), ((200, 300), 300), ((700, 1400), 512)])
def test_sheet_panels_keep_the_shape(tmp_path: Path, size: tuple[int, int], longest: int) -> None:
    height, width = size
    save_sheet(tmp_path / "sheet.png", TwoLayerImage.from_stack(torch.zeros(1, 7, height, width)))
    panel_width = round(width * longest / max(size))
    margin = max(panel_width // 24, 8)
    assert read(tmp_path / "sheet.png").width == 4 * (panel_width + margin) + margin


def test_sheet_of_a_column_one_pixel_wide(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", TwoLayerImage.from_stack(torch.zeros(1, 7, 400, 1)), "a tower")
    assert read(tmp_path / "sheet.png").width > 4 * 60  # the columns are as wide as their labels


def test_names_order_and_suffix(image: TwoLayerImage, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    paths = save_layers(folder, image, formats=FORMATS, suffix="-0002")
    names = ["foreground", "background", "mask", "composed"]
    expected = [*(f"{name}-0002.png" for name in names), "layers-0002.psd", "layers-0002.ora", "sheet-0002.png"]
    assert paths == [folder / name for name in expected]
    assert sorted(folder.iterdir()) == sorted(paths)


def test_default_formats(image: TwoLayerImage, tmp_path: Path) -> None:
    paths = save_layers(str(tmp_path), image)
    assert [path.name for path in paths] == [*PNG_NAMES, "layers.psd", "sheet.png"]


def test_half_precision_gives_the_same_bytes_and_inputs_stay(image: TwoLayerImage, tmp_path: Path) -> None:
    before = image.stack().clone()
    save_layers(tmp_path / "float", image, formats=["png"])
    save_layers(tmp_path / "half", image.to(torch.float16), formats=["png"])  # 11 bits hold any k/255
    for name in PNG_NAMES[:3]:
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "float" / name).read_bytes()
    assert torch.equal(image.stack(), before)


def test_one_picture_only(image: TwoLayerImage, tmp_path: Path) -> None:
    batch = TwoLayerImage.from_stack(image.stack().repeat(2, 1, 1, 1))
    for save in (save_psd, save_ora, save_sheet):
        with pytest.raises(ValueError, match=r"image must hold one picture \(index the batch\), got 2"):
            save(tmp_path / "x", batch)
    with pytest.raises(ValueError, match=r"image must hold one picture \(index the batch\), got 2"):
        save_layers(tmp_path / "new", batch)
    assert not list(tmp_path.iterdir())


def test_unknown_format(image: TwoLayerImage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="formats must be among png, psd, ora, got gif, bmp"):
        save_layers(tmp_path / "new", image, formats=["png", "gif", "bmp"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_set_leaves_the_old_one(
    image: TwoLayerImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save_layers(tmp_path, image)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(psd, "_write", fail)
    with pytest.raises(type(error)):
        save_layers(tmp_path, TwoLayerImage.from_stack(1 - image.stack()))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ctrl_c_while_renaming_ends_with_the_whole_set(
    image: TwoLayerImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_layers(tmp_path / "expected", image)
    replace, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_layers(tmp_path / "out", image)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
