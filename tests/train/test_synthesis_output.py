"""The output folder: shards, entries, lock, full disk, statistics and report, without Ray."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.shards import ShardsConfig, ShardSource
from train.synthesis import writer as writer_module
from train.synthesis.config import InputConfig, SynthesisConfig
from train.synthesis.inputs import InputShard, list_shards
from train.synthesis.manifest import Output, locked
from train.synthesis.report import write_report
from train.synthesis.rows import Sample, from_table, to_table
from train.synthesis.statistics import Statistics
from train.synthesis.writer import ShardWriter

ROOT = Path(__file__).parents[2]


def picture(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), value if mode == "L" else (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def made(shard: int, index: int, total: int, **changes: Any) -> Sample:
    parts = {"image": picture(index), "background": picture(99), "mask": picture(255, "L"), "thumbnail": b"jpeg"}
    facts = {"area": 0.2, "areas": [0.4, 0.2, 0.2, 0.1], "components": 1, "source": {"name": f"{index}.png"}}
    values: dict[str, Any] = {"caption": f"thing {index}", "facts": facts, "parts": parts} | changes
    return Sample(shard=shard, index=index, total=total, **values)


@pytest.fixture
def config(tmp_path: Path) -> SynthesisConfig:
    """Two shards of three pictures and one."""
    (tmp_path / "in").mkdir()
    for index in range(4):
        (tmp_path / "in" / f"{index}.png").write_bytes(b"x")
    return SynthesisConfig(output=str(tmp_path / "out"),
                           input=InputConfig(kind="folder", path=str(tmp_path / "in"), samples_per_shard=3))


@pytest.fixture
def shards(config: SynthesisConfig, tmp_path: Path) -> list[InputShard]:
    (tmp_path / "out").mkdir()
    return list_shards(config.input)


def write_all(config: SynthesisConfig, shards: list[InputShard], order: list[int]) -> Output:
    output = Output(Path(config.output), config, shards)
    writer = ShardWriter(output, shards, sheet=2)
    samples = [made(0, 0, 3, converted=["cmyk", "rotated"]), made(0, 1, 3, dropped="mask_small"), made(0, 2, 3),
               made(1, 0, 1, refused="corrupt", parts={}, facts={})]
    for place in order:
        assert writer.add(samples[place])
        assert not writer.add(samples[place]), "delivered twice"
    return output


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_table_keeps_a_sample() -> None:
    parts: dict[str, Any] = {"image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "thumbnail": b"jpeg"}
    sample = made(3, 4, 5, parts=parts, window=(7, 9), converted=["cmyk"], began=1.5)
    (found,) = from_table(to_table([sample]))
    assert np.array_equal(found.array("image"), parts["image"])
    assert (found.parts["thumbnail"], found.window, found.key) == (b"jpeg", (7, 9), "000003000004")
    found.parts = sample.parts = {}
    assert found == sample
    with pytest.raises(TypeError, match="part image must be an array by now, got NoneType"):
        found.array("image")


def test_a_table_lets_go_of_its_samples() -> None:
    """A worker makes tables for weeks."""
    sample = made(0, 0, 1, parts={"image": np.zeros((4, 4, 3), np.uint8)})
    gone = weakref.ref(sample.array("image"))
    to_table([sample])
    sample.parts.clear()
    assert gone() is None


def test_shards_hold_what_was_kept_in_the_inputs_order(config: SynthesisConfig, shards: list[InputShard]) -> None:
    output = write_all(config, shards, [2, 3, 0, 1])
    assert sorted(path.name for path in Path(config.output).iterdir()) == ["config.json", "entries", "shard-000000.tar"]
    found = members(output.shard_path(0))
    assert [name for name in found if name.endswith(".txt")] == ["000000000000.txt", "000000000002.txt"]
    assert found["000000000002.image.png"] == picture(2)
    assert found["000000000002.txt"] == b"thing 2"
    record = json.loads(found["000000000002.json"])
    assert (record["area"], record["caption"], record["source"]) == (0.2, "thing 2", {"name": "2.png"})
    source = ShardSource(ShardsConfig(files=f"{config.output}/*.tar"), 8, seed=0)
    assert sorted(source.captions(0, 2)) == ["thing 0", "thing 2"]
    assert source.batch(0, 1).stack.shape == (1, 7, 8, 8)


def test_the_order_of_arrival_changes_no_byte(config: SynthesisConfig, shards: list[InputShard]) -> None:
    first = write_all(config, shards, [0, 1, 2, 3])
    before = {path.name: path.read_bytes() for path in (first.shard_path(0), *(first.folder / "entries").iterdir())}
    for path in (first.folder / "entries").iterdir():
        path.unlink()
    write_all(config, shards, [3, 2, 1, 0])
    assert {path.name: path.read_bytes()
            for path in (first.shard_path(0), *(first.folder / "entries").iterdir())} == before


def test_the_manifest_counts_by_cause_and_reason(config: SynthesisConfig, shards: list[InputShard]) -> None:
    manifest = write_all(config, shards, [0, 1, 2, 3]).write_manifest(2)
    assert json.loads((Path(config.output) / "manifest.json").read_text()) == manifest
    assert (manifest["samples"], manifest["kept"], manifest["complete"]) == (4, 2, True)
    assert manifest["refused"] == {"corrupt": 1}
    assert manifest["dropped"] == {"mask_small": 1}
    assert manifest["converted"] == {"cmyk": 1, "rotated": 1}
    assert [shard["file"] for shard in manifest["shards"]] == ["shard-000000.tar", None]
    assert manifest["config"]["input"]["samples_per_shard"] == 3
    assert "engine" not in manifest["config"]
    assert manifest["versions"]["pillow"]


def test_what_was_unfinished_is_deleted_and_what_is_finished_stays(
    config: SynthesisConfig, shards: list[InputShard]
) -> None:
    folder = Path(config.output)
    output = Output(folder, config, shards)
    writer = ShardWriter(output, shards, sheet=0)
    writer.add(made(1, 0, 1))
    writer.add(made(0, 0, 3))
    for name in (".shard-000000.tar.tmp", "shard-000000.tar", "entries/.000000.json.tmp"):
        (folder / name).write_bytes(b"half")
    assert (folder / ".part-000000").is_file()
    again = Output(folder, config, shards)
    assert list(again.done) == [1]
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "config.json", "000001.json", "shard-000001.tar"}
    assert not ShardWriter(again, shards, sheet=0).add(made(1, 0, 1)), "done already"


def test_shards_of_others_stay(config: SynthesisConfig, shards: list[InputShard]) -> None:
    """Such as the input's own, where output names its folder by mistake."""
    folder = Path(config.output)
    (folder / "shard-000003.tar").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"output: .* must be new or hold an earlier run, found shard-000003.tar with"):
        Output(folder, config, shards)
    assert [path.name for path in folder.iterdir()] == ["shard-000003.tar"]


def test_text_that_utf8_has_not(config: SynthesisConfig, shards: list[InputShard]) -> None:
    """Half of a surrogate pair from a JSON, and a file name of another encoding, as Python holds it."""
    output = Output(Path(config.output), config, shards)
    ShardWriter(output, shards, sheet=0).add(
        made(1, 0, 1, caption="a cat \ud83d", facts={"source": {"name": "caf\udce9.png"}}))
    found = members(output.shard_path(1))
    assert found["000001000000.txt"] == b"a cat ?"
    assert json.loads(found["000001000000.json"]) == {"caption": "a cat ?", "source": {"name": "caf?.png"}}


def test_another_config_or_another_input_is_refused(config: SynthesisConfig, shards: list[InputShard]) -> None:
    write_all(config, shards, [0, 1, 2, 3])
    other = SynthesisConfig(output=config.output, input=config.input, sheet=3)
    with pytest.raises(ValueError, match=r"output: .* holds a run with another sheet; take another folder"):
        Output(Path(config.output), other, shards)
    (Path(config.input.path) / "00.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="input: shard 0 must hold the files that it held when the run began"):
        Output(Path(config.output), config, list_shards(config.input))


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from train.synthesis.manifest import locked\n"
            f"with locked(Path({str(tmp_path)!r})): print('locked', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=r"output: .* must not be in use by another run"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("step", ["_spool", "_write_tar"])
def test_a_full_disk_leaves_no_half_shard(
    config: SynthesisConfig, shards: list[InputShard], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Fails as the system does when a write finds no room; then there is room again."""
    true: Callable[..., Any] = getattr(writer_module, step)

    def full(*arguments: Any) -> Any:
        true(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module, step, full)
    with pytest.raises(OSError, match="No space left on device"):
        write_all(config, shards, [0, 1, 2, 3])
    monkeypatch.undo()
    assert not list(Path(config.output).glob("shard-*"))
    output = write_all(config, shards, [0, 1, 2, 3])
    assert output.write_manifest(2)["kept"] == 2


def test_percentiles_are_nearest_ranks() -> None:
    """Of the lengths 1 to 100, one each, the p-th percentile is p."""
    statistics = Statistics()
    for count in range(1, 101):
        statistics.add(made(0, 0, 1, caption=" ".join(["word"] * count), facts={"clip_score": count % 2}))
    assert statistics.word_percentiles() == [1, 10, 25, 50, 75, 90, 99]
    assert statistics.clip_score() == (0.5, 0.5)
    assert Statistics().word_percentiles() == []
    assert Statistics().clip_score() is None
    both = Statistics()
    for part in (statistics, Statistics.from_json(json.loads(json.dumps(statistics.to_json())))):
        both.merge(part)
    assert both.word_percentiles() == statistics.word_percentiles()
    assert both.clip == [200, 100, 100]


def test_histograms_have_twenty_bins() -> None:
    statistics = Statistics()
    for score in (0.0, 0.049, 0.05, 1.0):
        statistics.add(made(0, 0, 1, facts={"mask_score": score}))
    assert statistics.scores["mask_score"] == [2, 1] + [0] * 17 + [1]


def test_the_report_is_one_file_and_says_what_the_manifest_does(
    config: SynthesisConfig, shards: list[InputShard]
) -> None:
    output = write_all(config, shards, [0, 1, 2, 3])
    write_report(output, output.write_manifest(2), 2)
    page = (output.folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 2, "filters and masks; no classifier, no scores"
    assert page.count("data:image/jpeg;base64,anBlZw==") == 3, "two kept and one dropped"
    assert "Dropped: mask small" in page
    assert "<td>object not too small</td><td>3</td><td>2</td><td>66.7 %</td>" in page
    assert "<td>ground left around the hole</td><td>2</td><td>2</td><td>100.0 %</td>" in page
    assert "<td>corrupt</td><td>1</td>" in page
