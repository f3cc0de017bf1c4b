"""The text encoder's pretraining on a tiny model and drawn icons."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional

from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, train_tokenizer
from train import train_diffusion
from train.config import parse
from train.engine import Part
from train.train_diffusion import TextConfig, make_text_encoder
from train.train_text_encoder import LatentTower, TextTrainingConfig, main, make_task

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a tokenizer here."""
    monkeypatch.setattr(train_diffusion, "_TOKENIZER_CAPTIONS", 100)


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path) -> dict[str, Any]:
    """A config file's content: 32 px, latents (4, 8, 8)."""
    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(AutoencoderConfig(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, patch_size=2,
        head_channels=8))
    path = tmp_path / "autoencoder.safetensors"
    save_checkpoint(path, Text2LayerModel(autoencoder, None, None, ScheduleConfig()))
    return {
        "run": str(tmp_path / "run"),
        "autoencoder": str(path),
        "data": {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}},
        "cached": 64,
        "encoder": {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2,
                    "max_length": 32},
        "training": {"images": 1280, "batch_size": 32, "learning_rate": 0.003, "ema_half_life": 64},
    }


@torch.no_grad()
def test_loss_is_the_symmetric_cross_entropy(values: dict[str, Any]) -> None:
    """Written out by hand: pairs on the diagonal, temperature 10 at the start."""
    task = make_task(parse(values, TextTrainingConfig, "test"), CPU)
    latents, ids = task.batch(Part(0, 6), CPU)
    pictures = functional.normalize(task.model.latents(latents), dim=1)
    captions = functional.normalize(task.model.projection(task.model.text_encoder(ids)[:, -1]), dim=1)
    logits = 10 * captions @ pictures.T
    rows = -functional.log_softmax(logits, dim=1).diagonal().mean()
    columns = -functional.log_softmax(logits, dim=0).diagonal().mean()
    assert float(task.model((latents, ids))["loss"]) == pytest.approx(float((rows + columns) / 2), rel=1e-4)


def test_captions_find_their_pictures(values: dict[str, Any], tmp_path: Path) -> None:
    """64 samples seen 20 times: far above one in 32; the export starts a UNet's text encoder."""
    config_file = tmp_path / "config.yaml"
    config_file.write_text(yaml.safe_dump(values), encoding="utf-8")
    torch.manual_seed(0)
    assert main(["--config", str(config_file)]) == 0
    exported = tmp_path / "run" / "model.safetensors"
    model = load_checkpoint(exported)
    assert model.unet is None
    assert model.text_encoder is not None
    config = parse(values, TextTrainingConfig, "test")
    task = make_task(config, CPU)
    encoder = make_text_encoder(TextConfig(pretrained=str(exported)), task._latents._source)
    prompt = "a circle on a beach"
    assert torch.equal(encoder.encode(prompt), model.text_encoder.encode(prompt))
    state = torch.load(sorted((tmp_path / "run" / "states").glob("*.pt"))[-1], weights_only=True)
    task.model.load_state_dict(state["modules"]["text"])
    with torch.no_grad():
        report = task.model(task.batch(Part(0, 32), CPU))
    assert float(report["top1"]) > 0.5
    assert float(report["loss"]) < math.log(32)


def test_the_tower_keeps_where_things_are() -> None:
    """A mirrored latent gives another embedding, of length 256."""
    torch.manual_seed(0)
    tower = LatentTower(4, 8).eval()
    latents = torch.randn(2, 4, 8, 8)
    assert tower(latents).shape == (2, 256)
    assert not torch.allclose(tower(latents), tower(latents.flip(3)), atol=1e-3)


def test_pretrained_must_hold_a_text_encoder(values: dict[str, Any]) -> None:
    source = make_task(parse(values, TextTrainingConfig, "test"), CPU)._latents._source
    with pytest.raises(ValueError, match="text must name a checkpoint with a text encoder, got"):
        make_text_encoder(TextConfig(pretrained=values["autoencoder"]), source)


@pytest.mark.parametrize("keys", [{}, {"clip": "a", "pretrained": "b"}])
def test_text_is_one_of_three(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="text must have one of encoder, pretrained and clip"):
        TextConfig(**keys)


def test_init_from_takes_the_tokenizer_too(values: dict[str, Any], tmp_path: Path) -> None:
    """Weights that were trained on another vocabulary mean its tokens."""
    task = make_task(parse(values, TextTrainingConfig, "test"), CPU)
    other = TextEncoder(task.model.text_encoder.config, train_tokenizer(["zebra zebu zero zest"] * 4, 520).to_str())
    task.model.text_encoder = other
    task.export(tmp_path / "other.safetensors", 5)
    fresh = make_task(parse(values, TextTrainingConfig, "test"), CPU)
    assert fresh.model.text_encoder.tokenizer_json != other.tokenizer_json
    fresh.load_weights(tmp_path / "other.safetensors")
    assert fresh.model.text_encoder.tokenizer_json == other.tokenizer_json
    assert torch.equal(fresh.model.text_encoder.tokenize(["a zebra"]), other.tokenize(["a zebra"]))


def test_init_from_another_shape_is_refused(values: dict[str, Any]) -> None:
    task = make_task(parse(values, TextTrainingConfig, "test"), CPU)
    with pytest.raises(ValueError, match="--init-from must hold the configured text encoder"):
        task.load_weights(Path(values["autoencoder"]))
