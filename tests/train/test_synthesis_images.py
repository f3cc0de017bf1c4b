"""Pictures of every kind, made with Pillow; expected pixels are worked out by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from train.synthesis.config import PictureConfig
from train.synthesis.images import Picture, Refused, decode_picture

KEEP = PictureConfig(size=64, fit="keep", least_side=8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(width: int = 64, height: int = 64, colour: object = (200, 40, 90), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), colour)  # type: ignore[arg-type]


def decode(data: bytes, config: PictureConfig = KEEP) -> Picture:
    return decode_picture(data, config)


def cause(data: bytes, config: PictureConfig = KEEP) -> str:
    with pytest.raises(Refused) as found:
        decode_picture(data, config)
    return found.value.cause


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_plain_picture_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = decode(encoded(Image.fromarray(pixels)))
    assert np.array_equal(found.pixels, pixels)
    assert (found.width, found.height, found.format, found.converted) == (64, 64, "PNG", ())


def test_empty_corrupt_and_cut_off() -> None:
    whole = encoded(plain(), "JPEG")
    assert cause(b"") == "empty"
    assert cause(b"<svg></svg>") == "corrupt"
    assert cause(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n") == "corrupt", "nothing that runs programs"
    assert cause(whole[: len(whole) // 2]) == "corrupt"
    assert cause(whole[:30]) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_are_refused_or_read_but_never_raise_another_error(kind: str) -> None:
    rng = np.random.default_rng(1)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)), kind)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        try:
            assert decode(bytes(data)).pixels.shape[2] == 3
        except Refused as refused:
            assert refused.cause in ("corrupt", "too_large", "too_small", "unsupported")


def test_a_bomb_is_refused_by_its_header() -> None:
    """50,000 x 50,000 pixels in 70 bytes; a decoder would take 7.5 GB."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    assert cause(bomb) == "too_large"


def test_sizes_are_limited_on_both_ends() -> None:
    config = PictureConfig(size=64, least_side=32, most_megapixels=0.01)
    assert cause(encoded(plain(101, 100)), config) == "too_large"
    assert decode(encoded(plain(100, 100)), config).pixels.shape == (64, 64, 3)
    assert cause(encoded(plain(31, 100)), config) == "too_small"
    strip = PictureConfig(size=512, fit="keep", least_side=8, most_megapixels=1.0)
    assert cause(encoded(plain(8, 1000)), strip) == "too_large", "512 x 64,000 after scaling"


def test_cmyk() -> None:
    found = decode(encoded(plain(colour=(0, 255, 255, 0), mode="CMYK"), "JPEG", quality=100))
    assert found.converted == ("cmyk",)
    assert np.abs(found.pixels.astype(int) - (255, 0, 0)).max() <= 4


def test_16_bits_are_scaled_not_clipped() -> None:
    """257 k -> k; 32768 / 257 = 127.5."""
    ramp = np.repeat((np.arange(64, dtype=np.uint16) * 257 * 4)[None], 64, axis=0)
    found = decode(encoded(Image.fromarray(ramp)))
    assert found.converted == ("16_bit", "grey")
    assert np.array_equal(found.pixels[0, :, 0], np.arange(64) * 4)
    assert np.array_equal(found.pixels[..., 0], found.pixels[..., 2])


def test_16_bits_of_colour() -> None:
    line = b"\0" + struct.pack(">HHH", 51_400, 10_280, 65_535) * 64  # 200, 40, 255 times 257
    data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(line * 64)) + chunk(b"IEND", b""))
    found = decode(data)
    assert found.converted == ("16_bit",)
    assert found.pixels[5, 5].tolist() == [200, 40, 255]


def test_alpha_is_composed_over_white() -> None:
    """Half of black on white is 127 or 128; nothing of red is white."""
    image = plain(mode="RGBA", colour=(0, 0, 0, 128))
    image.paste((255, 0, 0, 0), (0, 0, 32, 64))
    found = decode(encoded(image))
    assert found.converted == ("alpha",)
    assert found.pixels[0, 0].tolist() == [255, 255, 255]
    assert found.pixels[0, 60].tolist() == [127, 127, 127]


def test_a_palette_with_a_transparent_colour() -> None:
    image = plain(mode="P", colour=0)
    image.putpalette([10, 200, 30, 250, 0, 0])
    image.paste(1, (0, 0, 32, 64))
    found = decode(encoded(image, transparency=1))
    assert found.converted == ("palette", "alpha")
    assert found.pixels[0, 60].tolist() == [10, 200, 30]
    assert found.pixels[0, 0].tolist() == [255, 255, 255]


def test_an_animation_gives_its_first_frame_and_is_counted() -> None:
    frames = [plain(colour=colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        found = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
        assert "animated" in found.converted, kind
        assert found.pixels[9, 9].tolist() == [255, 0, 0], kind


def test_a_phones_two_pictures_in_one_are_no_animation() -> None:
    found = decode(encoded(plain(), "MPO", save_all=True, append_images=[plain()]))
    assert (found.format, found.converted) == ("MPO", ())


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (63, 63)), (6, (0, 63)), (8, (63, 0))])
def test_exif_rotation(orientation: int, corner: tuple[int, int]) -> None:
    """Where the file's upper left pixel comes to lie (row, column), by the EXIF standard."""
    image = plain(colour=(0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(image, exif=exif))
    assert ("rotated" in found.converted) == (orientation != 1)
    assert np.argwhere(found.pixels[..., 0] == 255).tolist() == [list(corner)]


def test_exif_rotation_swaps_the_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(plain(128, 64), "JPEG", exif=exif))
    assert (found.width, found.height, found.pixels.shape) == (64, 128, (128, 64, 3))


def test_a_tiff_is_turned_once() -> None:
    """Pillow turns it while it loads."""
    image = plain(128, 64, (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(image, "TIFF", exif=exif))
    assert (found.width, found.height, found.converted) == (64, 128, ("rotated",))
    assert np.argwhere(found.pixels[..., 0] == 255).tolist() == [[0, 63]]


def exif_of(*tags: tuple[int, int, bytes]) -> bytes:
    """An EXIF segment of tags (number, type, four bytes of values), one value each."""
    entries = b"".join(struct.pack("<HHI", number, kind, 1) + value for number, kind, value in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


UPRIGHT_BY_A_TURN = (0x0112, 3, b"\6\0\0\0")
BAD_TAGS = {"a negative width": (0x0100, 9, b"\xff" * 4), "a resolution of letters": (0x011A, 2, b"a\0\0\0"),
            "a place beyond the end": (0x011B, 5, b"\xff\xff\xff\x7f")}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", BAD_TAGS.values(), ids=BAD_TAGS.keys())
def test_a_bad_tag_beside_the_orientation(kind: str, tag: tuple[int, int, bytes]) -> None:
    """Orientation 6 by the EXIF standard: the file's left column is the picture's top."""
    image = plain(colour=(0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    found = decode(encoded(image, kind, exif=exif_of(*sorted([tag, UPRIGHT_BY_A_TURN]))))
    assert found.converted == ("rotated",)
    assert found.pixels[:30].min() > 245
    assert found.pixels[34:].max() < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no EXIF", b"Exif\0\0II*\0\xff\0\0\0", exif_of((0x0112, 2, b"6\0\0\0")),
                                  exif_of((0x0112, 3, b"\x63\0\0\0")), exif_of(UPRIGHT_BY_A_TURN)[:-12]])
def test_exif_that_cannot_be_read_turns_nothing(kind: str, exif: bytes) -> None:
    image = plain(colour=(0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    found = decode(encoded(image, kind, exif=exif))
    assert found.converted == ()
    assert found.pixels[:, :30].min() > 245


def test_a_colour_profile_is_converted_to_srgb() -> None:
    """SRGB's own profile changes nothing; a broken one is passed over."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (profile, b"no profile"):
        found = decode(encoded(plain(), icc_profile=icc))
        assert found.converted == ("profile",)
        assert np.abs(found.pixels[0, 0].astype(int) - (200, 40, 90)).max() <= 1


def test_floating_point_is_unsupported() -> None:
    assert cause(encoded(plain(mode="F", colour=0.5), "TIFF")) == "unsupported"


def test_crop_takes_the_middle_and_keep_takes_all() -> None:
    image = plain(192, 64, (0, 0, 0))
    image.paste((255, 255, 255), (64, 0, 128, 64))
    assert decode(encoded(image), PictureConfig(size=64)).pixels.min() == 255
    assert decode(encoded(image)).pixels.shape == (64, 192, 3)
    assert decode(encoded(image), PictureConfig(size=32, fit="keep")).pixels.shape == (32, 96, 3)
