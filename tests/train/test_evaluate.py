"""Judging drawn pictures: intervals, the judges, and the command."""

from __future__ import annotations

import json
import math
import signal
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.clip import tiny_clip
from tests.train.evaluators import PLACES, make_evaluator
from tests.train.test_check import make_model
from tests.train.test_train_diffusion import save_clip
from text2layer_core import metrics
from text2layer_core.checkpoint import CLIP_L, save_checkpoint
from text2layer_core.compositing import compose
from text2layer_core.distribution import clip_score, frechet_distance, inception_features, load_clip
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import Text2LayerPipeline
from train.data import DataConfig, open_source
from train.evaluate import main
from train.evaluator import save_evaluator
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache
from train.judge import (
    Drawing,
    Drawn,
    IconJudge,
    Interval,
    agreement,
    draw,
    mean_interval,
    on_named_side,
    resampled_distance,
)
from train.shards import ShardsConfig

LFS_POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.fixture
def source(sprites: SpriteCache, sprite_file: Path) -> IconSource:
    return IconSource(sprites, IconsConfig(cache=str(sprite_file), places=PLACES), 32, 0, "held_out")


@pytest.fixture
def files(sprites: SpriteCache, sprite_file: Path, tmp_path: Path) -> dict[str, str]:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.safetensors", make_model(sprite_file))
    save_evaluator(tmp_path / "evaluator.safetensors", make_evaluator(sprites))
    return {"--model": str(tmp_path / "model.safetensors"), "--evaluator": str(tmp_path / "evaluator.safetensors"),
            "--out": str(tmp_path / "out"), "--count": "12", "--references": "24", "--steps": "2"}


def call(options: dict[str, str], *flags: str) -> int:
    return main([word for pair in options.items() for word in pair] + list(flags))


def test_interval_of_a_mean() -> None:
    """1.96 standard errors of n normal values, to the bootstrap's own noise; NaN is left out; equals have none."""
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    found = mean_interval(torch.cat([values, torch.tensor([math.nan])]))
    assert found.value == pytest.approx(float(values.mean()), abs=1e-6)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * float(values.std()) / 2000**0.5, rel=0.1)
    still = mean_interval(torch.ones(5))
    assert (still.low, still.value, still.high) == (1.0, 1.0, 1.0)
    assert math.isnan(mean_interval(torch.tensor([math.nan])).value)


def test_interval_of_a_distance_covers_the_truth() -> None:
    """The mean of a linear statistic: its jackknife is exact, so the interval is the mean's.

    The squared distance of two normal clouds two apart on both axes is 8, and its variance 4 x 8 / n for n points
    against many: most intervals hold 8, and their half is 1.96 standard errors.
    """
    features = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    found = resampled_distance(features, features, lambda first, _: float(first[:, 0].mean()))
    assert found.value == pytest.approx(float(features[:, 0].mean()), abs=1e-6)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / 1000**0.5, rel=0.5)
    generator = torch.Generator().manual_seed(1)
    several = [
        resampled_distance(torch.randn(1000, 2, generator=generator),
                           torch.randn(20_000, 2, generator=generator) + 2, frechet_distance) for _ in range(40)
    ]
    assert sum(each.low < 8 < each.high for each in several) >= 34
    halves = [(each.high - each.low) / 2 for each in several]
    assert sum(halves) / len(halves) == pytest.approx(1.96 * (32 / 1000) ** 0.5, rel=0.12)


@pytest.mark.parametrize(("half", "shown"), [
    (0.0, "0.012 ± 0.000"), (0.123, "0.012 ± 0.123"), (0.012, "0.012 ± 0.012"), (0.0012, "0.0123 ± 0.0012"),
    (0.00012, "0.01235 ± 0.00012"), (1e-9, "0.012346 ± 0.000000"), (12.0, "0.012 ± 12.000"),
    (math.nan, "0.012 ± nan"),
])
def test_an_interval_in_words(half: float, shown: str) -> None:
    """Two digits of the width are shown, but never less than three decimals, nor more than six."""
    value = 0.0123456
    assert str(Interval(value, value - half, value + half)) == shown


def test_the_truth_is_judged_as_true(source: IconSource, sprites: SpriteCache) -> None:
    """Exact figures on exact layers; whether leakage catches a thing, tests/train/test_bundled_evaluator.py says."""
    torch.manual_seed(0)
    judge = IconJudge(make_evaluator(sprites), source, 64)
    image = source.batch(0, 24).image
    found = judge.figures(Drawn(image, compose(image)))
    assert float(found["thing_top1_nearest_sprite"].mean()) > 0.8
    torch.testing.assert_close(found["area"], image.mask.mean(dim=(1, 2, 3)))
    assert found["consistency_psnr"].tolist() == [100.0] * 24
    torch.testing.assert_close(found["fringe"], metrics.fringe(image.foreground, image.mask), equal_nan=True)
    assert found["side"][found["side"].isfinite()].mean() == 1
    assert found["side"].isfinite().any()


def test_one_true_background_in_a_hundred_counts_as_leaking(source: IconSource, sprites: SpriteCache) -> None:
    """By the threshold's definition, to the sampling error (0.4 points) of 1,000 references and 1,000 other scenes."""
    torch.manual_seed(0)
    judge = IconJudge(make_evaluator(sprites), source, 1000)
    backgrounds, (things, _) = source.batch(0, 1000).image.background, source.labels(0, 1000)
    scores = judge.evaluator.thing_scores(backgrounds)[range(1000), things]
    assert float((scores > judge.threshold).float().mean()) == pytest.approx(0.01, abs=0.008)


def test_means_of_each_thing_and_place(source: IconSource, sprites: SpriteCache) -> None:
    """By hand from the scenes; a figure that a picture lacks is left out of the mean."""
    figures = {"index": torch.arange(24.0), "gaps": torch.where(torch.arange(24) % 2 > 0, torch.arange(24.0), math.nan)}
    found = IconJudge(make_evaluator(sprites), source, 8).by_word(figures)
    scenes = source.scenes(0, 24)
    for kind, words in (("by_thing", [scene.thing.name for scene in scenes]), ("by_place", [s.place for s in scenes])):
        assert set(found[kind]) == set(words)
        for word, means in found[kind].items():
            rows = [row for row, other in enumerate(words) if other == word]
            assert means["pictures"] == len(rows)
            assert means["index"] == pytest.approx(sum(rows) / len(rows))
            odd = [row for row in rows if row % 2]
            assert means["gaps"] == pytest.approx(sum(odd) / len(odd) if odd else math.nan, nan_ok=True)


def test_unknown_words(source: IconSource, sprites: SpriteCache) -> None:
    with pytest.raises(ValueError, match="must know every thing and place, got beach"):
        IconJudge(make_evaluator(sprites, PLACES[:1] + PLACES[2:]), source, 8)


def test_drawing_goes_on_where_it_stopped(source: IconSource, sprite_file: Path, tmp_path: Path) -> None:
    """Stopped in the middle of a picture; the second call draws the rest, the third nothing, another key all."""
    pipeline = Text2LayerPipeline(make_model(sprite_file))
    drawing = Drawing(count=6, steps=2, guidance_scale=2.0, batch_size=2)
    whole = draw(pipeline, source, drawing, tmp_path / "whole", "key")

    class Stops:
        model, calls = pipeline.model, 0

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return pipeline(*arguments, **options)

    stops: Any = Stops()
    with pytest.raises(KeyboardInterrupt):
        draw(stops, source, drawing, tmp_path / "parts", "key")
    resumed = draw(stops, source, drawing, tmp_path / "parts", "key")
    assert stops.calls == 4
    torch.testing.assert_close(resumed.layers.stack(), whole.layers.stack(), rtol=0, atol=0)
    draw(stops, source, drawing, tmp_path / "parts", "key")
    assert stops.calls == 4
    draw(stops, source, drawing, tmp_path / "parts", "another key")
    assert stops.calls == 7


def test_the_command(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the same report; sheet and plots; the table names the figures."""
    assert call(files, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    out = Path(files["--out"])
    assert call({**files, "--out": str(out.with_name("again"))}, "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert json.loads((out / "report.json").read_text()) == first
    assert first["truth"]["thing_top1_nearest_sprite"]["value"] > 0.6
    assert first["autoencoder"].keys() >= {"similarity", "leakage", "consistency_psnr", "frechet_distance"}
    assert first["autoencoder"]["similarity"] not in (first["model"]["similarity"], first["truth"]["similarity"])
    assert sum(found["pictures"] for found in first["by_place"].values()) == 12
    assert list(first["traces"]) == ["0.03", "0.05", "0.1", "0.2"]
    with Image.open(out / "sheet.png") as sheet, Image.open(out / "masks.png") as plots:
        assert sheet.size == (8 * 32, 12 * 32)
        assert plots.width > 800
    assert call(files) == 0
    table = capsys.readouterr().out
    assert "frechet_distance" in table
    assert "leakage" in table
    assert f"{Interval(**first['traces']['0.2'])} at 0.2" in table


def test_other_weights_under_the_same_card_are_drawn_anew(
    files: dict[str, str], sprite_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(files, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    model = make_model(sprite_file)
    with torch.no_grad():
        model.autoencoder.heads["background"].conv2.bias.add_(1)
    save_checkpoint(Path(files["--model"]), model)
    assert call(files, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"]["similarity"] != first["model"]["similarity"]


def test_the_prompts_are_those_of_the_split(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Another split, other prompts: nothing that was drawn of one is taken for the other."""
    found = []
    for split in ("held_out", "train"):
        assert call({**files, "--split": split}, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [report["split"] for report in found] == ["held_out", "train"]
    assert found[0]["truth"] != found[1]["truth"]
    assert found[0]["model"] != found[1]["model"]


def test_the_side_that_a_caption_names() -> None:
    """Against where the mask's weight lies; nothing to say without a side, or without a mask."""
    mask = torch.zeros(6, 1, 8, 10)
    mask[:, :, 2:6, 1:4] = 0.5
    mask[1:3, :, :, 9] = 1.0
    mask[4] = 0
    captions = ["a fox to the left, 3d style", "a fox to the left", "fox beach small right", "a fox",
                "a fox on the right", "a fox, on the right"]
    found = on_named_side(mask, captions).tolist()
    assert found[:3] == [1.0, 0.0, 1.0]
    assert math.isnan(found[3])
    assert math.isnan(found[4])
    assert found[5] == 0.0


def test_agreement_by_hand() -> None:
    """0.6 on the left half, where the reference is 1: cut at 0.5 they are one, soft they share 0.6.

    The measures of salient object detection stretch the map to [0, 1] first: here it is the reference then.
    """
    mask, reference = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4], reference[..., :4] = 0.6, 1
    found = {name: float(values) for name, values in agreement(mask, reference).items()}
    assert found["iou_saliency"] == 1
    assert found["soft_iou_saliency"] == pytest.approx(0.6)
    assert found["mae_saliency"] == pytest.approx(0)
    assert found["s_measure"] == pytest.approx(1)
    assert found["e_measure"] > 0.95
    assert found["f_measure"] > 0.95


@pytest.mark.parametrize(("options", "message"), [
    ({"--count": "3", "--steps": "0"}, "--count must be at least 10, got 3; --steps must be at least 1, got 0"),
    ({"--cfg": "nan"}, "--cfg must be finite and at least 0, got nan"),
    ({"--evaluator": "none.safetensors"}, "the icon evaluator must be a file, found none at none.safetensors"),
    ({"--data": "none-*.tar"}, "shards of the split held_out must exist"),
    ({"--data": "none-*.tar", "--split": "train"}, "--split train must go with --data icons, got none-*.tar"),
])
def test_bad_input(
    files: dict[str, str], options: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call({**files, **options}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def write_shard(path: Path, source: IconSource, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for index, stack in enumerate(source.batch(0, count).stack):
            pixels = (stack * 255).round().byte().movedim(0, -1).numpy()
            parts = {"foreground.png": pixels[..., :3], "background.png": pixels[..., 3:6], "mask.png": pixels[..., 6]}
            members = {name: BytesIO() for name in parts}
            for name, values in parts.items():
                Image.fromarray(values).save(members[name], "PNG")
            members["txt"] = BytesIO(source.captions(index, 1)[0].encode())
            for name, content in members.items():
                member = tarfile.TarInfo(f"{index:06d}.{name}")
                member.size = len(content.getvalue())
                content.seek(0)
                archive.addfile(member, content)


class _Inception(torch.nn.Module):
    """Mean colours as features, in the form of the TorchScript Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_shards_by_the_papers_judges(files: dict[str, str], source: IconSource, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in Inception from a TorchScript file, a small CLIP from its folder; without it no similarity."""
    write_shard(tmp_path / "held-0.tar", source, 40)
    torch.jit.script(_Inception()).save(str(tmp_path / "inception.pt"))
    options = {**files, "--data": str(tmp_path / "held-*.tar"), "--inception": str(tmp_path / "inception.pt")}
    assert call(options, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    shards = DataConfig(source="shards", size=32, shards=ShardsConfig(files="", held_out=options["--data"]))
    held_out = open_source(shards, "held_out")
    true = compose(held_out.batch(0, 36).image)
    means = [inception_features(lambda shown: ((shown - 128) / 128).mean(dim=(2, 3)), part)
             for part in (true[:12], true[12:])]
    assert report["truth"]["frechet_distance"]["value"] == pytest.approx(frechet_distance(*means), rel=1e-3)
    assert report["model"]["frechet_distance"]["value"] > report["truth"]["frechet_distance"]["value"]
    assert "similarity" not in report["model"]
    for part in tiny_clip():
        part.save_pretrained(tmp_path / "clip")
    assert call({**options, "--clip": str(tmp_path / "clip")}, "--json") == 0
    scores = clip_score(*load_clip(tmp_path / "clip", torch.device("cpu")), true[:12], held_out.captions(0, 12))
    assert json.loads(capsys.readouterr().out)["truth"]["similarity"]["value"] == pytest.approx(
        float(scores.mean()), abs=1e-5)
    assert call({**options, "--saliency": "grabcut"}, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["truth"]["iou_saliency"]["value"] > report["model"]["iou_saliency"]["value"] >= 0
    (tmp_path / "text.pt").write_text("no")
    torch.jit.script(_Inception().layers).save(str(tmp_path / "layers.pt"))
    (tmp_path / "clip" / "model.safetensors").write_text(LFS_POINTER)
    for name, value, message in (
        ("inception", "none", "a TorchScript file, found none at none"),
        ("inception", str(tmp_path / "text.pt"), "must be a TorchScript file with Inception's layers, got "),
        ("inception", str(tmp_path / "layers.pt"), "must be a TorchScript file with Inception's layers, got "),
        ("clip", "none", "found no config.json"),
        ("clip", str(tmp_path / "clip"), "clip must be a folder with a CLIP model, got "),
        ("saliency", "none", "path must be a folder of a transformers model"),
        ("references", "29", "samples must be at least 41 (--count, and --references for --inception), got 40"),
    ):
        assert call({**options, f"--{name}": value}) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert message in line
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert call({**options, "--saliency": "grabcut"}) == 2
    assert capsys.readouterr().err == "error: cv2 must be installed (pip install -e .[synthesis]), found none\n"


def test_shards_without_clip_have_a_sheet(files: dict[str, str], source: IconSource, tmp_path: Path) -> None:
    """By how well layers and auxiliary picture agree: the first picture's is the highest."""
    write_shard(tmp_path / "held-0.tar", source, 12)
    assert call({**files, "--data": str(tmp_path / "held-*.tar")}) == 0
    stack = torch.from_numpy(np.load(Path(files["--out"]) / "drawn" / "stack.npy")).float() / 255
    predicted = torch.from_numpy(np.load(Path(files["--out"]) / "drawn" / "predicted.npy")).float() / 255
    composed = compose(TwoLayerImage.from_stack(stack))
    best = composed[metrics.consistency_psnr(predicted, composed).argmax()]
    with Image.open(Path(files["--out"]) / "sheet.png") as sheet:
        first = torch.from_numpy(np.array(sheet.convert("RGB"))[:32, :32]).permute(2, 0, 1) / 255
    torch.testing.assert_close(first, best, atol=1 / 255, rtol=0)


def test_a_model_that_leaves_clip_out(
    files: dict[str, str], sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text encoder comes from a folder; another folder's pictures are drawn anew."""
    save_checkpoint(Path(files["--model"]), replace(make_model(sprite_file), external_text_encoder=CLIP_L))
    assert call(files) == 2
    assert f"needs {CLIP_L}: text_encoder must be a folder that holds it" in capsys.readouterr().err
    folder = save_clip(tmp_path / "clip")
    assert call({**files, "--text-encoder": str(folder)}, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert -1 <= first["model"]["similarity"]["value"] <= 1
    drawn = Path(files["--out"]) / "drawn" / "state.json"
    key = drawn.read_text()
    assert call({**files, "--text-encoder": str(save_clip(tmp_path / "other"))}, "--json") == 0
    assert drawn.read_text() != key


def test_ctrl_c(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of drawing."""
    monkeypatch.setattr(Text2LayerPipeline, "__call__", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert call(files) == 130
    assert capsys.readouterr().err.endswith("\nstopped; the same command goes on from there\n")
    monkeypatch.undo()
    assert call(files) == 0
