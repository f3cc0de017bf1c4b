"""The held-out check; expected values by hand, on the truth itself, or from `text2layer_core.metrics`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from text2layer_core import metrics
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNetConfig, build_unet
from train import check
from train.check import PlaceProbe, check_autoencoder, format_report, main, reconstruction_figures, thumbnail
from train.data import DataConfig
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache

CPU = torch.device("cpu")
PLACES = ("meadow", "beach", "snow", "desert", "underwater", "space")


def icons(path: Path) -> IconsConfig:
    return IconsConfig(cache=str(path), places=PLACES)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six places need fewer scenes than all."""
    monkeypatch.setattr(check, "_PROBE_SCENES", 300)
    monkeypatch.setattr(check, "_PROBE_UNSEEN", 100)


@pytest.fixture
def source(sprites: SpriteCache, sprite_file: Path) -> IconSource:
    return IconSource(sprites, icons(sprite_file), 32, 0)


def make_model(path: Path, *, composed_head: bool = True, unet: bool = True) -> Text2LayerModel:
    """Random weights at 32 px; its card names the drawn icons."""
    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(AutoencoderConfig(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, patch_size=2,
        head_channels=8, composed_head=composed_head))
    data = DataConfig(source="icons", size=32, icons=icons(path))
    card = {"images": 12, "resolution": 32, "guidance_scale": 2.0, "data": asdict(data)}
    if not unet:
        return Text2LayerModel(autoencoder, None, None, ScheduleConfig(), card)
    tokenizer = train_tokenizer(["a ball on the beach"] * 3, 600)
    encoder = TextEncoder(TextEncoderConfig(vocab_size=600, hidden_size=32, intermediate_size=32, num_layers=1,
                                            num_heads=2, max_length=16), tokenizer.to_str())
    network = build_unet(UNetConfig(in_channels=4, block_out_channels=(32, 32), layers_per_block=1,
                                    attention_levels=(False, True), num_heads=2, cross_attention_dim=32))
    return Text2LayerModel(autoencoder, network, encoder, ScheduleConfig(), card)


def test_thumbnail_of_a_constant_is_the_constant() -> None:
    picture = torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1).expand(2, 3, 32, 48)
    torch.testing.assert_close(thumbnail(picture), picture, rtol=0, atol=1e-6)


def test_thumbnail_keeps_one_pixel_in_64() -> None:
    """A fine chequer becomes its mean away from the rim; a slow ramp stays; the range is kept."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    chequer = ((x + y) % 2).float().view(1, 1, 64, 64)
    assert (thumbnail(chequer)[..., 16:-16, 16:-16] - 0.5).abs().max() < 0.01
    ramp = (x / 63).view(1, 1, 64, 64)
    assert (thumbnail(ramp) - ramp)[..., 16:-16].abs().max() < 0.01
    edge = (x >= 32).float().view(1, 1, 64, 64)
    assert float(thumbnail(edge).min()) >= 0
    assert float(thumbnail(edge).max()) <= 1


def test_figures_of_the_truth_against_itself(source: IconSource) -> None:
    truth = source.batch(0, 4).image
    figures = reconstruction_figures(truth, truth)
    expected = {"composed_psnr": 100.0, "foreground_psnr": 100.0, "background_psnr": 100.0, "mask_iou": 1.0,
                "mask_soft_iou": 1.0,
                "mask_soft_band_sad": 0.0, "mask_sad": 0.0, "mask_mse": 0.0, "mask_gradient": 0.0,
                "mask_connectivity": 0.0}
    assert {name: values.tolist() for name, values in figures.items()} == {
        name: [pytest.approx(value)] * 4 for name, value in expected.items()
    }


def test_figures_by_hand() -> None:
    """Background off by 0.1: 20 dB. Mask 0.6 for 0.5 on half the pixels: IoU 5/6, SAD 0.1 x 32, composed by eq. 1."""
    grey = torch.full((1, 3, 8, 8), 0.5)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 0.5
    truth = TwoLayerImage(grey, grey, mask)
    figures = reconstruction_figures(TwoLayerImage(grey, grey + 0.1, mask * 1.2), truth)
    assert float(figures["background_psnr"]) == pytest.approx(20, abs=1e-3)
    assert float(figures["mask_soft_iou"]) == pytest.approx(5 / 6)
    assert float(figures["mask_soft_band_sad"]) == pytest.approx(3.2)
    assert float(figures["mask_sad"]) == pytest.approx(3.2)
    assert float(figures["mask_mse"]) == pytest.approx(0.005)
    error = 0.5 * (0.4 * 0.1) ** 2 + 0.5 * 0.1**2
    assert float(figures["composed_psnr"]) == pytest.approx(-10 * math.log10(error), abs=1e-3)
    assert math.isnan(float(figures["foreground_psnr"]))  # no pixel above 0.5


def test_autoencoder_figures_are_means_over_all_scenes(
    source: IconSource, sprite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five scenes in parts of two, against the metrics of all at once."""
    monkeypatch.setattr(check, "_BATCH", 2)
    model = make_model(sprite_file, unet=False)
    found = check_autoencoder(model, source, 5, CPU)
    truth = source.batch(0, 5).image
    with torch.no_grad():
        decoded = model.autoencoder.decode(model.autoencoder.encode(truth).mode())
    assert decoded.predicted_composed is not None
    blurred = thumbnail(truth.mask)
    expected = {
        "composed_psnr": (metrics.psnr(compose(decoded.layers), compose(truth)),
                          metrics.psnr(thumbnail(compose(truth)), compose(truth))),
        "background_psnr": (metrics.psnr(decoded.layers.background, truth.background),
                            metrics.psnr(thumbnail(truth.background), truth.background)),
        "foreground_psnr": (metrics.masked_psnr(decoded.layers.foreground, truth.foreground, truth.mask),
                            metrics.masked_psnr(thumbnail(truth.foreground), truth.foreground, truth.mask)),
        "mask_iou": (metrics.iou(decoded.layers.mask, truth.mask), metrics.iou(blurred, truth.mask)),
        "mask_soft_iou": (metrics.soft_iou(decoded.layers.mask, truth.mask), metrics.soft_iou(blurred, truth.mask)),
        "mask_soft_band_sad": (metrics.soft_band_sad(decoded.layers.mask, truth.mask),
                               metrics.soft_band_sad(blurred, truth.mask)),
    }
    for name, (of_model, of_thumbnail) in expected.items():
        assert found[name]["model"] == pytest.approx(float(of_model.nanmean()), rel=1e-4), name
        assert found[name]["thumbnail"] == pytest.approx(float(of_thumbnail.nanmean()), rel=1e-4), name
    predicted = metrics.psnr(decoded.predicted_composed, compose(truth))
    assert found["predicted_composed_psnr"] == {"model": pytest.approx(float(predicted.mean()), rel=1e-4)}


def test_probe_and_nearest_sprite_know_true_composites(sprites: SpriteCache, sprite_file: Path) -> None:
    source = IconSource(sprites, icons(sprite_file), 64, 0)
    probe = PlaceProbe(source)
    scenes, truth = source.scenes(1000, 60), source.batch(1000, 60).image
    assert probe.places == list(PLACES)
    places = [PLACES[int(i)] for i in probe(truth.background)]
    assert sum(found == scene.place for found, scene in zip(places, scenes, strict=True)) >= 54
    assert probe.accuracy >= 0.9
    assert torch.equal(probe(truth.background), PlaceProbe(source)(truth.background))
    bank = metrics.sprite_bank(*source.sprites(64))
    things = [source.things[int(i)].key for i in metrics.nearest_sprite(truth.foreground, truth.mask, bank)]
    assert sum(found == scene.thing.key for found, scene in zip(things, scenes, strict=True)) >= 54


def test_spread_by_hand() -> None:
    """Grey pictures 0, 0.3, 0.9 differ by 0.3, 0.9 and 0.6; a group of equal ones by 0; a group of one has none."""
    levels = torch.tensor([[0.0, 0.3, 0.9], [0.5, 0.5, 0.5]])
    groups = levels.view(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 4)
    assert check._spread(groups) == pytest.approx(0.3)
    assert check._spread(groups[:1]) == pytest.approx(0.6)
    assert check._spread(groups[:, :1]) is None


def test_report_shows_what_is_missing() -> None:
    report = {"autoencoder": {"composed_psnr": {"model": 21.5, "thumbnail": 20.25},
                              "foreground_psnr": {"model": None, "thumbnail": None},
                              "predicted_composed_psnr": {"model": 22.0}},
              "generation": {"prompts": 4, "sampler": "ddim", "consistency_psnr": None, "place_top1": 0.75}}
    assert [line.split() for line in format_report(report).splitlines()] == [
        ["autoencoder", "(held-out", "scenes)", "model", "thumbnail"],
        ["composed_psnr", "21.500", "20.250"],
        ["foreground_psnr", "-", "-"],
        ["predicted_composed_psnr", "22.000"],
        ["generation", "(held-out", "prompts)"],
        ["prompts", "4"],
        ["sampler", "ddim"],
        ["consistency_psnr", "-"],
        ["place_top1", "0.750"],
    ]


def run(path: Path, model: Text2LayerModel, *arguments: str) -> int:
    save_checkpoint(path, model)
    return main(["--model", str(path), "--device", "cpu", "--scenes", "3", *arguments])


def test_the_command_prints_json(sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheets" / "sheet.png"
    arguments = ["--prompts", "5", "--steps", "1", "--sheet", str(sheet), "--json"]
    assert run(tmp_path / "a.safetensors", make_model(sprite_file), *arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report.keys() == {"images", "autoencoder", "generation"}
    assert report["images"] == {"model": 12, "decoder": None}
    found = report["generation"]
    settings = {"prompts": 5, "steps": 1, "guidance_scale": 2.0, "sampler": "ddim"}
    assert settings.items() <= found.items()
    assert found["thing_top1_chance"] == pytest.approx(1 / 6)
    assert found["place_top1_true_composites"] >= 0.9
    assert found["thing_top1_true_composites"] >= 0.8
    shares = ["thing_top1", "place_top1", "mask_area_within_2_and_90_percent"]
    assert all(found[name] * 5 == pytest.approx(round(found[name] * 5)) for name in shares)
    assert found["spread_between_seeds"] > 0
    assert found["spread_between_prompts"] > 0
    assert found["consistency_psnr"] > 0
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 32, 32)


def test_the_command_prints_a_table_of_an_autoencoder(
    sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the no-sup variant, its icons elsewhere than when it was trained."""
    model = make_model(Path("/nowhere"), composed_head=False, unet=False)
    assert run(tmp_path / "a.safetensors", model, "--sprites", str(sprite_file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "autoencoder", "composed_psnr", "foreground_psnr", "background_psnr", "mask_iou", "mask_soft_iou",
        "mask_soft_band_sad",
        "mask_sad", "mask_mse", "mask_gradient", "mask_connectivity",
    ]


def test_one_prompt_without_composed_head_is_valid_json(
    sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(sprite_file, composed_head=False)
    assert run(tmp_path / "a.safetensors", model, "--prompts", "1", "--steps", "1", "--cfg", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["generation"]
    assert found["guidance_scale"] == 1
    assert found["consistency_psnr"] is None
    assert found["spread_between_prompts"] is None
    assert found["spread_between_seeds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "0"], "--scenes must be at least 1, got 0"),
        (["--prompts", "-1", "--steps", "0"],
         "--prompts must be at least 0, got -1; --steps must be at least 1, got 0"),
        (["--cfg", "nan"], "--cfg must be finite and at least 0, got nan"),
        (["--sprites", "/nowhere"], "the sprite cache must exist (python -m train.rasterise --out /nowhere), found"),
        (["--model", "/nowhere.safetensors"], "no such model: /nowhere.safetensors"),
    ],
)
def test_bad_arguments_are_one_line(
    sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(tmp_path / "a.safetensors", make_model(sprite_file, unet=False), *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without CUDA")
def test_a_device_that_is_not_there(
    sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a.safetensors", make_model(sprite_file, unet=False), "--device", "cuda") == 2
    assert capsys.readouterr().err == "error: --device must be one that this machine has, got cuda\n"


def test_models_that_cannot_be_checked(
    sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(sprite_file, unet=False)
    data: dict[str, Any] = model.card.pop("data")
    path = tmp_path / "a.safetensors"
    assert run(path, model) == 2
    assert "data in its card, got" in capsys.readouterr().err
    assert run(path, replace(model, card={"data": {**data, "source": "shards", "icons": None}})) == 2
    assert "must be trained on icons, got the source shards" in capsys.readouterr().err
    assert run(path, replace(model, card={"data": {**data, "sise": 32}})) == 2
    assert "card: data has an unknown key sise (nearest: size)" in capsys.readouterr().err
    external = replace(make_model(sprite_file), external_text_encoder="openai/clip-vit-large-patch14")
    assert run(path, external) == 2
    assert "it was trained with openai/clip-vit-large-patch14" in capsys.readouterr().err
    assert load_checkpoint(path).unet is not None
