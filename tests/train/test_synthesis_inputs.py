"""Sources cut into shards; expected names and captions are those of the files that are written here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from train.synthesis.config import InputConfig
from train.synthesis.images import Refused
from train.synthesis.inputs import MOST_BYTES, InputShard, list_shards, plan, read, read_caption, read_origin
from train.synthesis.rows import Sample


def put(path: Path, data: bytes | str = b"picture") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def planned(config: InputConfig) -> list[list[Sample]]:
    return [plan(InputShard.from_json(shard.to_json()), config) for shard in list_shards(config)]


def captions(samples: list[Sample]) -> dict[str, str]:
    found = {}
    for sample in samples:
        try:
            found[sample.name] = sample.refused or read_caption(sample)
        except Refused as error:
            found[sample.name] = error.cause
    return found


def test_a_folder_is_cut_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/y.webp", "c.jpeg", ".hidden.jpg", "notes.md", "c.d.gif"):
        put(tmp_path / name)
    put(tmp_path / "b.txt", " a cat \n on a mat ")
    put(tmp_path / "a" / "z.txt", "")
    put(tmp_path / "c.d.txt", "dots")
    config = InputConfig(kind="folder", path=str(tmp_path), samples_per_shard=2)
    shards = planned(config)
    assert [[sample.name for sample in shard] for shard in shards] == [["a/y.webp", "a/z.JPG"], ["b.png", "c.d.gif"],
                                                                     ["c.jpeg"]]
    assert [(s.shard, s.index, s.total) for shard in shards for s in shard] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 1)]
    missing = "missing_caption"
    assert captions([s for shard in shards for s in shard]) == {
        "a/y.webp": missing, "a/z.JPG": missing, "b.png": "a cat on a mat", "c.d.gif": "dots", "c.jpeg": missing}
    assert read(shards[1][0], "picture") == b"picture"
    keys = [sample.key for shard in shards for sample in shard]
    assert keys == ["000000000000", "000000000001", "000001000000", "000001000001", "000002000000"]


def test_a_csv_names_captions(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        put(tmp_path / "in" / name)
    put(tmp_path / "in" / "a.txt", "not this")
    put(tmp_path / "c.csv", "\ufefffile,said\na.png,\"one, two\"\na.png,again\ngone.png,lost\n")
    config = InputConfig(kind="folder", path=str(tmp_path / "in"), captions=str(tmp_path / "c.csv"),
                         path_column="file", caption_column="said")
    (samples,) = planned(config)
    assert [(s.name, s.caption) for s in samples] == [("a.png", "one, two"), ("a.png", "again"), ("b.png", ""),
                                                      ("gone.png", "lost")]
    assert captions(samples)["b.png"] == "missing_caption"
    with pytest.raises(Refused, match="missing_file"):
        read(samples[3], "picture")


def test_shards_as_img2dataset_writes_them(tmp_path: Path) -> None:
    record = {"caption": "from json", "url": "https://example.org/1", "exif": "{}", "key": "000000001"}
    tar(tmp_path / "00000.tar", {
        "000000000.jpg": b"first", "000000000.txt": b"a dog", "000000000.json": b"{}",
        "000000001.webp": b"second", "000000001.json": json.dumps(record).encode(),
        "000000002.txt": b"no picture", "000000003.PNG": b"third", "000000003.json": b"torn {"})
    tar(tmp_path / "00001.tar", {})
    config = InputConfig(kind="shards", path=str(tmp_path / "*.tar"))
    first, second = planned(config)
    assert captions(first) == {"000000000": "a dog", "000000001": "from json", "000000002": "missing_picture",
                               "000000003": "missing_caption"}
    assert [read(sample, "picture") for sample in first if not sample.refused] == [b"first", b"second", b"third"]
    assert read_origin(first[1]) == {"url": "https://example.org/1", "key": "000000001"}
    assert [(s.name, s.refused, s.total) for s in second] == [("00001.tar", "empty_shard", 1)]


def test_half_a_surrogate_pair_and_json_without_end(tmp_path: Path) -> None:
    """JSON can write what UTF-8 cannot, and be deeper than Python goes."""
    tar(tmp_path / "0.tar", {
        "0.jpg": b"first", "0.json": b'{"caption": "a cat \\ud83d", "title": "\\ud83d"}',
        "1.jpg": b"second", "1.txt": b"a dog", "1.json": b"[" * 100_000})
    (samples,) = planned(InputConfig(kind="shards", path=str(tmp_path / "0.tar")))
    assert captions(samples) == {"0": "a cat ?", "1": "a dog"}
    assert [read_origin(sample) for sample in samples] == [{"title": "\ud83d"}, {}]


def test_a_torn_tar_gives_what_is_whole_and_one_cause(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", {f"{i}.{kind}": bytes([65 + i]) * 700 for i in range(3) for kind in ("jpg", "txt")})
    path.write_bytes(path.read_bytes()[: 512 * 3 * 4 + 100])  # two samples are 4 members of 3 blocks each
    put(tmp_path / "1.tar", b"no tar" * 200)
    first, second = planned(InputConfig(kind="shards", path=str(tmp_path / "*.tar")))
    assert [(sample.name, sample.refused) for sample in first] == [("0", ""), ("1", ""), ("0.tar", "corrupt_shard")]
    assert [sample.refused for sample in second] == ["corrupt_shard"]


def test_layered_samples(tmp_path: Path) -> None:
    for part in ("image.png", "background.png", "mask.png", "foreground.png", "txt", "json"):
        put(tmp_path / "in" / "set" / f"one.{part}", part)
        put(tmp_path / "in" / f"two.{part}", part)
    (tmp_path / "in" / "two.mask.png").unlink()
    put(tmp_path / "in" / "workflow.json", "{}")
    config = InputConfig(kind="layered", path=str(tmp_path / "in"))
    (samples,) = planned(config)
    assert [(s.name, s.refused) for s in samples] == [("set/one", ""), ("two", "incomplete")]
    parts = {part: read(samples[0], part) for part in samples[0].pieces}
    assert parts == {"picture": b"image.png", "background": b"background.png", "mask": b"mask.png",
                     "foreground": b"foreground.png", "txt": b"txt", "json": b"json"}
    tar(tmp_path / "made.tar", {f"k.{part}": part.encode() for part in ("image.png", "background.png", "mask.png")})
    ((sample,),) = planned(InputConfig(kind="layered", path=str(tmp_path / "made.tar")))
    assert read(sample, "mask") == b"mask.png"


def test_the_fingerprint_is_that_of_the_list_of_files(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    config = InputConfig(kind="folder", path=str(tmp_path))
    before = list_shards(config)[0].fingerprint()
    assert list_shards(config)[0].fingerprint() == before
    put(tmp_path / "b.png")
    assert list_shards(config)[0].fingerprint() != before


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input: path must be a folder of pictures, found none at .*/none"):
        list_shards(InputConfig(kind="folder", path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="input: path must hold pictures, found none in"):
        list_shards(InputConfig(kind="folder", path=str(tmp_path)))
    with pytest.raises(ValueError, match="input: path must hold layered samples, found none in"):
        list_shards(InputConfig(kind="layered", path=str(tmp_path)))
    with pytest.raises(ValueError, match="input: path must be a glob of tar files, found none for"):
        list_shards(InputConfig(kind="shards", path=str(tmp_path / "*.tar")))
    put(tmp_path / "a.png")
    config = {"kind": "folder", "path": str(tmp_path), "captions": str(tmp_path / "c.csv")}
    with pytest.raises(ValueError, match="input: captions must be a CSV file, found none at"):
        list_shards(InputConfig(**config))  # type: ignore[arg-type]
    put(tmp_path / "c.csv", "path,text\n")
    with pytest.raises(ValueError, match=r"input: c.csv must have a column caption, has path, text"):
        list_shards(InputConfig(**config))  # type: ignore[arg-type]
    put(tmp_path / "c.csv", "path,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c.csv, line 2: a CSV must be in UTF-8, got the byte 0xe9"):
        list_shards(InputConfig(**config))  # type: ignore[arg-type]
    put(tmp_path / "c.csv", "path,caption\nb.png,b\na.png,\"" + "x" * 200_000)
    with pytest.raises(ValueError, match=r"c.csv, line 3: must be a row of a CSV, got field larger than field limit"):
        list_shards(InputConfig(**config))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"captions .a CSV. must go with kind folder, got kind shards"):
        InputConfig(kind="shards", path="x", captions="c.csv")


def test_a_file_that_no_picture_needs_is_not_read(tmp_path: Path) -> None:
    """A gigabyte and one byte, of which the disk holds none."""
    for name in ("huge.jpg", "huge.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MOST_BYTES + 1)
    ((sample,),) = planned(InputConfig(kind="folder", path=str(tmp_path)))
    with pytest.raises(Refused, match="too_large"):
        read(sample, "picture")
    with pytest.raises(Refused, match="missing_caption"):
        read_caption(sample)
