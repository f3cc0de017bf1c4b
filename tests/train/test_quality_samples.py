"""Samples in folders and shards, and the CSV of their labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.quality_files import members, random_stacks, write_folder, write_shard
from train.quality_samples import SampleFiles, read_labels, write_labels


def test_a_folder_and_its_shards(tmp_path: Path) -> None:
    """Loose files, subfolders and tars together; keys end at the first dot; pictures to the rounding of 8 bits."""
    stacks = random_stacks(4)
    write_folder(tmp_path, stacks[:2], ["b", "cats/a"])
    write_shard(tmp_path / "one.tar", stacks[2:], ["c", "d"])
    (tmp_path / "half.image.png").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("key,label\n")
    samples = SampleFiles(tmp_path)
    assert samples.keys == ["b", "c", "cats/a", "d"]
    torch.testing.assert_close(samples.picture("d", "mask.png"), stacks[3:, 6:], atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(samples.picture("cats/a", "background.png"), stacks[1:2, 3:6], atol=0.5 / 255 + 1e-6,
                               rtol=0)
    assert samples.read("c", "txt") == b"a ball"
    assert samples.read("c", "json") is None
    assert SampleFiles(tmp_path / "*.tar").keys == ["c", "d"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold samples with image\.png, mask\.png, background\.png, found none"):
        SampleFiles(tmp_path)
    with pytest.raises(ValueError, match="found none"):
        SampleFiles(tmp_path / "nothing" / "*.tar")
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name, random_stacks(1), ["a"])
    with pytest.raises(ValueError, match=r"every key must be in one shard, got a\..*again in .*two\.tar"):
        SampleFiles(tmp_path)
    (tmp_path / "two.tar").unlink()
    write_shard(tmp_path / "torn.tar", random_stacks(2), ["b", "c"])
    torn = (tmp_path / "torn.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(torn[: torn.index(b"c.image.png") + 50])
    with pytest.raises(ValueError, match=r"must be an uncompressed tar file, got .*torn\.tar: unexpected end of data"):
        SampleFiles(tmp_path)
    (tmp_path / "torn.tar").unlink()
    (tmp_path / "two.tar").write_bytes(b"no")
    with pytest.raises(ValueError, match="must be an uncompressed tar file"):
        SampleFiles(tmp_path)
    (tmp_path / "two.tar").unlink()
    for name in members("b", random_stacks(1)[0]):
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"sample b must hold a readable mask\.png"):
        SampleFiles(tmp_path).picture("b", "mask.png")
    samples = SampleFiles(tmp_path)
    with pytest.raises(ValueError, match=r"sample b must hold foreground\.png, found none"):
        samples.picture("b", "foreground.png")
    (tmp_path / "b.mask.png").unlink()
    with pytest.raises(ValueError, match=r"sample b must hold a readable mask\.png, got .*No such file"):
        samples.picture("b", "mask.png")


def test_labels_there_and_back(tmp_path: Path) -> None:
    labels = {"b": True, "cats/a, the second": False, "狐": True}
    path = tmp_path / "new" / "labels.csv"
    write_labels(path, labels)
    assert path.read_text("utf-8").splitlines()[0] == "key,label"
    assert read_labels(path) == labels
    assert list(read_labels(path)) == list(labels)
    assert [each.name for each in path.parent.iterdir()] == ["labels.csv"]


@pytest.mark.parametrize(("text", "wanted"), [
    ("key,label\na,good\nb,BAD\nc,1\nd,0\n", {"a": True, "b": False, "c": True, "d": False}),
    ("path,note,label\ncats/a.image.png,x,1\nb.mask.png,,0\n", {"cats/a": True, "b": False}),
    ("\ufeffkey,label\r\na,good\r\na,bad\r\n", {"a": False}),  # a later row counts; as spreadsheets save it
    ("key,label\n", {}),
])
def test_csv_files_of_others(tmp_path: Path, text: str, wanted: dict[str, bool]) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / "a.csv") == wanted


@pytest.mark.parametrize(("text", "message"), [
    ("", "must have the columns key,label or path,label, got none"),
    ("name,label\n", "must have the columns key,label or path,label, got name,label"),
    ("key,label\na,good\nb,perhaps\n", "line 3: label must be good, bad, 1 or 0 of a named sample, got 'b', 'perhaps'"),
    ("key,label\n,good\n", "line 2: label must be"),
    ("key,label\na\n", "line 2: label must be"),
    ("key,label\na,good\ncaf\xe9,good\n", r"a.csv, line 3: a CSV must be in UTF-8, got the byte 0xe9"),
    ("key,label\n\"" + "x" * 200_000, r"a.csv, line 2: must be a row of a CSV, got field larger than field limit"),
])
def test_no_labels(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="labels must be a CSV file, found none"):
        read_labels(tmp_path / "b.csv")
