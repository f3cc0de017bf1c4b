"""The command on Ray: a folder of photographs, Ctrl-C, and kill -9 at any moment."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import SafetensorError

from train.config import load_config
from train.shards import ShardsConfig, ShardSource
from train.synthesis.config import SynthesisConfig
from train.synthesis.engine import _Worker, samples
from train.synthesis.inputs import list_shards
from train.synthesize import main, synthesize

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "train" / "configs" / "synthesize.yaml"
PHOTOGRAPHS = {"astronaut": "an astronaut in an orange suit", "coffee": "a cup of coffee on a table",
               "chelsea": "a tabby cat", "rocket": "a rocket on its launch pad"}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    from train.synthesis.config import EngineConfig
    from train.synthesis.engine import started

    with started(EngineConfig(num_cpus=2, object_store_mb=100)):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small pictures with captions, every fifth torn."""
    made = tmp_path / "in"
    made.mkdir()
    for index in range(30):
        path = made / f"{index:03d}.png"
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if index % 5 == 4:
            path.write_bytes(b"torn")
        path.with_suffix(".txt").write_text(f"thing {index}", encoding="utf-8")
    return made


def small(tmp_path: Path, folder: Path, seconds: float = 0.01, per_shard: int = 4) -> Path:
    values = {
        "output": str(tmp_path / "out"),
        "input": {"kind": "folder", "path": str(folder), "samples_per_shard": per_shard},
        "picture": {"size": 16, "least_side": 8}, "layers": {"dilate": 64.0},
        "saliency": {"backend": "wait", "seconds": seconds}, "inpainting": {"backend": "wait", "seconds": seconds},
        "engine": {"num_cpus": 2, "object_store_mb": 100, "saliency": {"batch_size": 2},
                   "inpainting": {"batch_size": 2}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def contents(out: Path) -> dict[str, str]:
    """Source -> caption of all samples in all shards; fails on one that is there twice."""
    found: dict[str, str] = {}
    for path in sorted(out.glob("shard-*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    record = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
                    assert record["source"]["name"] not in found
                    found[record["source"]["name"]] = record["caption"]
    return found


def expected(count: int) -> dict[str, str]:
    return {f"{index:03d}.png": f"thing {index}" for index in range(count) if index % 5 != 4}


def start(config: Path, *changes: str) -> subprocess.Popen[bytes]:
    settings = [word for change in changes for word in ("--set", change)]
    return subprocess.Popen([sys.executable, "-m", "train.synthesize", "--config", str(config), *settings], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_photographs_become_shards(tmp_path: Path, ray: None) -> None:
    data = pytest.importorskip("skimage.data")
    (tmp_path / "in").mkdir()
    for name, caption in PHOTOGRAPHS.items():
        Image.fromarray(getattr(data, name)()).save(tmp_path / "in" / f"{name}.jpg", quality=95)
        (tmp_path / "in" / f"{name}.txt").write_text(caption, encoding="utf-8")
    config = load_config(CONFIG, [f"output={tmp_path / 'out'}", f"input.path={tmp_path / 'in'}", "picture.size=256",
                                  "input.samples_per_shard=3", "layers.foreground=estimated"], SynthesisConfig)
    manifest = synthesize(config)
    assert (manifest["samples"], manifest["complete"]) == (4, True)
    assert manifest["kept"] == 4, manifest["dropped"]
    found = contents(tmp_path / "out")
    assert {name.removesuffix(".jpg"): caption for name, caption in found.items()} == PHOTOGRAPHS
    source = ShardSource(ShardsConfig(files=f"{tmp_path / 'out'}/*.tar"), 256, seed=0)
    assert sorted(source.captions(0, 4)) == sorted(PHOTOGRAPHS.values())
    assert source.batch(0, 4).stack.shape == (4, 7, 256, 256)
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            names = [member.name.partition(".")[2] for member in tar]
        assert names[:6] == ["background.png", "foreground.png", "image.png", "json", "mask.png", "txt"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 20_000


def test_again_does_nothing_but_the_report(
    tmp_path: Path, folder: Path, ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path, folder)
    assert main(["--config", str(config)]) == 0
    assert contents(tmp_path / "out") == expected(30)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 8
    (tmp_path / "out" / "report.html").unlink()
    capfd.readouterr()
    assert main(["--config", str(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before
    assert (tmp_path / "out" / "report.html").is_file()
    assert capfd.readouterr().out == "24 of 30 samples kept\n"
    assert main(["--config", str(config), "--set", "picture.size=32"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: output: ")
    assert "another picture.size" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("change", "message"), [
    ("input.path=/none", "input: path must be a folder of pictures, found none at /none"),
    ("saliency.backend=rembg", "backend rembg must have a path of its weights, got none"),
    ("saliency.backned=rembg", "unknown key backned (nearest: backend)"),
    ("filters.mask=/none", "filters: mask must be a classifier's safetensors file, found none at /none"),
    ("filters.clip=/none", "clip must be a folder with a CLIP model, found no config.json in /none"),
    ("engine.address=ray://host:10001", "Ray Client does not run Ray Data, got ray://host:10001"),
    ("engine.num_cpus=1", "num_cpus must be at least 2 and finite, got 1"),
    ("engine.saliency.workers=0", "workers must be at least 1 and finite, got 0"),
])
def test_bad_input_is_one_line(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    assert main(["--config", str(small(tmp_path, folder)), "--set", change]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("package", ["ray", "webdataset", "cv2"])
def test_without_the_extra(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["--config", str(small(tmp_path, folder))]) == 2
    assert capfd.readouterr().err == f"error: {package} must be installed (pip install -e .[synthesis]), found none\n"


def test_a_broken_csv_is_one_line(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "captions.csv"
    table.write_text('path,caption\n000.png,"' + "x" * 200_000, encoding="utf-8")
    assert main(["--config", str(small(tmp_path, folder)), "--set", f"input.captions={table}"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {table}, line 2: must be a row of a CSV, got field larger than")
    assert error.count("\n") == 1


def test_a_worker_hands_on_whatever_fails_while_it_loads(tmp_path: Path, folder: Path) -> None:
    """Errors of safetensors derive from Exception alone; some have no text."""
    config = load_config(small(tmp_path, folder), [], SynthesisConfig)
    for error, message in ((SafetensorError("too large"), "too large"), (AssertionError(), "AssertionError")):
        def stage(config: SynthesisConfig, error: Exception = error) -> Any:
            raise error

        worker = _Worker(stage, config)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^{message}$"):
            worker(None)


@pytest.mark.slow
def test_more_gpus_than_there_are(tmp_path: Path, folder: Path, ray: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray would wait for them for ever."""
    assert main(["--config", str(small(tmp_path, folder)), "--set", "engine.saliency.num_gpus=64"]) == 2
    assert "engine: workers ask for 64 GPUs" in capfd.readouterr().err


@pytest.mark.slow
def test_the_last_stage_does_not_wait_for_the_first(tmp_path: Path, folder: Path, ray: None) -> None:
    """Finished samples come while most have not been begun, though two CPUs do not give every stage one of its own."""
    changes = ["engine.saliency.batch_size=1", "engine.inpainting.batch_size=1", "input.samples_per_shard=30"]
    for index in range(30, 120):
        shutil.copy(folder / f"{index % 30:03d}.png", folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text("a thing", encoding="utf-8")
    config = load_config(small(tmp_path, folder, seconds=0.1), changes, SynthesisConfig)
    found = [(sample.began, time.time()) for sample in samples(config, list_shards(config.input)) if sample.alive]
    _, first_finished = found[0]
    assert sum(began > first_finished for began, _ in found) > len(found) / 2


@pytest.mark.slow
def test_a_model_that_does_not_load_is_one_line(
    tmp_path: Path, folder: Path, ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"no model")
    changes = ["--set", "inpainting.backend=lama", "--set", f"inpainting.path={tmp_path / 'junk.onnx'}"]
    assert main(["--config", str(small(tmp_path, folder)), *changes]) == 1
    lines = [line for line in capfd.readouterr().err.split("\n") if "image/s" not in line]
    assert len(lines) == 2
    assert lines[0].startswith(f"error: inpainting: {tmp_path / 'junk.onnx'} must be an ONNX model, got ")


@pytest.mark.slow
def test_a_full_disk_stops_with_one_line_and_the_rerun_goes_on(
    tmp_path: Path, folder: Path, ray: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from train.synthesis import writer

    true, calls = writer._write_tar, 0

    def full(file: io.BufferedIOBase, shard: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        true(file, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_write_tar", full)
    config = small(tmp_path, folder)
    assert main(["--config", str(config)]) == 1
    assert re.search(r"\nerror: \[Errno 28\] No space left on device: '.*shard-\d+\.tar'\n$", capfd.readouterr().err)
    assert len(list((tmp_path / "out").glob("shard-*.tar"))) == 2
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"] is False
    monkeypatch.undo()
    assert main(["--config", str(config)]) == 0
    assert contents(tmp_path / "out") == expected(30)


@pytest.mark.slow
def test_a_small_disk(tmp_path: Path, folder: Path, ray: None, capfd: pytest.CaptureFixture[str]) -> None:
    """A real file system of 64 KB, then a larger one; needs root."""
    out = tmp_path / "out"
    out.mkdir()
    program = shutil.which("mount") or "mount"
    mount = [program, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)]
    if sys.platform != "linux" or not Path(program).is_file() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root on Linux")
    try:
        config = small(tmp_path, folder)
        assert main(["--config", str(config)]) == 1
        assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
        subprocess.run([program, "-o", "remount,size=8m", str(out)], check=True)
        assert main(["--config", str(config)]) == 0
        assert contents(out) == expected(30)
    finally:
        subprocess.run([shutil.which("umount") or "umount", str(out)], check=False)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, folder: Path) -> None:
    config = small(tmp_path, folder, seconds=1.0, per_shard=2)
    with start(config) as process:
        wait_for_shards(tmp_path / "out", 2, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.decode().splitlines()[-1] == "stopped; the same command goes on from the last finished shard"
    assert b"Traceback" not in error
    done = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert 2 <= len(done["shards"]) < 15


def wait_for_shards(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while len(list(out.glob("entries/0*.json"))) < count and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_20_random_moments_no_sample_is_lost_and_none_is_there_twice(tmp_path: Path, folder: Path) -> None:
    """Kills while it starts, while it works and just after a shard has appeared; the same command every time."""
    rng = np.random.default_rng(0)
    for index in range(30, 200):
        for suffix in (".png", ".txt"):
            shutil.copy(folder / f"{index % 30:03d}{suffix}", folder / f"{index:03d}{suffix}")
        (folder / f"{index:03d}.txt").write_text(f"thing {index}", encoding="utf-8")
    config, out = small(tmp_path, folder, seconds=0.02), tmp_path / "out"
    for kill in range(20):
        done = len(list(out.glob("entries/0*.json")))
        with start(config) as process:
            if kill % 5 == 4:
                time.sleep(rng.uniform(0, 5))
            else:
                wait_for_shards(out, done + int(rng.integers(0, 4)), process)
                time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.communicate()
    assert contents(out).items() <= expected(200).items()
    with start(config) as process:
        printed, error = process.communicate(timeout=600)
    assert process.returncode == 0, error.decode()
    assert contents(out) == expected(200)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["samples"], manifest["refused"], printed) == (200, {"corrupt": 40}, b"160 of 200 samples kept\n")
