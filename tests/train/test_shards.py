"""The source `shards` on tar files written here; expected pixels are the bytes that were written."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train import shards
from train.samples import epoch_rows
from train.shards import Piece, ShardsConfig, ShardSource


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sample(seed: int, height: int = 8, width: int = 8) -> dict[str, bytes]:
    """A red square on noise; its foreground is black where the mask is 0, as careless data is."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    mask[2:5, 2:5] = 128
    foreground = np.where(mask[..., None] > 0, np.array([200, 10, 10 + seed], np.uint8), 0).astype(np.uint8)
    background = rng.integers(0, 256, (height, width, 3), np.uint8)
    return {"foreground.png": png(foreground), "background.png": png(background), "mask.png": png(mask),
            "txt": f"thing {seed}\n".encode()}


def write(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for part, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def config(tmp_path: Path) -> ShardsConfig:
    write(tmp_path / "train-0.tar", {f"{i:04d}": sample(i) for i in range(3)})
    write(tmp_path / "train-1.tar", {f"{i:04d}": sample(i) for i in range(3, 5)})
    write(tmp_path / "held-0.tar", {"0009": sample(9)})
    return ShardsConfig(files=str(tmp_path / "train-*.tar"), held_out=str(tmp_path / "held-*.tar"))


def test_every_sample_once_an_epoch_at_any_batch_size(config: ShardsConfig) -> None:
    source = ShardSource(config, 8, seed=4)
    order = [f"thing {row}" for row in epoch_rows(4, 0, 10, 5)]
    assert sorted(order[:5]) == [f"thing {i}" for i in range(5)]
    whole = source.batch(0, 10)
    assert whole.captions == order == source.captions(0, 10)
    assert torch.equal(torch.cat([source.batch(start, 2).stack for start in range(0, 10, 2)]), whole.stack)


def test_pixels_are_the_files_and_the_foreground_is_padded(config: ShardsConfig) -> None:
    batch = ShardSource(config, 8, seed=0, split="held_out").batch(0, 1)
    foreground, background, mask = batch.stack[0].split([3, 3, 1])
    assert batch.captions == ["thing 9"]
    expected = np.random.default_rng(9).integers(0, 256, (8, 8, 3), np.uint8)
    assert torch.equal((background * 255).round().byte().permute(1, 2, 0), torch.from_numpy(expected))
    assert mask.unique().tolist() == [0.0, pytest.approx(128 / 255)]
    # The only known colour is the square's, so padding can bring nothing else.
    assert torch.allclose(foreground, torch.tensor([200, 10, 19]).view(3, 1, 1) / 255)


def test_larger_pictures_are_scaled_and_cropped_at_the_centre(tmp_path: Path) -> None:
    wide = sample(1, height=8, width=16)
    columns = np.zeros((8, 16, 3), np.uint8)
    columns[:, 4:12] = 255
    write(tmp_path / "a.tar", {"0": {**wide, "background.png": png(columns)}})
    stack = ShardSource(ShardsConfig(files=str(tmp_path / "a.tar")), 8, seed=0).batch(0, 1).stack
    assert stack.shape == (1, 7, 8, 8)
    assert stack[:, 3:6].min() == 1  # the middle half of the width is white


def test_scaling_mixes_no_black_into_the_rim(tmp_path: Path) -> None:
    """Half the size: the only colour that the file shows is the square's, and so it stays everywhere."""
    write(tmp_path / "a.tar", {"0": sample(5, height=16, width=16)})
    stack = ShardSource(ShardsConfig(files=str(tmp_path / "a.tar")), 8, seed=0).batch(0, 1).stack
    assert torch.allclose(stack[0, :3], torch.tensor([200, 10, 15]).view(3, 1, 1) / 255, atol=1e-5)
    assert 0 < stack[0, 6].max() <= 128 / 255 + 1e-6


def test_keys_follow_webdataset(tmp_path: Path) -> None:
    incomplete = {part: data for part, data in sample(3).items() if part != "txt"}
    write(tmp_path / "a.tar", {"./0001": sample(1), "data.v2/0002": sample(2), "0003": incomplete})
    source = ShardSource(ShardsConfig(files=str(tmp_path / "a.tar")), 8, seed=0)
    assert sorted(source.captions(0, 2)) == ["thing 1", "thing 2"]


def test_without_a_foreground_its_colour_is_the_pictures_above_a_tenth(tmp_path: Path) -> None:
    """The paper's F = I where m > 0.1; elsewhere colour continues, here the only known one."""
    parts = sample(3)
    image = np.full((8, 8, 3), 7, np.uint8)
    image[2:5, 2:5] = (200, 10, 13)
    image[2, 2] = (0, 0, 0)
    mask = np.asarray(Image.open(io.BytesIO(parts["mask.png"]))).copy()
    mask[2, 2] = 25  # 0.098
    parts = {"image.png": png(image), "mask.png": png(mask), "background.png": parts["background.png"], "txt": b"a"}
    write(tmp_path / "a.tar", {"0": parts})
    stack = ShardSource(ShardsConfig(files=str(tmp_path / "a.tar")), 8, 0).batch(0, 1).stack
    foreground = (stack[0, :3] * 255).round()
    assert torch.equal(foreground, torch.tensor([200.0, 10, 13]).view(3, 1, 1).expand(3, 8, 8))


def test_a_folder_of_samples_is_a_shard(tmp_path: Path, config: ShardsConfig) -> None:
    (tmp_path / "made" / "one").mkdir(parents=True)
    for index in (1, 2):
        for part, data in sample(index).items():
            (tmp_path / "made" / "one" / f"{index}.{part}").write_bytes(data)
    (tmp_path / "made" / "notes.md").write_text("not a sample", encoding="utf-8")
    source = ShardSource(ShardsConfig(files=str(tmp_path / "made")), 8, seed=0)
    tar = ShardSource(ShardsConfig(files=str(tmp_path / "train-0.tar")), 8, seed=0)
    assert sorted(source.captions(0, 2)) == ["thing 1", "thing 2"]
    first = dict(zip(tar.captions(0, 3), tar.batch(0, 3).stack, strict=True))
    for caption, stack in zip(source.captions(0, 2), source.batch(0, 2).stack, strict=True):
        assert torch.equal(stack, first[caption])


def test_says_which_shard_is_wrong(tmp_path: Path, config: ShardsConfig) -> None:
    with pytest.raises(ValueError, match=r"shards of the split train must exist, found none for '.*none-\*.tar'"):
        ShardSource(ShardsConfig(files=str(tmp_path / "none-*.tar")), 8, 0)
    with pytest.raises(ValueError, match="shards of the split held_out must exist, found none for ''"):
        ShardSource(ShardsConfig(files=config.files), 8, 0, "held_out")
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress((tmp_path / "train-0.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"a shard must be an uncompressed tar file, got .*packed.tar"):
        ShardSource(ShardsConfig(files=str(packed)), 8, 0)
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "train-0.tar").read_bytes()[:1700])
    with pytest.raises(ValueError, match=r"a shard must be an uncompressed tar file, got .*cut.tar"):
        ShardSource(ShardsConfig(files=str(cut)), 8, 0)
    write(tmp_path / "other.tar", {"0": {"jpg": b""}})
    with pytest.raises(ValueError, match=r"shards must hold samples with foreground.png or image.png, .*, found none"):
        ShardSource(ShardsConfig(files=str(tmp_path / "other.tar")), 8, 0)
    write(tmp_path / "sizes.tar", {"8": {**sample(8), "background.png": sample(8, 8, 16)["background.png"]}})
    with pytest.raises(ValueError, match=r"sample ./8 of .*sizes.tar must hold pictures of one size, got 8x8, 16x8"):
        ShardSource(ShardsConfig(files=str(tmp_path / "sizes.tar")), 8, 0).batch(0, 1)
    noise = png(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8))
    second = noise.index(b"IDAT", noise.index(b"IDAT") + 4)
    for mask in (b"no picture", noise[:second] + b"\0\1\2\3" + noise[second + 4 :]):
        write(tmp_path / "broken.tar", {"7": {**sample(7), "mask.png": mask}})
        with pytest.raises(ValueError, match=r"sample ./7 of .*broken.tar must hold readable pictures"):
            ShardSource(ShardsConfig(files=str(tmp_path / "broken.tar")), 8, 0).batch(0, 1)
    write(tmp_path / "latin.tar", {"7": {**sample(7), "txt": b"caf\xe9"}})
    with pytest.raises(ValueError, match=r"sample ./7 of .*latin.tar must hold a txt in UTF-8, got .* byte 0xe9"):
        ShardSource(ShardsConfig(files=str(tmp_path / "latin.tar")), 8, 0).captions(0, 1)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shards")]


def test_reading_ahead_changes_nothing(config: ShardsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples, decoded once, in the background, and no thread stays; what was not asked for is given up."""
    expected = ShardSource(config, 8, seed=4).batch(2, 6)
    decoded: list[threading.Thread] = []
    true = shards.decode_picture

    def noted(data: bytes, mode: str) -> torch.Tensor:
        decoded.append(threading.current_thread())
        return true(data, mode)

    monkeypatch.setattr(shards, "decode_picture", noted)
    source = ShardSource(config, 8, seed=4)
    source.read_ahead([0, 1])
    source.read_ahead(range(3, 8))
    for thread in readers():
        thread.join()
    begun = len(decoded)
    assert 3 * 5 <= begun <= 3 * 7  # three pictures a sample; the first two may have been decoded by then
    captions, batch = source.captions(2, 6), source.batch(2, 6)
    assert captions == batch.captions == expected.captions
    assert torch.equal(batch.stack, expected.stack)
    assert len(decoded) == begun + 3
    assert threading.main_thread() not in decoded
    assert torch.equal(source.batch(2, 6).stack, expected.stack)
    for thread in readers():
        thread.join(10)
    assert not readers()


def test_a_broken_sample_that_was_read_ahead(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1": sample(1), "7": {**sample(7), "mask.png": b"no picture"}})
    source = ShardSource(ShardsConfig(files=str(tmp_path / "a.tar")), 8, 0)
    source.read_ahead(range(2))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^sample ./7 of .*a.tar must hold readable pictures, got [^\n]*$"):
            source.batch(0, 2)


def test_an_index_is_small_and_kept(
    config: ShardsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offset and length of four parts in four bytes each; the headers of a shard are read once until it changes."""
    folder = tmp_path / "index"
    monkeypatch.setattr(shards, "INDEX_FOLDER", folder)
    read: list[str] = []
    true = shards.tar_members

    def noted(path: Path) -> Iterator[tuple[str, str, Piece]]:
        read.append(path.name)
        return true(path)

    monkeypatch.setattr(shards, "tar_members", noted)
    expected = ShardSource(config, 8, seed=4).batch(0, 5)
    assert read == ["train-0.tar", "train-1.tar"]
    assert [file.stat().st_size for file in sorted(folder.iterdir(), key=lambda file: -file.stat().st_size)] == [
        28 + 32 * 3, 28 + 32 * 2]
    again = ShardSource(config, 8, seed=4)
    assert [shard.spans.nbytes for shard in again._shards] == [32 * 3, 32 * 2]
    assert torch.equal(again.batch(0, 5).stack, expected.stack)
    assert len(read) == 2
    write(tmp_path / "train-1.tar", {f"{i:04d}": sample(i) for i in range(5, 9)})
    assert sorted(ShardSource(config, 8, seed=4).captions(0, 7)) == [f"thing {i}" for i in (0, 1, 2, 5, 6, 7, 8)]
    assert read[2:] == ["train-1.tar"]
    assert len(ShardSource(config, 8, seed=4)) == 7
    assert len(read) == 3
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-32], lambda data: data[:-1] + b"\xff"])
def test_a_broken_index_is_made_anew(
    config: ShardsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(shards, "INDEX_FOLDER", tmp_path / "index")
    expected = ShardSource(config, 8, seed=4).batch(0, 5)
    before = {file: file.read_bytes() for file in (tmp_path / "index").iterdir()}
    for file, data in before.items():
        file.write_bytes(damage(data))
    assert torch.equal(ShardSource(config, 8, seed=4).batch(0, 5).stack, expected.stack)
    assert {file: file.read_bytes() for file in (tmp_path / "index").iterdir()} == before


def test_nowhere_to_keep_the_index(config: ShardsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "INDEX_FOLDER", tmp_path / "train-0.tar" / "index")
    assert len(ShardSource(config, 8, seed=4)) == 5


def test_a_shard_that_was_replaced(config: ShardsConfig, tmp_path: Path) -> None:
    """What lies where the samples lay is no picture; the shard is named, and the place where its name is gone."""
    source = ShardSource(config, 8, seed=4)
    for path in tmp_path.glob("train-*.tar"):
        write(path, {})
    with pytest.raises(ValueError, match=r"^sample at byte \d+ of .*train-\d.tar must hold readable pictures, got "):
        source.batch(0, 1)
