"""PNGs of 8 and 16 bits, and sets of them: read back by Pillow, and by ImageMagick where Pillow reads 8 bits only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.core import flatteners
from tests.core.flatteners import difference, document, random
from tests.core.imagemagick import command as imagemagick
from text2layer_core.composition import compose_stack
from text2layer_core.png import file_name, save_png, save_png_set


def read_16_bits(path: Path, channels: int) -> Tensor:
    """(C, H, W) as integers, by ImageMagick."""
    program = imagemagick()
    if program is None:
        pytest.skip("ImageMagick is not installed")
    kind = {1: "gray", 3: "rgb", 4: "rgba"}[channels]
    command = [program, path, "-depth", "16", "-endian", "MSB", f"{kind}:-"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    with Image.open(path) as opened:
        width, height = opened.size
    pairs = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(height, width, channels, 2).int()
    return (pairs[..., 0] * 256 + pairs[..., 1]).movedim(-1, 0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (3, 300)])
def test_16_bits_are_exact(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    values = torch.randint(0, 65536, (channels, size[1], size[0]), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "a.png"
    save_png(path, (values.double() / 65535).float(), bits=16, text={"prompt": '{"a": 1}', "name": "狐"})
    assert torch.equal(read_16_bits(path, channels), values.int())
    with Image.open(path) as opened:
        opened.load()
        assert (opened.info["prompt"], opened.info["name"]) == ('{"a": 1}', "狐")
        assert opened.size == size
        if channels == 1:  # all that Pillow reads at 16 bits
            found = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.int16).int() % 65536
            assert torch.equal(found.view(1, size[1], size[0]), values.int())


def test_16_bits_under_alpha_0_are_kept(tmp_path: Path) -> None:
    picture = torch.cat([torch.full((3, 2, 2), 0.5), torch.zeros(1, 2, 2)])
    save_png(tmp_path / "a.png", picture, bits=16)
    assert read_16_bits(tmp_path / "a.png", 4)[0, 0, 0] == 32768


def test_text_of_8_bits(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", torch.rand(3, 2, 2), text={"workflow": "Füchse 狐"})
    with Image.open(tmp_path / "a.png") as opened:
        opened.load()
        assert opened.info["workflow"] == "Füchse 狐"


def test_bits_are_8_or_16(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^bits must be 8 or 16, got 12$"):
        save_png(tmp_path / "a.png", torch.rand(3, 2, 2), bits=12)
    with pytest.raises(ValueError, match=r"^bits must be 8 or 16, got 1$"):
        save_png_set(tmp_path, document(), bits=1)
    with pytest.raises(ValueError, match=r"^masks must be one of layer, alpha, got none$"):
        save_png_set(tmp_path, document(), masks="none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_set(tmp_path: Path, bits: int) -> None:
    stack = document()
    paths = save_png_set(tmp_path, stack, prefix="run_", bits=bits)
    assert [path.name for path in paths] == [
        "run_01_background.png", "run_02_Füchse_狐.png", "run_02_Füchse_狐_mask.png", "run_composed.png",
    ]
    below, above, mask, composed = (flatteners.rgba(Image.open(path)) for path in paths)
    assert all(picture.shape == (40, 60, 4) for picture in (below, above, mask, composed))
    layer = stack.layers[1]
    assert layer.mask is not None
    assert torch.equal(below[..., :3], stack.layers[0].picture[0].movedim(0, -1))
    # x = -5, y = 4: the first five columns are beyond the canvas; opacity is in the composition alone.
    cut = torch.cat([layer.picture, layer.mask], dim=1)[0].movedim(0, -1)[:, 5:]
    assert torch.equal(above[4:34, :45], cut)
    assert above[:4].max() == 0
    if bits == 8:  # of 16-bit grey Pillow makes no other kind
        assert torch.equal(mask[4:34, :45, 0], cut[..., 3])
    assert difference(composed, stack) <= 1


def test_a_set_of_16_bits_is_finer_than_8(tmp_path: Path) -> None:
    stack = document().with_layer(0, picture=random(3, 40, 60, seed=3) * 0.9987)
    paths = save_png_set(tmp_path, stack, bits=16)
    expected = (compose_stack(stack)[0, :3] * 65535).round().int()
    assert (read_16_bits(paths[-1], 3) - expected).abs().max() <= 1


def test_masks_in_alpha_alone(tmp_path: Path) -> None:
    paths = save_png_set(tmp_path, document(), masks="alpha")
    assert [path.name for path in paths] == ["01_background.png", "02_Füchse_狐.png", "composed.png"]


def test_a_layer_off_the_canvas_is_transparent(tmp_path: Path) -> None:
    paths = save_png_set(tmp_path, document().with_layer(1, x=-500))
    assert flatteners.rgba(Image.open(paths[1])).max() == 0


@pytest.mark.parametrize(("name", "expected"), [
    ("a fox", "a_fox"), ("../../etc/passwd", "etc_passwd"), ("狐 <&>", "狐"), ("", "layer"), ("...", "layer"),
    ("x" * 100, "x" * 40), ("a\0b", "a_b"), ("C:\\con", "C_con"),
])
def test_names_of_files(name: str, expected: str) -> None:
    assert file_name(name) == expected
