"""The release step; the released file against the model that went in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder, with_background_decoder
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.schedule import ScheduleConfig
from train.release import LICENCES, main

SEEN = {"model": 12, "decoder": None}
FIGURES = {"images": SEEN, "autoencoder": {"composed_psnr": {"model": 27.5, "thumbnail": 25.0}}}


def make_model(*, seed: int = 0, head_channels: int = 8) -> Text2LayerModel:
    torch.manual_seed(seed)
    config = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                               patch_size=2, head_channels=head_channels)
    return Text2LayerModel(CaT2IAutoencoder(config), None, None, ScheduleConfig(), {"images": 12, "seed": 3})


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    save_checkpoint(tmp_path / "model.safetensors", make_model())
    (tmp_path / "report.json").write_text(json.dumps(FIGURES), encoding="utf-8")
    return ["--model", str(tmp_path / "model.safetensors"), "--report", str(tmp_path / "report.json"),
            "--hardware", "two CPU cores", "--out", str(tmp_path / "models" / "released.safetensors")]


def test_release_completes_the_card(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    path = tmp_path / "models" / "released.safetensors"
    released, model = load_checkpoint(path), load_checkpoint(tmp_path / "model.safetensors")
    assert released.card == {"images": 12, "seed": 3, "name": "text2layer-mini", "hardware": "two CPU cores",
                             "licences": LICENCES, "figures": FIGURES}
    assert released.schedule == model.schedule
    found, expected = released.autoencoder.state_dict(), model.autoencoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert capsys.readouterr().err == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"


def test_without_a_report_the_card_has_no_figures(arguments: list[str], tmp_path: Path) -> None:
    where = arguments.index("--report")
    assert main(arguments[:where] + arguments[where + 2 :]) == 0
    assert "figures" not in load_checkpoint(tmp_path / "models" / "released.safetensors").card


def test_a_finer_decoder_is_taken(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on behind the same encoder, so that the latents stay what the UNet knows."""
    finer = load_checkpoint(tmp_path / "model.safetensors")
    with torch.no_grad():
        finer.autoencoder.decoder.conv_in.weight.mul_(2)
        finer.autoencoder.post_quant_conv.weight.mul_(2)
    finer.card = {"images": 20}
    save_checkpoint(tmp_path / "finer.safetensors", finer)
    arguments += ["--autoencoder", str(tmp_path / "finer.safetensors"), "--name", "finer"]
    assert "got one of {'model': 12, 'decoder': None}" in refused(arguments, capsys)  # figures of the old decoder
    report = FIGURES | {"images": SEEN | {"decoder": 20}}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(arguments) == 0
    released = load_checkpoint(tmp_path / "models" / "released.safetensors")
    assert (released.card["name"], released.card["images"]) == ("finer", 12)
    assert released.card["autoencoder"] == {"images": 20}
    found, expected = released.autoencoder.state_dict(), finer.autoencoder.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_decoder_for_the_background_is_taken(arguments: list[str], tmp_path: Path) -> None:
    finer = load_checkpoint(tmp_path / "model.safetensors").autoencoder
    own = CaT2IAutoencoder(replace(finer.config, background_decoder=True))
    own.load_state_dict(with_background_decoder(finer.state_dict()))
    with torch.no_grad():
        own.background_decoder.conv_in.weight.mul_(2)
    save_checkpoint(tmp_path / "finer.safetensors", Text2LayerModel(own, None, None, ScheduleConfig(), {"images": 20}))
    report = FIGURES | {"images": SEEN | {"decoder": 20}}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main([*arguments, "--autoencoder", str(tmp_path / "finer.safetensors")]) == 0
    released = load_checkpoint(tmp_path / "models" / "released.safetensors").autoencoder
    assert released.config.background_decoder
    found, expected = released.state_dict(), load_checkpoint(tmp_path / "finer.safetensors").autoencoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not Path(arguments[arguments.index("--out") + 1]).exists()
    return error


@pytest.mark.parametrize("other", [{"seed": 1}, {"head_channels": 4}])
def test_another_encoder_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, int]
) -> None:
    save_checkpoint(tmp_path / "other.safetensors", make_model(**other))
    error = refused([*arguments, "--autoencoder", str(tmp_path / "other.safetensors")], capsys)
    assert "--autoencoder must have the model's own encoder (train it with frozen_encoder), got another" in error


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{", "--report must be JSON, got "),
        ("[]", "--report must hold a JSON object, got "),
        ('{"images": 8}', f"--report must be of this model, trained on {SEEN} images, got one of 8"),
        ('{"images": {"model": 12, "decoder": null}, "spread": NaN}', "card must hold only what JSON can"),
    ],
)
def test_a_report_that_does_not_fit(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, message: str
) -> None:
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize("option", ["--model", "--report"])
def test_missing_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert str(tmp_path / "absent") in refused([*arguments, option, str(tmp_path / "absent")], capsys)


def test_a_folder_that_cannot_be_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments[-1] = str(tmp_path / "file" / "released.safetensors")
    assert str(tmp_path / "file") in refused(arguments, capsys)
