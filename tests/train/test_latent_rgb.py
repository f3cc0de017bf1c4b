"""The live preview's factors: recovered where they are known, written where the host reads them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.schedule import ScheduleConfig
from train.data import DataConfig
from train.icons.source import IconsConfig
from train.latent_rgb import CARD_KEY, fit_latent_rgb, main, preview_psnr


def test_known_factors_are_found() -> None:
    """Colours made from latents by known factors, which the fit must give back."""
    torch.manual_seed(0)
    latents = torch.cat([torch.randn(500, 4), torch.ones(500, 1)], 1)
    truth = torch.randn(5, 3) * 0.1
    colours = (latents @ truth + 1) / 2
    fitted = fit_latent_rgb(latents, colours)
    torch.testing.assert_close(torch.tensor(fitted["factors"]), truth[:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(fitted["bias"]), truth[4], atol=1e-4, rtol=0)
    assert preview_psnr(latents, colours.clamp(0, 1), fitted) > 60


def test_the_card_is_completed_in_place(sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(AutoencoderConfig(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, patch_size=2))
    data = DataConfig(source="icons", size=32, icons=IconsConfig(cache=str(sprite_file)))
    path = tmp_path / "model.safetensors"
    card = {"images": 3, "data": asdict(data)}
    save_checkpoint(path, Text2LayerModel(autoencoder, None, None, ScheduleConfig(), card))
    before = load_checkpoint(path)
    assert main(["--model", str(path)]) == 0
    after = load_checkpoint(path)
    fitted = after.card.pop(CARD_KEY)
    assert [len(row) for row in fitted["factors"]] == [3] * 4
    assert len(fitted["bias"]) == 3
    assert after.card == before.card
    states = (model.autoencoder.state_dict() for model in (before, after))
    assert all(torch.equal(one, other) for one, other in zip(*(state.values() for state in states), strict=True))
    assert "dB" in capsys.readouterr().err


def test_a_model_without_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    autoencoder = CaT2IAutoencoder(AutoencoderConfig(latent_channels=4, block_out_channels=(8,), norm_num_groups=4))
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Text2LayerModel(autoencoder, None, None, ScheduleConfig(), {}))
    assert main(["--model", str(path)]) == 2
    assert capsys.readouterr().err == "error: --model must carry the section data in its card, got a card without one\n"
