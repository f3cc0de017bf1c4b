"""The command line, run for real on a tiny checkpoint: files, `--json`, every wrong input in one line, Ctrl-C."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from text2layer_core import checkpoint, cli, files
from text2layer_core.autoencoder import CaT2IAutoencoder
from text2layer_core.checkpoint import CLIP_L, Text2LayerModel, save_checkpoint
from text2layer_core.conversion import to_diffusers
from text2layer_core.metrics import consistency_psnr
from text2layer_core.pipeline import Text2LayerPipeline
from text2layer_core.sampling import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Callable

PNG_NAMES = ["foreground.png", "background.png", "mask.png", "composed.png"]
Run = tuple[int, str, str]


@pytest.fixture
def model(tiny_model: Text2LayerModel, tmp_path: Path) -> Path:
    """The tiny model as a file."""
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model)
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Runs the program in this process on the tiny model, two steps, into `out`: status, stdout, stderr."""

    def call(*arguments: str) -> Run:
        defaults = ["--model", str(model), "--out", str(tmp_path / "out"), "--steps", "2", "--device", "cpu"]
        status = cli.main([*defaults, *arguments])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def read(path: Path) -> bytes:
    """The pixels of a picture file."""
    with Image.open(path) as picture:
        return picture.tobytes()


def test_writes_what_the_contract_names(run: Callable[..., Run], tmp_path: Path) -> None:
    status, out, err = run("a red fox on a beach")
    names = [*PNG_NAMES, "layers.psd", "sheet.png"]
    assert status == 0
    assert out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert "2/2" in err  # the progress bar
    with Image.open(tmp_path / "out" / "composed.png") as picture:
        assert picture.size == (32, 32)  # the card's resolution


def test_equals_the_pipeline(run: Callable[..., Run], model: Path, tmp_path: Path) -> None:
    arguments = ("a fox", "--seed", "5", "--size", "21x13", "--cfg", "3", "--sampler", "dpmpp", "--json")
    status, out, _ = run(*arguments)
    output = Text2LayerPipeline.from_pretrained(model)(
        "a fox", seed=5, width=21, height=13, guidance_scale=3.0, sampler="dpmpp", steps=2
    )
    expected = (output.layers.background[0] * 255).round().byte().permute(1, 2, 0)
    assert status == 0
    assert read(tmp_path / "out" / "background.png") == expected.contiguous().numpy().tobytes()
    assert output.predicted_composed is not None
    psnr = consistency_psnr(output.predicted_composed, output.composed).item()
    assert json.loads(out)["consistency_psnr"] == pytest.approx(psnr, abs=1e-3)


def test_bfloat16_is_the_pipeline_in_bfloat16(run: Callable[..., Run], model: Path, tmp_path: Path) -> None:
    status, _, _ = run("a fox", "--dtype", "bfloat16")
    output = Text2LayerPipeline.from_pretrained(model, dtype=torch.bfloat16)("a fox", steps=2)
    expected = (output.layers.background[0] * 255).round().byte().permute(1, 2, 0)
    assert status == 0
    assert read(tmp_path / "out" / "background.png") == expected.contiguous().numpy().tobytes()


def test_json_is_one_object_last_on_stdout(run: Callable[..., Run], tmp_path: Path) -> None:
    _, out, _ = run("a fox", "--json", "--seed", "7")
    assert len(out.splitlines()) == 1
    report = json.loads(out.splitlines()[-1])
    assert set(report) == {"files", "seed", "seconds", "consistency_psnr"}
    assert report["seed"] == 7
    assert report["seconds"] > 0
    assert report["files"][-1] == str(tmp_path / "out" / "sheet.png")
    assert all(Path(path).is_file() for path in report["files"])


def test_no_consistency_without_the_head(
    run: Callable[..., Run], tiny_model: Text2LayerModel, tmp_path: Path
) -> None:
    config = replace(tiny_model.autoencoder.config, composed_head=False)
    path = tmp_path / "no-sup.safetensors"
    save_checkpoint(path, replace(tiny_model, autoencoder=CaT2IAutoencoder(config)))
    status, out, _ = run("a fox", "--json", "--model", str(path))
    assert status == 0
    assert json.loads(out)["consistency_psnr"] is None


def test_picture_k_of_several_is_the_one_of_seed_plus_k(run: Callable[..., Run], tmp_path: Path) -> None:
    _, out, err = run("a fox", "--count", "2", "--seed", "3", "--json")
    run("a fox", "--seed", "4", "--out", str(tmp_path / "single"))
    assert "4/4" in err
    names = [Path(path).name for path in json.loads(out)["files"]]
    stems = [*PNG_NAMES, "layers.psd", "sheet.png"]
    assert names == [name.replace(".", f"-000{k}.") for k in (1, 2) for name in stems]
    for name in PNG_NAMES:
        first, second = (read(tmp_path / "out" / name.replace(".", f"-000{k}.")) for k in (1, 2))
        assert second == read(tmp_path / "single" / name)
        assert first != second


def test_formats(run: Callable[..., Run], tmp_path: Path) -> None:
    run("a fox", "--formats", "ora,psd,ora")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layers.ora", "layers.psd", "sheet.png"]


def test_a_long_prompt_is_cut_with_a_warning(run: Callable[..., Run]) -> None:
    status, _, err = run("a red fox on a beach " * 10 + "and\nan owl")
    first = err.splitlines()[0]
    assert status == 0
    assert first.startswith('warning: the prompt is too long for this model, cut off: "')
    assert first.endswith('and an owl"')
    assert "warning" not in run("a fox")[2]


def test_without_the_bundled_model(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoint, "BUNDLED_MODEL", "not-there.safetensors")
    status = cli.main(["a fox", "--out", str(tmp_path / "out"), "--device", "cpu"])
    captured = capfd.readouterr()
    assert_refused(status, captured.out, captured.err, tmp_path)
    assert captured.err.startswith("error: no bundled model: looked for ")


def bad_files(folder: Path, good: Path) -> dict[str, Path]:
    """Checkpoints that are none, by the name of their fault."""
    paths = {name: folder / f"{name}.safetensors" for name in ("missing", "truncated", "foreign", "pickled", "text")}
    data = good.read_bytes()
    paths["truncated"].write_bytes(data[: len(data) // 2])
    save_file({"weight": torch.zeros(2)}, paths["foreign"])
    paths["pickled"].write_bytes(pickle.dumps({"weight": [0.0]}))
    paths["text"].write_text("not a model at all")
    return paths


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "no such model: {path}"),
        ("truncated", "{path} is truncated or damaged: "),
        ("foreign", "{path} is not a Text2Layer model"),
        ("pickled", "{path} is a pickled file"),
        ("text", "{path} is not a safetensors file"),
    ],
)
def test_bad_model_file(run: Callable[..., Run], model: Path, tmp_path: Path, fault: str, message: str) -> None:
    path = bad_files(tmp_path, model)[fault]
    status, out, err = run("a fox", "--model", str(path))
    assert_refused(status, out, err, tmp_path)
    assert err.startswith("error: " + message.format(path=path))


def test_text_encoder_from_a_folder(
    run: Callable[..., Run], tiny_model: Text2LayerModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a model of SD's size needs it; the tiny encoder stands for CLIP-L."""
    path, folder = tmp_path / "sd.safetensors", tmp_path / "clip"
    to_diffusers(tiny_model, folder)
    save_checkpoint(path, replace(tiny_model, external_text_encoder=CLIP_L))
    capfd.readouterr()  # transformers' own progress bar
    status, out, err = run("a fox", "--model", str(path))
    assert_refused(status, out, err, tmp_path)
    assert f"needs {CLIP_L}: text_encoder must be a folder" in err
    status, out, err = run("a fox", "--text-encoder", str(folder))
    assert_refused(status, out, err, tmp_path)
    assert "tiny.safetensors, which has its own, got " in err
    assert run("a fox", "--model", str(path), "--text-encoder", str(folder))[0] == 0


def test_guidance_that_overflows(run: Callable[..., Run], tmp_path: Path) -> None:
    status, out, err = run("a fox", "--cfg", "1e38")
    bar, line = err.rsplit("\n", 2)[:2]
    assert "step/s" in bar
    assert_refused(status, out, line + "\n", tmp_path)


def test_model_that_cannot_draw(run: Callable[..., Run], tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    save_checkpoint(path, Text2LayerModel(tiny_model.autoencoder, None, None, tiny_model.schedule))
    status, out, err = run("a fox", "--model", str(path))
    assert_refused(status, out, err, tmp_path)
    assert err.startswith(f"error: {path}: the model must have a UNet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0x64"], "argument --size: must be WxH, each from 1 to 4096, got '0x64'"),
        (["--size=-8x8"], "argument --size: must be WxH, each from 1 to 4096, got '-8x8'"),
        (["--size", "4097x64"], "argument --size: must be WxH, each from 1 to 4096, got '4097x64'"),
        (["--size", "64"], "argument --size: must be WxH, each from 1 to 4096, got '64'"),
        (["--size", "6²x6"], "argument --size: must be WxH, each from 1 to 4096, got '6²x6'"),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
        (["--steps", "2.5"], "argument --steps: must be a whole number of at least 1, got '2.5'"),
        (["--steps", "1001"], "argument --steps: must be at most 1000 for this model, got 1001"),
        (["--cfg", "nan"], "argument --cfg: must be a finite number of at least 0, got 'nan'"),
        (["--cfg", "inf"], "argument --cfg: must be a finite number of at least 0, got 'inf'"),
        (["--cfg=-1"], "argument --cfg: must be a finite number of at least 0, got '-1'"),
        (["--cfg", "much"], "argument --cfg: must be a finite number of at least 0, got 'much'"),
        (["--count", "0"], "argument --count: must be a whole number of at least 1 and at most 9999, got '0'"),
        (["--count", "10000"], "argument --count: must be a whole number of at least 1 and at most 9999, got '10000'"),
        (["--seed=-1"], "seeds must lie in [0, 2^64), got -1 to -1"),
        (["--seed", str(2**64 - 1), "--count", "2"], f"seeds must lie in [0, 2^64), got {2**64 - 1} to {2**64}"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--formats", "png,gif"], "argument --formats: must be some of png,psd,ora, got 'png,gif'"),
        (["--formats", ""], "argument --formats: must be some of png,psd,ora, got ''"),
        (["--sampler", "euler"], "argument --sampler: invalid choice: 'euler'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--form", "png"], "unrecognized arguments: --form png"),
    ],
)
def test_bad_arguments(run: Callable[..., Run], tmp_path: Path, arguments: list[str], message: str) -> None:
    status, out, err = run("a fox", *arguments)
    assert_refused(status, out, err, tmp_path)
    assert err.startswith(f"error: {message}")


def test_no_prompt_and_a_prompt_that_is_no_text(run: Callable[..., Run], tmp_path: Path) -> None:
    for arguments, message in (
        ([], "the following arguments are required: PROMPT"),
        (["\udcff"], "argument PROMPT: must be valid UTF-8"),
    ):
        status, out, err = run(*arguments)
        assert_refused(status, out, err, tmp_path)
        assert err == f"error: {message}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(run: Callable[..., Run], tmp_path: Path) -> None:
    status, out, err = run("a fox", "--device", "cuda")
    assert_refused(status, out, err, tmp_path)
    assert err == "error: argument --device: cuda needs a CUDA device, and there is none\n"


@pytest.mark.parametrize("inside", ["", "below", "far/below"])
def test_out_is_a_file_or_lies_below_one(run: Callable[..., Run], tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" / inside
    status, out, err = run("a fox", "--out", str(target))
    assert_refused(status, out, err, tmp_path)
    assert err == f"error: cannot write to {target}: Not a directory\n"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_folder_without_permission(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    target = tmp_path / "locked" / "new"
    status, out, err = run("a fox", "--out", str(target))
    assert_refused(status, out, err, tmp_path)
    assert err == f"error: cannot write to {target}: Permission denied\n"


def test_a_disk_that_fails_late(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_png", fail)
    status, out, err = run("a fox")
    assert (status, out) == (cli.EXIT_BAD_INPUT, "")
    path = tmp_path / "out" / "foreground.png"
    assert err.splitlines()[-1] == f"error: cannot write to {path}: No space left on device"
    assert not list((tmp_path / "out").iterdir())


def assert_refused(status: int, out: str, err: str, tmp_path: Path) -> None:
    """Exit 2, one line on stderr, nothing on stdout, no output folder."""
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.endswith("\n")
    assert not (tmp_path / "out").exists()


def test_choices_are_those_of_the_library() -> None:
    assert set(cli.SAMPLERS) == set(SAMPLERS)


def python(*arguments: str) -> subprocess.Popen[str]:
    """Another Python, in the folder that holds the library."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )


def test_runs_as_a_module() -> None:
    process = python("-m", "text2layer_core", "--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("usage: python -m text2layer_core ")


def test_wrong_arguments_are_found_before_torch_is_imported() -> None:
    script = (
        "import sys\n"
        "from text2layer_core.cli import main\n"
        "assert main(['a fox', '--steps', '0']) == 2\n"
        "assert not {'torch', 'diffusers', 'transformers', 'psd_tools'} & set(sys.modules)\n"
    )
    process = python("-c", script)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_no_partial_files(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = ["a fox", "--model", str(model), "--out", str(folder), "--steps", "40", "--count", "9999"]
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may have it ignored
        "from text2layer_core.cli import main\n"
        "sys.exit(main())\n"
    )
    process = python("-c", script, *arguments, "--device", "cpu")
    try:
        deadline = time.monotonic() + 120
        while not (folder / "sheet-0002.png").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (cli.EXIT_INTERRUPTED, "")
    assert err.splitlines()[-1] == "interrupted"
    names = {path.name for path in folder.iterdir()}
    stems = [*PNG_NAMES, "layers.psd", "sheet.png"]
    count = len(names) // len(stems)
    assert count >= 2
    assert names == {name.replace(".", f"-{k:04d}.") for k in range(1, count + 1) for name in stems}
